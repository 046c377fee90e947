#include "replicator/lease_keeper.h"

#include "core/clock.h"
#include "core/thread.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define RENEWALS_PER_TTL 5u

struct rp_lease_keeper {
    struct rp_lease *lease;             /* lease_lock */
    pthread_mutex_t lease_lock;         /* order: lease_lock > lock */
    struct rp_lease_keeper_config cfg;
    uint64_t ttl_ns;
    uint64_t term;                      /* lock */
    pthread_t renewer, watcher;
    bool threads;
    pthread_mutex_t lock;
    pthread_cond_t change;
    bool stop, lost;                    /* lock */
    struct rp_error why;                /* lock: the newest failure */
    _Atomic uint64_t deadline_ns;       /* written under lock */
    _Atomic uint64_t renewals, failures;
    struct rp_hist renew;               /* renewer */
};

/* lock held. Sleeps until `ns` from now or a change. */
static void pause_for(struct rp_lease_keeper *k, uint64_t ns)
{
    rp_cond_wait_until(&k->change, &k->lock, rp_clock_ns() + ns);
}

/* lock held; drops it for the callback. */
static void lose(struct rp_lease_keeper *k, const struct rp_error *why)
{
    if (k->lost || k->stop)
        return;
    struct rp_error e = *why;
    k->lost = true;
    k->why = e;
    atomic_store(&k->deadline_ns, 0);
    pthread_cond_broadcast(&k->change);
    pthread_mutex_unlock(&k->lock);
    if (k->cfg.lost)
        k->cfg.lost(k->cfg.ctx, &e);
    pthread_mutex_lock(&k->lock);
}

/* lock held. The callback is made under it, so that a deadline never goes back; it must not call the keeper. */
static void renewed(struct rp_lease_keeper *k, uint64_t deadline_ns)
{
    if (k->lost || deadline_ns <= atomic_load(&k->deadline_ns))
        return;
    atomic_store_explicit(&k->deadline_ns, deadline_ns, memory_order_release);
    if (k->cfg.renewed)
        k->cfg.renewed(k->cfg.ctx, deadline_ns);
}

/* lock held; dropped while the storage is asked. A failed renewal is tried again soon: the deadline decides. */
static uint64_t renew_once(struct rp_lease_keeper *k)
{
    struct rp_error why = {0};
    uint64_t deadline = 0, start = rp_clock_ns();
    pthread_mutex_unlock(&k->lock);
    pthread_mutex_lock(&k->lease_lock);
    int rc = rp_lease_renew(k->lease, &deadline, &why);
    uint64_t took = rp_clock_ns() - start;
    pthread_mutex_lock(&k->lock);
    pthread_mutex_unlock(&k->lease_lock);
    rp_hist_add(&k->renew, took);
    if (rc == 0) {
        atomic_fetch_add(&k->renewals, 1);
        renewed(k, deadline);
        return k->ttl_ns / RENEWALS_PER_TTL;
    }
    atomic_fetch_add(&k->failures, 1);
    k->why = why;
    if (rc == -ESTALE)
        lose(k, &why);
    return k->ttl_ns / RENEWALS_PER_TTL / 4;
}

static void *renewer_main(void *arg)
{
    struct rp_lease_keeper *k = arg;
    pthread_mutex_lock(&k->lock);
    while (!k->stop && !k->lost) {
        uint64_t next = renew_once(k), until = rp_clock_ns() + next;
        while (!k->stop && !k->lost && rp_clock_ns() < until)
            pause_for(k, until - rp_clock_ns());
    }
    pthread_mutex_unlock(&k->lock);
    return NULL;
}

static void *watcher_main(void *arg)
{
    struct rp_lease_keeper *k = arg;
    pthread_mutex_lock(&k->lock);
    while (!k->stop && !k->lost) {
        uint64_t now = rp_lease_now(), deadline = atomic_load(&k->deadline_ns);
        if (now + k->cfg.guard_ns < deadline) {
            pause_for(k, deadline - k->cfg.guard_ns - now);
            continue;
        }
        struct rp_error why = {0};
        rp_error_exit(&why, RP_EXIT_REFUSED, ESTALE, "the lease (term %llu) could not be renewed in time%s%s",
                      (unsigned long long)k->term, k->why.code ? ": " : "", k->why.text);
        lose(k, &why);
    }
    pthread_mutex_unlock(&k->lock);
    return NULL;
}

static int start_threads(struct rp_lease_keeper *k, struct rp_error *err)
{
    if (k->lease->deadline_ns == RP_LEASE_FOREVER)
        return 0;
    int rc = rp_thread_start(&k->renewer, "lease renew", renewer_main, k, err);
    if (rc < 0)
        return rc;
    rc = rp_thread_start(&k->watcher, "lease watch", watcher_main, k, err);
    k->threads = rc == 0;
    if (rc == 0)
        return 0;
    pthread_mutex_lock(&k->lock);
    k->stop = true;
    pthread_cond_broadcast(&k->change);
    pthread_mutex_unlock(&k->lock);
    pthread_join(k->renewer, NULL);
    return rc;
}

int rp_lease_keeper_start(struct rp_lease *l, const struct rp_lease_keeper_config *cfg, struct rp_lease_keeper **out,
                          struct rp_error *err)
{
    struct rp_lease_keeper *k = calloc(1, sizeof(*k));
    if (!k)
        return rp_error_set(err, ENOMEM, "no memory to keep a lease");
    k->lease = l;
    k->cfg = *cfg;
    k->ttl_ns = l->ttl_ms * 1000000u;
    k->term = l->term;
    if (!k->cfg.guard_ns)
        k->cfg.guard_ns = k->ttl_ns / 8;
    atomic_init(&k->deadline_ns, l->deadline_ns);
    pthread_mutex_init(&k->lock, NULL);
    pthread_mutex_init(&k->lease_lock, NULL);
    pthread_cond_init(&k->change, NULL);
    int rc = start_threads(k, err);
    if (rc < 0) {
        free(k);
        return rc;
    }
    *out = k;
    return 0;
}

int rp_lease_keeper_advance(struct rp_lease_keeper *k, uint64_t *term, struct rp_error *err)
{
    struct rp_lease_grant g = {0};
    struct rp_error why = {0};
    pthread_mutex_lock(&k->lease_lock);
    int rc = rp_lease_advance(k->lease, &g, &why);
    pthread_mutex_lock(&k->lock);
    pthread_mutex_unlock(&k->lease_lock);
    if (rc == 0 && k->lost)
        rc = rp_error_exit(&why, RP_EXIT_REFUSED, ESTALE, "the lease was lost meanwhile");
    if (rc == 0) {
        *term = k->term = g.term;
        renewed(k, g.deadline_ns);
    } else {
        k->why = why;
        if (rc == -ESTALE || rc == -EBUSY)
            lose(k, &why);
    }
    pthread_mutex_unlock(&k->lock);
    if (rc < 0 && err)
        *err = why;
    return rc;
}

const _Atomic uint64_t *rp_lease_keeper_deadline(const struct rp_lease_keeper *k)
{
    return &k->deadline_ns;
}

void rp_lease_keeper_stats(struct rp_lease_keeper *k, struct rp_lease_keeper_stats *out)
{
    uint64_t now = rp_lease_now(), deadline = atomic_load(&k->deadline_ns);
    *out = (struct rp_lease_keeper_stats){.renewals = atomic_load(&k->renewals), .failures = atomic_load(&k->failures),
                                          .renew_p50_ns = rp_hist_quantile(&k->renew, 0.5),
                                          .renew_p99_ns = rp_hist_quantile(&k->renew, 0.99)};
    out->left_ns = deadline == RP_LEASE_FOREVER ? deadline : deadline > now ? deadline - now : 0;
    pthread_mutex_lock(&k->lock);
    out->term = k->term;
    snprintf(out->why, sizeof(out->why), "%s", k->why.text);
    pthread_mutex_unlock(&k->lock);
}

int rp_lease_keeper_stop(struct rp_lease_keeper *k, bool release, struct rp_error *err)
{
    pthread_mutex_lock(&k->lock);
    k->stop = true;
    pthread_cond_broadcast(&k->change);
    bool lost = k->lost;
    pthread_mutex_unlock(&k->lock);
    if (k->threads) {
        pthread_join(k->renewer, NULL);
        pthread_join(k->watcher, NULL);
    }
    int rc = release && !lost ? rp_lease_release(k->lease, err) : 0;
    pthread_cond_destroy(&k->change);
    pthread_mutex_destroy(&k->lock);
    pthread_mutex_destroy(&k->lease_lock);
    free(k);
    return rc;
}
