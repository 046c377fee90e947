/*
 * capture.h - from a set of dirty pages to copies in the arena.
 *
 *   pending ──rp_capture_copy──► list (one slot a page) ──rp_capture_take──► the encoder
 *
 * While the guest runs, a copy may be torn or overtaken; that is fine, because whoever writes the page after its
 * harvest makes it dirty again: it comes back into `pending` and is copied again into the same slot. What is copied
 * between cut and resume is what the epoch holds.
 * Thread: the engine's; the copying itself may be spread over a pool, from RP_CAPTURE_PARALLEL pages on.
 */
#ifndef RP_REPLICATOR_CAPTURE_H
#define RP_REPLICATOR_CAPTURE_H

#include "core/pool.h"
#include "replicator/arena.h"
#include "replicator/encoder.h"

#define RP_CAPTURE_PARALLEL 256u    /* pages: below, waking a helper costs more than it copies */

struct rp_capture {
    struct rp_ram_view ram;
    struct rp_arena *arena;
    struct rp_pool *pool;
    struct rp_pageset pending;      /* dirty and not captured since */
    uint32_t *where;                /* [gfn_end] 1 + index in list, 0: not captured in this list */
    struct rp_captured *list;       /* captured, not handed over */
    uint64_t n, cap;
    uint64_t again;                 /* pages captured a second time into the same list, since the last take */
    uint64_t *gfns;                 /* scratch of copy: what it is about to copy */
    uint64_t gfns_cap;
};

int rp_capture_init(struct rp_capture *c, const struct rp_ram_view *ram, struct rp_arena *arena, struct rp_pool *pool,
                    struct rp_error *err) RP_MUST_CHECK;
void rp_capture_fini(struct rp_capture *c);
/* How many more slots it takes to capture all of pending. */
uint64_t rp_capture_need(const struct rp_capture *c);
/* Copies pending pages, at most `max` of them, as far as there are slots; they leave pending. Returns how many. `helped`: the pool helps,
 * where it has to be quick; beside a running machine its threads take a vCPU's place for as long as it lasts. */
uint64_t rp_capture_copy(struct rp_capture *c, uint64_t max, bool helped);
/* Names pending pages, at most `max` of them, without copying (slot RP_SLOT_NONE): the encoder reads them. No cut may come before it
 * has, unless the machine stands still from then on. Returns how many. */
uint64_t rp_capture_name(struct rp_capture *c, uint64_t max);
/* Hands the list over: a malloc'ed array, the caller's. NULL when empty. */
struct rp_captured *rp_capture_take(struct rp_capture *c, uint64_t *n);

#endif
