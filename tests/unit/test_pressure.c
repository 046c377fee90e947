/*
 * INV-5: a slow or dead sink never wedges the VM and never costs more memory than promised. The real engine, a guest that
 * writes real memory (tests/bench/source.h), and a sink that stalls, crawls or dies. Every epoch that is committed is compared with
 * the digest of the guest's RAM at its cut: what memory pressure does to an epoch must not show in it.
 *
 * RP_STALL_S: for how long the sink stalls (3; the figure is 60).
 */
#include "core/clock.h"
#include "replicator/engine.h"
#include "tests/unit/crawl_sink.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RAM_BYTES (256ull << 20)
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define MEMORY_BOUND UINT64_MAX     /* the sanitizer's own memory is no business of ours */
#else
#define MEMORY_BOUND ((64ull << 20) + RAM_BYTES / 10)
#endif

/* --- what is watched --- */

/* Private memory of this process: guest RAM is shared memory and does not count. */
static uint64_t private_bytes(void)
{
    char line[128];
    unsigned long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "RssAnon: %lu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib << 10;
}

static struct rp_engine_stats st;
static uint64_t base_bytes, most_bytes;
static uint64_t began_ns, printed_ns;   /* state by state, twice a second */

static void watch(struct rp_engine *e, struct synth *g, const char *phase, unsigned ms)
{
    for (unsigned t = 0; t < ms; t += 50) {
        usleep(50000);
        uint64_t now = private_bytes(), used = now > base_bytes ? now - base_bytes : 0;
        most_bytes = used > most_bytes ? used : most_bytes;
        if (rp_clock_ns() - printed_ns >= 500000000) {
            printed_ns = rp_clock_ns();
            rp_engine_stats(e, &st);
            printf("%-8s %6.1f s: %-13s epoch %6.1f ms throttle %2u %%  cut %lu committed %lu  %5.1f MiB  %lu pages written\n", phase,
                   (double)(printed_ns - began_ns) / 1e9, rp_pressure_name(st.pressure), (double)st.epoch_ns / 1e6, st.throttle, st.cut, st.committed, (double)used / (1 << 20),
                   synth_written(g));
        }
        cr_assert_leq(used, MEMORY_BOUND, "%.1f MiB in phase %s", (double)used / (1 << 20), phase);
    }
    rp_engine_stats(e, &st);
}

static unsigned count_events(struct rp_events *ev, const char *name)
{
    static struct rp_event all[512];
    unsigned n = rp_events_copy(ev, all, 512), found = 0;
    for (unsigned i = 0; i < n; i++) {
        if (strcmp(all[i].name, name) != 0)
            continue;
        found++;
        if (found <= 6)
            printf("  %s %s\n", all[i].name, all[i].data);
        cr_assert(strstr(all[i].data, "\"reason\": \""), "INV-7: %s without a reason: %s", name, all[i].data);
    }
    return found;
}

struct bed {
    struct synth *guest;
    struct crawler sink;
    struct rp_events *events;
    struct rp_engine *engine;
};

static void begin(struct bed *b, const struct synth_config *guest, const struct rp_engine_config *cfg, bool image)
{
    struct rp_error err = {0};
    b->guest = synth_make(guest);
    crawl_make(&b->sink, b->guest, image);
    cr_assert_eq(rp_events_create(512, &b->events), 0);
    base_bytes = private_bytes();
    most_bytes = 0;
    began_ns = rp_clock_ns();
    cr_assert_eq(rp_engine_create(synth_source(b->guest), &b->sink.base, RP_RUN_CONTINUOUS, cfg, b->events, &b->engine, &err), 0, "%s", err.text);
    cr_assert_eq(rp_engine_start(b->engine, NULL, NULL, &err), 0, "%s", err.text);
    synth_start(b->guest);
    for (;;) {
        rp_engine_stats(b->engine, &st);
        cr_assert_neq(st.state, RP_ENGINE_FAILED);
        if (st.state == RP_ENGINE_STEADY)
            break;
        watch(b->engine, b->guest, "syncing", 50);
    }
}

static void end(struct bed *b, int expect)
{
    struct rp_error err = {0};
    rp_engine_stop(b->engine);
    cr_assert_eq(rp_engine_wait(b->engine, &err), expect, "%s", err.text);
    cr_assert_eq(synth_throttle(b->guest), 0, "a run that is over throttles nobody");
    rp_engine_destroy(b->engine);
    synth_stop(b->guest);
    synth_free(b->guest);
    rp_image_destroy(b->sink.image);
    rp_events_destroy(b->events);
}

TestSuite(pressure, .timeout = 240);

/* Must hold 5 of the main job: bounded, state by state, and the guest goes on. */
Test(pressure, INV5_memory_is_bounded_while_the_sink_stalls)
{
    const char *s = getenv("RP_STALL_S");
    unsigned stall_ms = (s ? (unsigned)atoi(s) : 3) * 1000;
    struct synth_config guest = {.ram_bytes = RAM_BYTES, .pages_s = 60000, .bytes = 4096, .content = SYNTH_NOISE, .fill = SYNTH_NOISE};
    struct rp_engine_config cfg = {.goal = {.epoch_ns = 20000000, .stall_ns = UINT64_MAX}};
    struct bed b;
    begin(&b, &guest, &cfg, false);
    watch(b.engine, b.guest, "steady", 1000);
    crawl_stall(&b.sink, true);
    usleep(100000);
    uint64_t committed = atomic_load(&b.sink.committed), written = synth_written(b.guest);
    watch(b.engine, b.guest, "stalled", stall_ms);
    cr_assert_eq(atomic_load(&b.sink.committed), committed);
    cr_assert_leq(synth_released(b.guest), committed, "INV-1");
    cr_assert_gt(synth_written(b.guest), written, "the guest runs");
    cr_assert_geq(st.pressure, RP_PRESSURE_LONGER);
    cr_assert_leq(st.cut - committed, 6, "epochs in flight are bounded");
    crawl_stall(&b.sink, false);
    watch(b.engine, b.guest, "resumed", 1000);
    while (st.committed <= committed + 4)       /* it goes on; a test that hangs here has found that it does not */
        watch(b.engine, b.guest, "resumed", 100);
    printf("most: %.1f MiB of %.1f\n", (double)most_bytes / (1 << 20), (double)MEMORY_BOUND / (1 << 20));
    cr_assert_gt(count_events(b.events, "EPOCH_LENGTH") + count_events(b.events, "THROTTLE"), 0);
    end(&b, 0);
}

Test(pressure, INV5_a_sink_that_takes_nothing_is_given_up)
{
    struct synth_config guest = {.ram_bytes = 32u << 20, .pages_s = 10000, .bytes = 64};
    struct rp_engine_config cfg = {.goal = {.epoch_ns = 10000000, .stall_ns = 1000000000}};
    struct bed b;
    begin(&b, &guest, &cfg, false);
    watch(b.engine, b.guest, "steady", 300);
    crawl_stall(&b.sink, true);
    for (unsigned i = 0; i < 600 && st.state != RP_ENGINE_FAILED; i++)
        watch(b.engine, b.guest, "stalled", 50);
    cr_assert_eq(st.state, RP_ENGINE_FAILED);
    struct rp_error err = {0};
    cr_assert_eq(rp_engine_wait(b.engine, &err), -ETIMEDOUT);
    cr_assert(strstr(err.text, "has taken nothing for"), "%s", err.text);
    end(&b, -ETIMEDOUT);
}

/* The same while a cut is put off because the arena is full: what waits is pages of the open epoch, and the emitter's queue is full. */
Test(pressure, INV5_a_sink_that_stops_while_the_guest_outruns_it_is_given_up)
{
    struct synth_config guest = {.ram_bytes = 256ull << 20, .ws_pages = 20000, .pages_s = 0, .bytes = 4096, .content = SYNTH_NOISE};
    struct rp_engine_config cfg = {.goal = {.epoch_ns = 20000000, .stall_ns = 1500000000, .bandwidth_bytes_s = 60u << 20}};
    struct bed b;
    begin(&b, &guest, &cfg, false);
    for (unsigned i = 0; i < 100 && st.cuts_put_off == 0; i++)
        watch(b.engine, b.guest, "outrun", 50);
    cr_assert_gt(st.cuts_put_off, 0);
    crawl_stall(&b.sink, true);
    for (unsigned i = 0; i < 600 && st.state != RP_ENGINE_FAILED; i++)
        watch(b.engine, b.guest, "stalled", 50);
    cr_assert_eq(st.state, RP_ENGINE_FAILED, "a sink that takes nothing holds the outputs for ever");
    end(&b, -ETIMEDOUT);
}

/* More is dirtied than a limited link can carry: vCPUs are slowed down until it can, and every epoch is right. */
Test(pressure, INV5_a_guest_that_outruns_the_link_is_throttled)
{
    struct synth_config guest = {.ram_bytes = 64u << 20, .pages_s = 0, .bytes = 4096, .content = SYNTH_NOISE, .digest = true};
    struct rp_engine_config cfg = {.goal = {.epoch_ns = 20000000, .bandwidth_bytes_s = 40u << 20}, .memory_bytes = 8u << 20};
    struct bed b;
    begin(&b, &guest, &cfg, true);
    uint64_t committed = st.committed;
    for (unsigned i = 0; i < 40 && (st.throttle == 0 || st.committed < committed + 5); i++)
        watch(b.engine, b.guest, "outrun", 500);
    cr_assert_geq(st.committed, committed + 5);
    cr_assert_gt(count_events(b.events, "THROTTLE"), 0);
    cr_assert_gt(atomic_load(&b.sink.compared), 2);
    end(&b, 0);
}

/* A guest that says something all the time is cut long before its epochs are over, one that does nothing long after. */
Test(pressure, outputs_make_cuts_and_idleness_saves_them)
{
    struct synth_config busy = {.ram_bytes = 16u << 20, .pages_s = 2000, .bytes = 64, .output_ns = 1, .digest = true};
    struct synth_config calm = {.ram_bytes = 16u << 20, .pages_s = 20, .bytes = 64, .digest = true};
    struct rp_engine_config slow = {.goal = {.epoch_ns = 4000000000}}, fast = {.goal = {.epoch_ns = 10000000}};
    struct bed b;
    begin(&b, &busy, &slow, true);
    uint64_t before = st.cut, t0 = rp_clock_ns();
    while (st.cut < before + 20)
        watch(b.engine, b.guest, "busy", 100);
    cr_assert_lt(rp_clock_ns() - t0, 10 * slow.goal.epoch_ns);
    end(&b, 0);
    begin(&b, &calm, &fast, true);
    watch(b.engine, b.guest, "calm", 1500);     /* it has to be seen idle first */
    before = st.cut;
    t0 = rp_clock_ns();
    watch(b.engine, b.guest, "calm", 1500);
    cr_assert_lt((st.cut - before) * fast.goal.epoch_ns * 2, rp_clock_ns() - t0, "%lu cuts", st.cut - before);
    end(&b, 0);
}
