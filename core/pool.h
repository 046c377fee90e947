/*
 * pool.h - a few helper threads that run the same function beside their caller.
 *
 * rp_pool_run is a parallel section: fn(ctx, worker) runs once on each helper (worker 0 … threads-1) and on the
 * caller (worker = threads), and the call returns when all are back. How work is shared out is fn's business (an
 * atomic counter in ctx). One caller at a time.
 */
#ifndef RP_CORE_POOL_H
#define RP_CORE_POOL_H

#include "core/error.h"

#include <stdbool.h>
#include <stdint.h>

struct rp_pool;

/* `name`: for the threads, at most 8 characters. threads may be 0. behind: as rp_thread_behind (core/thread.h). -errno of rp_thread_start. */
int rp_pool_create(const char *name, unsigned threads, bool behind, struct rp_pool **out, struct rp_error *err) RP_MUST_CHECK;
void rp_pool_destroy(struct rp_pool *p);
unsigned rp_pool_threads(const struct rp_pool *p);
uint64_t rp_pool_cpu_ns(const struct rp_pool *p);  /* that the helpers have used; any thread */
void rp_pool_run(struct rp_pool *p, void (*fn)(void *ctx, unsigned worker), void *ctx);

#endif
