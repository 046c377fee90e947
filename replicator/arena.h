/*
 * arena.h - the engine's bounded memory: page slots that hold captured pages until they are encoded, and from then
 * on, as long as nobody needs the slot, the page's contents as of the last epoch (what a delta is made against).
 *
 *   FREE ──alloc (capture)──► STAGED ──retire (encoder)──► CACHED gfn ──take (encoder, as parent)──► STAGED
 *     ▲                                                      │
 *     └──────────────── evict, when alloc runs out of FREE ◄─┘
 *
 * INV-5: capture never gets more than the arena holds; the VM is then cut later, never wedged.
 * Thread: capture allocates, encoders take and retire; one lock, held for a batch of slots at a time.
 */
#ifndef RP_REPLICATOR_ARENA_H
#define RP_REPLICATOR_ARENA_H

#include "core/ram.h"

#define RP_SLOT_NONE UINT32_MAX

struct rp_arena;

/* `bytes`: rounded down to whole pages. `gfn_end`: frames that may be cached. -ENOMEM. */
int rp_arena_create(uint64_t bytes, uint64_t gfn_end, struct rp_arena **out, struct rp_error *err) RP_MUST_CHECK;
void rp_arena_destroy(struct rp_arena *a);
/* Has its memory now, not in the middle of a pause: a step of a few ms. *done: bytes that have it, 0 first. False: that was the last. */
bool rp_arena_populate(struct rp_arena *a, uint64_t *done);

uint8_t *rp_arena_page(struct rp_arena *a, uint32_t slot);
/* Slots that alloc could give at this moment (free or cached). */
uint32_t rp_arena_available(struct rp_arena *a);
uint32_t rp_arena_slots(const struct rp_arena *a);
uint64_t rp_arena_evicted(struct rp_arena *a);      /* cached pages that had to make room, since creation */
/* Takes up to n slots; returns how many. */
uint32_t rp_arena_alloc(struct rp_arena *a, uint32_t *slots, uint32_t n);
/* Gives STAGED slots back unused. */
void rp_arena_free(struct rp_arena *a, const uint32_t *slots, uint32_t n);
/* Blocks until `n` slots are available, the arena is closed (false), or until `deadline_ns` (false). */
bool rp_arena_wait(struct rp_arena *a, uint32_t n, uint64_t deadline_ns);
void rp_arena_close(struct rp_arena *a);

/* For each i: parents[i] = the cached slot of gfns[i] if its contents are of an epoch before `epoch`, now the caller's;
 * else RP_SLOT_NONE (contents of this same epoch are dropped: they are no parent). */
void rp_arena_take(struct rp_arena *a, const uint64_t *gfns, uint32_t n, uint64_t epoch, uint32_t *parents);
/* slots[i] now caches gfns[i] as of `epoch`; parents[i] (if any) become free. slots[i] == RP_SLOT_NONE is skipped. */
void rp_arena_retire(struct rp_arena *a, const uint64_t *gfns, const uint32_t *slots, const uint32_t *parents,
                     uint32_t n, uint64_t epoch);

#endif
