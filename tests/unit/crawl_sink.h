/*
 * crawl_sink.h - a sink under the test's control: it feeds an image in this process, or only counts; it can stall. Each epoch that
 * is applied is compared with the digest of the guest's RAM at its cut, as `digest_at` has it (of the synthetic guest of
 * tests/bench/source.h unless the test says otherwise).
 */
#ifndef RP_TESTS_CRAWL_SINK_H
#define RP_TESTS_CRAWL_SINK_H

#include "core/image.h"
#include "tests/bench/source.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>

struct crawler {
    struct rp_sink base;
    struct rp_sink_events events;
    void *guest;
    bool (*digest_at)(void *guest, uint64_t epoch, uint64_t *lo, uint64_t *hi);
    struct rp_image *image;         /* NULL: records are only counted */
    struct rp_ram_view ram;
    pthread_mutex_t lock;
    pthread_cond_t change;
    bool stalled, cancelled;        /* lock */
    uint64_t seq;
    _Atomic uint64_t committed, compared;
};

static struct crawler *crawler_of(struct rp_sink *s)
{
    return (struct crawler *)s;
}

static int crawl_feed(struct crawler *c, struct rp_buf *record)
{
    struct rp_error err = {0};
    struct rp_record r = {0};
    cr_assert_eq(rp_record_seal(record, 0, c->seq), 0);
    cr_assert_eq(rp_record_check(record->data, record->data + RP_RECORD_HEADER, c->seq++, &r, &err), 0, "%s", err.text);
    int rc = rp_image_feed(c->image, &r, &err);
    cr_assert_geq(rc, 0, "%s", err.text);
    return rc;
}

static int crawl_start(struct rp_sink *s, const struct rp_sink_events *events, struct rp_error *err)
{
    (void)err;
    struct rp_buf begin = {0};
    crawler_of(s)->events = *events;
    cr_assert_eq(rp_put_begin(&begin, 0), 0);
    if (crawler_of(s)->image)
        crawl_feed(crawler_of(s), &begin);
    rp_buf_fini(&begin);
    return 0;
}

static int crawl_emit(struct rp_sink *s, struct rp_buf *record, struct rp_error *err)
{
    struct crawler *c = crawler_of(s);
    pthread_mutex_lock(&c->lock);
    while (c->stalled && !c->cancelled)
        pthread_cond_wait(&c->change, &c->lock);
    bool over = c->cancelled;
    pthread_mutex_unlock(&c->lock);
    if (over)
        return rp_error_set(err, EPIPE, "cancelled");
    if (c->image && crawl_feed(c, record) == 1) {
        uint64_t lo, hi, n = rp_image_epoch(c->image);
        if (c->digest_at(c->guest, n, &lo, &hi)) {
            cr_assert(lo == rp_image_digest(c->image)->sum.lo && hi == rp_image_digest(c->image)->sum.hi,
                      "epoch %lu is not what the guest was at its cut", n);
            atomic_fetch_add(&c->compared, 1);
        }
    }
    return 0;
}

static int crawl_flush(struct rp_sink *s, uint64_t epoch, struct rp_error *err)
{
    (void)err;
    atomic_store(&crawler_of(s)->committed, epoch);
    crawler_of(s)->events.committed(crawler_of(s)->events.ctx, s, epoch);
    return 0;
}

static void crawl_cancel(struct rp_sink *s)
{
    pthread_mutex_lock(&crawler_of(s)->lock);
    crawler_of(s)->cancelled = true;
    pthread_cond_broadcast(&crawler_of(s)->change);
    pthread_mutex_unlock(&crawler_of(s)->lock);
}

static void crawl_destroy(struct rp_sink *s)
{
    (void)s;
}

static const struct rp_sink_ops crawl_ops = {
    .name = "crawler", .start = crawl_start, .emit = crawl_emit, .flush = crawl_flush, .cancel = crawl_cancel, .destroy = crawl_destroy,
};

static int crawl_ram(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err)
{
    (void)err;
    struct crawler *c = ctx;
    c->ram = (struct rp_ram_view){.gfn_end = h->gfn_end, .pages = h->gfn_end, .nregions = 1, .regions = {{0, h->gfn_end}}};
    c->ram.base = mmap(NULL, h->gfn_end << RP_PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    *out = c->ram;
    return 0;
}

static bool crawl_synth_digest(void *guest, uint64_t epoch, uint64_t *lo, uint64_t *hi)
{
    return synth_digest_at(guest, epoch, lo, hi);
}

static void crawl_make(struct crawler *c, void *guest, bool image)
{
    *c = (struct crawler){.base.ops = &crawl_ops, .guest = guest, .digest_at = crawl_synth_digest};
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->change, NULL);
    struct rp_image_ops ops = {.ctx = c, .ram = crawl_ram};
    if (image)
        cr_assert_eq(rp_image_create(RP_IMAGE_STAGED, &ops, 512u << 20, &c->image, NULL), 0);
}

static inline void crawl_stall(struct crawler *c, bool stalled)
{
    pthread_mutex_lock(&c->lock);
    c->stalled = stalled;
    pthread_cond_broadcast(&c->change);
    pthread_mutex_unlock(&c->lock);
}

#endif
