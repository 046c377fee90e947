/*
 * protect.h - keeping a running VM protected: connect, sync, hold outputs, notice losses, come back.
 *
 *            rp_protect_start                    epoch 1 committed
 *    OFF ───────────────────► CONNECTING ─► SYNCING ──────────► PROTECTED ──rp_protect_switch──► SWITCHED (source stands)
 *     ▲                          ▲             │ lost               │ lost
 *     │ rp_protect_stop          └── retry ────┴─────► UNPROTECTED ◄┘ (outputs flow, event; or PAUSED by policy)
 *     └──────────────────────────────────────────────────┘
 *
 * P1  Outputs are held exactly from the first cut of a run until the run ends; they then flow only if `may_run` says so
 *     (the lease is still ours): INV-3 comes before availability.
 * P2  A lost standby never stops the VM unless the policy says so (INV-5); every transition is an event (INV-7).
 *
 * Threads: "protect"; the public calls are for control threads.
 */
#ifndef RP_REPLICATOR_PROTECT_H
#define RP_REPLICATOR_PROTECT_H

#include "replicator/engine.h"
#include "replicator/link.h"

enum rp_protect_state {
    RP_PROTECT_OFF, RP_PROTECT_CONNECTING, RP_PROTECT_SYNCING, RP_PROTECT_PROTECTED, RP_PROTECT_UNPROTECTED,
    RP_PROTECT_PAUSED, RP_PROTECT_SWITCHED,
};
const char *rp_protect_state_name(enum rp_protect_state s);

struct rp_protect_config {
    struct rp_link_config link;         /* VM id and name are filled in from the source */
    struct rp_engine_config engine;
    bool pause_on_loss;                 /* rather stand still than run unprotected */
    unsigned retry_ms;                  /* between attempts to reach a standby; 0: 500 */
    /* May outputs flow without a standby? (The lease is held.) NULL: yes. */
    bool (*may_run)(void *ctx);
    /* The machine has to stand still (pause_on_loss), or may go on again. NULL: never asked. */
    void (*pause)(void *ctx, bool paused);
    void *ctx;
};

struct rp_protect_status {
    enum rp_protect_state state;
    char uri[400];
    char why[256];                      /* of the last loss */
    uint64_t losses;                    /* since start */
    uint64_t since_wall_ns;             /* in this state */
    bool have_engine;
    struct rp_engine_stats engine;      /* of the run now, or the last one */
    struct rp_link_stats link;
};

struct rp_protect;
/* Borrows source and events. Starts at once; a standby that cannot be reached at the first attempt is an error (the user sees
 * it) unless `patient`. */
int rp_protect_start(struct rp_source *src, struct rp_events *events, const struct rp_protect_config *cfg, bool patient,
                     struct rp_protect **out, struct rp_error *err) RP_MUST_CHECK;
/* Waits until the first epoch is committed. -ETIMEDOUT; the failure when the first attempt failed. */
int rp_protect_wait(struct rp_protect *p, int timeout_ms, struct rp_error *err) RP_MUST_CHECK;
/* Planned switchover: one last epoch, the standby enters it. 0: it runs there, the source stands still for good. On error the
 * VM runs on here (INV-6). */
int rp_protect_switch(struct rp_protect *p, int timeout_ms, struct rp_error *err) RP_MUST_CHECK;
/* Ends protection: outputs flow, the standby is told. */
void rp_protect_stop(struct rp_protect *p);
void rp_protect_status(struct rp_protect *p, struct rp_protect_status *out);

#endif
