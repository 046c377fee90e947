#include "core/ram.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool rp_ram_contains(const struct rp_ram_view *ram, uint64_t gfn, uint64_t pages)
{
    for (uint32_t i = 0; i < ram->nregions; i++) {
        const struct rp_ram_region *r = &ram->regions[i];
        if (gfn >= r->gfn && gfn - r->gfn < r->pages)
            return pages <= r->pages - (gfn - r->gfn);
    }
    return false;
}

static uint64_t words_of(const struct rp_pageset *set)
{
    return (set->bits + 63) / 64;
}

int rp_pageset_init(struct rp_pageset *set, uint64_t bits)
{
    set->bits = bits;
    set->words = calloc(words_of(set) + 1, sizeof(uint64_t));
    return set->words ? 0 : -ENOMEM;
}

void rp_pageset_fini(struct rp_pageset *set)
{
    free(set->words);
    *set = (struct rp_pageset){0};
}

void rp_pageset_clear(struct rp_pageset *set)
{
    memset(set->words, 0, words_of(set) * sizeof(uint64_t));
}

void rp_pageset_fill(struct rp_pageset *set, const struct rp_ram_view *ram)
{
    rp_pageset_clear(set);
    for (uint32_t i = 0; i < ram->nregions; i++) {
        uint64_t g = ram->regions[i].gfn, end = g + ram->regions[i].pages;
        while (g < end) {
            if (g % 64 == 0 && end - g >= 64) {
                set->words[g / 64] = UINT64_MAX;
                g += 64;
            } else {
                rp_pageset_set(set, g++);
            }
        }
    }
}

uint64_t rp_pageset_count(const struct rp_pageset *set)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < words_of(set); i++)
        if (set->words[i])      /* most are 0, and counting bits is a call on x86-64 without popcnt */
            n += (uint64_t)__builtin_popcountll(set->words[i]);
    return n;
}

void rp_pageset_or(struct rp_pageset *into, const struct rp_pageset *from)
{
    for (uint64_t i = 0; i < words_of(into); i++)
        into->words[i] |= from->words[i];
}

void rp_pageset_andnot(struct rp_pageset *into, const struct rp_pageset *from)
{
    for (uint64_t i = 0; i < words_of(into); i++)
        into->words[i] &= ~from->words[i];
}

bool rp_pageset_test(const struct rp_pageset *set, uint64_t gfn)
{
    return set->words[gfn / 64] >> (gfn % 64) & 1;
}

void rp_pageset_set(struct rp_pageset *set, uint64_t gfn)
{
    set->words[gfn / 64] |= 1ull << (gfn % 64);
}

void rp_pageset_unset(struct rp_pageset *set, uint64_t gfn)
{
    set->words[gfn / 64] &= ~(1ull << (gfn % 64));
}

uint64_t rp_pageset_next(const struct rp_pageset *set, uint64_t from)
{
    if (from >= set->bits)
        return set->bits;
    uint64_t w = from / 64, word = set->words[w] & (UINT64_MAX << (from % 64));
    while (!word) {
        if (++w >= words_of(set))
            return set->bits;
        word = set->words[w];
    }
    return w * 64 + (uint64_t)__builtin_ctzll(word);
}

void rp_pageset_set_atomic(struct rp_pageset *set, uint64_t gfn, uint64_t pages)
{
    /* Always a locked operation: it also orders the caller's data before the bit, so that whoever takes the bit
     * (rp_pageset_take) copies the new data. */
    for (uint64_t end = gfn + pages; gfn < end; gfn++)
        __atomic_fetch_or(&set->words[gfn / 64], 1ull << (gfn % 64), __ATOMIC_SEQ_CST);
}

void rp_pageset_take(struct rp_pageset *into, struct rp_pageset *from)
{
    for (uint64_t i = 0; i < words_of(from); i++)
        if (__atomic_load_n(&from->words[i], __ATOMIC_RELAXED))
            into->words[i] |= __atomic_exchange_n(&from->words[i], 0, __ATOMIC_ACQ_REL);
}
