/*
 * qmp_server.h - QMP on unix sockets: greeting, negotiation, several clients, commands from const tables, events.
 * Source: QEMU's "QEMU Machine Protocol Specification" (docs/interop/qmp-spec).
 *
 *     client ─bytes─► "qmp" thread ─request─► control thread: rp_qmp_dispatch ─► the command's run()
 *     client ◄─bytes─ "qmp" thread ◄─answer──┘         events (any thread) ─► bounded ring ─► "qmp" thread
 *
 * All handlers run on the one control thread, one at a time, so they may call the machine. What takes long is
 * started as a job (job.h) and answered at once. A client has one command in work; what it sends meanwhile waits in
 * its socket. A client that does not read what it is sent is dropped beyond RP_QMP_OUTPUT_MAX.
 */
#ifndef RP_TOOLS_QMP_SERVER_H
#define RP_TOOLS_QMP_SERVER_H

#include "core/event.h"

#include <jansson.h>

#define RP_QMP_CLIENTS_MAX 32u
#define RP_QMP_OUTPUT_MAX (1u << 20)
#define RP_QMP_TABLES_MAX 16u

enum rp_qmp_type { RP_QMP_STR, RP_QMP_BOOL, RP_QMP_INT, RP_QMP_SIZE, RP_QMP_ANY };  /* SIZE: not negative */
struct rp_qmp_arg {
    const char *name;
    uint8_t type;       /* enum rp_qmp_type */
    bool optional;
};

struct rp_qmp_call {
    void *ctx;          /* of the table */
    json_t *args;       /* borrowed; an object that agrees with the command's argument table */
    json_t *result;     /* out: the answer; NULL stands for {} */
};
struct rp_qmp_command {
    const char *name;
    /* 0, or -errno with the sentence that becomes the error's "desc" (class GenericError; DeviceNotFound for ENODEV). */
    int (*run)(struct rp_qmp_call *call, struct rp_error *err);
    const struct rp_qmp_arg *args;  /* ends with name == NULL; NULL: takes none */
    bool early;         /* also while rp_qmp_ready has not been called: needs no machine */
};

struct rp_qmp;
int rp_qmp_create(struct rp_events *events, struct rp_qmp **out, struct rp_error *err) RP_MUST_CHECK;
/* Before start. Borrows the table. */
int rp_qmp_add(struct rp_qmp *q, const struct rp_qmp_command *commands, unsigned n, void *ctx, struct rp_error *err) RP_MUST_CHECK;
#define RP_QMP_ADD(q, table, ctx, err) rp_qmp_add(q, table, sizeof(table) / sizeof((table)[0]), ctx, err)
/* What there is to act on is there: from here on every command runs; the others were refused with `why_not` until now. */
void rp_qmp_not_ready(struct rp_qmp *q, const char *why_not);    /* before start; borrowed */
void rp_qmp_ready(struct rp_qmp *q);                             /* control thread */
/* Before start. Owns the listening socket from here on. At most two. */
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
