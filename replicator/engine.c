#include "replicator/engine.h"

#include "core/clock.h"
#include "core/queue.h"
#include "replicator/capture.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MAX_PASSES 30u          /* of a full epoch: then the cut comes, however much is dirty still */
#define PASS_CHUNK 2048u        /* pages handed to the emitter at a time while the guest runs */
#define COMMIT_RING 256u        /* cut times of epochs in flight */
#define PRICE_BYTES (1u << 20)  /* emitted between two looks at what a byte costs */
#define DISK_CHUNK (1u << 20)   /* bytes of a disk's initial copy asked for at a time */
#define DISK_QUEUED (8u << 20)  /* bytes of DISK records that may wait for the emitter */

enum message_kind { MSG_EPOCH, MSG_PAGES, MSG_DISK, MSG_END };

/* What the engine thread hands to the emitter. Owned by whoever holds the pointer. */
struct message {
    enum message_kind kind;
    uint64_t epoch;
    struct rp_epoch_header header;      /* MSG_EPOCH */
    struct rp_captured *pages;          /* MSG_PAGES */
    uint64_t n;
    uint32_t pass;
    struct rp_sections sections;        /* MSG_END */
    struct rp_buf disk;                 /* MSG_DISK, MSG_END */
    struct rp_epoch_trailer trailer;
};

struct rp_engine {
    struct rp_source *src;
    struct rp_sink *sink;
    struct rp_sink_events sink_events;
    struct rp_events *events;
    enum rp_run_kind kind;
    struct rp_engine_config cfg;
    struct rp_source_info info;
    void (*ended)(void *ctx, int rc, const struct rp_error *why);
    void *ended_ctx;

    /* engine thread */
    pthread_t engine_thread;
    bool engine_started;
    struct rp_pool *capture_pool;
    struct rp_capture capture;
    struct rp_policy policy;
    uint64_t epoch;                 /* number of the epoch being made */
    bool epoch_open;                /* its MSG_EPOCH was handed over */
    uint32_t pass;
    uint64_t early, again;          /* pages captured early in this epoch; captured twice */
    bool tracking, disks;           /* disks: the source was told to keep their writes */
    int output_fd;

    /* emitter thread */
    pthread_t emit_thread;
    struct rp_queue queue;
    struct rp_encoder *encoder;
    struct rp_digest digest;
    struct rp_buf record;
    uint64_t records, entries, disk_bytes;  /* of the epoch being emitted */
    uint64_t emit_ns, emit_bytes;   /* since the price of a byte was last set */
    double emit_ns_per_byte;        /* moving average */

    struct rp_arena *arena;
    int wake_fd;                    /* stop, commit, failure */
    _Atomic bool stop, finish, failed, stands;
    _Atomic uint64_t committed, cut, committed_wall_ns;
    _Atomic uint64_t done_pages, put_off;
    _Atomic uint64_t disk_queued, disk_emitted; /* bytes */
    _Atomic unsigned passes;
    _Atomic int state;              /* enum rp_engine_state */
    _Atomic uint64_t cut_ns[COMMIT_RING];
    struct rp_hist pause, commit, dirty;
    _Atomic uint64_t dirty_milli_s; /* dirty pages per second, for stats */

    pthread_mutex_t result_lock;
    int rc;                         /* result_lock: the first failure */
    struct rp_error why;            /* result_lock */
};

static void wake(struct rp_engine *e)
{
    uint64_t one = 1;
    if (write(e->wake_fd, &one, sizeof(one)) < 0) {
        /* the counter is full: it is awake */
    }
}

/* The first failure is the run's result; everybody else learns of it through `failed`. */
static void fail(struct rp_engine *e, int rc, const struct rp_error *why)
{
    pthread_mutex_lock(&e->result_lock);
    if (e->rc == 0) {
        e->rc = rc;
        if (why)
            e->why = *why;
    }
    pthread_mutex_unlock(&e->result_lock);
    atomic_store(&e->failed, true);
    rp_arena_close(e->arena);
    rp_queue_close(&e->queue);
    wake(e);
}

static bool over(struct rp_engine *e)
{
    return atomic_load(&e->failed) || atomic_load(&e->stop);
}

/* --- the sink's callbacks: any thread --- */

static void on_committed(void *ctx, struct rp_sink *sink, uint64_t epoch)
{
    (void)sink;
    struct rp_engine *e = ctx;
    uint64_t now = rp_clock_ns(), had = atomic_load(&e->committed);
    while (had < epoch && !atomic_compare_exchange_weak(&e->committed, &had, epoch))
        ;
    if (had >= epoch)
        return;
    atomic_store(&e->committed_wall_ns, rp_wall_ns());
    for (uint64_t n = had + 1; n <= epoch; n++) {
        uint64_t at = atomic_load(&e->cut_ns[n % COMMIT_RING]);
        if (at && epoch - n < COMMIT_RING)
            rp_hist_add(&e->commit, now - at);
    }
    if (e->kind == RP_RUN_CONTINUOUS)
        e->src->ops->release(e->src, epoch);
    wake(e);
}

static void on_failed(void *ctx, struct rp_sink *sink, const struct rp_error *why)
{
    (void)sink;
    fail(ctx, why && why->code ? why->code : -EPIPE, why);
}

/* --- the emitter --- */

static void message_free(struct message *m)
{
    if (!m)
        return;
    free(m->pages);
    rp_sections_fini(&m->sections);
    rp_buf_fini(&m->disk);
    free(m);
}

/* Encoders call it too, one at a time (rp_encoder_run). */
static int emit_record(void *ctx, struct rp_buf *record, struct rp_error *err)
{
    struct rp_engine *e = ctx;
    uint64_t t0 = rp_clock_ns();
    e->emit_bytes += record->len;
    int rc = e->sink->ops->emit(e->sink, record, err);
    e->emit_ns += rp_clock_ns() - t0;
    return rc;
}

/* What a byte costs: our time to emit it, waiting for a slow link included, and as much again at least on the other side. */
static void set_price(struct rp_engine *e)
{
    if (e->emit_bytes < PRICE_BYTES)
        return;
    double now = (double)e->emit_ns / (double)e->emit_bytes, limit = 0;
    e->emit_ns_per_byte += (now - e->emit_ns_per_byte) / 8;
    if (e->policy.goal.bandwidth_bytes_s)
        limit = 1e9 / (double)e->policy.goal.bandwidth_bytes_s;
    rp_encoder_price(e->encoder, limit > e->emit_ns_per_byte + 1 ? limit : e->emit_ns_per_byte + 1);
    e->emit_ns = e->emit_bytes = 0;
}

static int emit_epoch(struct rp_engine *e, const struct message *m, struct rp_error *err)
{
    e->records = e->entries = e->disk_bytes = 0;
    rp_buf_reset(&e->record);
    int rc = rp_put_epoch(&e->record, 0, &m->header);
    return rc < 0 ? rp_error_set(err, rc, "no memory for an epoch header") : emit_record(e, &e->record, err);
}

static int emit_payloads(struct rp_engine *e, const struct rp_buf *row, uint8_t type, uint64_t *bytes, struct rp_error *err)
{
    struct rp_reader r = rp_reader_of(row->data, row->len);
    while (r.left > 0) {
        uint32_t len = rp_get_u32(&r);
        const uint8_t *p = rp_get(&r, len);
        if (!p)
            return rp_error_set(err, EINVAL, "the source gave a torn record of type %u", type);
        rp_buf_reset(&e->record);
        rp_record_open(&e->record, type, 0);
        rp_buf_put(&e->record, p, len);
        *bytes += len;
        int rc = e->record.failed ? rp_error_set(err, ENOMEM, "no memory for a record") : emit_record(e, &e->record, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int emit_disk(struct rp_engine *e, struct message *m, struct rp_error *err)
{
    uint64_t bytes = 0;
    int rc = emit_payloads(e, &m->disk, RP_REC_DISK, &bytes, err);
    e->disk_bytes += bytes;
    atomic_fetch_add(&e->disk_emitted, bytes);
    if (m->kind == MSG_DISK) {
        atomic_fetch_sub(&e->disk_queued, m->disk.len);
        wake(e);
    }
    return rc;
}

static int emit_end(struct rp_engine *e, struct message *m, struct rp_error *err)
{
    uint64_t section_bytes = 0;
    int rc = emit_payloads(e, &m->sections.buf, RP_REC_SECTION, &section_bytes, err);
    if (rc == 0)
        rc = emit_disk(e, m, err);
    if (rc < 0)
        return rc;
    m->trailer.sections = m->sections.count;
    m->trailer.ram_records = e->records;
    m->trailer.ram_pages = e->entries;
    m->trailer.disk_bytes = e->disk_bytes;
    m->trailer.digest_lo = e->digest.sum.lo;
    m->trailer.digest_hi = e->digest.sum.hi;
    rp_buf_reset(&e->record);
    rc = rp_put_epoch_end(&e->record, 0, &m->trailer);
    if (rc < 0)
        return rp_error_set(err, rc, "no memory for an epoch trailer");
    rc = emit_record(e, &e->record, err);
    uint64_t t0 = rp_clock_ns();
    if (rc == 0)
        rc = e->sink->ops->flush(e->sink, m->epoch, err);
    e->emit_ns += rp_clock_ns() - t0;
    set_price(e);
    return rc;
}

static int emit_message(struct rp_engine *e, struct message *m, struct rp_error *err)
{
    switch (m->kind) {
    case MSG_EPOCH:
        return emit_epoch(e, m, err);
    case MSG_PAGES:
        return rp_encoder_run(e->encoder, m->epoch, m->pass, m->pages, m->n, emit_record, e, &e->records, &e->entries, err);
    case MSG_DISK:
        return emit_disk(e, m, err);
    case MSG_END:
        return emit_end(e, m, err);
    }
    return -EINVAL;
}

static void *emit_main(void *arg)
{
    struct rp_engine *e = arg;
    struct message *m;
    while ((m = rp_queue_pop(&e->queue))) {
        struct rp_error err = {0};
        int rc = atomic_load(&e->failed) ? 0 : emit_message(e, m, &err);
        if (rc < 0) {
            rp_error_wrap(&err, "epoch %llu", (unsigned long long)m->epoch);
            fail(e, rc, &err);
        }
        message_free(m);
    }
    return NULL;
}

/* --- the engine thread --- */

static int hand_over(struct rp_engine *e, struct message *m, struct rp_error *err)
{
    if (!m)
        return rp_error_set(err, ENOMEM, "no memory for an epoch's message");
    m->epoch = e->epoch;
    if (rp_queue_push(&e->queue, m) < 0) {
        message_free(m);
        return rp_error_set(err, EPIPE, "the emitter has ended");
    }
    return 0;
}

static int open_epoch(struct rp_engine *e, bool full, struct rp_error *err)
{
    struct message *m = calloc(1, sizeof(*m));
    if (m) {
        const struct rp_ram_view *ram = &e->info.ram;
        m->kind = MSG_EPOCH;
        struct rp_epoch_header *h = &m->header;
        memcpy(h->vm_id, e->info.vm_id, sizeof(h->vm_id));
        memcpy(h->vm_name, e->info.name, sizeof(h->vm_name));
        h->number = e->epoch;
        h->parent = full ? 0 : e->epoch - 1;
        h->term = e->cfg.term;
        h->flags = full ? RP_EPOCH_FULL : 0;
        h->page_size = RP_PAGE_SIZE;
        h->gfn_end = ram->gfn_end;
        h->nregions = ram->nregions;
        for (uint32_t i = 0; i < ram->nregions; i++) {
            h->regions[i].gfn = ram->regions[i].gfn;
            h->regions[i].pages = ram->regions[i].pages;
        }
    }
    e->pass = 0;
    e->early = e->again = 0;
    e->epoch_open = true;
    return hand_over(e, m, err);
}

/* Hands the captured list to the emitter. */
static int hand_pages(struct rp_engine *e, struct rp_error *err)
{
    e->again += e->capture.again;
    uint64_t n;
    struct rp_captured *pages = rp_capture_take(&e->capture, &n);
    if (!pages)
        return 0;
    struct message *m = calloc(1, sizeof(*m));
    if (!m) {
        free(pages);
        return rp_error_set(err, ENOMEM, "no memory for an epoch's message");
    }
    *m = (struct message){.kind = MSG_PAGES, .pages = pages, .n = n, .pass = e->pass};
    return hand_over(e, m, err);
}

static int harvest(struct rp_engine *e, struct rp_error *err)
{
    return e->src->ops->harvest(e->src, &e->capture.pending, err);
}

static void drain_fd(int fd)
{
    uint64_t v;
    if (fd >= 0 && read(fd, &v, sizeof(v)) < 0) {
        /* nothing was there */
    }
}

/* Waits until `until_ns`, an output begins to wait, or somebody wakes us. */
static void wait_for(struct rp_engine *e, uint64_t until_ns)
{
    uint64_t now = rp_clock_ns();
    uint64_t ns = until_ns > now ? until_ns - now : 0;
    struct timespec ts = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    struct pollfd fds[2] = {{.fd = e->wake_fd, .events = POLLIN}, {.fd = e->output_fd, .events = POLLIN}};
    if (ppoll(fds, 2, &ts, NULL) <= 0)
        return;
    if (fds[0].revents)
        drain_fd(e->wake_fd);
    if (fds[1].revents) {
        drain_fd(e->output_fd);
        if (!e->policy.output_since_ns)
            e->policy.output_since_ns = rp_clock_ns();
    }
}

/* --- disks (docs/disks.md) --- */

/* Hands DISK payloads to the emitter, in order; `disk` is then empty. */
static int hand_disk(struct rp_engine *e, struct rp_buf *disk, struct rp_error *err)
{
    if (disk->len == 0)
        return 0;
    struct message *m = calloc(1, sizeof(*m));
    if (!m)
        return rp_error_set(err, ENOMEM, "no memory for an epoch's message");
    *m = (struct message){.kind = MSG_DISK, .disk = *disk};
    *disk = (struct rp_buf){0};
    atomic_fetch_add(&e->disk_queued, m->disk.len);
    return hand_over(e, m, err);
}

/* Takes what the source has kept of its disks, and `max` bytes of their initial copy. 1: there is more of that. */
static int pull_disks(struct rp_engine *e, size_t max, struct rp_error *err)
{
    struct rp_buf disk = {0};
    if (!e->disks)
        return 0;
    while (atomic_load(&e->disk_queued) > DISK_QUEUED && !over(e))
        wait_for(e, rp_clock_ns() + 100000000u);
    if (over(e))
        return -ECANCELED;
    int more = e->src->ops->disk_pull(e->src, &disk, max, err);
    int rc = more < 0 ? more : hand_disk(e, &disk, err);
    rp_buf_fini(&disk);
    return rc < 0 ? rc : more;
}

static int start_disks(struct rp_engine *e, struct rp_error *err)
{
    struct rp_disk_run run = {.have = e->cfg.have, .term = e->cfg.term};
    if (!e->cfg.disks || !e->src->ops->disk_start)
        return 0;
    int rc = e->src->ops->disk_start(e->src, &run, err);
    e->disks = rc == 0;
    return rc;
}

/* The initial copy of the disks, while the guest runs. */
static int sync_disks(struct rp_engine *e, struct rp_error *err)
{
    int more;
    while ((more = pull_disks(e, DISK_CHUNK, err)) > 0)
        ;
    return more;
}

/* Uncommitted disk writes near their bound are a reason to cut. */
static bool disks_press(struct rp_engine *e)
{
    struct rp_disk_progress p = {0};
    if (e->disks)
        e->src->ops->disk_progress(e->src, &p);
    return p.pressed;
}

/* Captures everything pending and emits it while the guest runs, waiting for slots as needed. */
static int stream_pending(struct rp_engine *e, struct rp_error *err)
{
    while (rp_pageset_next(&e->capture.pending, 0) < e->capture.pending.bits) {
        while (!rp_arena_wait(e->arena, 64, rp_clock_ns() + 100000000u))
            if (over(e))
                return -ECANCELED;
        uint64_t t0 = rp_clock_ns();
        uint64_t n = rp_capture_copy(&e->capture, PASS_CHUNK);
        rp_policy_learn_copy(&e->policy, n, rp_clock_ns() - t0);
        atomic_fetch_add(&e->done_pages, n);
        int rc = hand_pages(e, err);
        if (rc == 0)
            rc = pull_disks(e, 0, err);
        if (rc < 0 || over(e))
            return rc < 0 ? rc : -ECANCELED;
    }
    e->pass++;
    atomic_store(&e->passes, e->pass);
    return 0;
}

/* How many pages the pause may cost: what can be copied (or, for a final cut, sent) within the goal. */
static uint64_t final_pages(struct rp_engine *e, uint64_t sent, uint64_t ns)
{
    double per_page = e->policy.copy_ns_per_page;
    uint64_t goal = e->policy.goal.pause_ns;
    if (e->kind == RP_RUN_FINAL) {
        goal = e->policy.goal.downtime_ns;
        if (sent)
            per_page = (double)ns / (double)sent;
    }
    return (uint64_t)((double)goal / per_page) + 64;
}

/* The full epoch's passes: all of RAM, then what was dirtied meanwhile, until the rest is small or stops shrinking. */
static int sync_passes(struct rp_engine *e, struct rp_error *err)
{
    uint64_t before = UINT64_MAX;
    for (unsigned i = 0; i < MAX_PASSES; i++) {
        uint64_t pages = rp_pageset_count(&e->capture.pending), t0 = rp_clock_ns();
        int rc = stream_pending(e, err);
        if (rc < 0)
            return rc;
        uint64_t ns = rp_clock_ns() - t0;
        rc = harvest(e, err);
        if (rc < 0)
            return rc;
        uint64_t left = rp_pageset_count(&e->capture.pending);
        rp_policy_learn_dirty(&e->policy, left, ns);
        bool shrinking = left < before - before / 8;
        before = left;
        if (left <= final_pages(e, pages, ns) || (!shrinking && i > 2 && e->kind != RP_RUN_FINAL))
            break;
    }
    return 0;
}

/* Captures pending pages while the guest runs and keeps them for the cut; emits them when slots run short. */
static int early_pass(struct rp_engine *e, struct rp_error *err)
{
    int rc = harvest(e, err);
    if (rc < 0)
        return rc;
    uint64_t t0 = rp_clock_ns();
    uint64_t n = rp_capture_copy(&e->capture, UINT64_MAX);
    rp_policy_learn_copy(&e->policy, n, rp_clock_ns() - t0);
    e->early += n;
    if (rp_pageset_next(&e->capture.pending, 0) == e->capture.pending.bits &&
        rp_arena_available(e->arena) > rp_arena_slots(e->arena) / 4)
        return 0;
    rc = hand_pages(e, err);    /* slots are short: these pages travel now, as a pass of their own */
    if (rc == 0)
        rc = stream_pending(e, err);
    return rc;
}

static struct message *new_end(struct rp_engine *e, enum rp_epoch_reason reason, const struct rp_cut *cut)
{
    struct message *m = calloc(1, sizeof(*m));
    if (!m)
        return NULL;
    m->kind = MSG_END;
    m->trailer = (struct rp_epoch_trailer){.number = e->epoch, .guest_ns = cut->guest_ns, .wall_ns = cut->wall_ns,
                                           .reason = reason};
    return m;
}

static void let_run(struct rp_engine *e)
{
    struct rp_error err = {0};
    int rc = e->src->ops->resume(e->src, &err);
    if (rc < 0)
        fail(e, rc, &err);
}

/* Copies what the cut found. False when it is more than the arena can take now: the cut is then off. */
static bool capture_cut(struct rp_engine *e, bool final)
{
    if (final) {
        rp_capture_name(&e->capture);
        return true;
    }
    if (rp_capture_need(&e->capture) > rp_arena_available(e->arena))
        return false;
    uint64_t t0 = rp_clock_ns();
    uint64_t n = rp_capture_copy(&e->capture, UINT64_MAX);
    rp_policy_learn_copy(&e->policy, n, rp_clock_ns() - t0);
    return rp_pageset_next(&e->capture.pending, 0) == e->capture.pending.bits;
}

static void note_cut(struct rp_engine *e, const struct rp_cut *cut, uint64_t dirty, uint64_t pause_end)
{
    uint64_t pause = pause_end - cut->pause_start_ns;
    rp_hist_add(&e->pause, pause);
    rp_hist_add(&e->dirty, dirty + e->early - e->again);
    rp_policy_learn_pause(&e->policy, pause, dirty);
    rp_policy_learn_early(&e->policy, e->early, e->again);
    rp_policy_learn_dirty(&e->policy, dirty + e->early, pause_end - e->policy.last_cut_ns);
    atomic_store(&e->dirty_milli_s, (uint64_t)(e->policy.dirty_per_ns * 1e12));
    e->policy.last_cut_ns = pause_end;
}

/*
 * The cut. 0: the epoch is handed over. -EAGAIN: it was put off, the guest runs on, nothing is lost (E2).
 * `final`: the machine stands from here on.
 */
static int take_cut(struct rp_engine *e, enum rp_epoch_reason reason, bool final, struct rp_error *err)
{
    struct rp_sections sections = {0};
    struct rp_buf disk = {0};
    struct rp_cut cut = {.sections = &sections, .dirty = &e->capture.pending, .disk = e->disks ? &disk : NULL, .epoch = e->epoch};
    int rc = e->src->ops->cut(e->src, &cut, err);
    if (rc < 0)
        goto out;
    uint64_t dirty = rp_pageset_count(&e->capture.pending);
    struct message *end = new_end(e, reason, &cut);
    if (!end || !capture_cut(e, final)) {
        let_run(e);
        atomic_fetch_add(&e->put_off, 1);
        rc = end ? hand_disk(e, &disk, err) : rp_error_set(err, ENOMEM, "no memory for an epoch's message");
        free(end);
        rc = rc ? rc : -EAGAIN;
        goto out;
    }
    if (final)
        atomic_store(&e->stands, true);
    else
        let_run(e);
    uint64_t resumed = rp_clock_ns();
    atomic_store(&e->cut_ns[e->epoch % COMMIT_RING], cut.pause_start_ns);
    atomic_store(&e->cut, e->epoch);
    e->again += e->capture.again;
    e->capture.again = 0;
    note_cut(e, &cut, dirty, resumed);
    end->sections = sections;
    end->disk = disk;
    sections = (struct rp_sections){0};
    disk = (struct rp_buf){0};
    rc = hand_pages(e, err);
    if (rc < 0)
        message_free(end);
    else
        rc = hand_over(e, end, err);
    e->epoch_open = false;
    e->epoch++;
out:
    rp_sections_fini(&sections);
    rp_buf_fini(&disk);
    return rc;
}

/* A cut that was put off wants room: emit what is captured, wait for slots with the guest running, and try again. */
static int cut_until_done(struct rp_engine *e, enum rp_epoch_reason reason, bool final, struct rp_error *err)
{
    for (;;) {
        int rc = take_cut(e, reason, final, err);
        if (rc != -EAGAIN)
            return rc;
        rp_events_emit(e->events, e->epoch, "CHECKPOINT_DELAYED",
                       "{\"reason\": \"more dirty pages (%llu) than free page slots (%u)\"}",
                       (unsigned long long)rp_pageset_count(&e->capture.pending), rp_arena_available(e->arena));
        rc = hand_pages(e, err);
        if (rc == 0)
            rc = stream_pending(e, err);
        if (rc < 0)
            return rc;
    }
}

/* One delta epoch: opened, waited for, captured early where that pays, cut. */
static int delta_epoch(struct rp_engine *e, struct rp_error *err)
{
    uint64_t early_done = 0;
    unsigned rounds = 0;
    int rc = open_epoch(e, false, err);
    while (rc == 0) {
        if (over(e))
            return -ECANCELED;
        e->policy.in_flight = (unsigned)(e->epoch - 1 - atomic_load(&e->committed));
        if (atomic_load(&e->finish))
            return cut_until_done(e, RP_CUT_FINAL, true, err);
        if (e->policy.in_flight < e->policy.goal.depth && disks_press(e))
            return cut_until_done(e, RP_CUT_MEMORY, false, err);
        struct rp_decision d = rp_policy_next(&e->policy, rp_clock_ns(), early_done, rounds);
        switch (d.action) {
        case RP_POLICY_WAIT:
            wait_for(e, d.until_ns);
            break;
        case RP_POLICY_EARLY:
            rc = early_pass(e, err);
            early_done = rp_clock_ns();
            rounds++;
            break;
        case RP_POLICY_CUT:
            e->policy.output_since_ns = 0;
            return cut_until_done(e, (enum rp_epoch_reason)d.reason, false, err);
        }
    }
    return rc;
}

/* Waits for the sink to commit everything that was cut; a run that was stopped has nobody who waits for that. */
static void settle(struct rp_engine *e)
{
    while (!over(e) && atomic_load(&e->committed) < atomic_load(&e->cut))
        wait_for(e, rp_clock_ns() + 100000000u);
}

static int run(struct rp_engine *e, struct rp_error *err)
{
    int rc = e->src->ops->track_start(e->src, true, err);
    if (rc < 0)
        return rc;
    e->tracking = true;
    rc = harvest(e, err);
    if (rc == 0)
        rc = start_disks(e, err);
    if (rc == 0)
        rc = open_epoch(e, true, err);
    if (rc == 0)
        rc = sync_disks(e, err);
    if (rc == 0)
        rc = sync_passes(e, err);
    if (rc == 0 && e->kind == RP_RUN_CONTINUOUS)
        e->src->ops->gate(e->src, true);    /* from the first cut on */
    if (rc == 0)
        rc = cut_until_done(e, e->kind == RP_RUN_FINAL ? RP_CUT_FINAL : RP_CUT_REQUEST, e->kind == RP_RUN_FINAL, err);
    if (rc < 0 || e->kind != RP_RUN_CONTINUOUS)
        return rc;
    atomic_store(&e->state, RP_ENGINE_STEADY);
    while (rc == 0 && !over(e) && !atomic_load(&e->stands))
        rc = delta_epoch(e, err);
    return rc == -ECANCELED && !atomic_load(&e->failed) ? 0 : rc;
}

static void *engine_main(void *arg)
{
    struct rp_engine *e = arg;
    struct rp_error err = {0};
    int rc = run(e, &err);
    if (rc == -ECANCELED && !err.code)
        rp_error_exit(&err, RP_EXIT_INTERRUPTED, ECANCELED, "stopped before the first epoch was complete");
    if (rc < 0)
        fail(e, rc, &err);
    else
        settle(e);
    rp_queue_close(&e->queue);
    pthread_join(e->emit_thread, NULL);
    if (e->tracking)
        e->src->ops->track_stop(e->src);
    if (e->disks)
        e->src->ops->disk_stop(e->src);
    pthread_mutex_lock(&e->result_lock);
    rc = e->rc;
    err = e->why;
    pthread_mutex_unlock(&e->result_lock);
    atomic_store(&e->state, rc < 0 ? RP_ENGINE_FAILED : RP_ENGINE_DONE);
    if (e->ended)
        e->ended(e->ended_ctx, rc, &err);
    return NULL;
}

/* --- the control thread --- */

static unsigned spare_cores(unsigned asked)
{
    if (asked)
        return asked;
    long n = sysconf(_SC_NPROCESSORS_ONLN) - 1;
    return n < 0 ? 0 : n > 3 ? 3 : (unsigned)n;
}

int rp_engine_create(struct rp_source *src, struct rp_sink *sink, enum rp_run_kind kind, const struct rp_engine_config *cfg,
                     struct rp_events *events, struct rp_engine **out, struct rp_error *err)
{
    struct rp_engine *e = calloc(1, sizeof(*e));
    if (!e)
        return rp_error_set(err, ENOMEM, "no memory for the engine");
    e->src = src;
    e->sink = sink;
    e->kind = kind;
    e->cfg = *cfg;
    e->events = events;
    e->epoch = cfg->first_epoch ? cfg->first_epoch : 1;
    atomic_store(&e->committed, e->epoch - 1);
    atomic_store(&e->cut, e->epoch - 1);
    pthread_mutex_init(&e->result_lock, NULL);
    e->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = src->ops->describe(src, &e->info, err);
    if (rc < 0)
        goto fail;
    const struct rp_ram_view *ram = &e->info.ram;
    if (!e->cfg.memory_bytes)
        e->cfg.memory_bytes = (24u << 20) + ram->pages * RP_PAGE_SIZE / 24;
    if ((rc = rp_arena_create(e->cfg.memory_bytes, ram->gfn_end, &e->arena, err)) < 0 ||
        (rc = rp_pool_create("capture", spare_cores(cfg->capture_threads), &e->capture_pool, err)) < 0 ||
        (rc = rp_capture_init(&e->capture, ram, e->arena, e->capture_pool, err)) < 0 ||
        (rc = rp_digest_init(&e->digest, ram->gfn_end)) < 0 ||
        (rc = rp_encoder_create(e->arena, ram, &e->digest, spare_cores(cfg->encoders), &e->encoder, err)) < 0 ||
        (rc = rp_queue_init(&e->queue, 64)) < 0)
        goto fail;
    if (cfg->codecs)
        rp_encoder_codecs(e->encoder, cfg->codecs);
    if (cfg->goal.bandwidth_bytes_s)
        rp_encoder_price(e->encoder, 1e9 / (double)cfg->goal.bandwidth_bytes_s);
    e->output_fd = src->ops->output_fd(src);
    rp_policy_init(&e->policy, &cfg->goal, rp_clock_ns());
    *out = e;
    return 0;
fail:
    if (err && !err->code)
        rp_error_set(err, rc, "cannot make the engine: %s", strerror(-rc));
    rp_engine_destroy(e);
    return rc;
}

int rp_engine_start(struct rp_engine *e, void (*ended)(void *ctx, int rc, const struct rp_error *why), void *ctx,
                    struct rp_error *err)
{
    e->ended = ended;
    e->ended_ctx = ctx;
    e->sink_events = (struct rp_sink_events){.ctx = e, .committed = on_committed, .failed = on_failed};
    int rc = e->sink->ops->start(e->sink, &e->sink_events, err);
    if (rc < 0)
        return rc;
    rc = pthread_create(&e->emit_thread, NULL, emit_main, e);
    if (rc)
        return rp_error_set(err, rc, "cannot start the emitter thread: %s", strerror(rc));
    pthread_setname_np(e->emit_thread, "emit");
    rc = pthread_create(&e->engine_thread, NULL, engine_main, e);
    if (rc) {
        rp_queue_close(&e->queue);
        pthread_join(e->emit_thread, NULL);
        return rp_error_set(err, rc, "cannot start the engine thread: %s", strerror(rc));
    }
    pthread_setname_np(e->engine_thread, "engine");
    e->engine_started = true;
    return 0;
}

void rp_engine_stop(struct rp_engine *e)
{
    atomic_store(&e->stop, true);
    wake(e);
}

void rp_engine_finish(struct rp_engine *e)
{
    atomic_store(&e->finish, true);
    wake(e);
}

int rp_engine_wait(struct rp_engine *e, struct rp_error *err)
{
    if (e->engine_started) {
        pthread_join(e->engine_thread, NULL);
        e->engine_started = false;
    }
    if (e->rc < 0 && err)
        *err = e->why;
    return e->rc;
}

bool rp_engine_stands(const struct rp_engine *e)
{
    return atomic_load(&e->stands);
}

void rp_engine_destroy(struct rp_engine *e)
{
    if (!e)
        return;
    struct message *m;
    if (e->queue.items) {
        rp_queue_close(&e->queue);
        while ((m = rp_queue_pop(&e->queue)))
            message_free(m);
        rp_queue_fini(&e->queue);
    }
    rp_encoder_destroy(e->encoder);
    rp_digest_fini(&e->digest);
    rp_capture_fini(&e->capture);
    rp_pool_destroy(e->capture_pool);
    rp_arena_destroy(e->arena);
    rp_buf_fini(&e->record);
    close(e->wake_fd);
    free(e);
}

void rp_engine_stats(struct rp_engine *e, struct rp_engine_stats *out)
{
    out->state = (enum rp_engine_state)atomic_load(&e->state);
    out->cut = atomic_load(&e->cut);
    out->committed = atomic_load(&e->committed);
    out->committed_wall_ns = atomic_load(&e->committed_wall_ns);
    out->ram_bytes = e->info.ram.pages * RP_PAGE_SIZE;
    out->done_bytes = atomic_load(&e->done_pages) * RP_PAGE_SIZE;
    out->passes = atomic_load(&e->passes);
    out->disk_bytes = atomic_load(&e->disk_emitted);
    struct rp_disk_progress disks = {0};
    if (e->cfg.disks && e->src->ops->disk_progress)
        e->src->ops->disk_progress(e->src, &disks);
    out->disk_sync_bytes = disks.sync_bytes;
    out->disk_done_bytes = disks.done_bytes;
    out->dirty_pages_s = (double)atomic_load(&e->dirty_milli_s) / 1000;
    out->arena_bytes = e->cfg.memory_bytes;
    out->cuts_put_off = atomic_load(&e->put_off);
    memcpy(&out->pause, &e->pause, sizeof(out->pause));
    memcpy(&out->commit, &e->commit, sizeof(out->commit));
    memcpy(&out->dirty, &e->dirty, sizeof(out->dirty));
    memcpy(&out->encode, rp_encoder_stats(e->encoder), sizeof(out->encode));
}
