/*
 * loop.h - the device I/O thread's event loop: epoll over descriptors, and timers. Every callback runs with the
 * machine lock held, so devices need no lock of their own and a cut (which takes the lock) finds them at rest.
 */
#ifndef RP_VMM_LOOP_H
#define RP_VMM_LOOP_H

#include "core/error.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct rp_loop;
typedef void rp_loop_fn(void *ctx, uint32_t epoll_events);

/* `lock`: the machine lock, taken around each batch of callbacks. */
int rp_loop_create(pthread_mutex_t *lock, struct rp_loop **out, struct rp_error *err) RP_MUST_CHECK;
void rp_loop_destroy(struct rp_loop *l);                /* after rp_loop_stop */
int rp_loop_start(struct rp_loop *l, struct rp_error *err) RP_MUST_CHECK;   /* starts the thread "io" */
void rp_loop_stop(struct rp_loop *l);                   /* flag + eventfd, join */
/* The machine lock for another thread than the loop's. The loop's thread takes it again within a microsecond of giving it up, long before
 * who waits for it has woken: so it waits for those who asked this way, a moment at most, before its next batch. */
void rp_loop_lock(struct rp_loop *l);
void rp_loop_unlock(struct rp_loop *l);
/* Instead of the thread (fuzzers: one input after the other, no races): runs what is ready now; false when nothing was. */
bool rp_loop_turn(struct rp_loop *l);

/* Machine lock held, or before start. The descriptor stays the caller's; remove before closing it. A callback
 * never runs after rp_loop_remove returned. */
int rp_loop_add(struct rp_loop *l, int fd, uint32_t epoll_events, rp_loop_fn *fn, void *ctx) RP_MUST_CHECK;
int rp_loop_modify(struct rp_loop *l, int fd, uint32_t epoll_events) RP_MUST_CHECK;
void rp_loop_remove(struct rp_loop *l, int fd);

/* One-shot timers at CLOCK_MONOTONIC ns. Machine lock held; callbacks run on the io thread, like the others. */
struct rp_timer;
int rp_timer_create(struct rp_loop *l, void (*fn)(void *ctx), void *ctx, struct rp_timer **out) RP_MUST_CHECK;
void rp_timer_destroy(struct rp_timer *t);
void rp_timer_arm(struct rp_timer *t, uint64_t at_ns);
void rp_timer_disarm(struct rp_timer *t);

#endif
