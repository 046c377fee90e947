/*
 * The engine, end to end without KVM: a synthetic source whose "guest" is a thread that writes its RAM, the real
 * arena, capture, encoder and stream, and the real image on the other side of a pipe. At every epoch the image must
 * equal what the source was at the cut (the digest proves it; at the end RAM is compared byte for byte).
 */
#include "core/image.h"
#include "replicator/engine.h"
#include "tests/unit/fake_source.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct receiver {
    int fd;
    pthread_t thread;
    struct rp_ram_view ram;
    struct rp_image *image;
    unsigned epochs, slow_us;       /* slow_us: so long it takes for a record */
    struct rp_error err;
    int rc;
};

static int receiver_ram(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err)
{
    (void)err;
    struct receiver *r = ctx;
    cr_assert_eq(h->gfn_end, PAGES);
    view_init(&r->ram);
    *out = r->ram;
    return 0;
}

static void *receiver_main(void *arg)
{
    struct receiver *r = arg;
    struct rp_stream_reader *reader;
    struct rp_record rec;
    cr_assert_eq(rp_stream_reader_create(r->fd, &reader, &r->err), 0);
    while ((r->rc = rp_stream_next(reader, &rec, &r->err)) > 0) {
        r->rc = rp_image_feed(r->image, &rec, &r->err);
        if (r->rc < 0)
            break;
        r->epochs += r->rc == 1;
        if (r->slow_us)
            usleep(r->slow_us);
    }
    rp_stream_reader_destroy(reader);
    return NULL;
}

static void receiver_start(struct receiver *r, int fd, unsigned slow_us)
{
    *r = (struct receiver){.fd = fd, .slow_us = slow_us};
    struct rp_image_ops ops = {.ctx = r, .ram = receiver_ram};
    cr_assert_eq(rp_image_create(RP_IMAGE_STAGED, &ops, 64u << 20, &r->image, NULL), 0);
    pthread_create(&r->thread, NULL, receiver_main, r);
}

static uint64_t written_bytes;      /* by the guest of the last run_pair */
static int (*run_cut)(struct rp_source *s, struct rp_cut *cut, struct rp_error *err);  /* of the next run_pair's source; NULL: its own */
static unsigned patient_harvests;   /* of the last run_pair: by a thread that is patient, while the guest runs */
static unsigned receiver_slow_us;   /* of the next run_pair's receiver */

static int noting_harvest(struct rp_source *s, struct rp_pageset *dirty, struct rp_error *err)
{
    patient_harvests += sched_getscheduler(0) == SCHED_BATCH;
    return fake_harvest(s, dirty, err);
}

static void run_pair(enum rp_run_kind kind, const struct rp_engine_config *cfg, unsigned bytes, unsigned burst,
                     unsigned pause_us, unsigned ms, unsigned min_epochs, struct rp_engine_stats *stats)
{
    struct fake f;
    struct receiver r;
    struct rp_error err = {0};
    int fds[2];
    cr_assert_eq(pipe(fds), 0);
    fake_start(&f, bytes, burst, pause_us);
    struct rp_source_ops ops = fake_ops;
    ops.cut = run_cut ? run_cut : fake_cut;
    ops.harvest = noting_harvest;
    patient_harvests = 0;
    f.base.ops = &ops;
    receiver_start(&r, fds[0], receiver_slow_us);
    struct rp_sink *sink;
    struct rp_engine *e;
    cr_assert_eq(rp_sink_fd_create(fds[1], false, &sink, &err), 0);
    cr_assert_eq(rp_engine_create(&f.base, sink, kind, cfg, NULL, &e, &err), 0, "%s", err.text);
    cr_assert_eq(rp_engine_start(e, NULL, NULL, &err), 0, "%s", err.text);
    if (kind == RP_RUN_CONTINUOUS) {
        usleep(ms * 1000);
        rp_engine_finish(e);
    }
    cr_assert_eq(rp_engine_wait(e, &err), 0, "%s", err.text);
    bool stands = rp_engine_stands(e);
    cr_assert_eq(stands, kind != RP_RUN_ONCE);
    cr_assert_eq(rp_sink_fd_finish(sink, &err), 0, "%s", err.text);
    sink->ops->destroy(sink);
    pthread_join(r.thread, NULL);
    cr_assert_eq(r.rc, 0, "%s", r.err.text);
    cr_assert_geq(r.epochs, min_epochs);
    struct rp_hash128 d = rp_digest_of(&r.ram);
    cr_assert_eq(d.lo, rp_image_digest(r.image)->sum.lo);
    if (stands) {
        cr_assert_eq(memcmp(f.ram.base, r.ram.base, PAGES * RP_PAGE_SIZE), 0, "the image is not the source");
        fake_resume(&f.base, NULL);
    }
    rp_engine_stats(e, stats);
    printf("epochs %u pause p50 %.3f ms max %.3f ms unchanged %lu zero %lu raw %lu lz4 %lu delta %lu put off %lu\n", r.epochs,
           (double)rp_hist_quantile(&stats->pause, 0.5) / 1e6, (double)stats->pause.max / 1e6, stats->encode.unchanged,
           stats->encode.pages[0], stats->encode.pages[1], stats->encode.pages[2], stats->encode.pages[3], stats->cuts_put_off);
    rp_engine_destroy(e);
    fake_stop(&f);
    written_bytes = f.written_bytes;
    rp_image_destroy(r.image);
    munmap(r.ram.base, PAGES * RP_PAGE_SIZE);
    close(fds[0]);
}

static struct rp_engine_stats stats;
TestSuite(engine, .timeout = 120);

Test(engine, once_gives_one_full_epoch)
{
    run_pair(RP_RUN_ONCE, &(struct rp_engine_config){0}, 64, 50, 200, 0, 1, &stats);
    cr_assert_eq(stats.committed, 1);
    cr_assert_geq(stats.sync_bytes, PAGES * RP_PAGE_SIZE, "all of RAM is to be looked at");
    cr_assert_geq(stats.done_bytes, stats.sync_bytes, "and was");
}

/* The guest dirties all its pages in the time in which the sink takes some: slowed down, it is cut all the same. */
static int policy_in_cut;

static int cut_noting_policy(struct rp_source *s, struct rp_cut *cut, struct rp_error *err)
{
    policy_in_cut = sched_getscheduler(0);
    return fake_cut(s, cut, err);
}

/* Beside the guest the engine waits for a CPU; while the guest stands still it takes one. */
Test(engine, INV5_it_is_patient_but_for_a_cut)
{
    run_cut = cut_noting_policy;
    run_pair(RP_RUN_ONCE, &(struct rp_engine_config){0}, 64, 50, 200, 0, 1, &stats);
    cr_assert_gt(patient_harvests, 0u);
    cr_assert_eq(policy_in_cut, SCHED_OTHER);
}

Test(engine, once_ends_however_slow_the_sink_is)
{
    struct rp_engine_config cfg = {.memory_bytes = 2048 * RP_PAGE_SIZE};
    receiver_slow_us = 5000;
    run_pair(RP_RUN_ONCE, &cfg, 1024, 300, 500, 0, 1, &stats);
    cr_assert_gt(stats.cuts_put_off, 0, "the guest was not too fast");
}

Test(engine, final_stands_still_and_equals_the_source)
{
    run_pair(RP_RUN_FINAL, &(struct rp_engine_config){0}, 512, 100, 100, 0, 1, &stats);
}

Test(engine, continuous_small_writes_travel_as_deltas)
{
    /* The limit makes bytes dear, so that deltas pay however slow this machine is. */
    struct rp_engine_config cfg = {.goal.epoch_ns = 5000000, .goal.bandwidth_bytes_s = 64u << 20};
    run_pair(RP_RUN_CONTINUOUS, &cfg, 64, 50, 500, 1500, 2, &stats);
    cr_assert_gt(stats.encode.pages[RP_CODEC_DELTA], 0);
    /* However long the epochs got, and so however often a page was rewritten in one. */
    cr_assert_lt(stats.encode.bytes[RP_CODEC_DELTA], written_bytes + 16 * stats.encode.pages[RP_CODEC_DELTA]);
}

/* More dirty pages than the arena has slots: epochs get longer and travel in passes, nothing is lost (E2, INV-5). */
Test(engine, INV5_continuous_with_a_tiny_arena)
{
    struct rp_engine_config cfg = {.goal.epoch_ns = 20000000, .memory_bytes = 512 * RP_PAGE_SIZE};
    run_pair(RP_RUN_CONTINUOUS, &cfg, 4096, 300, 1000, 1500, 2, &stats);
}

Test(engine, continuous_max_rate)
{
    struct rp_engine_config cfg = {.goal.epoch_ns = 1};
    run_pair(RP_RUN_CONTINUOUS, &cfg, 64, 5, 300, 1000, 2, &stats);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
/* The thread's next `refusals` calls find no memory. */
static _Thread_local unsigned refusals;
extern void *__libc_realloc(void *p, size_t bytes);
void *realloc(void *p, size_t bytes)
{
    return refusals && refusals-- ? NULL : __libc_realloc(p, bytes);
}

static int cut_without_memory(struct rp_source *s, struct rp_cut *cut, struct rp_error *err)
{
    static bool before;
    int rc = fake_cut(s, cut, err);
    memset(rp_ram_page(&((struct fake *)s)->ram, 5), 0x5A, RP_PAGE_SIZE);
    rp_pageset_set(cut->dirty, 5);
    refusals = !before;
    before = true;
    return rc;
}

/* A last cut for whose list there is no memory is put off: what it would leave behind would be missing for ever, and nobody would know. */
Test(engine, E2_a_last_cut_without_memory_is_put_off)
{
    run_cut = cut_without_memory;
    run_pair(RP_RUN_FINAL, &(struct rp_engine_config){0}, 512, 100, 100, 0, 1, &stats);
    cr_assert_eq(stats.cuts_put_off, 1u);
}
#endif
