/*
 * fingerprint.h - what a page held as of the last epoch, in 192 bytes instead of 4,096: 48 bits for each block of 128 bytes.
 * A page whose previous contents are no longer cached (arena.h) can so still travel as a delta: the blocks that changed.
 *
 *     page      |block 0|block 1| … |block 31|        each 128 bytes
 *     known     epoch it is of · 32 × 48 bits of XXH3 under a seed drawn at creation
 *
 * A block that changed is taken for unchanged with probability 2^-48: at 200,000 rewritten pages a second for ever, once in
 * decades. It cannot become an image: the RAM digest of that epoch then differs, the standby refuses it, and the run begins
 * anew with a full epoch. The seed keeps a guest from looking for such blocks on purpose.
 *
 * Memory: address space for all frames, pages of it only for frames that were ever rewritten.
 * Thread: any number of workers, each frame with one of them at a time.
 */
#ifndef RP_REPLICATOR_FINGERPRINT_H
#define RP_REPLICATOR_FINGERPRINT_H

#include "core/ram.h"

struct rp_fingerprints;

int rp_fingerprints_create(uint64_t gfn_end, struct rp_fingerprints **out, struct rp_error *err) RP_MUST_CHECK;  /* -ENOMEM */
void rp_fingerprints_destroy(struct rp_fingerprints *f);

/* Takes `page` as what frame `gfn` holds as of `epoch`. True when it was known as of an epoch before: then bit i of *changed
 * says that block i differs from it. No bit at all: nothing can be said (a hash collided, or the page is the same). */
bool rp_fingerprints_update(struct rp_fingerprints *f, uint64_t gfn, const uint8_t *page, uint64_t epoch, uint32_t *changed);
/* The frame changed without being taken: what is known of it is no longer so. */
void rp_fingerprints_forget(struct rp_fingerprints *f, uint64_t gfn);
bool rp_fingerprints_known(const struct rp_fingerprints *f, uint64_t gfn);

#endif
