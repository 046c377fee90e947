/*
 * doors.h - where a standby can be reached: the address it was told to listen on, and beside rdma the same one over tcp.
 *
 * A door that breaks (its device was removed) is opened again and again while the other one is used. Whoever connects is greeted in the
 * hall (handshake.h), where he is in nobody's way whatever he says or leaves unsaid, and is shown out after a while. One thread at a time.
 */
#ifndef RP_REPLICATOR_DOORS_H
#define RP_REPLICATOR_DOORS_H

#include "replicator/handshake.h"

struct rp_door {
    struct rp_uri uri;
    struct rp_listener *listener;   /* NULL: broken */
    uint64_t retry_ns;              /* then: when to try again */
};
#define RP_HALL_MAX 16u             /* connected, and has not proven a key yet; the oldest goes for the next */
#define RP_HALL_NS 3000000000ull
struct rp_doors {
    struct rp_door doors[2];
    unsigned n;
    struct { struct rp_conn *conn; uint64_t since_ns; struct rp_greeting greeting; } hall[RP_HALL_MAX];    /* oldest first */
    unsigned waiting;
    int wake_fd;
    const struct rp_secret *key;
};

/* Owns the listener; on failure it stays the caller's. A tcp door that cannot be opened beside it is a warning. The key is borrowed. */
int rp_doors_init(struct rp_doors *d, struct rp_listener *l, const struct rp_secret *key, struct rp_error *err) RP_MUST_CHECK;
void rp_doors_fini(struct rp_doors *d);
/* Waits up to timeout_ms for a connection whose greeting is whole: rp_handshake_welcome goes on with it. -EAGAIN. */
int rp_doors_accept(struct rp_doors *d, int timeout_ms, struct rp_conn **out, struct rp_greeting *greeting) RP_MUST_CHECK;
/* Any thread: whoever is in accept, or comes there next, leaves at once with -EAGAIN. */
void rp_doors_wake(struct rp_doors *d);

#endif
