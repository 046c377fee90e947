/*
 * staging.h - the pages of an epoch that is not verified yet, kept beside the RAM that they will change (image.h).
 *
 * One entry per page whatever the number of passes; the highest pass counts. A page is kept as it came: a delta as a delta, against what
 * RAM holds, so that a page rewritten a little costs its few bytes twice and not its 4,096; everything else decoded. Each is hashed when
 * it is staged, while it is in the processor's cache, so that the digest of RAM with all of them in it is known at any time.
 *
 * Memory comes in blocks that are kept for the next epoch. Thread: one.
 */
#ifndef RP_CORE_STAGING_H
#define RP_CORE_STAGING_H

#include "core/digest.h"
#include "core/stream.h"

struct rp_staged {
    uint64_t gfn;
    struct rp_hash128 hash;
    uint8_t *data;
    uint32_t pass;
    uint16_t len;       /* of data; 0: a page of zeroes */
    bool delta;         /* data are a delta; else the page */
};

struct rp_staging {     /* embedded; zeroed it holds nothing */
    struct rp_ram_view ram;         /* borrowed memory */
    struct rp_digest *digest;       /* borrowed: of what RAM holds */
    uint32_t *mark;                 /* borrowed: [gfn_end] 1 + index in pages, 0: not staged */
    struct rp_staged *pages;
    uint32_t npages, cap;
    struct rp_hash128 change;       /* of the digest's sum, by what is staged */
    uint64_t bytes;                 /* of contents */
    uint8_t **blocks;
    uint32_t nblocks, blocks_cap, block;    /* block: the one that is being filled */
    size_t used;                    /* of it */
};

/* mark: all zero. */
void rp_staging_init(struct rp_staging *s, const struct rp_ram_view *ram, struct rp_digest *digest, uint32_t *mark);
void rp_staging_fini(struct rp_staging *s);

/* Stages page `i` of an entry that rp_ram_walk has checked. `max`: contents that may be held, in bytes. -ENOBUFS: beyond that, nothing
 * has changed. -ENOMEM, -EBADMSG: what is staged is good for rp_staging_clear only. */
int rp_staging_put(struct rp_staging *s, const struct rp_ram_entry *e, uint32_t i, uint32_t pass, uint64_t max, struct rp_error *err) RP_MUST_CHECK;
/* The digest of RAM with the staged pages in it. */
struct rp_hash128 rp_staging_digest(const struct rp_staging *s);
/* What is staged goes into RAM and its digest; nothing is staged any more. Cannot fail. */
void rp_staging_apply(struct rp_staging *s);
/* Likewise, and in the marks of those pages stands 1 + their pass, for whoever goes on without staging. */
void rp_staging_spill(struct rp_staging *s);
/* Takes the marks back. */
void rp_staging_clear(struct rp_staging *s);

/* Writes the contents of a page that is not zero; a delta's in place: `page` holds the parent's. -EBADMSG. */
int rp_ram_decode(const struct rp_ram_entry *e, uint32_t i, uint8_t *page, struct rp_error *err) RP_MUST_CHECK;

#endif
