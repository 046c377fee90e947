/* What each step costs a page: copy, hash, codecs; in caches and out of them. */
#include "tests/bench/bench.h"

#include "core/clock.h"
#include "core/codec.h"
#include "core/digest.h"
#include "replicator/capture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SET 8192u       /* pages of one measurement: 32 MiB, more than the caches hold */

static volatile uint64_t sunk;  /* keeps results alive */

struct set {
    uint8_t *a, *b, *out;
    uint32_t len[SET];
    unsigned n;
};

static uint64_t rnd(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

static void copy(void *ctx)
{
    struct set *s = ctx;
    for (unsigned i = 0; i < s->n; i++)
        memcpy(s->b + i * RP_PAGE_SIZE, s->a + i * RP_PAGE_SIZE, RP_PAGE_SIZE);
}

static void hash(void *ctx)
{
    struct set *s = ctx;
    uint64_t x = 0;
    for (unsigned i = 0; i < s->n; i++)
        x += rp_page_hash(i, s->a + i * RP_PAGE_SIZE).lo;
    sunk = x;
}

static void zero(void *ctx)
{
    struct set *s = ctx;
    uint64_t x = 0;
    for (unsigned i = 0; i < s->n; i++)
        x += rp_page_is_zero(s->a + i * RP_PAGE_SIZE);
    sunk = x;
}

static void delta(void *ctx)
{
    struct set *s = ctx;
    for (unsigned i = 0; i < s->n; i++)
        s->len[i] = rp_delta_encode(s->b + i * RP_PAGE_SIZE, s->a + i * RP_PAGE_SIZE, s->out + i * RP_PAGE_SIZE, RP_PAGE_SIZE);
}

static void undelta(void *ctx)
{
    struct set *s = ctx;
    for (unsigned i = 0; i < s->n; i++)
        if (rp_delta_decode(s->out + i * RP_PAGE_SIZE, s->len[i], s->b + i * RP_PAGE_SIZE, NULL) < 0)
            abort();
}

static void lz4(void *ctx)
{
    struct set *s = ctx;
    for (unsigned i = 0; i < s->n; i++)
        s->len[i] = rp_lz4_encode(s->a + i * RP_PAGE_SIZE, s->out + i * RP_PAGE_SIZE, RP_PAGE_SIZE - 512);
}

static void unlz4(void *ctx)
{
    struct set *s = ctx;
    for (unsigned i = 0; i < s->n; i++)
        if (s->len[i] && rp_lz4_decode(s->out + i * RP_PAGE_SIZE, s->len[i], s->b + i * RP_PAGE_SIZE, NULL) < 0)
            abort();
}

static void row(const char *what, struct set *s, void (*fn)(void *))
{
    bench_row(what, bench_best_ns(7, fn, s) / s->n, "ns/page");
}

static void noise(struct set *s)
{
    uint64_t seed = 7;
    for (size_t i = 0; i < (size_t)SET * RP_PAGE_SIZE / 8; i++)
        ((uint64_t *)(void *)s->a)[i] = rnd(&seed);
}

/* b = the same pages as they were before: `bytes` bytes elsewhere in each. */
static void rewrite(struct set *s, unsigned bytes)
{
    uint64_t seed = 9;
    memcpy(s->b, s->a, (size_t)SET * RP_PAGE_SIZE);
    for (unsigned i = 0; i < SET; i++)
        for (unsigned k = 0, at = (unsigned)(rnd(&seed) % (RP_PAGE_SIZE - bytes + 1)); k < bytes; k++)
            s->b[i * RP_PAGE_SIZE + at + k] ^= (uint8_t)(1 + rnd(&seed) % 255);
}

static double mean(const struct set *s)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < s->n; i++)
        sum += s->len[i];
    return (double)sum / s->n;
}

static void codecs(struct set *s)
{
    static const unsigned sizes[] = {8, 64, 512, 2048};
    char what[64];
    for (unsigned k = 0; k < 4; k++) {
        rewrite(s, sizes[k]);
        snprintf(what, sizeof(what), "delta, %u bytes rewritten", sizes[k]);
        row(what, s, delta);
        bench_row("  … bytes", mean(s), "");
        if (sizes[k] == 64)
            row("  … decoding", s, undelta);
    }
    row("lz4, noise", s, lz4);
    for (size_t i = 0; i < (size_t)SET * RP_PAGE_SIZE; i += 64)
        snprintf((char *)s->a + i, 64, "line %08zx: the epoch is committed before the packet leaves", i * 2654435761u);
    row("lz4, text", s, lz4);
    bench_row("  … bytes", mean(s), "");
    row("  … decoding", s, unlz4);
}

struct capture_run {
    struct rp_capture c;
    struct rp_arena *arena;
    struct rp_ram_view ram;
    unsigned n;
};

/* One pause's copy of n pages spread over RAM, slots and list included. */
static double capture_ns(struct capture_run *r)
{
    uint64_t n, best = UINT64_MAX, seed = 11;
    uint32_t *slots = malloc(r->n * sizeof(*slots));
    for (unsigned round = 0; round < 15; round++) {
        while (rp_pageset_count(&r->c.pending) < r->n)
            rp_pageset_set(&r->c.pending, rnd(&seed) % r->ram.pages);
        uint64_t t0 = rp_clock_ns();
        rp_capture_copy(&r->c, UINT64_MAX, true);
        uint64_t ns = rp_clock_ns() - t0;
        best = ns < best ? ns : best;
        struct rp_captured *list = rp_capture_take(&r->c, &n);
        for (unsigned i = 0; i < n; i++)
            slots[i] = list[i].slot;
        rp_arena_free(r->arena, slots, (uint32_t)n);
        free(list);
    }
    free(slots);
    return (double)best;
}

static void captures(unsigned helpers)
{
    static const unsigned counts[] = {16, 64, 256, 1024, 4096, 16384};
    struct capture_run r = {.ram = {.gfn_end = 131072, .pages = 131072, .nregions = 1, .regions = {{0, 131072}}}};
    struct rp_pool *pool;
    r.ram.base = mmap(NULL, r.ram.pages << RP_PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (r.ram.base == MAP_FAILED || rp_pool_create("capture", helpers, false, &pool, NULL) < 0 ||
        rp_arena_create(128u << 20, r.ram.gfn_end, &r.arena, NULL) < 0 || rp_capture_init(&r.c, &r.ram, r.arena, pool, NULL) < 0)
        abort();
    r.n = 16384;
    capture_ns(&r);     /* warms the arena */
    for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        char what[80];
        r.n = counts[i];
        snprintf(what, sizeof(what), "capture of %u scattered pages, %u helpers", r.n, helpers);
        bench_row(what, capture_ns(&r) / r.n, "ns/page");
    }
    rp_capture_fini(&r.c);
    rp_arena_destroy(r.arena);
    rp_pool_destroy(pool);
    munmap(r.ram.base, r.ram.pages << RP_PAGE_SHIFT);
}

int bench_pages(const struct bench_words *w)
{
    struct set s = {.n = SET};
    size_t bytes = (size_t)SET * RP_PAGE_SIZE;
    uint8_t *mem = mmap(NULL, 3 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (mem == MAP_FAILED)
        return 1;
    s.a = mem;
    s.b = mem + bytes;
    s.out = mem + 2 * bytes;
    noise(&s);
    bench_title("steps, 32 MiB of pages (beyond the caches) unless said");
    row("copy", &s, copy);
    row("hash, noise", &s, hash);
    codecs(&s);
    memset(s.a, 0, bytes);
    row("zero check, zero page", &s, zero);
    noise(&s);
    s.n = 32;
    row("copy, in the cache", &s, copy);
    row("hash, in the cache", &s, hash);
    munmap(mem, 3 * bytes);
    bench_title("pause: copying what is dirty into the arena");
    captures(0);
    captures((unsigned)bench_number(w, "helpers", 1));
    return 0;
}
