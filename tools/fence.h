/*
 * fence.h - this process's right to run its VM (INV-3): the lease, its keeper and the machine's outputs, tied together.
 *
 *   IDLE ──watch──► WATCHING ──follow(n)──► WAITING ──the lease gives n + 1──► HELD ──keeper says so──► LOST
 *     │                 ▲                     │  ▲                             │ ▲                        │ by itself,
 *     │                 └────────watch────────┘  └───────── yield ─────────────┘ └─── nobody between ─────┤ follow(own term)
 *     └──take──► HELD                         └─ somebody else has held since ─► BEHIND ◄─────────────────┘
 *
 * F1  A bound machine's outputs leave only while the state is HELD and the lease's deadline is ahead (GATE-3).
 * F2  An epoch that was made under term n may be run only under term n + 1: then nobody has run the VM since it was made.
 *     In a switchover the standby's outputs stay shut under term n + 1 until the source has said that it knows, or until the
 *     standby has moved on to n + 2: so a source that is left in the dark may go on under n + 2, and must not once that is taken.
 * F3  Outputs flow without their epochs being committed only after rp_fence_disown: no epoch made before may be entered by
 *     anybody from then on, because of F2.
 * With --lease none there is no fence: every take succeeds, F1 to F3 are void, and events and status say so.
 *
 * Threads: "fence" asks the lease's storage; the public calls come from any thread and may wait for the storage, except
 * bind, state and info. `changed` is called from any of these threads after a change of state, with no lock held: it
 * hands on, and calls nothing here.
 */
#ifndef RP_TOOLS_FENCE_H
#define RP_TOOLS_FENCE_H

#include "core/event.h"
#include "replicator/lease_keeper.h"
#include "vmm/machine.h"

enum rp_fence_state {
    RP_FENCE_IDLE, RP_FENCE_WATCHING, RP_FENCE_WAITING, RP_FENCE_HELD, RP_FENCE_LOST, RP_FENCE_BEHIND,
};
const char *rp_fence_state_name(enum rp_fence_state s);

struct rp_fence_config {
    struct rp_lease_config lease;
    struct rp_events *events;           /* may be NULL */
    void (*changed)(void *ctx);         /* may be NULL */
    bool (*give_up)(void *ctx);         /* rp_fence_take waits no longer: -ECANCELED, RP_EXIT_INTERRUPTED; its thread asks. May be NULL */
    void *ctx;
};

struct rp_fence_info {
    enum rp_fence_state state;
    char where[256];            /* "file:/shared/lease" */
    char holder[64];            /* who held it when the storage was last asked; "" nobody, or not asked yet */
    char why[256];              /* why it was lost, or what the storage last failed with; "" all is well */
    uint64_t term;              /* ours, when HELD; else the newest that was seen */
    uint64_t ttl_ms;
    struct rp_lease_keeper_stats keeper;    /* when HELD */
};

struct rp_fence;
int rp_fence_open(const struct rp_fence_config *cfg, struct rp_fence **out, struct rp_error *err) RP_MUST_CHECK;
/* Does not give a held lease up (it expires) unless it was yielded before. The machine's outputs are shut. */
void rp_fence_close(struct rp_fence *f);

/* Takes the lease for a VM that starts here; waits at most timeout_ms. RP_EXIT_REFUSED: somebody else holds it. */
int rp_fence_take(struct rp_fence *f, int timeout_ms, struct rp_error *err) RP_MUST_CHECK;
/* From here on `m`'s outputs obey the lease (F1). NULL: no machine any more; the one before is left shut. */
void rp_fence_bind(struct rp_fence *f, struct rp_machine *m);

/* Looks at the lease all along, so that a silent holder's time is known when it matters. */
void rp_fence_watch(struct rp_fence *f);
/* Back to watching after follow, because the holder is alive after all. False: it is too late, the lease is ours or will be. */
bool rp_fence_stand_back(struct rp_fence *f);
/* Tries until the lease is HELD, with term + 1 (F2), or BEHIND. 0: with any term. */
void rp_fence_follow(struct rp_fence *f, uint64_t term);
/* Likewise for who has yielded `term` and is left in the dark (F2): with term + 1, or with term + 2 when somebody has had that. */
void rp_fence_retake(struct rp_fence *f, uint64_t term);
/* Waits until follow has come to an end. 0: HELD. -ESTALE: BEHIND. -ETIMEDOUT. */
int rp_fence_wait(struct rp_fence *f, int timeout_ms, struct rp_error *err) RP_MUST_CHECK;

/* F3. On error the outputs must stay held; -ESTALE: the lease was lost. */
int rp_fence_disown(struct rp_fence *f, struct rp_error *err) RP_MUST_CHECK;
/* Shuts the outputs and gives the lease up, so that the next one need not wait. On error it runs out by itself. Then IDLE. */
int rp_fence_yield(struct rp_fence *f, struct rp_error *err) RP_MUST_CHECK;

/* Is the lease that a primary says it holds, `holder` under `term`, this one? Two leases would be none: both sides could run. Storage that
 * cannot be asked is believed; `holder` 0: it did not say. RP_EXIT_REFUSED. */
int rp_fence_sees(struct rp_fence *f, uint64_t term, uint64_t holder, struct rp_error *err) RP_MUST_CHECK;
uint64_t rp_fence_holder(const struct rp_fence *f);     /* who we are, as a primary says it (replicator/handshake.h). Any thread */
enum rp_fence_state rp_fence_state(struct rp_fence *f);
uint64_t rp_fence_term(struct rp_fence *f);     /* when HELD, else 0 */
/* How often a held lease was lost: it may be held again, under another term, before anybody has looked. */
uint64_t rp_fence_losses(struct rp_fence *f);
bool rp_fence_is_none(const struct rp_fence *f);
void rp_fence_info(struct rp_fence *f, struct rp_fence_info *out);

#endif
