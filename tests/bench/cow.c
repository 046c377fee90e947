/*
 * Copy-on-write against copying in the pause, at many cold dirty pages. First the pages' share of a pause alone, round by round in turn;
 * then whole runs of the engine under a guest that writes through its RAM (threads: KVM's part of a pause, and of a fault, is not in it).
 *
 *   rounds=20  run=64 (pages in a row, as many clean ones between)  seconds=3  ram=512 (MiB)  rate=100000 (pages/s)
 */
#include "tests/bench/bench.h"

#include "core/clock.h"
#include "replicator/cold.h"
#include "replicator/engine.h"
#include "tests/bench/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* --- the pages' share of a pause --- */

struct bed {
    struct rp_ram_view ram;
    struct rp_arena *arena;
    struct rp_pool *pool;
    struct rp_capture capture;
    struct rp_cow *cow;
    struct rp_cold cold;
    struct rp_hist stop, protect, after;    /* ns */
};

static void make(struct bed *b, uint64_t pages)
{
    struct rp_error err = {0};
    int fd = memfd_create("bench", MFD_CLOEXEC);
    *b = (struct bed){.ram = {.gfn_end = pages, .pages = pages, .nregions = 1, .regions = {{0, pages}}}};
    if (fd < 0 || ftruncate(fd, (off_t)(pages << RP_PAGE_SHIFT)) < 0)
        exit(1);
    b->ram.base = mmap(NULL, pages << RP_PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    close(fd);
    if (b->ram.base == MAP_FAILED || rp_arena_create(pages << (RP_PAGE_SHIFT - 1), pages, &b->arena, &err) < 0 ||
        rp_pool_create("capture", 1, false, &b->pool, &err) < 0 || rp_capture_init(&b->capture, &b->ram, b->arena, b->pool, &err) < 0 ||
        rp_cow_create(&b->ram, b->arena, &b->cow, &err) < 0 || rp_cold_init(&b->cold, &b->capture, b->cow, &err) < 0)
        bench_die("copy-on-write", &err);
    uint32_t slots[64];     /* the arena's pages exist, as they do after the first epochs */
    for (uint64_t i = 0; i < rp_arena_slots(b->arena); i++)
        *rp_arena_page(b->arena, (uint32_t)i) = 1;
    rp_arena_free(b->arena, slots, rp_arena_alloc(b->arena, slots, 64));
}

/* The guest's turn: `n` pages are written, in runs. */
static void dirty(struct bed *b, uint64_t n, uint64_t run, unsigned round)
{
    uint64_t gfn = 0;
    for (uint64_t i = 0; i < n; i++) {
        memset(rp_ram_page(&b->ram, gfn), (int)round, RP_PAGE_SIZE);
        rp_pageset_set(&b->capture.pending, gfn);
        gfn += (i + 1) % run ? 1 : 1 + run;
    }
}

static void give_back(struct bed *b, struct rp_captured *pages, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        rp_arena_free(b->arena, &pages[i].slot, 1);
    free(pages);
}

static void stop_and_copy(struct bed *b)
{
    uint64_t t0 = rp_clock_ns(), n;
    rp_capture_copy(&b->capture, UINT64_MAX, true);
    rp_hist_add(&b->stop, rp_clock_ns() - t0);
    struct rp_captured *pages = rp_capture_take(&b->capture, &n);
    give_back(b, pages, n);
}

static void copy_on_write(struct bed *b, uint64_t gap)
{
    struct rp_cow_plan plan = {.min_run = 1, .max_gap = gap, .max_pages = UINT64_MAX};
    struct rp_captured *pages;
    uint64_t t0 = rp_clock_ns(), n;
    rp_cold_protect(&b->cold, &plan);
    uint64_t t1 = rp_clock_ns();
    while (rp_cold_collect(&b->cold, &pages, &n, NULL) == 0 && n)
        give_back(b, pages, n);
    (void)rp_cow_end(b->cow);
    rp_hist_add(&b->protect, t1 - t0);
    rp_hist_add(&b->after, rp_clock_ns() - t1);
}

static double ms(const struct rp_hist *h, double q)
{
    return (double)rp_hist_quantile(h, q) / 1e6;
}

static void pauses(const struct bench_words *w)
{
    static struct bed b;
    static const uint64_t counts[] = {1000, 4000, 16000, 50000};
    unsigned rounds = (unsigned)bench_number(w, "rounds", 20);
    uint64_t run = (uint64_t)bench_number(w, "run", 64);
    struct rp_cow_costs c;
    make(&b, 128 * 1024);
    rp_cow_costs(b.cow, &c);
    uint64_t gap = (uint64_t)(c.run_ns / c.page_ns);        /* as the policy does while it knows of no faults */
    gap = gap < 512 ? gap : 512;
    bench_title("pages' share of a pause: copied, or write-protected and copied after it");
    printf("  here: protect a run %.0f ns, a page %.0f ns; a write fault %.1f us, the next write to a page %.1f us\n", c.run_ns, c.page_ns,
           c.fault_ns / 1e3, c.after_ns / 1e3);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        rp_hist_reset(&b.stop);
        rp_hist_reset(&b.protect);
        rp_hist_reset(&b.after);
        for (unsigned r = 0; r < rounds + 2; r++) {
            if (r == 2)     /* warm */
                rp_hist_reset(&b.stop), rp_hist_reset(&b.protect), rp_hist_reset(&b.after);
            dirty(&b, counts[i], run, r);
            stop_and_copy(&b);
            dirty(&b, counts[i], run, r);
            copy_on_write(&b, gap);
        }
        printf("  %6lu pages: copied p50 %7.3f p99 %7.3f ms; protected p50 %7.3f p99 %7.3f ms; ratio p50 %5.2f p99 %5.2f; copied after %7.3f ms\n",
               counts[i], ms(&b.stop, 0.5), ms(&b.stop, 0.99), ms(&b.protect, 0.5), ms(&b.protect, 0.99), ms(&b.protect, 0.5) / ms(&b.stop, 0.5),
               ms(&b.protect, 0.99) / ms(&b.stop, 0.99), ms(&b.after, 0.5));
    }
    rp_cold_fini(&b.cold);
    rp_cow_destroy(b.cow);
    rp_capture_fini(&b.capture);
    rp_pool_destroy(b.pool);
    rp_arena_destroy(b.arena);
    munmap(b.ram.base, b.ram.pages << RP_PAGE_SHIFT);
}

/* --- whole runs, to a sink that takes everything at once --- */

struct drain { struct rp_sink base; struct rp_sink_events events; };

static int drain_start(struct rp_sink *s, const struct rp_sink_events *events, struct rp_error *err)
{
    (void)err;
    ((struct drain *)s)->events = *events;
    return 0;
}
static int drain_emit(struct rp_sink *s, struct rp_buf *record, struct rp_error *err)
{
    (void)s, (void)record, (void)err;
    return 0;
}
static int drain_flush(struct rp_sink *s, uint64_t epoch, struct rp_error *err)
{
    (void)err;
    ((struct drain *)s)->events.committed(((struct drain *)s)->events.ctx, s, epoch);
    return 0;
}
static void drain_cancel(struct rp_sink *s) { (void)s; }
static const struct rp_sink_ops drain_ops = {.name = "drain", .start = drain_start, .emit = drain_emit, .flush = drain_flush,
                                             .cancel = drain_cancel, .destroy = drain_cancel};

static void whole_run(const struct bench_words *w, const char *name, enum rp_capture_choice choice)
{
    static struct rp_engine_stats st, before;
    struct rp_error err = {0};
    struct drain sink = {.base.ops = &drain_ops};
    struct synth_config guest = {.ram_bytes = (uint64_t)bench_number(w, "ram", 512) << 20, .pages_s = bench_number(w, "rate", 100000), .bytes = 64,
                                 .pattern = SYNTH_SEQ, .content = SYNTH_COUNTER, .fill = SYNTH_COUNTER, .writers = 1};
    struct rp_engine_config cfg = {.goal = {.epoch_ns = 20000000}, .capture = choice, .memory_bytes = guest.ram_bytes / 2};
    struct synth *g = synth_make(&guest);
    struct rp_engine *e;
    if (rp_engine_create(synth_source(g), &sink.base, RP_RUN_CONTINUOUS, &cfg, NULL, &e, &err) < 0 || rp_engine_start(e, NULL, NULL, &err) < 0)
        bench_die("engine", &err);
    synth_start(g);
    do {
        usleep(5000);
        rp_engine_stats(e, &st);
    } while (st.state < RP_ENGINE_STEADY);
    usleep(500000);
    rp_engine_stats(e, &before);
    uint64_t w0 = synth_written(g), t0 = rp_clock_ns();
    usleep((useconds_t)(bench_number(w, "seconds", 3) * 1e6));
    rp_engine_stats(e, &st);
    double s = (double)(rp_clock_ns() - t0) / 1e9;
    printf("  %-14s pause p50 %7.3f p99 %7.3f ms  %6lu pages an epoch  guest %7.0f pages/s  epochs %4.0f/s  chose %s; %lu pages protected, %lu faults\n",
           name, ms(&st.pause, 0.5), ms(&st.pause, 0.99), rp_hist_quantile(&st.dirty, 0.5), (double)(synth_written(g) - w0) / s,
           (double)(st.committed - before.committed) / s, st.capture, st.cow.pages, st.cow.faults);
    rp_engine_stop(e);
    if (rp_engine_wait(e, &err) < 0)
        bench_die("engine", &err);
    rp_engine_destroy(e);
    synth_stop(g);
    synth_free(g);
}

int bench_cow(const struct bench_words *w)
{
    pauses(w);
    bench_title("the engine under a guest that writes through its RAM, 20 ms epochs");
    whole_run(w, "stop-and-copy", RP_CHOOSE_STOP);
    whole_run(w, "copy-on-write", RP_CHOOSE_COW);
    whole_run(w, "auto", RP_CHOOSE_BY_MEASURE);
    return 0;
}
