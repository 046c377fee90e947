#include "core/histogram.h"

static unsigned bucket_of(uint64_t v)
{
    if (v < RP_HIST_SUB)
        return (unsigned)v;
    unsigned log = 63u - (unsigned)__builtin_clzll(v);      /* >= 4 */
    unsigned sub = (unsigned)(v >> (log - 4)) & (RP_HIST_SUB - 1);
    unsigned b = (log - 3) * RP_HIST_SUB + sub;
    return b < RP_HIST_BUCKETS ? b : RP_HIST_BUCKETS - 1;
}

static uint64_t bucket_end(unsigned b)
{
    if (b < RP_HIST_SUB)
        return b;
    unsigned log = b / RP_HIST_SUB + 3;
    uint64_t sub = b % RP_HIST_SUB;
    return ((RP_HIST_SUB + sub + 1) << (log - 4)) - 1;
}

void rp_hist_add(struct rp_hist *h, uint64_t value)
{
    atomic_fetch_add_explicit(&h->count, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum, value, memory_order_relaxed);
    if (value > atomic_load_explicit(&h->max, memory_order_relaxed))
        atomic_store_explicit(&h->max, value, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->buckets[bucket_of(value)], 1, memory_order_relaxed);
}

uint64_t rp_hist_quantile(const struct rp_hist *h, double q)
{
    uint64_t n = atomic_load_explicit(&h->count, memory_order_relaxed), seen = 0;
    uint64_t max = atomic_load_explicit(&h->max, memory_order_relaxed);
    if (n == 0)
        return 0;
    uint64_t want = (uint64_t)((double)n * q);
    for (unsigned b = 0; b < RP_HIST_BUCKETS; b++) {
        seen += atomic_load_explicit(&h->buckets[b], memory_order_relaxed);
        if (seen > want)
            return bucket_end(b) < max ? bucket_end(b) : max;
    }
    return max;
}

uint64_t rp_hist_octave(const struct rp_hist *h, unsigned k)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < RP_HIST_SUB; i++)
        n += atomic_load_explicit(&h->buckets[(k - RP_HIST_OCTAVE_FIRST) * RP_HIST_SUB + i], memory_order_relaxed);
    return n;
}

void rp_hist_reset(struct rp_hist *h)
{
    atomic_store(&h->count, 0);
    atomic_store(&h->sum, 0);
    atomic_store(&h->max, 0);
    for (unsigned b = 0; b < RP_HIST_BUCKETS; b++)
        atomic_store_explicit(&h->buckets[b], 0, memory_order_relaxed);
}
