/*
 * lease.h - who may run a VM with its outputs open (INV-3). docs/lease.md.
 *
 * A lease has a holder, a term that only grows, and a time to live. The holder renews it; a renewal gives a deadline on
 * the holder's own clock, and past that deadline its outputs are shut, whatever else it believes. Somebody else gets the
 * next term only when that deadline has passed for certain, or when the holder gave the lease up.
 *
 *   FREE ─rp_lease_try─► HELD term n ─rp_lease_renew─► HELD n, later deadline
 *                          │  deadline passed: EXPIRED, never renewed, only taken anew as n + k
 *                          ├─rp_lease_advance─► HELD term n + 1: whoever waited to follow term n has been disowned
 *                          └─rp_lease_release─► FREE at once, the next holder need not wait
 *
 * L1  A renewal's deadline counts from before the renewal was asked for: time spent asking never makes it later.
 * L2  Renewing after the deadline fails (-ESTALE), even when nobody has taken the lease yet.
 * L3  The next holder waits ttl + rp_lease_margin_ns(ttl) on its own clock after the last sign of life it saw.
 * L4  Terms grow with every holder, across crashes of everybody.
 * L5  Between a holder's term and the one it advances to there is nobody else.
 *
 * Backends: file:DIRECTORY (on storage both hosts see) · etcd:HOST:PORT[,HOST:PORT…] · none (no fencing; says so).
 * The clock is CLOCK_BOOTTIME: it also counts while a host is suspended.
 * Thread: a lease belongs to one thread at a time (rp_lease_keeper takes it over).
 */
#ifndef RP_REPLICATOR_LEASE_H
#define RP_REPLICATOR_LEASE_H

#include "core/clock.h"
#include "core/error.h"

#include <stdatomic.h>
#include <stdbool.h>

#define RP_LEASE_FOREVER UINT64_MAX

struct rp_lease_config {
    const char *where;          /* "file:/shared/dir", "etcd:10.0.0.9:2379", "none" */
    char vm_name[64];
    char owner[64];             /* who we are, for people and for telling holders apart; "": host:pid:random */
    unsigned ttl_ms;            /* 0: 2000. etcd: whole seconds, at least what the server grants */
};

struct rp_lease_grant {
    uint64_t term;
    uint64_t deadline_ns;       /* CLOCK_BOOTTIME; RP_LEASE_FOREVER: none */
};

struct rp_lease_holder {
    uint64_t term;              /* newest term, 0: never held */
    bool held;                  /* false: released, or never held. A holder that died is held until it expires. */
    char owner[64];
    uint64_t ttl_ms;
};

struct rp_lease;
struct rp_lease_ops {
    const char *name;
    unsigned poll_ms;               /* how often rp_lease_acquire looks at a lease that somebody holds */
    int (*try)(struct rp_lease *l, struct rp_lease_grant *out, uint64_t *again_ns, struct rp_error *err);
    int (*renew)(struct rp_lease *l, uint64_t *deadline_ns, struct rp_error *err);
    int (*release)(struct rp_lease *l, struct rp_error *err);
    int (*advance)(struct rp_lease *l, struct rp_lease_grant *out, struct rp_error *err);
    int (*query)(struct rp_lease *l, struct rp_lease_holder *out, struct rp_error *err);
    void (*destroy)(struct rp_lease *l);
};
struct rp_lease {
    const struct rp_lease_ops *ops;
    char vm_name[64], owner[64];
    uint64_t ttl_ms;
    uint64_t term, deadline_ns;     /* held when term != 0 */
    bool pending;                   /* the next term is claimed: nobody else gets it, and it is ours when its time has come */
};

/* Opens; takes nothing yet. RP_EXIT_USAGE on an address nobody understands, RP_EXIT_HOST when it cannot be reached. */
int rp_lease_open(const struct rp_lease_config *cfg, struct rp_lease **out, struct rp_error *err) RP_MUST_CHECK;
void rp_lease_destroy(struct rp_lease *l);      /* does not release: what is held expires */

/* One attempt, never waits for a holder. 0: held. -EBUSY: somebody else holds it; ask again in *again_ns (a hint). The
 * time a silent holder has been watched counts from the first try or query on this object: a standby that polls all
 * along loses nothing when the primary dies. Other errors: the backend cannot be reached or is damaged. */
int rp_lease_try(struct rp_lease *l, struct rp_lease_grant *out, uint64_t *again_ns, struct rp_error *err) RP_MUST_CHECK;
/* Tries until held, timeout_ms is over (-ETIMEDOUT, says who holds it), or give_up (may be NULL; asked after each try) says so (-ECANCELED). */
int rp_lease_acquire(struct rp_lease *l, int timeout_ms, bool (*give_up)(void *ctx), void *ctx, struct rp_lease_grant *out,
                     struct rp_error *err) RP_MUST_CHECK;
/* -ESTALE: the deadline has passed or another term exists: the lease is lost for good. Other errors: may be tried again. */
int rp_lease_renew(struct rp_lease *l, uint64_t *deadline_ns, struct rp_error *err) RP_MUST_CHECK;
/* What is held is not used any more, and only another term will do; it expires by itself. */
static inline void rp_lease_forget(struct rp_lease *l)
{
    l->term = l->deadline_ns = 0;
}
/* The holder goes on with the next term at once (L5). Whoever stands by with an epoch of the term before sees that it was
 * left behind. -ESTALE: the lease is lost for good; -EBUSY: somebody was faster, likewise lost. Other errors: the term held
 * stays, until its deadline. */
int rp_lease_advance(struct rp_lease *l, struct rp_lease_grant *out, struct rp_error *err) RP_MUST_CHECK;
/* Outputs must be shut before. On error the lease expires by itself. */
int rp_lease_release(struct rp_lease *l, struct rp_error *err) RP_MUST_CHECK;
/* Also notes when the holder was last seen alive (see rp_lease_try). */
int rp_lease_query(struct rp_lease *l, struct rp_lease_holder *out, struct rp_error *err) RP_MUST_CHECK;

static inline uint64_t rp_lease_now(void) { return rp_clock_read(CLOCK_BOOTTIME); }
/* For the gate, before every output; costs a clock read. */
static inline bool rp_lease_valid(uint64_t deadline_ns)
{
    return deadline_ns == RP_LEASE_FOREVER || rp_lease_now() < deadline_ns;
}
/* What the next holder waits beyond the ttl: two clocks that run apart by less than 1 in 16, and the time between the
 * gate's check and the packet on the wire. */
static inline uint64_t rp_lease_margin_ns(uint64_t ttl_ms)
{
    return ttl_ms * 1000000u / 16 + 20000000u;
}

/* Backends. */
int rp_lease_file_open(const char *dir, const char *vm_name, struct rp_lease **out, struct rp_error *err) RP_MUST_CHECK;
int rp_lease_etcd_open(const char *endpoints, const char *vm_name, struct rp_lease **out, struct rp_error *err) RP_MUST_CHECK;
int rp_lease_none_open(struct rp_lease **out, struct rp_error *err) RP_MUST_CHECK;
/* vm_name as part of a file name or key: bytes outside of [A-Za-z0-9._-] and a leading dot become %XX. out: 193 bytes. */
void rp_lease_name(const char *vm_name, char out[193]);

#endif
