#include "core/digest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef long long v4 __attribute__((vector_size(32), aligned(8)));

/* (No target_clones: its resolver runs before a sanitizer is ready.) */
__attribute__((always_inline)) static inline bool all_zero(const uint8_t *page)
{
    const v4 *p = (const v4 *)(const void *)page;
    for (size_t i = 0; i < RP_PAGE_SIZE / sizeof(v4); i += 4) {
        v4 any = p[i] | p[i + 1] | p[i + 2] | p[i + 3];
        if (any[0] | any[1] | any[2] | any[3])
            return false;
    }
    return true;
}

__attribute__((target("avx2"))) static bool all_zero_avx2(const uint8_t *page)
{
    return all_zero(page);
}

bool rp_page_is_zero(const uint8_t *page)
{
    const long long *first = (const long long *)(const void *)page;
    if (first[0] | first[1] | first[2] | first[3])      /* most pages that are not zero say so at once */
        return false;
    return __builtin_cpu_supports("avx2") ? all_zero_avx2(page) : all_zero(page);
}

struct rp_hash128 rp_page_hash(uint64_t gfn, const uint8_t *page)
{
    if (rp_page_is_zero(page))
        return (struct rp_hash128){0, 0};
    return rp_xxh3_128(page, RP_PAGE_SIZE, gfn);
}

int rp_digest_init(struct rp_digest *d, uint64_t gfn_end)
{
    *d = (struct rp_digest){.gfn_end = gfn_end};
    d->pages = calloc(gfn_end, sizeof(*d->pages));
    return d->pages ? 0 : -ENOMEM;
}

void rp_digest_fini(struct rp_digest *d)
{
    free(d->pages);
    *d = (struct rp_digest){0};
}

void rp_digest_update_delta(struct rp_digest *d, uint64_t gfn, struct rp_hash128 h, struct rp_hash128 *delta)
{
    struct rp_hash128 *had = &d->pages[gfn];
    delta->lo += h.lo - had->lo;
    delta->hi += h.hi - had->hi;
    *had = h;
}

void rp_digest_update(struct rp_digest *d, uint64_t gfn, struct rp_hash128 h)
{
    rp_digest_update_delta(d, gfn, h, &d->sum);
}

void rp_digest_touch(struct rp_digest *d, uint64_t gfn)
{
    __atomic_fetch_or(&d->pages[gfn].lo, 0, __ATOMIC_RELAXED);
}

void rp_digest_add(struct rp_digest *d, struct rp_hash128 delta)
{
    d->sum.lo += delta.lo;
    d->sum.hi += delta.hi;
}

struct rp_hash128 rp_digest_of(const struct rp_ram_view *ram)
{
    struct rp_hash128 sum = {0, 0};
    for (uint32_t i = 0; i < ram->nregions; i++)
        for (uint64_t g = ram->regions[i].gfn; g < ram->regions[i].gfn + ram->regions[i].pages; g++) {
            struct rp_hash128 h = rp_page_hash(g, rp_ram_page(ram, g));
            sum.lo += h.lo;
            sum.hi += h.hi;
        }
    return sum;
}
