/*
 * digest.h - the digest of all guest RAM that both sides of a stream keep incrementally.
 *
 * digest = sum over pages of h(gfn, contents), component-wise modulo 2^64, where h is 0 for a page of
 * zeroes and XXH3_128bits_withSeed(contents, seed = gfn) otherwise. A sum, so that a page's change is
 * one subtraction and one addition; zero for zeroes, so that RAM nobody touched costs nothing.
 * It catches corruption and bugs; it is not a defence against an attacker who may choose pages.
 */
#ifndef RP_CORE_DIGEST_H
#define RP_CORE_DIGEST_H

#include "core/ram.h"
#include "core/xxh3.h"

/* h(gfn, page) for 4,096 bytes at `page`; `is_zero` when the caller knows already that it is zero. */
struct rp_hash128 rp_page_hash(uint64_t gfn, const uint8_t *page);
bool rp_page_is_zero(const uint8_t *page);
/* The hash of a page of zeroes, or the sum of such. */
static inline bool rp_hash_is_zero(struct rp_hash128 h) { return (h.lo | h.hi) == 0; }

struct rp_digest {
    struct rp_hash128 sum;
    struct rp_hash128 *pages;  /* [gfn_end] the hash each page contributes now */
    uint64_t gfn_end;
};

int rp_digest_init(struct rp_digest *d, uint64_t gfn_end) RP_MUST_CHECK; /* RAM of zeroes; -ENOMEM */
void rp_digest_fini(struct rp_digest *d);
/* Page `gfn` now has hash h. Not thread-safe on `sum`; see rp_digest_update_delta for workers. */
void rp_digest_update(struct rp_digest *d, uint64_t gfn, struct rp_hash128 h);
/* Same for workers that own disjoint pages: the change of the sum goes to *delta, added later by the owner. */
void rp_digest_update_delta(struct rp_digest *d, uint64_t gfn, struct rp_hash128 h, struct rp_hash128 *delta);
/* Page `gfn`, and its neighbours, are about to get a hash for the first time: their memory is had now. To read it first, and to write it
 * then, would take it twice. Any thread. */
void rp_digest_touch(struct rp_digest *d, uint64_t gfn);
void rp_digest_add(struct rp_digest *d, struct rp_hash128 delta);
/* From scratch over the whole view: what a test, or a restore that loaded directly, compares with. */
struct rp_hash128 rp_digest_of(const struct rp_ram_view *ram);

#endif
