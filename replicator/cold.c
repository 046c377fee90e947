#include "replicator/cold.h"

#include "core/clock.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define RUN_MAX 4096u       /* frames: what is let go at once */
#define COLLECT 2048u       /* pages handed over at once */

int rp_cold_init(struct rp_cold *c, struct rp_capture *capture, struct rp_cow *cow, struct rp_error *err)
{
    *c = (struct rp_cold){.capture = capture, .cow = cow};
    if (rp_pageset_init(&c->recent[0], capture->pending.bits) == 0 && rp_pageset_init(&c->recent[1], capture->pending.bits) == 0)
        return 0;
    rp_cold_fini(c);
    return rp_error_set(err, ENOMEM, "no memory to know cold pages");
}

void rp_cold_fini(struct rp_cold *c)
{
    rp_pageset_fini(&c->recent[0]);
    rp_pageset_fini(&c->recent[1]);
    free(c->list);
    free(c->runs);
    *c = (struct rp_cold){0};
}

/* --- finding runs --- */

struct scan {
    uint64_t first, last, pages;    /* the run that grows; pages == 0: none does */
};

static bool is_cold(const struct rp_cold *c, const struct rp_cow_plan *plan, uint64_t gfn)
{
    return !c->capture->where[gfn] && (plan->hot || !(rp_pageset_test(&c->recent[0], gfn) || rp_pageset_test(&c->recent[1], gfn)));
}

static bool room_for(void **array, uint64_t *cap, uint64_t n, size_t size)
{
    if (n <= *cap)
        return true;
    uint64_t want = n < 1024 ? 1024 : n * 2;
    void *p = realloc(*array, want * size);
    if (!p)
        return false;
    *array = p;
    *cap = want;
    return true;
}

/* Takes the pending pages of [first, last] into the list, each with a slot. False: there are not enough, or no memory. */
static bool take_run(struct rp_cold *c, const struct scan *s)
{
    struct rp_pageset *pending = &c->capture->pending;
    uint32_t slots[64];
    uint64_t n = c->n, gfn = s->first;
    if (!room_for((void **)&c->list, &c->cap, c->n + s->pages, sizeof(*c->list)) ||
        !room_for((void **)&c->runs, &c->runs_cap, c->nruns + 1, sizeof(*c->runs)))
        return false;
    while (c->n < n + s->pages) {
        uint64_t left = n + s->pages - c->n;
        uint32_t got = rp_arena_alloc(c->capture->arena, slots, (uint32_t)(left < 64 ? left : 64));
        for (uint32_t i = 0; i < got; i++, gfn++) {
            gfn = rp_pageset_next(pending, gfn);
            c->list[c->n++] = (struct rp_captured){.gfn = gfn, .slot = slots[i]};
            rp_pageset_unset(pending, gfn);
        }
        if (got == 0)
            break;
    }
    if (c->n == n)
        return false;
    c->runs[c->nruns++] = (struct rp_cow_run){.gfn = s->first, .span = (uint32_t)(c->list[c->n - 1].gfn - s->first + 1),
                                              .first = (uint32_t)n, .pages = (uint32_t)(c->n - n)};
    return true;
}

static void protect_run(struct rp_cold *c)
{
    const struct rp_cow_run *run = &c->runs[c->nruns - 1];
    uint64_t t0 = rp_clock_ns();
    (void)rp_cow_protect(c->cow, c->list, run);     /* one that cannot be is copied, and the engine sees it by rp_cow_usable */
    c->protect_ns += rp_clock_ns() - t0;
    c->span += run->span;
}

static void end_run(struct rp_cold *c, const struct rp_cow_plan *plan, struct scan *s)
{
    if (s->pages && s->pages >= plan->min_run && rp_cow_usable(c->cow) && take_run(c, s))
        protect_run(c);
    s->pages = 0;
}

uint64_t rp_cold_protect(struct rp_cold *c, const struct rp_cow_plan *plan)
{
    const struct rp_pageset *pending = &c->capture->pending;
    struct scan s = {0};
    uint64_t run_max = plan->max_pages < RUN_MAX ? plan->max_pages : RUN_MAX;
    c->n = c->nruns = c->collected = c->span = c->protect_ns = 0;
    rp_cow_begin(c->cow);
    for (uint64_t g = rp_pageset_next(pending, 0); g < pending->bits && c->n < plan->max_pages; g = rp_pageset_next(pending, g + 1)) {
        bool cold = is_cold(c, plan, g);
        if (s.pages && (!cold || g - s.last - 1 > plan->max_gap || g - s.first >= run_max))
            end_run(c, plan, &s);
        if (!cold)
            continue;
        if (s.pages++ == 0)
            s.first = g;
        s.last = g;
    }
    if (c->n < plan->max_pages)
        end_run(c, plan, &s);
    rp_cow_begun(c->cow);
    if (c->nruns == 0)
        (void)rp_cow_end(c->cow);
    return c->n;
}

/* --- collecting --- */

struct copy_job {
    struct rp_cold *c;
    uint64_t first, end;
    _Atomic uint64_t next;
};

static void copy_pages(void *ctx, unsigned worker)
{
    (void)worker;
    struct copy_job *j = ctx;
    for (;;) {
        uint64_t i = j->first + atomic_fetch_add_explicit(&j->next, 64, memory_order_relaxed);
        if (i >= j->end)
            return;
        rp_cow_copy(j->c->cow, j->c->list + i, j->end - i < 64 ? j->end - i : 64);
    }
}

int rp_cold_collect(struct rp_cold *c, struct rp_captured **pages, uint64_t *n, struct rp_error *err)
{
    uint64_t run = c->collected;
    *pages = NULL;
    *n = 0;
    if (run == c->nruns)
        return 0;
    struct copy_job job = {.c = c, .first = c->runs[run].first};
    for (job.end = job.first; run < c->nruns && job.end - job.first < COLLECT; run++)
        job.end = c->runs[run].first + c->runs[run].pages;
    if (job.end - job.first >= RP_CAPTURE_PARALLEL)
        rp_pool_run(c->capture->pool, copy_pages, &job);
    else
        copy_pages(&job, 0);
    for (; c->collected < run; c->collected++)
        rp_cow_finish(c->cow, c->list, &c->runs[c->collected]);
    *n = job.end - job.first;
    *pages = malloc(*n * sizeof(**pages));
    if (*pages) {
        memcpy(*pages, c->list + job.first, *n * sizeof(**pages));
        return 0;
    }
    for (uint64_t i = job.first; i < job.end; i++)
        rp_arena_free(c->capture->arena, &c->list[i].slot, 1);
    return rp_error_set(err, ENOMEM, "no memory for an epoch's message");
}

void rp_cold_withdraw(struct rp_cold *c)
{
    for (; c->collected < c->nruns; c->collected++) {
        const struct rp_cow_run *run = &c->runs[c->collected];
        rp_cow_finish(c->cow, c->list, run);
        for (uint32_t i = run->first; i < run->first + run->pages; i++) {
            rp_pageset_set(&c->capture->pending, c->list[i].gfn);
            rp_arena_free(c->capture->arena, &c->list[i].slot, 1);
        }
    }
    c->n = c->nruns = c->collected = 0;
}

void rp_cold_note(struct rp_cold *c)
{
    struct rp_pageset oldest = c->recent[1];
    c->recent[1] = c->recent[0];
    c->recent[0] = oldest;
    rp_pageset_clear(&c->recent[0]);
    for (uint64_t i = 0; i < c->capture->n; i++)
        rp_pageset_set(&c->recent[0], c->capture->list[i].gfn);
    for (uint64_t i = 0; i < c->n; i++)
        rp_pageset_set(&c->recent[0], c->list[i].gfn);
}
