#include "replicator/capture.h"

#include "core/copy.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define FAR_PAGES 512u      /* 2 MiB: so many copies are gone from the caches before they are encoded */

int rp_capture_init(struct rp_capture *c, const struct rp_ram_view *ram, struct rp_arena *arena, struct rp_pool *pool,
                    struct rp_error *err)
{
    *c = (struct rp_capture){.ram = *ram, .arena = arena, .pool = pool};
    c->where = calloc(ram->gfn_end, sizeof(*c->where));
    if (!c->where || rp_pageset_init(&c->pending, ram->gfn_end) < 0) {
        rp_capture_fini(c);
        return rp_error_set(err, ENOMEM, "no memory to keep track of %llu pages", (unsigned long long)ram->gfn_end);
    }
    return 0;
}

void rp_capture_fini(struct rp_capture *c)
{
    rp_pageset_fini(&c->pending);
    free(c->where);
    free(c->list);
    free(c->gfns);
    *c = (struct rp_capture){0};
}

uint64_t rp_capture_need(const struct rp_capture *c)
{
    uint64_t need = rp_pageset_count(&c->pending);
    if (c->n == 0)
        return need;
    for (uint64_t i = 0; i < c->n; i++)
        need -= rp_pageset_test(&c->pending, c->list[i].gfn);
    return need;
}

/* Room for `more` further entries in the list and in the scratch. */
static bool grow(struct rp_capture *c, uint64_t more)
{
    if (c->n + more > c->cap) {
        uint64_t cap = c->n + more < 1024 ? 1024 : (c->n + more) * 2;
        void *p = realloc(c->list, cap * sizeof(*c->list));
        if (!p)
            return false;
        c->list = p;
        c->cap = cap;
    }
    if (more > c->gfns_cap) {
        void *p = realloc(c->gfns, more * sizeof(*c->gfns));
        if (!p)
            return false;
        c->gfns = p;
        c->gfns_cap = more;
    }
    return true;
}

struct copy_job {
    struct rp_capture *c;
    uint64_t n;
    _Atomic uint64_t next;
};

static void copy_pages(void *ctx, unsigned worker)
{
    (void)worker;
    struct copy_job *j = ctx;
    struct rp_capture *c = j->c;
    for (;;) {
        uint64_t i = atomic_fetch_add_explicit(&j->next, 64, memory_order_relaxed);
        if (i >= j->n)
            return;
        for (uint64_t end = i + 64 < j->n ? i + 64 : j->n; i < end; i++) {
            uint64_t gfn = c->gfns[i];
            rp_copy_page(rp_arena_page(c->arena, c->list[c->where[gfn] - 1].slot), rp_ram_page(&c->ram, gfn),
                         rp_ram_page(&c->ram, c->gfns[i + 1 < j->n ? i + 1 : i]), j->n >= FAR_PAGES);
        }
    }
}

/* Gives page gfns[0 … n) places in the list; returns how many got one (all, unless slots ran out). */
static uint64_t place(struct rp_capture *c, uint64_t n)
{
    uint32_t slots[64];
    uint32_t have = 0, used = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t gfn = c->gfns[i];
        if (c->where[gfn]) {
            c->again++;
            continue;
        }
        if (used == have) {
            uint64_t want = n - i < 64 ? n - i : 64;
            have = rp_arena_alloc(c->arena, slots, (uint32_t)want);
            used = 0;
            if (have == 0)
                return i;
        }
        c->list[c->n] = (struct rp_captured){.gfn = gfn, .slot = slots[used++]};
        c->where[gfn] = (uint32_t)++c->n;
    }
    if (used < have)            /* pages that had a slot already left some over */
        rp_arena_free(c->arena, slots + used, have - used);
    return n;
}

uint64_t rp_capture_copy(struct rp_capture *c, uint64_t max, bool helped)
{
    uint64_t count = rp_pageset_count(&c->pending);
    if (count > max)
        count = max;
    if (count == 0 || !grow(c, count))
        return 0;
    uint64_t n = 0;
    for (uint64_t g = rp_pageset_next(&c->pending, 0); g < c->pending.bits && n < count;
         g = rp_pageset_next(&c->pending, g + 1))
        c->gfns[n++] = g;
    n = place(c, n);
    for (uint64_t i = 0; i < n; i++)
        rp_pageset_unset(&c->pending, c->gfns[i]);
    struct copy_job job = {.c = c, .n = n};
    if (helped && n >= RP_CAPTURE_PARALLEL)
        rp_pool_run(c->pool, copy_pages, &job);
    else
        copy_pages(&job, 0);
    return n;
}

uint64_t rp_capture_name(struct rp_capture *c, uint64_t max)
{
    uint64_t count = rp_pageset_count(&c->pending), named = 0;
    if (count > max)
        count = max;
    if (!grow(c, count))
        return 0;
    for (uint64_t g = rp_pageset_next(&c->pending, 0); named < count && g < c->pending.bits; g = rp_pageset_next(&c->pending, g + 1)) {
        rp_pageset_unset(&c->pending, g);
        named++;
        if (c->where[g]) {
            /* The copy is stale; copying again is cheaper than finding it in the list. */
            memcpy(rp_arena_page(c->arena, c->list[c->where[g] - 1].slot), rp_ram_page(&c->ram, g), RP_PAGE_SIZE);
            continue;
        }
        c->list[c->n] = (struct rp_captured){.gfn = g, .slot = RP_SLOT_NONE};
        c->where[g] = (uint32_t)++c->n;
    }
    return named;
}

struct rp_captured *rp_capture_take(struct rp_capture *c, uint64_t *n)
{
    struct rp_captured *list = c->list;
    *n = c->n;
    for (uint64_t i = 0; i < c->n; i++)
        c->where[list[i].gfn] = 0;
    if (c->n == 0)
        return NULL;
    c->list = NULL;
    c->n = c->cap = c->again = 0;
    return list;
}
