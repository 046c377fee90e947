/*
 * lease_keeper.h - keeps a lease that was acquired: renews it from a thread, and says when it is over.
 *
 * The gate asks rp_lease_keeper_valid before every output: that check alone keeps INV-3, also for a process that was
 * stopped and comes back. The callback comes besides it, early enough to close the gate and to pause the VM in order: it
 * is called from a thread that never touches the lease's storage, `guard` before the deadline, however the storage hangs.
 *
 *   KEEPING ──renewal says -ESTALE, or the deadline is nearer than guard──► LOST (callback once; no more renewals)
 *   KEEPING ──rp_lease_keeper_stop(release)──► RELEASED
 */
#ifndef RP_REPLICATOR_LEASE_KEEPER_H
#define RP_REPLICATOR_LEASE_KEEPER_H

#include "core/histogram.h"
#include "replicator/lease.h"

struct rp_lease_keeper_config {
    uint64_t guard_ns;          /* 0: an eighth of the ttl */
    /* A renewal or an advance gave a later deadline (CLOCK_BOOTTIME). From the thread that renewed; may be NULL. */
    void (*renewed)(void *ctx, uint64_t deadline_ns);
    /* The lease is lost: shut the outputs now. Called once, from a thread of the keeper or from within
     * rp_lease_keeper_advance; must not call the keeper. */
    void (*lost)(void *ctx, const struct rp_error *why);
    void *ctx;
};

struct rp_lease_keeper_stats {
    uint64_t term;
    uint64_t left_ns;           /* until the deadline; RP_LEASE_FOREVER: none; 0: over */
    uint64_t renewals, failures;
    uint64_t renew_p50_ns, renew_p99_ns;
    char why[160];              /* the newest failure, "" when there was none */
};

struct rp_lease_keeper;
/* `l` is held; it belongs to the keeper until stop, and is destroyed by its owner after that. */
int rp_lease_keeper_start(struct rp_lease *l, const struct rp_lease_keeper_config *cfg, struct rp_lease_keeper **out,
                          struct rp_error *err) RP_MUST_CHECK;
/* The deadline, CLOCK_BOOTTIME; 0 once lost. Any thread; lives as long as the keeper. */
const _Atomic uint64_t *rp_lease_keeper_deadline(const struct rp_lease_keeper *k);
static inline bool rp_lease_keeper_valid(const _Atomic uint64_t *deadline)
{
    return rp_lease_valid(atomic_load_explicit(deadline, memory_order_acquire));     /* pairs with the renewer's release */
}
void rp_lease_keeper_stats(struct rp_lease_keeper *k, struct rp_lease_keeper_stats *out);
/* rp_lease_advance, between two renewals. -ESTALE, -EBUSY: the lease is lost, and `lost` was or is called. Any thread but a
 * callback's; waits for a renewal that hangs. */
int rp_lease_keeper_advance(struct rp_lease_keeper *k, uint64_t *term, struct rp_error *err) RP_MUST_CHECK;
/* Stops renewing (outputs must be shut), gives the lease up if `release` and if it is still held, frees the keeper. */
int rp_lease_keeper_stop(struct rp_lease_keeper *k, bool release, struct rp_error *err) RP_MUST_CHECK;

#endif
