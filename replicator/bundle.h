/*
 * bundle.h - the sending side's lanes: N connections that carry one row of numbered frames (frame.h), any of which may die.
 *
 * Records are gathered into frames. A frame waits until a lane has time for it, so that a fast lane carries more; it is
 * kept until the other side says that it has taken it, and when its lane dies before that, another lane carries it again.
 * Spare lanes (tcp beside rdma) carry nothing while another lane lives.
 *
 *     OPEN ──full, or flush──► UNSENT ──a lane takes it──► SENDING ──► FLYING ──taken──► free
 *   (being filled)               ▲                            │           │
 *                                └──────── its lane died ─────┴───────────┘
 *
 * B1  Frames not yet taken are at most RP_FRAME_WINDOW bytes, plus one: put waits, and with it the engine's emitter.
 * B2  A frame leaves the row only when it was taken: no lane's death loses one.
 * B3  A lane's connection is closed by its own thread, soon after it died: a device that is removed is let go.
 *
 * Threads: put and flush belong to the emitting thread, which also sends when a lane is idle at a flush; one thread per
 * lane; the others from any thread. Callbacks come from a lane's thread, without locks.
 */
#ifndef RP_REPLICATOR_BUNDLE_H
#define RP_REPLICATOR_BUNDLE_H

#include "core/bytes.h"
#include "replicator/transport.h"

#define RP_LANES_MAX 16u        /* spare ones too */

struct rp_lane_loss {
    unsigned lane;
    const char *transport;
    int rc;                     /* -errno */
    unsigned again;             /* frames that others carry again */
    unsigned left;              /* lanes that live, spare ones too */
    bool spares;                /* only spare ones do, and this was the last of the others */
};

struct rp_bundle;
struct rp_bundle_events {
    void *ctx;
    /* A lane died and was closed. With left == 0 nothing more goes out: every call returns -EPIPE. */
    void (*lane_lost)(void *ctx, const struct rp_lane_loss *loss);
};
int rp_bundle_create(const struct rp_bundle_events *events, struct rp_bundle **out, struct rp_error *err) RP_MUST_CHECK;
/* Wakes everybody and stops sending, for good. */
void rp_bundle_stop(struct rp_bundle *b);
/* Stops, and waits for the lanes' threads: no callback comes after it returns. Not from one. */
void rp_bundle_join(struct rp_bundle *b);
void rp_bundle_destroy(struct rp_bundle *b);    /* no call may be under way */

/* A further lane; owns the connection, also on error. At any time. `index`: its number, which it keeps. */
int rp_bundle_add(struct rp_bundle *b, struct rp_conn *c, unsigned index, bool spare, struct rp_error *err) RP_MUST_CHECK;
/* A number no living lane has; -ENOSPC. */
int rp_bundle_free_index(struct rp_bundle *b);

/* Adds a record (its header without sequence and checksum, as a sink gets it). Waits while too much was not taken.
 * -EPIPE: stopped, or no lane lives. */
int rp_bundle_put(struct rp_bundle *b, struct rp_buf *record, struct rp_error *err) RP_MUST_CHECK;
/* What was put is on its way. */
int rp_bundle_flush(struct rp_bundle *b, struct rp_error *err) RP_MUST_CHECK;
/* The other side has taken all frames up to `number`. -EPROTO: there was never such a frame. */
int rp_bundle_taken(struct rp_bundle *b, uint64_t number) RP_MUST_CHECK;
/* Looks for lanes whose other end has gone: an idle one would not notice. Call it often; it does not wait. */
void rp_bundle_look(struct rp_bundle *b);

struct rp_bundle_stats {
    uint64_t bytes;             /* handed to lanes; a frame sent twice counts twice */
    uint64_t again;             /* frames sent twice */
    unsigned lanes;             /* living, without spare ones unless only those live */
    const char *transport;      /* of these; "" when none lives */
    uint64_t lane_bytes[RP_LANES_MAX];
};
void rp_bundle_stats(struct rp_bundle *b, struct rp_bundle_stats *out);

#endif
