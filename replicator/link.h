/*
 * link.h - a session between a primary and a standby: a control connection and N data lanes. docs/link.md.
 *
 *   control   short messages both ways, on one path or two: heartbeats, acknowledgements, goodbye (control.h)
 *   lanes     the epoch stream's records in numbered frames (frame.h), each on whichever lane has time for it
 *
 * Any lane may die: what it carried is carried again by the others (bundle.h, gather.h). Beside rdma a spare lane and a
 * second control path go over tcp: when rdma dies the session goes on there, and nothing is lost, not even the protection.
 * What was lost is sought again in the background. The session ends when no lane or no path is left, or when all paths are
 * silent; the standby then keeps its newest whole epoch (INV-2).
 */
#ifndef RP_REPLICATOR_LINK_H
#define RP_REPLICATOR_LINK_H

#include "core/event.h"
#include "core/histogram.h"
#include "core/image.h"
#include "core/sink.h"
#include "replicator/bundle.h"
#include "replicator/handshake.h"
#include "replicator/sums.h"

/* Why the primary says goodbye. */
enum rp_bye {
    RP_BYE_STOP = 1,    /* protection was ended: forget the image */
    RP_BYE_FINAL = 2,   /* migration, switchover: run from the epoch it names, the source stands still */
    RP_BYE_BROKEN = 3,  /* a lane broke, but the primary lives and will come back: keep the image */
};

/* --- the primary's side: a sink --- */

struct rp_link_config {
    struct rp_uri uri;
    struct rp_secret key;
    uint8_t vm_id[16];
    char vm_name[64];
    unsigned lanes;             /* 0: 1 */
    unsigned heartbeat_ms;      /* 0: 20 */
    unsigned timeout_ms;        /* silence of the standby that ends the session; 0: 25 heartbeats, at least 500 */
    int connect_ms;             /* 0: 3000 */
    bool have_spare;            /* for an rdma address the spare way is tcp to the same host and port unless given here */
    struct rp_uri spare;
    struct rp_events *events;   /* borrowed; may be NULL */
    uint64_t gfn_end;           /* of the VM's RAM: the hashes of what the standby holds of it are asked for; 0: they are not */
    bool stale;                 /* what it holds may not be entered any more: outputs have left since */
    uint64_t term, holder;      /* of the lease under which the VM runs (handshake.h): the standby looks whether its own is the same; 0: not said */
    /* Do copies of the VM's private disks at `have` have to be made whole? Then what they hold is asked for; `size_bytes` (zeroes before):
     * of the disks, 0: not private. In the call that connects. May be NULL: it is not asked for. */
    bool (*whole_disks)(void *ctx, const struct rp_disk_base *have, uint64_t size_bytes[RP_DISK_SUMS_DISKS]);
    void *ctx;
};

/* Connects and shakes hands (blocks). A lane or a spare way that cannot be had is an event and is tried again later; without
 * any lane the session fails. An rdma address that cannot be reached is replaced by the spare way, with an event.
 * *held: the epoch of this VM the standby holds, 0: none. */
int rp_link_sink_create(const struct rp_link_config *cfg, struct rp_sink **out, uint64_t *held, struct rp_error *err) RP_MUST_CHECK;
/* What the standby's copies of the VM's private disks held when it welcomed us; all zero: nothing. */
struct rp_disk_base rp_link_sink_disks(const struct rp_sink *s);
/* The hash of each page that the standby holds (cfg.gfn_end of them): malloc'ed, the caller's from now on. NULL, the second time
 * too: all of RAM has to travel, *why says in a few words why. */
struct rp_hash128 *rp_link_sink_take_held(struct rp_sink *s, const char **why);
/* The sums of what its copies of the disks hold: the caller's from now on, to rp_disk_sums_fini. No lists, the second time too: all travels. */
void rp_link_sink_take_sums(struct rp_sink *s, struct rp_disk_sums *out);
/* Says goodbye: everything emitted was committed before. Any thread but a callback's. The sink's cancel then waits up to a
 * second for the standby to close first. */
int rp_link_sink_bye(struct rp_sink *s, enum rp_bye why, uint64_t epoch, struct rp_error *err) RP_MUST_CHECK;
/* Says that a switchover follows, and waits until the standby knows: however the session ends from then on, it asks before
 * it opens its outputs (docs/protection.md). -ETIMEDOUT, -EPIPE. */
int rp_link_sink_prepare(struct rp_sink *s, int timeout_ms, struct rp_error *err) RP_MUST_CHECK;
/* Waits until the target says that it runs (INV-6), and answers that we know. -ECANCELED: it says that it could not and
 * will not. -ETIMEDOUT, -EPIPE: nobody knows. */
int rp_link_sink_wait_running(struct rp_sink *s, int timeout_ms, struct rp_error *err) RP_MUST_CHECK;

struct rp_link_stats {
    uint64_t bytes;             /* on all lanes; a frame that was carried twice counts twice */
    uint64_t rtt_ns;            /* of the last heartbeat, 0: none yet */
    unsigned lanes;             /* that live and are used */
    const char *transport;      /* of these: "rdma", or "tcp" when rdma has died */
    uint64_t lanes_lost;        /* since the session began */
};
void rp_link_sink_stats(struct rp_sink *s, struct rp_link_stats *out);

/* --- the standby's side --- */

enum rp_link_end {
    RP_LINK_LOST = 1,       /* the primary died, hangs, or cannot be reached: `silent` says whether it went without a word */
    RP_LINK_STOPPED,        /* RP_BYE_STOP */
    RP_LINK_FINAL,          /* RP_BYE_FINAL: run now */
    RP_LINK_BROKEN,         /* RP_BYE_BROKEN: serve again */
    RP_LINK_DAMAGED,        /* what came was refused; err says why */
    RP_LINK_CANCELLED,      /* rp_link_cancel */
};

struct rp_link_outcome {
    enum rp_link_end end;
    bool switching;             /* the source had begun a switchover: it may stand still, and wait for us */
    uint64_t epoch;             /* newest whole epoch in the image */
    uint64_t last_heard_ns;     /* CLOCK_MONOTONIC: when the primary was last heard of */
    uint64_t detected_ns;       /* when the end was noticed */
    struct rp_error why;
};

struct rp_link_recv;
struct rp_link_recv_config {
    struct rp_secret key;
    char vm_name[64];           /* the VM this standby waits for; empty: whichever comes first */
    unsigned timeout_ms;        /* silence that means the primary is dead; 0: 4 of its heartbeats */
    struct rp_image *image;     /* borrowed; while serving it belongs to the lanes' threads, one at a time */
    /* After each applied epoch, from a lane's thread, before it is acknowledged: < 0 ends the session. May be NULL. */
    int (*applied)(void *ctx, struct rp_image *image, struct rp_error *err);
    /* A primary has proven itself and asks to be served: < 0 with the reason in err refuses it. From the thread that
     * serves; may block for a moment. May be NULL. */
    int (*admit)(void *ctx, const char *peer, const struct rp_hello *hello, struct rp_error *err);
    /* It was admitted: what do the copies of its private disks hold? Likewise. May be NULL: nothing. */
    void (*disks)(void *ctx, const struct rp_hello *hello, struct rp_disk_base *out);
    /* It wants to know what they hold, block by block: lent until the session is over. Likewise. May be NULL: nothing is known. */
    void (*sums)(void *ctx, struct rp_disk_sums *out);
    /* It says that what the image holds may not be entered any more: outputs have left since. Likewise. May be NULL. */
    void (*stale)(void *ctx);
    /* No primary is connected (any more): again and again while the next one is waited for. Likewise. May be NULL. */
    void (*alone)(void *ctx);
    void *ctx;
};
/* Owns the listener. One that listens on rdma is given a tcp one on the same address, for the spare way (when the port is
 * free: a warning says so otherwise). */
int rp_link_recv_create(struct rp_listener *l, const struct rp_link_recv_config *cfg, struct rp_link_recv **out, struct rp_error *err) RP_MUST_CHECK;
/* Waits for a session and serves it until it ends. Strangers are refused on the way, one after the other.
 * The control connection of a session that ended FINAL stays open, and its beat goes on, for rp_link_recv_running. */
int rp_link_serve(struct rp_link_recv *r, struct rp_link_outcome *out, struct rp_error *err) RP_MUST_CHECK;
/* Another image from now on (the old one was forgotten). Not while serving. */
void rp_link_recv_image(struct rp_link_recv *r, struct rp_image *image);
/* After FINAL: tells the source that the VM runs here now, and waits until it knows. On error nobody can tell whether it does. */
int rp_link_recv_running(struct rp_link_recv *r, int timeout_ms, struct rp_error *err) RP_MUST_CHECK;
/* After FINAL: tells the source that the VM does not run here and will not: it may take it back. */
void rp_link_recv_failed(struct rp_link_recv *r, const struct rp_error *why);
void rp_link_cancel(struct rp_link_recv *r);    /* any thread: serve returns RP_LINK_CANCELLED */
void rp_link_recv_destroy(struct rp_link_recv *r);

#endif
