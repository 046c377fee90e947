/*
 * The whole engine to a standby in another process, tcp and unix. The "guest" is threads (source.h), so a pause here is the
 * engine's part of it: stopping threads, the dirty set, the copy; KVM's part comes on top.
 *
 *   seconds=3  ram=256 (MiB)  lanes=1  writers=1  depth=0 (the engine's default)
 */
#include "tests/bench/bench.h"

#include "core/clock.h"
#include "replicator/engine.h"
#include "replicator/link.h"
#include "tests/bench/source.h"
#include "tests/own_address.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

struct run {
    const char *name;
    const struct rp_uri *uri;
    struct synth_config guest;
    struct rp_goal goal;
};

struct result {
    double seconds;
    uint64_t epochs, pages, written, behind;
    uint64_t raw, lz4, delta;   /* pages, while measured */
    uint64_t wire_bytes, primary_cpu_ns, standby_cpu_ns, max_rss_kib;
    struct rp_engine_stats engine;
};

/* --- the standby process --- */

static int standby_ram(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err)
{
    (void)ctx;
    *out = (struct rp_ram_view){.gfn_end = h->gfn_end, .nregions = h->nregions};
    for (uint32_t i = 0; i < h->nregions; i++) {
        out->regions[i] = (struct rp_ram_region){h->regions[i].gfn, h->regions[i].pages};
        out->pages += h->regions[i].pages;
    }
    out->base = mmap(NULL, h->gfn_end << RP_PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return out->base == MAP_FAILED ? rp_error_set(err, ENOMEM, "no memory for RAM") : 0;
}

static void standby(const void *uri, int ready_fd)
{
    struct rp_error err = {0};
    struct rp_image_ops ops = {.ram = standby_ram};
    struct rp_link_recv_config cfg = {.vm_name = "synthetic", .timeout_ms = 5000};
    struct rp_link_outcome outcome;
    struct rp_listener *l;
    struct rp_link_recv *r;
    if (rp_image_create(RP_IMAGE_STAGED, &ops, 512u << 20, &cfg.image, &err) < 0 || rp_listen(uri, &l, &err) < 0 ||
        rp_link_recv_create(l, &cfg, &r, &err) < 0)
        bench_die("standby", &err);
    if (write(ready_fd, "", 1) != 1 || rp_link_serve(r, &outcome, &err) < 0)
        bench_die("standby", &err);
    if (outcome.end != RP_LINK_STOPPED)
        bench_die("standby", &outcome.why);
    rp_link_recv_destroy(r);
    _exit(0);
}

/* --- the primary --- */

static uint64_t cpu_of(int who)
{
    struct rusage u;
    getrusage(who, &u);
    return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000000u + (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000u;
}

static void wait_state(struct rp_engine *e, enum rp_engine_state want)
{
    static struct rp_engine_stats st;
    do {
        usleep(5000);
        rp_engine_stats(e, &st);
    } while (st.state < want);
    if (st.state == RP_ENGINE_FAILED) {
        struct rp_error err = {0};
        (void)!rp_engine_wait(e, &err);
        bench_die("engine", &err);
    }
}

static void measure(struct rp_engine *e, struct rp_sink *sink, struct synth *g, double seconds, struct result *r)
{
    static struct rp_engine_stats before;
    struct rp_link_stats l0, l1;
    wait_state(e, RP_ENGINE_STEADY);
    usleep(300000);
    for (unsigned i = 0; i < 100 && synth_written(g) < 3 * (synth_ram(g)->pages / 4 * 3); i++)
        usleep(100000);         /* every page was rewritten a few times: what is measured is the steady state */
    rp_engine_stats(e, &before);
    rp_link_sink_stats(sink, &l0);
    uint64_t w0 = synth_written(g), t0 = rp_clock_ns();
    usleep((useconds_t)(seconds * 1e6));
    rp_engine_stats(e, &r->engine);
    rp_link_sink_stats(sink, &l1);
    r->seconds = (double)(rp_clock_ns() - t0) / 1e9;
    r->written = synth_written(g) - w0;
    r->behind = synth_behind(g);
    r->epochs = r->engine.committed - before.committed;
    r->pages = r->engine.dirty.sum - before.dirty.sum;
    r->raw = r->engine.encode.pages[RP_CODEC_RAW] - before.encode.pages[RP_CODEC_RAW];
    r->lz4 = r->engine.encode.pages[RP_CODEC_LZ4] - before.encode.pages[RP_CODEC_LZ4];
    r->delta = r->engine.encode.pages[RP_CODEC_DELTA] - before.encode.pages[RP_CODEC_DELTA];
    r->wire_bytes = l1.bytes - l0.bytes;
}

static void one(const struct bench_words *w, const struct run *run, struct result *r)
{
    struct rp_error err = {0};
    struct rp_link_config link = {.uri = *run->uri, .vm_id = {7, 7, 7}, .vm_name = "synthetic", .lanes = (unsigned)bench_number(w, "lanes", 1),
                                  .timeout_ms = 5000};
    struct rp_engine_config cfg = {.goal = run->goal};
    struct rp_sink *sink;
    struct rp_engine *e;
    uint64_t held;
    cfg.goal.depth = (unsigned)bench_number(w, "depth", 0);
    uint64_t child0 = cpu_of(RUSAGE_CHILDREN);
    pid_t pid = bench_child(standby, &link.uri);
    struct synth *g = synth_make(&run->guest);
    uint64_t cpu0 = cpu_of(RUSAGE_SELF);
    if (rp_link_sink_create(&link, &sink, &held, &err) < 0 ||
        rp_engine_create(synth_source(g), sink, RP_RUN_CONTINUOUS, &cfg, NULL, &e, &err) < 0 ||
        rp_engine_start(e, NULL, NULL, &err) < 0)
        bench_die("primary", &err);
    synth_start(g);
    measure(e, sink, g, bench_number(w, "seconds", 3), r);
    rp_engine_stop(e);
    if (rp_engine_wait(e, &err) < 0)
        bench_die("primary", &err);
    synth_stop(g);
    r->primary_cpu_ns = cpu_of(RUSAGE_SELF) - cpu0 - synth_writer_cpu_ns(g);
    (void)!rp_link_sink_bye(sink, RP_BYE_STOP, r->engine.committed, &err);
    waitpid(pid, NULL, 0);
    r->standby_cpu_ns = cpu_of(RUSAGE_CHILDREN) - child0;
    sink->ops->destroy(sink);
    rp_engine_destroy(e);
    if (run->guest.output_ns)
        printf("    an output waited p50 %.2f p99 %.2f ms\n", (double)rp_hist_quantile(synth_outputs(g), 0.5) / 1e6,
               (double)rp_hist_quantile(synth_outputs(g), 0.99) / 1e6);
    synth_free(g);
}

/* CPU is of the whole run, full epoch included; committed GiB likewise. */
static void report(const struct run *run, const struct result *r)
{
    const struct rp_engine_stats *s = &r->engine;
    double gib = (double)(s->dirty.sum + s->done_bytes / RP_PAGE_SIZE) * RP_PAGE_SIZE / (1u << 30), ms = 1e6;
    printf("  %-34s %7.0f epochs/s %5llu pages/epoch  pause p50 %6.3f p99 %6.3f  commit p50 %6.2f p99 %6.2f ms\n", run->name,
           (double)r->epochs / r->seconds, (unsigned long long)rp_hist_quantile(&s->dirty, 0.5), (double)rp_hist_quantile(&s->pause, 0.5) / ms,
           (double)rp_hist_quantile(&s->pause, 0.99) / ms, (double)rp_hist_quantile(&s->commit, 0.5) / ms,
           (double)rp_hist_quantile(&s->commit, 0.99) / ms);
    printf("    %8.0f pages/s written, %5.1f %% of asked; %7.1f wire bytes/page; %6.1f MB/s; CPU s/GiB %.2f + %.2f standby; put off %llu; raw %llu lz4 %llu delta %llu\n",
           (double)r->written / r->seconds,
           run->guest.pages_s > 0 ? 100 * (double)r->written / r->seconds / run->guest.pages_s : 100.0,
           r->pages ? (double)r->wire_bytes / (double)r->pages : 0, (double)r->wire_bytes / r->seconds / 1e6,
           (double)r->primary_cpu_ns / 1e9 / gib, (double)r->standby_cpu_ns / 1e9 / gib, (unsigned long long)s->cuts_put_off,
           (unsigned long long)r->raw, (unsigned long long)r->lz4, (unsigned long long)r->delta);
}

int bench_link(const struct bench_words *w)
{
    static struct result r;
    uint64_t ram = (uint64_t)bench_number(w, "ram", 256) << 20;
    unsigned writers = (unsigned)bench_number(w, "writers", 1);
    const char *only = bench_text(w, "only", NULL);
    for (unsigned u = 0; u < 2; u++) {
        const struct rp_uri uri = own_address(u ? "tcp" : "unix");
        struct synth_config base = {.ram_bytes = ram, .ws_pages = (ram >> RP_PAGE_SHIFT) / 4 * 3, .writers = writers, .bytes = 64,
                                    .content = SYNTH_COUNTER, .fill = SYNTH_NOISE};
        struct synth_config small = base, g1 = base, g50 = base, g200 = base, noise = base, client = base;
        small.pages_s = 50000;
        g1.pages_s = 1000;
        g50.pages_s = 50000;
        g200.pages_s = 200000;
        noise.pages_s = 50000;
        noise.bytes = 4096;
        noise.content = SYNTH_NOISE;
        client.pages_s = 10000;
        client.output_ns = 1;
        const struct rp_goal fast = {.epoch_ns = 500000}, usual = {.epoch_ns = 20000000};
        const struct run runs[] = {
            {"small: 50k pages/s, 0.5 ms epochs", &uri, small, fast},  {"client: an output at all times", &uri, client, usual},
            {"1k pages/s, 20 ms", &uri, g1, usual},                    {"50k pages/s, 20 ms", &uri, g50, usual},
            {"200k pages/s, 20 ms", &uri, g200, usual},                {"50k pages/s of noise, 20 ms", &uri, noise, usual},
        };
        bench_title(u == 0 ? "engine to a standby process, unix socket" : "engine to a standby process, tcp on loopback");
        for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
            if (only && !strstr(runs[i].name, only))
                continue;
            one(w, &runs[i], &r);
            report(&runs[i], &r);
        }
    }
    return 0;
}
