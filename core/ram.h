/*
 * ram.h - a view of guest RAM by guest frame number, and sets of its pages.
 *
 * Guest RAM is one reserved range of host addresses: the page of frame g lies at base + g * 4096 for
 * every frame of a region; between regions (the PCI hole) nothing is mapped. A page set has one bit per
 * frame over the whole frame range, so bit i always means gfn i; bits outside of regions stay 0.
 *
 * Ownership: a view borrows the memory of whoever made it. Thread: a view is constant; a page set
 * belongs to one thread unless a function says atomic.
 */
#ifndef RP_CORE_RAM_H
#define RP_CORE_RAM_H

#include "core/error.h"

#include <stdbool.h>
#include <stdint.h>

#define RP_PAGE_SIZE 4096u
#define RP_PAGE_SHIFT 12
#define RP_RAM_REGIONS_MAX 4

struct rp_ram_region {
    uint64_t gfn;    /* first frame */
    uint64_t pages;
};

struct rp_ram_view {
    uint8_t *base;
    uint64_t gfn_end;   /* one past the last frame: the length of a page set, in bits */
    uint64_t pages;     /* frames that are RAM */
    uint32_t nregions;
    struct rp_ram_region regions[RP_RAM_REGIONS_MAX];  /* ascending, disjoint */
};

/* True when all of [gfn, gfn + pages) is RAM. Overflow-safe: the arguments may be hostile. */
bool rp_ram_contains(const struct rp_ram_view *ram, uint64_t gfn, uint64_t pages);

static inline uint8_t *rp_ram_page(const struct rp_ram_view *ram, uint64_t gfn)
{
    return ram->base + (gfn << RP_PAGE_SHIFT);
}

struct rp_pageset {
    uint64_t *words;    /* ceil(bits / 64) */
    uint64_t bits;      /* = gfn_end of the view it was made for */
};

int rp_pageset_init(struct rp_pageset *set, uint64_t bits) RP_MUST_CHECK; /* all clear; -ENOMEM */
void rp_pageset_fini(struct rp_pageset *set);
void rp_pageset_clear(struct rp_pageset *set);
void rp_pageset_fill(struct rp_pageset *set, const struct rp_ram_view *ram); /* every RAM page */
uint64_t rp_pageset_count(const struct rp_pageset *set);
void rp_pageset_or(struct rp_pageset *into, const struct rp_pageset *from);     /* same bits */
void rp_pageset_andnot(struct rp_pageset *into, const struct rp_pageset *from); /* into &= ~from */
bool rp_pageset_test(const struct rp_pageset *set, uint64_t gfn);
void rp_pageset_set(struct rp_pageset *set, uint64_t gfn);
void rp_pageset_unset(struct rp_pageset *set, uint64_t gfn);
/* The first set bit at or after `from`, or set->bits when there is none. */
uint64_t rp_pageset_next(const struct rp_pageset *set, uint64_t from);
/* Atomic set, for writers in several threads (devices); harvested by rp_pageset_take. */
void rp_pageset_set_atomic(struct rp_pageset *set, uint64_t gfn, uint64_t pages);
/* ORs `from` into `into` and clears `from`, word by word with atomic exchange. */
void rp_pageset_take(struct rp_pageset *into, struct rp_pageset *from);

#endif
