/*
 * A standby that comes back: all of RAM against what differs, to an image in another process, over unix and tcp. RAM is noise, so
 * that no codec helps. Rounds of full and resync alternate; between two a part of the pages is written.
 *
 *   ram=1024 (MiB)  changed=1 (percent)  rounds=3
 */
#include "tests/bench/bench.h"

#include "core/clock.h"
#include "replicator/engine.h"
#include "replicator/held.h"
#include "replicator/link.h"
#include "tests/bench/source.h"
#include "tests/own_address.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- the standby process: one session after the other, until it is killed --- */

static int standby_ram(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err)
{
    (void)ctx;
    *out = (struct rp_ram_view){.gfn_end = h->gfn_end, .pages = h->gfn_end, .nregions = 1, .regions = {{0, h->gfn_end}}};
    out->base = mmap(NULL, h->gfn_end << RP_PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);   /* warmed by the first session */
    return out->base == MAP_FAILED ? rp_error_set(err, ENOMEM, "no memory for RAM") : 0;
}

struct standby_words {
    const struct rp_uri *uri;
    uint64_t staging_bytes;
};

static void standby(const void *ctx, int ready_fd)
{
    const struct standby_words *w = ctx;
    struct rp_error err = {0};
    struct rp_image_ops ops = {.ram = standby_ram};
    struct rp_link_recv_config cfg = {.vm_name = "synthetic", .timeout_ms = 20000};
    struct rp_link_outcome outcome;
    struct rp_listener *l;
    struct rp_link_recv *r;
    if (rp_image_create(RP_IMAGE_STAGED, &ops, w->staging_bytes, &cfg.image, &err) < 0 || rp_listen(w->uri, &l, &err) < 0 ||
        rp_link_recv_create(l, &cfg, &r, &err) < 0 || write(ready_fd, "", 1) != 1)
        bench_die("standby", &err);
    while (rp_link_serve(r, &outcome, &err) == 0)
        if (outcome.end == RP_LINK_DAMAGED)
            bench_die("standby", &outcome.why);
    bench_die("standby", &err);
}

/* --- the primary --- */

struct figures {
    double seconds, cpu;
    uint64_t link_bytes, list_bytes, sent_pages;
};

static double cpu_now(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* One session: from connecting until the standby holds the first epoch. */
static uint64_t sync_once(struct synth *g, const struct rp_uri *uri, uint64_t first, bool resync, struct figures *out)
{
    static struct rp_engine_stats st;
    struct rp_error err = {0};
    struct rp_link_stats link;
    struct rp_link_config cfg = {.uri = *uri, .vm_id = {7, 7, 7}, .vm_name = "synthetic", .timeout_ms = 20000, .stale = true,
                                 .gfn_end = resync ? synth_ram(g)->gfn_end : 0};
    struct rp_engine_config engine = {.first_epoch = first};
    struct rp_sink *sink;
    struct rp_engine *e;
    uint64_t held, t0 = rp_clock_ns();
    double cpu0 = cpu_now();
    const char *why;
    if (rp_link_sink_create(&cfg, &sink, &held, &err) < 0)
        bench_die("primary", &err);
    struct rp_hash128 *pages = rp_link_sink_take_held(sink, &why);
    engine.held = pages;
    if (!pages == resync)
        bench_die(why, &err);
    if (rp_engine_create(synth_source(g), sink, RP_RUN_CONTINUOUS, &engine, NULL, &e, &err) < 0 || rp_engine_start(e, NULL, NULL, &err) < 0)
        bench_die("primary", &err);
    free(pages);
    do {
        usleep(200);
        rp_engine_stats(e, &st);
    } while (st.committed < first && st.state != RP_ENGINE_FAILED);
    out->seconds = (double)(rp_clock_ns() - t0) / 1e9;
    out->cpu = cpu_now() - cpu0;
    rp_link_sink_stats(sink, &link);
    out->link_bytes = link.bytes;
    out->sent_pages = st.sync.sent_pages;
    out->list_bytes = resync ? cfg.gfn_end * sizeof(*pages) + (cfg.gfn_end / RP_HELD_RUN + 2) * 16 : 0;
    rp_engine_stop(e);
    if (rp_engine_wait(e, &err) < 0)
        bench_die("primary", &err);
    (void)!rp_link_sink_bye(sink, RP_BYE_BROKEN, st.committed, &err);
    sink->ops->destroy(sink);
    rp_engine_stats(e, &st);
    rp_engine_destroy(e);
    return st.cut + 1;
}

static void change(struct synth *g, double percent, uint64_t *random)
{
    const struct rp_ram_view *ram = synth_ram(g);
    for (uint64_t n = (uint64_t)((double)ram->pages * percent / 100); n > 0; n--) {
        *random = *random * 6364136223846793005ull + 1442695040888963407ull;
        uint8_t *p = rp_ram_page(ram, (*random >> 20) % ram->pages);
        for (unsigned i = 0; i < RP_PAGE_SIZE; i += 8, *random = *random * 6364136223846793005ull + 1442695040888963407ull)
            memcpy(p + i, random, 8);
    }
}

static void report(const char *name, const struct figures *f)
{
    uint64_t wire = f->link_bytes + f->list_bytes;
    printf("  %-12s %12llu bytes on the wire (%llu of them the list of hashes), %llu pages, %.3f s, CPU of the primary %.3f s\n", name,
           (unsigned long long)wire, (unsigned long long)f->list_bytes, (unsigned long long)f->sent_pages, f->seconds, f->cpu);
}

int bench_resync(const struct bench_words *w)
{
    const double percent = bench_number(w, "changed", 1);
    const unsigned rounds = (unsigned)bench_number(w, "rounds", 3);
    struct synth_config guest = {.ram_bytes = (uint64_t)bench_number(w, "ram", 1024) << 20, .bytes = 8, .fill = SYNTH_NOISE};
    for (unsigned u = 0; u < 2; u++) {
        struct figures full, delta;
        struct rp_uri uri = own_address(u ? "tcp" : "unix");
        uint64_t epoch = 1, random = 88172645463325252ull;
        bench_title(u ? "a standby that comes back, tcp on loopback" : "a standby that comes back, unix socket");
        pid_t pid = bench_child(standby, &(struct standby_words){&uri, (64u << 20) + guest.ram_bytes / 10});
        struct synth *g = synth_make(&guest);
        epoch = sync_once(g, &uri, epoch, false, &full);    /* memory is warm on both sides from here on */
        for (unsigned i = 0; i < rounds; i++) {
            change(g, percent, &random);
            epoch = sync_once(g, &uri, epoch, true, &delta);
            report("what differs", &delta);
            epoch = sync_once(g, &uri, epoch, false, &full);
            report("all of it", &full);
            printf("  %-12s %.2f %% of the bytes, %.1f %% of the time\n", "", 100 * (double)(delta.link_bytes + delta.list_bytes) / (double)full.link_bytes,
                   100 * delta.seconds / full.seconds);
        }
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        synth_free(g);
    }
    return 0;
}
