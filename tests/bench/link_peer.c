/*
 * link_peer.c - one side of a link, for scenarios with two hosts: what a primary and a standby say of each other, as lines.
 *
 *   link-peer standby URI [timeout=MS]
 *   link-peer primary URI [lanes=N] [ram=MIB] [pages=PER_S] [heartbeat=MS] [timeout=MS]    a stream of epochs
 *   link-peer bulk URI [lanes=N] [seconds=S] [heartbeat=MS]                         as many bytes as the lanes take
 */
#include "core/clock.h"
#include "core/event.h"
#include "replicator/engine.h"
#include "replicator/link.h"
#include "tests/bench/source.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define BULK_RECORD (250u << 10)

static const char *word(char **argv, const char *name, const char *otherwise)
{
    size_t n = strlen(name);
    for (; *argv; argv++)
        if (strncmp(*argv, name, n) == 0 && (*argv)[n] == '=')
            return *argv + n + 1;
    return otherwise;
}

static unsigned number(char **argv, const char *name, unsigned otherwise)
{
    const char *text = word(argv, name, NULL);
    return text ? (unsigned)strtoul(text, NULL, 10) : otherwise;
}

__attribute__((noreturn)) static void die(const char *what, const struct rp_error *err)
{
    printf("failed %s: %s\n", what, err->text);
    exit(1);
}

static double wall(void)
{
    return (double)rp_wall_ns() / 1e9;
}

/* --- standby --- */

static int give_ram(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err)
{
    (void)ctx;
    *out = (struct rp_ram_view){.gfn_end = h->gfn_end, .nregions = h->nregions};
    for (uint32_t i = 0; i < h->nregions; i++) {
        out->regions[i] = h->regions[i];
        out->pages += h->regions[i].pages;
    }
    out->base = mmap(NULL, h->gfn_end << RP_PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return out->base == MAP_FAILED ? rp_error_set(err, ENOMEM, "no memory for RAM") : 0;
}

static int on_applied(void *ctx, struct rp_image *image, struct rp_error *err)
{
    uint64_t *count = ctx;
    (void)err;
    if (++*count == 1)
        printf("holds %llu\n", (unsigned long long)rp_image_epoch(image));
    return 0;
}

static int standby(const struct rp_uri *uri, char **argv)
{
    static const char *const ends[] = {"", "lost", "stopped", "final", "broken", "damaged", "cancelled"};
    struct rp_error err = {0};
    struct rp_image_ops ops = {.ram = give_ram};
    uint64_t applied = 0;
    struct rp_link_recv_config cfg = {.vm_name = "synthetic", .timeout_ms = number(argv, "timeout", 0), .applied = on_applied, .ctx = &applied};
    struct rp_link_outcome o;
    struct rp_listener *l;
    struct rp_link_recv *r;
    if (rp_image_create(RP_IMAGE_STAGED, &ops, 256u << 20, &cfg.image, &err) < 0 || rp_listen(uri, &l, &err) < 0 ||
        rp_link_recv_create(l, &cfg, &r, &err) < 0)
        die("standby", &err);
    printf("listening\n");
    if (rp_link_serve(r, &o, &err) < 0)
        die("standby", &err);
    struct rp_hash128 d = {0, 0};
    if (o.epoch)
        d = rp_image_digest(cfg.image)->sum;
    bool proven = o.epoch && d.lo == rp_image_trailer(cfg.image)->digest_lo && d.hi == rp_image_trailer(cfg.image)->digest_hi;
    printf("end %s at %.3f after %.0f ms of silence, epoch %llu, %llu applied, digest %s: %s\n", ends[o.end], wall(),
           (double)(o.detected_ns - o.last_heard_ns) / 1e6, (unsigned long long)o.epoch, (unsigned long long)applied,
           o.epoch == 0 ? "none" : proven ? "right" : "WRONG", o.why.text);
    rp_link_recv_destroy(r);
    return 0;
}

/* --- primary --- */

static void on_event(void *ctx, const struct rp_event *e)
{
    (void)ctx;
    printf("event %s at %.3f epoch %llu %s\n", e->name, wall(), (unsigned long long)e->epoch, e->data);
}

static struct rp_link_config link_config(const struct rp_uri *uri, char **argv)
{
    struct rp_link_config cfg = {.uri = *uri, .vm_id = {7, 7, 7}, .vm_name = "synthetic", .lanes = number(argv, "lanes", 1),
                                 .heartbeat_ms = number(argv, "heartbeat", 100), .timeout_ms = number(argv, "timeout", 0), .connect_ms = 15000};
    if (rp_events_create(64, &cfg.events) < 0 || rp_events_subscribe(cfg.events, on_event, NULL) < 0)
        exit(1);
    return cfg;
}

static int primary(const struct rp_uri *uri, char **argv)
{
    static struct rp_engine_stats st;
    struct rp_error err = {0};
    struct rp_link_config cfg = link_config(uri, argv);
    struct synth_config guest = {.ram_bytes = (uint64_t)number(argv, "ram", 32) << 20, .writers = 1, .pages_s = number(argv, "pages", 200),
                                 .bytes = 64, .content = SYNTH_COUNTER, .fill = SYNTH_TEXT};
    struct rp_engine_config ec = {.goal.epoch_ns = 50000000};
    struct synth *g = synth_make(&guest);
    struct rp_sink *sink;
    struct rp_engine *e;
    uint64_t held;
    if (rp_link_sink_create(&cfg, &sink, &held, &err) < 0 ||
        rp_engine_create(synth_source(g), sink, RP_RUN_CONTINUOUS, &ec, cfg.events, &e, &err) < 0 || rp_engine_start(e, NULL, NULL, &err) < 0)
        die("primary", &err);
    synth_start(g);
    do {
        struct rp_link_stats l;
        usleep(250000);
        rp_engine_stats(e, &st);
        rp_link_sink_stats(sink, &l);
        printf("at %.3f committed %llu over %s, %u lanes, rtt %.1f ms\n", wall(), (unsigned long long)st.committed, l.transport, l.lanes,
               (double)l.rtt_ns / 1e6);
    } while (st.state < RP_ENGINE_DONE);
    int rc = rp_engine_wait(e, &err);
    printf("end %d at %.3f: %s\n", rc, wall(), err.text);
    synth_stop(g);
    sink->ops->destroy(sink);
    rp_engine_destroy(e);
    synth_free(g);
    return 0;
}

/* --- bulk --- */

static void ignore_commit(void *ctx, struct rp_sink *s, uint64_t epoch)
{
    (void)ctx, (void)s, (void)epoch;
}

static void on_failed(void *ctx, struct rp_sink *s, const struct rp_error *why)
{
    (void)ctx, (void)s;
    printf("failed: %s\n", why->text);
    exit(1);
}

/* One endless epoch of JOURNAL records, which an image takes and forgets: what is measured is the lanes. */
static int bulk(const struct rp_uri *uri, char **argv)
{
    struct rp_error err = {0};
    struct rp_link_config cfg = link_config(uri, argv);
    const struct rp_sink_events ev = {.committed = ignore_commit, .failed = on_failed};
    struct rp_epoch_header h = {.vm_id = {7, 7, 7}, .vm_name = "synthetic", .number = 1, .flags = RP_EPOCH_FULL, .page_size = 4096,
                                .gfn_end = 256, .nregions = 1, .regions = {{0, 256}}};
    struct rp_buf r = {0};
    struct rp_sink *sink;
    struct rp_link_stats l0, l1;
    struct rusage u0, u1;
    uint64_t held, seconds = number(argv, "seconds", 5);
    if (rp_link_sink_create(&cfg, &sink, &held, &err) < 0 || sink->ops->start(sink, &ev, &err) < 0)
        die("bulk", &err);
    if (rp_put_epoch(&r, 0, &h) < 0 || sink->ops->emit(sink, &r, &err) < 0)
        die("bulk", &err);
    rp_buf_reset(&r);
    rp_record_open(&r, RP_REC_JOURNAL, 0);
    uint8_t *p = rp_buf_extend(&r, BULK_RECORD);
    for (uint32_t i = 0; i < BULK_RECORD; i++)
        p[i] = (uint8_t)(i * 2654435761u >> 24);
    uint64_t start = rp_clock_ns(), from = 0, now;
    do {
        if (sink->ops->emit(sink, &r, &err) < 0)
            die("bulk", &err);
        now = rp_clock_ns();
        if (!from && now - start > 1000000000u) {       /* the window is full: from here on it is what the lanes take */
            from = now;
            rp_link_sink_stats(sink, &l0);
            getrusage(RUSAGE_SELF, &u0);
        }
    } while (now - start < (seconds + 1) * 1000000000u);
    rp_link_sink_stats(sink, &l1);
    getrusage(RUSAGE_SELF, &u1);
    double s = (double)(now - from) / 1e9, mb = (double)(l1.bytes - l0.bytes) / 1e6;
    printf("bulk over %s, %u lanes: %.2f MB/s, CPU user %.0f system %.0f ms per 100 MB\n", l1.transport, l1.lanes, mb / s,
           ((double)(u1.ru_utime.tv_sec - u0.ru_utime.tv_sec) * 1e3 + (double)(u1.ru_utime.tv_usec - u0.ru_utime.tv_usec) / 1e3) * 100 / mb,
           ((double)(u1.ru_stime.tv_sec - u0.ru_stime.tv_sec) * 1e3 + (double)(u1.ru_stime.tv_usec - u0.ru_stime.tv_usec) / 1e3) * 100 / mb);
    if (rp_link_sink_bye(sink, RP_BYE_STOP, 0, &err) < 0)
        die("bulk", &err);
    sink->ops->destroy(sink);
    rp_buf_fini(&r);
    return 0;
}

int main(int argc, char **argv)
{
    struct rp_error err = {0};
    struct rp_uri uri;
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    if (argc < 3 || rp_uri_parse(argv[2], &uri, &err) < 0) {
        fprintf(stderr, "link-peer standby|primary|bulk URI [WORD=VALUE]... %s\n", err.text);
        return 2;
    }
    if (strcmp(argv[1], "standby") == 0)
        return standby(&uri, argv + 3);
    return strcmp(argv[1], "bulk") == 0 ? bulk(&uri, argv + 3) : primary(&uri, argv + 3);
}
