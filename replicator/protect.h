/*
 * protect.h - keeping a running VM protected: connect, sync, hold outputs, notice losses, come back. docs/protection.md.
 *
 *      rp_protect_start     the lease is ours           epoch 1 committed
 *    OFF ────────► LEASING ───────► CONNECTING ─► SYNCING ──────────► PROTECTED ──rp_protect_switch──► SWITCHED (source stands)
 *     ▲               │                ▲             │ lost               │ lost
 *     │               │ refused        └── retry ────┴─────► UNPROTECTED ◄┘ (outputs flow, event; or PAUSED by policy)
 *     └── rp_protect_end ◄─────────────────────────────────────┘
 *
 * P1  Outputs are held from the first cut of a run until `disown` has succeeded: from then on no standby may enter an epoch
 *     that was made before, so that what leaves uncommitted cannot be taken back. INV-1 and INV-3 come before availability.
 * P2  A lost standby never stops the VM unless the policy says so (INV-5); every transition is an event (INV-7).
 * P3  A switchover that is not known to have come about leaves the source standing until `retake` has decided who runs (INV-6).
 *
 * Threads: "protect"; the public calls are for control threads.
 */
#ifndef RP_REPLICATOR_PROTECT_H
#define RP_REPLICATOR_PROTECT_H

#include "replicator/engine.h"
#include "replicator/link.h"

enum rp_protect_state {
    RP_PROTECT_OFF, RP_PROTECT_LEASING, RP_PROTECT_CONNECTING, RP_PROTECT_SYNCING, RP_PROTECT_PROTECTED, RP_PROTECT_UNPROTECTED,
    RP_PROTECT_PAUSED, RP_PROTECT_SWITCHED,
};
const char *rp_protect_state_name(enum rp_protect_state s);

/* What protection asks of whoever runs the VM. All from the protect thread; each may be NULL (it then does nothing and
 * succeeds). */
struct rp_protect_owner {
    void *ctx;
    /* The right to run, before the first connection; waits for a holder that has died. An error ends protection. */
    int (*acquire)(void *ctx, struct rp_error *err);
    /* The lease's term, for the epochs of a run that begins now. */
    uint64_t (*term)(void *ctx);
    uint64_t (*holder)(void *ctx);      /* who holds it (handshake.h) */
    /* No standby may enter an epoch that was made until now. -ESTALE: the right to run is lost; other errors: not now. */
    int (*disown)(void *ctx, struct rp_error *err);
    /* The source stands and gives its right to run to the standby. An error is only told: the standby waits then. */
    int (*yield)(void *ctx, struct rp_error *err);
    /* The switchover did not come about, or nobody knows: wants the right to run back. 0: nobody has run since; -ESTALE:
     * somebody has; -ETIMEDOUT: it is not decided yet. */
    int (*retake)(void *ctx, struct rp_error *err);
    /* The machine has to stand still (pause_on_loss), or may go on again. */
    void (*pause)(void *ctx, bool paused);
    /* The switchover came about: the VM runs at the standby, the source stands for good. */
    void (*switched)(void *ctx);
    /* The thread's last call: rp_protect_stop does not wait any more. */
    void (*ended)(void *ctx);
};

struct rp_protect_config {
    struct rp_link_config link;         /* VM id and name are filled in from the source */
    struct rp_engine_config engine;
    bool pause_on_loss;                 /* rather stand still than run unprotected */
    unsigned retry_ms;                  /* between attempts to reach a standby; 0: 500 */
    struct rp_protect_owner owner;
};

struct rp_protect_status {
    enum rp_protect_state state;
    char uri[400];
    char why[256];                      /* of the last loss, and the exit code that goes with it */
    int why_exit;
    uint64_t losses;                    /* since start */
    uint64_t since_wall_ns;             /* in this state */
    uint64_t newest_epoch;              /* newest number given to an epoch */
    bool held;                          /* outputs wait for commits */
    bool have_engine;
    struct rp_engine_stats engine;      /* of the run now, or the last one */
    struct rp_link_stats link;
};

enum rp_protect_end {
    RP_PROTECT_FORGET,      /* the standby is told to forget its image, outputs flow (after `disown`) */
    RP_PROTECT_LEAVE,       /* nothing is said: the standby takes over. Outputs stay as they are. */
};

struct rp_protect;
/* Borrows source and events. Does not wait: a lease that is refused is the state OFF with its reason, and so is a standby that
 * cannot be reached at the first attempt, unless `patient`. */
int rp_protect_start(struct rp_source *src, struct rp_events *events, const struct rp_protect_config *cfg, bool patient,
                     struct rp_protect **out, struct rp_error *err) RP_MUST_CHECK;
/* Waits until the first epoch is committed. -ETIMEDOUT; the failure when the first attempt failed. */
int rp_protect_wait(struct rp_protect *p, int timeout_ms, struct rp_error *err) RP_MUST_CHECK;
/* Planned switchover: one last epoch, the standby enters it. 0: it runs there, the source stands still for good. On error the
 * VM runs on here (INV-6). */
int rp_protect_switch(struct rp_protect *p, int timeout_ms, struct rp_error *err) RP_MUST_CHECK;
/* Asks protection to end; the first `how` counts. What has to be waited for (a connection, the goodbye, `disown`) is waited for by
 * the thread: over, once it has called `ended`. NULL: over. */
void rp_protect_end(struct rp_protect *p, enum rp_protect_end how);
bool rp_protect_over(struct rp_protect *p);
/* The same, waits, and frees. Returns the newest number that was given to an epoch. */
uint64_t rp_protect_stop(struct rp_protect *p, enum rp_protect_end how);
void rp_protect_status(struct rp_protect *p, struct rp_protect_status *out);

#endif
