/*
 * gather.h - the receiving side's lanes: frames that come on any of N connections, put back into their one order.
 *
 * Each lane's thread reads a frame and checks it; the frame whose turn it is is fed, later ones are parked (at most
 * RP_FRAME_WINDOW bytes: a sender that keeps to B1 never needs more, one that does not is refused), and one that was fed
 * already is dropped. A lane that ends, in the middle of a frame or not, takes nothing with it: the sender gives its
 * frames to another lane. Damage is another matter: what was received and is not what was sent ends the session.
 *
 * G1  Frames are fed in the order of their numbers, each once, by one thread at a time.
 * G2  `taken` is called after the frame was fed whole.
 *
 * Threads: one per lane; feed, taken, refused and lane_ended come from them, without locks. add, stop: one thread.
 */
#ifndef RP_REPLICATOR_GATHER_H
#define RP_REPLICATOR_GATHER_H

#include "core/stream.h"
#include "replicator/transport.h"

struct rp_gather_events {
    void *ctx;
    /* The next record, in order; < 0 refuses it. 1: an epoch was applied. */
    int (*feed)(void *ctx, const struct rp_record *r, struct rp_error *err);
    /* All frames up to `number`, `bytes` in all since the session began, were fed; `epoch`: one was applied among the last. */
    int (*taken)(void *ctx, uint64_t number, uint64_t bytes, bool epoch, struct rp_error *err);
    /* What came was refused, or taken failed: nothing more is fed, and the lanes stay until rp_gather_shutdown. Once. */
    void (*refused)(void *ctx, int rc, const struct rp_error *why);
    void (*lane_ended)(void *ctx, unsigned lane, const char *transport, int rc, unsigned left);
};

struct rp_gather;
int rp_gather_create(const struct rp_gather_events *events, struct rp_gather **out, struct rp_error *err) RP_MUST_CHECK;
/* A further lane; owns the connection, also on error. -ENOSPC, -EPIPE (stopped). */
int rp_gather_add(struct rp_gather *g, struct rp_conn *c, unsigned lane, struct rp_error *err) RP_MUST_CHECK;
void rp_gather_shutdown(struct rp_gather *g);   /* any thread: nothing more is read */
/* Shuts down, waits for the lanes' threads (not from one of them), frees. */
void rp_gather_destroy(struct rp_gather *g);

#endif
