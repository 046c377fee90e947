/*
 * doors.h - where a standby can be reached: the address it was told to listen on, and beside rdma the same one over tcp.
 *
 * A door that breaks (its device was removed) is opened again and again while the other one is used. One thread at a time.
 */
#ifndef RP_REPLICATOR_DOORS_H
#define RP_REPLICATOR_DOORS_H

#include "replicator/transport.h"

struct rp_door {
    struct rp_uri uri;
    struct rp_listener *listener;   /* NULL: broken */
    uint64_t retry_ns;              /* then: when to try again */
};
struct rp_doors {
    struct rp_door doors[2];
    unsigned n;
};

/* Owns the listener. A tcp door that cannot be opened beside it is a warning. */
void rp_doors_init(struct rp_doors *d, struct rp_listener *l);
void rp_doors_fini(struct rp_doors *d);
/* Waits up to timeout_ms for a connection. -EAGAIN. */
int rp_doors_accept(struct rp_doors *d, int timeout_ms, struct rp_conn **out) RP_MUST_CHECK;

#endif
