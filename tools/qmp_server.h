/*
 * qmp_server.h - QMP on unix sockets: greeting, negotiation, several clients, commands from const tables, events.
 * Source: QEMU's "QEMU Machine Protocol Specification" (docs/interop/qmp-spec).
 *
 *     client ─bytes─► "qmp" thread ─request─► control thread: rp_qmp_dispatch ─► the command's run()
 *     client ◄─bytes─ "qmp" thread ◄─answer──┘         events (any thread) ─► bounded ring ─► "qmp" thread
 *
 * All handlers run on the one control thread, one at a time, so they may call the machine. What takes long is
 * started as a job (job.h) and answered at once. A client has one command in work; what it sends meanwhile waits in
 * its socket (qmp_client.h).
 */
#ifndef RP_TOOLS_QMP_SERVER_H
#define RP_TOOLS_QMP_SERVER_H

#include "core/event.h"
#include "tools/qmp_command.h"

#define RP_QMP_CLIENTS_MAX 32u
#define RP_QMP_CLIENTS_FURTHER_MAX 24u  /* of them, through sockets other than the first: the command always finds a place at its own */

struct rp_qmp;
int rp_qmp_create(struct rp_events *events, struct rp_qmp **out, struct rp_error *err) RP_MUST_CHECK;
/* Before start. Borrows the commands (qmp_command.h). */
int rp_qmp_add(struct rp_qmp *q, struct rp_qmp_table table, void *ctx, struct rp_error *err) RP_MUST_CHECK;
/* What there is to act on is there: from here on every command runs; the others were refused with `why_not` until now. */
void rp_qmp_not_ready(struct rp_qmp *q, const char *why_not);    /* before start; borrowed */
void rp_qmp_ready(struct rp_qmp *q);                             /* control thread */
/* Before start. Owns the listening socket from here on. At most two; the first is the one that the command comes to. A client too many is told
 * so, as an error, in place of the greeting. */
int rp_qmp_listen(struct rp_qmp *q, int fd, struct rp_error *err) RP_MUST_CHECK;
int rp_qmp_start(struct rp_qmp *q, struct rp_error *err) RP_MUST_CHECK;
/* Gives what is still to be said to clients a short while to leave, then closes all. */
void rp_qmp_destroy(struct rp_qmp *q);

/* Readable while requests wait; the control thread polls it and calls dispatch, which runs them all. */
int rp_qmp_request_fd(const struct rp_qmp *q);
void rp_qmp_dispatch(struct rp_qmp *q);

/* {"name": …} for each command of every table, for query-commands. */
json_t *rp_qmp_command_list(const struct rp_qmp *q);

#endif
