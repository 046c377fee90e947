#include "core/staging.h"

#include "core/codec.h"
#include "core/copy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES (1u << 20)
#define LINE 64u

void rp_staging_init(struct rp_staging *s, const struct rp_ram_view *ram, struct rp_digest *digest, uint32_t *mark)
{
    s->ram = *ram;
    s->digest = digest;
    s->mark = mark;
}

void rp_staging_fini(struct rp_staging *s)
{
    for (uint32_t i = 0; i < s->nblocks; i++)
        free(s->blocks[i]);
    free(s->blocks);
    free(s->pages);
}

/* --- memory --- */

/* An array with room for one more than its `n` elements of `size` bytes: itself, or twice as large. NULL: no memory, it stays as it is. */
static void *one_more(void *array, uint32_t n, uint32_t *cap, size_t size)
{
    uint32_t more = *cap ? *cap * 2 : 64;
    if (n < *cap)
        return array;
    void *p = realloc(array, more * size);
    *cap = p ? more : *cap;
    return p;
}

static bool another_block(struct rp_staging *s)
{
    uint8_t **blocks = one_more(s->blocks, s->nblocks, &s->blocks_cap, sizeof(*blocks));
    if (!blocks)
        return false;
    s->blocks = blocks;
    if (!(s->blocks[s->nblocks] = aligned_alloc(LINE, BLOCK_BYTES)))
        return false;
    s->nblocks++;
    return true;
}

/* Whole pages begin at a cache line. NULL: no memory. */
static uint8_t *room_for(struct rp_staging *s, uint32_t len)
{
    size_t at = len == RP_PAGE_SIZE ? (s->used + LINE - 1) & ~(size_t)(LINE - 1) : s->used;
    if (s->block < s->nblocks && at + len > BLOCK_BYTES) {
        s->block++;
        at = 0;
    }
    if (s->block == s->nblocks && !another_block(s))
        return NULL;
    s->used = at + len;
    s->bytes += len;
    return s->blocks[s->block] + at;
}

static struct rp_staged *another_entry(struct rp_staging *s)
{
    struct rp_staged *pages = one_more(s->pages, s->npages, &s->cap, sizeof(*pages));
    if (!pages)
        return NULL;
    s->pages = pages;
    return &s->pages[s->npages++];
}

/* --- staging --- */

int rp_ram_decode(const struct rp_ram_entry *e, uint32_t i, uint8_t *page, struct rp_error *err)
{
    switch (e->codec) {
    case RP_CODEC_LZ4:
        return rp_lz4_decode(e->payload, e->len, page, err);
    case RP_CODEC_DELTA:
        return rp_delta_decode(e->payload, e->len, page, err);
    default:
        memcpy(page, e->payload + (size_t)i * RP_PAGE_SIZE, RP_PAGE_SIZE);
        return 0;
    }
}

/* How much of an entry's page is kept. */
static uint32_t kept_bytes(const struct rp_ram_entry *e)
{
    return e->codec == RP_CODEC_ZERO ? 0 : e->codec == RP_CODEC_DELTA ? e->len : RP_PAGE_SIZE;
}

/* Its contents into p->data (a delta's: as they are), its hash into p->hash. */
static int take(struct rp_staging *s, struct rp_staged *p, const struct rp_ram_entry *e, uint32_t i, struct rp_error *err)
{
    uint8_t page[RP_PAGE_SIZE] __attribute__((aligned(LINE)));
    int rc = 0;
    __builtin_prefetch(&s->digest->pages[e->next_gfn]);
    if (e->codec == RP_CODEC_ZERO) {
        p->hash = (struct rp_hash128){0, 0};
    } else if (e->codec == RP_CODEC_DELTA) {
        rp_copy_page(page, rp_ram_page(&s->ram, p->gfn), rp_ram_page(&s->ram, e->next_gfn), false);
        rc = rp_ram_decode(e, i, page, err);
        p->hash = rp_page_hash(p->gfn, page);
        memcpy(p->data, e->payload, e->len);
    } else {
        rc = rp_ram_decode(e, i, p->data, err);
        p->hash = rp_page_hash(p->gfn, p->data);
    }
    return rc;
}

int rp_staging_put(struct rp_staging *s, const struct rp_ram_entry *e, uint32_t i, uint32_t pass, uint64_t max, struct rp_error *err)
{
    uint64_t gfn = e->gfn + i;
    uint32_t len = kept_bytes(e);
    struct rp_staged *p = s->mark[gfn] ? &s->pages[s->mark[gfn] - 1] : NULL;
    struct rp_hash128 before = p ? p->hash : s->digest->pages[gfn];
    if (p && p->pass > pass)
        return 0;
    bool delta = e->codec == RP_CODEC_DELTA, again = p && p->len == RP_PAGE_SIZE && len == RP_PAGE_SIZE;   /* in the place that it has */
    uint8_t *data = again ? p->data : NULL;
    if (!again && s->bytes + len > max)
        return rp_error_set(err, ENOBUFS, "the staging memory (%llu MiB) is full", (unsigned long long)(max >> 20));
    if ((len && !data && !(data = room_for(s, len))) || (!p && !(p = another_entry(s))))
        return rp_error_set(err, ENOMEM, "no memory to stage an epoch");
    *p = (struct rp_staged){.gfn = gfn, .data = data, .pass = pass, .len = (uint16_t)len, .delta = delta};
    s->mark[gfn] = (uint32_t)(p - s->pages) + 1;
    int rc = take(s, p, e, i, err);
    s->change.lo += p->hash.lo - before.lo;
    s->change.hi += p->hash.hi - before.hi;
    return rc < 0 ? rp_error_wrap(err, "gfn 0x%llx", (unsigned long long)gfn) : 0;
}

struct rp_hash128 rp_staging_digest(const struct rp_staging *s)
{
    return (struct rp_hash128){.lo = s->digest->sum.lo + s->change.lo, .hi = s->digest->sum.hi + s->change.hi};
}

static void apply(struct rp_staging *s)
{
    for (uint32_t i = 0; i < s->npages; i++) {
        const struct rp_staged *p = &s->pages[i];
        uint8_t *page = rp_ram_page(&s->ram, p->gfn);
        if (p->delta)
            rp_delta_again(p->data, p->len, page);
        else if (p->len == 0)
            memset(page, 0, RP_PAGE_SIZE);
        else
            rp_copy_page(page, p->data, p->data + RP_PAGE_SIZE, false);
        rp_digest_update(s->digest, p->gfn, p->hash);
    }
}

/* The marks are the caller's to take back, or to change. */
static void forget(struct rp_staging *s)
{
    s->npages = s->block = 0;
    s->used = 0;
    s->bytes = 0;
    s->change = (struct rp_hash128){0, 0};
}

void rp_staging_clear(struct rp_staging *s)
{
    for (uint32_t i = 0; i < s->npages; i++)
        s->mark[s->pages[i].gfn] = 0;
    forget(s);
}

void rp_staging_apply(struct rp_staging *s)
{
    apply(s);
    rp_staging_clear(s);
}

void rp_staging_spill(struct rp_staging *s)
{
    apply(s);
    for (uint32_t i = 0; i < s->npages; i++)
        s->mark[s->pages[i].gfn] = s->pages[i].pass + 1;
    forget(s);
}
