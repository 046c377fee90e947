/* protect_internal.h - protection from inside: protect.c (its thread, its states, what others ask of it) and protect_run.c (one run of
 * the engine over one session, and the switchover that may end it). */
#ifndef RP_REPLICATOR_PROTECT_INTERNAL_H
#define RP_REPLICATOR_PROTECT_INTERNAL_H

#include "replicator/protect.h"

#include <pthread.h>

#define RP_RESYNCS_MAX 2u       /* that failed in a row: then all of RAM is sent again */

struct rp_protect {
    struct rp_source *src;
    struct rp_events *events;
    struct rp_protect_config cfg;
    struct rp_source_info info;
    bool patient;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t change;
    enum rp_protect_state state;    /* lock */
    uint64_t since_wall_ns;         /* lock */
    struct rp_engine *engine;       /* lock: while a run goes on */
    struct rp_sink *sink;           /* lock: likewise */
    struct rp_engine_stats last;    /* lock: of the run that ended last */
    struct rp_link_stats last_link; /* lock */
    bool have_last;                 /* lock */
    struct rp_error why;            /* lock: of the last loss */
    uint64_t losses;                /* lock */
    bool stop, switching, over;     /* lock */
    unsigned waiters;               /* lock: calls that wait for a switchover */
    enum rp_protect_end how;        /* lock: with stop */
    bool held;                      /* lock: outputs wait (P1) */
    int switched;                   /* lock: result of a switchover: 1 not yet known, 0, -errno */
    struct rp_error switch_why;     /* lock */
    uint64_t next_epoch;            /* protect thread: numbers go on from run to run */
    unsigned resyncs_failed;        /* protect thread: in a row */
    bool sums_failed;               /* protect thread: the disks are copied without what the standby says that they hold, once */
    const char *why_full;           /* protect thread: why the run brings all of RAM */
};

enum rp_protect_verdict { RP_PROTECT_LOST, RP_PROTECT_OVER };

/* protect_run.c. One run over one session. RP_PROTECT_LOST: *err says why, the VM is here and runs or can. */
enum rp_protect_verdict rp_protect_run(struct rp_protect *p, struct rp_sink *sink, struct rp_error *err);
void rp_protect_switch_done(struct rp_protect *p, int rc, const struct rp_error *why);

/* protect.c */
void rp_protect_set_state(struct rp_protect *p, enum rp_protect_state s);
bool rp_protect_stopping(struct rp_protect *p);
void rp_protect_pause_vm(struct rp_protect *p, bool paused);    /* with --on-loss pause */

#endif
