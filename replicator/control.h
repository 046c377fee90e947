/*
 * control.h - the control connection: short messages both ways, on one path or on two. docs/link.md.
 *
 * A message is 32 bytes: u32 type | u32 reserved | u64 a | u64 b | u64 c.
 * The second path (tcp beside rdma) is there so that the first one's end is not the other side's death: what may not be
 * lost is sent on both, and reading it twice does no harm. All paths gone, or all silent, is what a death looks like.
 */
#ifndef RP_REPLICATOR_CONTROL_H
#define RP_REPLICATOR_CONTROL_H

#include "replicator/transport.h"

#include <pthread.h>

#define RP_CONTROL_BYTES 32u
#define RP_CONTROL_PATHS 2u

enum rp_control_type {
    RP_CTL_PATH_LOST = 0,   /* never on the wire: a path ended, another one lives; a: its index, b: errno */
    RP_CTL_HEARTBEAT = 1,   /* primary: a: its clock, ns. Standby, in answer: a: the epoch it holds, b: the clock it was sent,
                               c: frames it has taken */
    RP_CTL_ACK = 2,         /* a: every epoch up to it is held, whole and verified; c: frames taken */
    RP_CTL_BYE = 3,         /* a: enum rp_bye, b: epoch */
    RP_CTL_RUNNING = 4,     /* the VM runs on the side that says so */
    RP_CTL_REFUSED = 5,     /* the standby refuses what came; a: errno; the connection then ends */
    RP_CTL_SWITCH = 6,      /* the source: a switchover follows in this session; the standby says it back */
    RP_CTL_FAILED = 7,      /* the standby could not enter the final epoch, and will not */
    RP_CTL_REASON = 8,      /* of the REFUSED or FAILED that follows; a: offset in the text, b, c: 16 bytes of it */
};
#define RP_CONTROL_REASON 208u  /* bytes of such a text, its end included */

struct rp_control_msg {
    uint32_t type;
    uint64_t a, b, c;
};

struct rp_control_path {
    struct rp_conn *conn;               /* lock; NULL: none, or it has ended and was closed */
    uint8_t in[RP_CONTROL_BYTES];       /* receiving thread: a message that has come in part */
    unsigned have;
};

struct rp_control {
    pthread_mutex_t send_lock;          /* messages are whole; taken before lock */
    pthread_mutex_t lock;
    struct rp_control_path paths[RP_CONTROL_PATHS];
    int wake_fd;                        /* a path was added, or interrupt */
    bool interrupted;                   /* lock */
};
int rp_control_init(struct rp_control *c, struct rp_error *err) RP_MUST_CHECK;
void rp_control_fini(struct rp_control *c);     /* closes the paths */
/* Owns the connection. `path`: its place, or < 0: any that is free. -ENOSPC: the connection stays the caller's. */
int rp_control_add(struct rp_control *c, struct rp_conn *conn, int path) RP_MUST_CHECK;
/* Closes all paths; more may be added. No other thread is in recv. */
void rp_control_close(struct rp_control *c);
void rp_control_shutdown(struct rp_control *c); /* any thread: whoever waits gets -ECANCELED */
void rp_control_break(struct rp_control *c, unsigned path); /* any thread: the same for one path (fault points) */
void rp_control_interrupt(struct rp_control *c);    /* any thread: recv returns -EINTR, now or when it is next called */
unsigned rp_control_living(struct rp_control *c);
/* Name of the first living path's transport, "" when there is none. */
const char *rp_control_transport(struct rp_control *c);

/* Sends on every living path; one that takes nothing for a second (its other end reads no more) is over. 0 when one took it; the
 * last failure when none did. Any thread. */
int rp_control_send(struct rp_control *c, const struct rp_control_msg *m) RP_MUST_CHECK;
/* The same, on the first path that takes it. */
int rp_control_send_one(struct rp_control *c, const struct rp_control_msg *m) RP_MUST_CHECK;
/* Sends `type` (RP_CTL_REFUSED, RP_CTL_FAILED) on every living path, its reason before it. As rp_control_send. */
int rp_control_send_reason(struct rp_control *c, uint32_t type, const struct rp_error *why) RP_MUST_CHECK;
/* Puts a piece of a reason where it belongs; what does not fit is dropped, what a terminal might obey is not kept. */
void rp_control_reason(const struct rp_control_msg *m, char text[RP_CONTROL_REASON]);
/* The next message, from whichever path: 0. -ETIMEDOUT: all were silent for timeout_ms. -EINTR. When the last
 * path has ended: how. One thread. */
int rp_control_recv(struct rp_control *c, struct rp_control_msg *out, int timeout_ms) RP_MUST_CHECK;

#endif
