/* engine_internal.h - the engine from inside: engine.c (control, callbacks), engine_run.c (its thread), engine_govern.c,
 * engine_cow.c. */
#ifndef RP_REPLICATOR_ENGINE_INTERNAL_H
#define RP_REPLICATOR_ENGINE_INTERNAL_H

#include "replicator/aside.h"
#include "replicator/capture.h"
#include "replicator/cold.h"
#include "replicator/emitter.h"
#include "replicator/engine.h"
#include "replicator/governor.h"

#include <pthread.h>
#include <stdatomic.h>

#define RP_COMMIT_RING 256u     /* epochs in flight whose cut is remembered */

enum rp_capture_strategy { RP_CAPTURE_STOP = 1, RP_CAPTURE_EARLY, RP_CAPTURE_COW };

/* What was last told of a decision, so that only changes are events, and not more than one a second of a kind. */
struct rp_told {
    uint64_t value, at_ns;
};

struct rp_engine {
    struct rp_source *src;
    struct rp_sink *sink;
    struct rp_sink_events sink_events;
    struct rp_events *events;
    enum rp_run_kind kind;
    struct rp_engine_config cfg;
    struct rp_source_info info;
    void (*ended)(void *ctx, int rc, const struct rp_error *why);
    void *ended_ctx;
    struct rp_arena *arena;
    struct rp_emitter *emitter;
    struct rp_aside aside;          /* the engine thread looks; whoever encodes steps aside, and it itself at times */

    /* engine thread */
    pthread_t thread;
    bool started;
    struct rp_pool *capture_pool;
    struct rp_capture capture;
    struct rp_policy policy;
    struct rp_governor governor;
    uint64_t epoch;                 /* number of the epoch being made */
    uint32_t pass;
    uint64_t early, again;          /* pages captured early in this epoch; captured twice */
    uint64_t streamed;              /* pages of this epoch that were captured and emitted before its cut */
    uint64_t epoch_pages;           /* constant: the largest epoch that the sink can take; 0: any */
    bool resync;                    /* constant */
    bool cow_tried, kept;           /* kept: the source was told to give no page back */
    struct rp_cow *cow;             /* NULL: not wanted yet, or not able */
    struct rp_cold cold;
    uint64_t cow_pages, cow_faults;
    bool stays_aside;               /* patient, and off the vCPUs' CPUs: nothing stands still for it, no output waits */
    bool tracking, disks;           /* disks: the source was told to keep their writes */
    int output_fd;
    uint64_t governed_ns;           /* when the governor was last asked */
    unsigned throttled;             /* percent, as the source was last told */
    uint64_t commits_learnt;        /* newest epoch whose commit time the policy knows */
    struct rp_told told_epoch, told_throttle, told_capture, told_cow, told_codec[RP_CODEC_COUNT];

    int wake_fd;                    /* stop, commit, failure */
    _Atomic bool stop, finish, failed, stands;
    _Atomic uint64_t committed, cut, committed_wall_ns;
    _Atomic uint64_t done_pages, sync_pages, put_off;
    _Atomic unsigned passes;
    _Atomic int state;              /* enum rp_engine_state */
    struct { _Atomic uint64_t cut_ns, commit_ns, pages; } flight[RP_COMMIT_RING];   /* by epoch */
    struct rp_hist pause, commit, dirty;
    _Atomic uint64_t dirty_milli_s; /* dirty pages per second, for stats */
    _Atomic unsigned pressure, throttle;    /* for stats, like the next two */
    _Atomic uint64_t epoch_ns, cpu_permille;

    pthread_mutex_t result_lock;
    int rc;                         /* result_lock: the first failure */
    struct rp_error why;            /* result_lock */
    struct rp_cow_state cow_state;  /* result_lock: for stats */
    _Atomic uint64_t copy_ns;       /* for stats, like the next */
    _Atomic int strategy;           /* enum rp_capture_strategy, as last told */
};

/* engine.c */
void rp_engine_wake(struct rp_engine *e);
/* The first failure is the run's result; everybody else learns of it through `failed`. Any thread. */
void rp_engine_fail(struct rp_engine *e, int rc, const struct rp_error *why);
static inline bool rp_engine_over(struct rp_engine *e)
{
    return atomic_load(&e->failed) || atomic_load(&e->stop);
}

/* engine_run.c: the engine thread's work. -ECANCELED without a text in err: stopped. */
int rp_engine_run(struct rp_engine *e, struct rp_error *err) RP_MUST_CHECK;
/* Waits until `until_ns`, an output begins to wait, or somebody wakes the engine. */
void rp_engine_wait_for(struct rp_engine *e, uint64_t until_ns);

/* Hands captured pages to the emitter; owns the array. */
int rp_engine_hand_part(struct rp_engine *e, struct rp_captured *pages, uint64_t n, struct rp_error *err) RP_MUST_CHECK;

/* engine_cow.c, engine thread. ready: before a cut, the machine runs. protect: it stands, `pages` are dirty; returns how many of them
 * were protected. Then either withdraw (the cut is off) or note and hand, after it was resumed. end: the run is over. */
void rp_engine_cow_ready(struct rp_engine *e);
uint64_t rp_engine_cow_protect(struct rp_engine *e, uint64_t pages);
void rp_engine_cow_withdraw(struct rp_engine *e);
void rp_engine_cow_note(struct rp_engine *e);
int rp_engine_cow_hand(struct rp_engine *e, uint64_t pages, struct rp_error *err) RP_MUST_CHECK;
uint64_t rp_engine_cow_cpu_ns(const struct rp_engine *e);
void rp_engine_cow_end(struct rp_engine *e);

/* engine_govern.c, engine thread: asks the governor when it is time (`now`: at once), carries out what it says, and tells every
 * change (INV-7). -ETIMEDOUT: the sink is given up. */
int rp_engine_govern(struct rp_engine *e, bool now, struct rp_error *err) RP_MUST_CHECK;
void rp_engine_ungovern(struct rp_engine *e);   /* the run is over: vCPUs run freely */

#endif
