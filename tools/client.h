/*
 * client.h - the command's side of QMP: connect to a VM by name, negotiate, call, wait for events.
 * Thread: one. Every wait is bounded by the client's time limit.
 */
#ifndef RP_TOOLS_CLIENT_H
#define RP_TOOLS_CLIENT_H

#include "tools/qmp_input.h"

#include <stdbool.h>
#include <stdint.h>

struct rp_client;
/* `name`: a VM's name, or its socket's path. RP_EXIT_NO_VM when nobody answers. */
int rp_client_open(const char *name, struct rp_client **out, struct rp_error *err) RP_MUST_CHECK;
void rp_client_close(struct rp_client *c);
#define RP_CLIENT_END_NS 60000000000ull     /* for a VM to take its machine apart: it says nothing then, and hangs up when its disks are free */
/* What follows gives up after this time; 0: never. 10 s unless called. */
void rp_client_timeout(struct rp_client *c, uint64_t ns);

/* Sends a command and waits for its answer. Steals args (may be NULL). *result: the caller's reference; result may be NULL.
 * An error of the VM becomes err, with the VM's name in front and its exit code. */
int rp_client_call(struct rp_client *c, const char *command, json_t *args, json_t **result, struct rp_error *err) RP_MUST_CHECK;

/* Waits until the job `id` is concluded, calling progress (may be NULL) now and then. Returns the job's result.
 * -ECANCELED, RP_EXIT_INTERRUPTED: *interrupted became true; the job was asked to stop, and has. */
int rp_client_wait_job(struct rp_client *c, const char *id, void (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx,
                       const bool *interrupted, struct rp_error *err) RP_MUST_CHECK;

/* From here on SIGINT and SIGTERM wait until they are looked for: what a verb begins is called off, not left behind. Before it is begun. */
void rp_client_hold_interrupts(void);
bool rp_client_interrupted(uint64_t wait_ns);   /* has one come, or does within this time? */

/* Waits until the VM closes the connection (it ended). */
int rp_client_wait_end(struct rp_client *c, struct rp_error *err) RP_MUST_CHECK;

#endif
