/*
 * histogram.h - latencies in fixed memory: 16 buckets per power of two, so a quantile is right to about 6 %.
 * One writer, any number of readers (relaxed atomics: a reader may miss the newest sample, never see a torn one).
 */
#ifndef RP_CORE_HISTOGRAM_H
#define RP_CORE_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

#define RP_HIST_SUB 16u
#define RP_HIST_BUCKETS (RP_HIST_SUB * 48u)

struct rp_hist {
    _Atomic uint64_t count, sum, max;
    _Atomic uint64_t buckets[RP_HIST_BUCKETS];
};

void rp_hist_add(struct rp_hist *h, uint64_t value);
/* q in [0, 1]: an upper bound of the bucket that holds the quantile; 0 when empty. */
uint64_t rp_hist_quantile(const struct rp_hist *h, double q);
/* Samples in [2^k, 2^(k+1)), for drawing; k from RP_HIST_OCTAVE_FIRST, which also holds what is smaller, to RP_HIST_OCTAVE_LAST. */
#define RP_HIST_OCTAVE_FIRST 3u
#define RP_HIST_OCTAVE_LAST (RP_HIST_BUCKETS / RP_HIST_SUB + 2u)
uint64_t rp_hist_octave(const struct rp_hist *h, unsigned k);
void rp_hist_reset(struct rp_hist *h);

#endif
