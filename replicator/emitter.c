#include "replicator/emitter.h"

#include "core/clock.h"
#include "core/queue.h"
#include "core/thread.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define QUEUE 64u               /* messages that may wait, besides one for each QUEUE_PAGES of the arena: */
#define QUEUE_PAGES 1024u       /* it is the arena that is to run out first, because waiting for it can be given up */
#define PRICE_BYTES (1u << 20)  /* emitted between two looks at what a byte costs */
#define BURST_NS 10000000u      /* of bandwidth that was not used and may still be */

struct judgements { struct rp_codec_judgement of[RP_CODEC_COUNT]; };

struct rp_emitter {
    struct rp_emitter_config cfg;
    pthread_t thread;
    bool started;               /* engine thread: to be joined */
    struct rp_queue queue;
    _Atomic bool abandoned;
    _Atomic bool awaited;       /* the engine waits for room in the queue */
    _Atomic uint64_t pending;   /* messages pushed and not emitted */
    _Atomic uint64_t disk_queued, disk_emitted, live_queued, bytes;
    struct { _Atomic uint64_t sent_pages, equal_pages, wire_bytes; } synced;    /* of the first epoch; wire_bytes last */

    /* emitter thread, once started */
    struct rp_encoder *encoder;
    struct rp_digest digest;
    struct rp_buf record;
    uint64_t records, entries, disk_bytes;  /* of the epoch being emitted */
    uint64_t emit_ns, emit_bytes;   /* since the price of a byte was last set */
    double ns_per_byte;             /* moving average */
    uint64_t paced_ns;              /* when what was emitted would have been, at the bandwidth allowed */

    pthread_mutex_t lock;
    pthread_cond_t over;            /* ended */
    struct judgements judged;       /* lock */
    uint64_t cpu_ended_ns;          /* lock: of the thread, once it has ended */
    bool ended;                     /* lock */
};

struct rp_message *rp_message_new(enum rp_message_kind kind)
{
    struct rp_message *m = calloc(1, sizeof(*m));
    if (m)
        m->kind = kind;
    return m;
}

void rp_message_free(struct rp_message *m)
{
    if (!m)
        return;
    free(m->pages);
    rp_sections_fini(&m->sections);
    rp_buf_fini(&m->disk);
    free(m);
}

/* --- bytes --- */

/* Keeps to the bandwidth: sleeps until what was emitted until now may have been. */
static void pace(struct rp_emitter *m, size_t bytes)
{
    uint64_t limit = m->cfg.bandwidth_bytes_s, now = rp_clock_ns();
    if (!limit)
        return;
    if (m->paced_ns + BURST_NS < now)
        m->paced_ns = now - BURST_NS;
    m->paced_ns += (uint64_t)((double)bytes * 1e9 / (double)limit);
    while (m->paced_ns > now && !atomic_load(&m->abandoned)) {
        uint64_t ns = m->paced_ns - now < BURST_NS ? m->paced_ns - now : BURST_NS;
        nanosleep(&(struct timespec){.tv_nsec = (long)ns}, NULL);
        now = rp_clock_ns();
    }
}

/* Encoders call it too, one at a time (rp_encoder_run). */
static int emit_record(void *ctx, struct rp_buf *record, struct rp_error *err)
{
    struct rp_emitter *m = ctx;
    uint64_t t0 = rp_clock_ns();
    if (m->cfg.aside)
        rp_aside_step(m->cfg.aside);
    size_t len = record->len;
    int rc = m->cfg.sink->ops->emit(m->cfg.sink, record, err);
    m->emit_ns += rp_clock_ns() - t0;
    m->emit_bytes += len;
    atomic_fetch_add_explicit(&m->bytes, len, memory_order_relaxed);
    pace(m, len);
    return rc;
}

/* What a byte costs: our time to emit it, waiting for a slow link included, and as much again at least on the other side. */
static void set_price(struct rp_emitter *m)
{
    if (m->emit_bytes < PRICE_BYTES)
        return;
    double limit = m->cfg.bandwidth_bytes_s ? 1e9 / (double)m->cfg.bandwidth_bytes_s : 0;
    m->ns_per_byte += ((double)m->emit_ns / (double)m->emit_bytes - m->ns_per_byte) / 8;
    rp_encoder_price(m->encoder, limit > m->ns_per_byte + 1 ? limit : m->ns_per_byte + 1);
    m->emit_ns = m->emit_bytes = 0;
}

/* --- messages --- */

static int emit_epoch(struct rp_emitter *m, const struct rp_message *msg, struct rp_error *err)
{
    m->records = m->entries = m->disk_bytes = 0;
    rp_buf_reset(&m->record);
    int rc = rp_put_epoch(&m->record, 0, &msg->header);
    return rc < 0 ? rp_error_set(err, rc, "no memory for an epoch header") : emit_record(m, &m->record, err);
}

static int emit_payloads(struct rp_emitter *m, const struct rp_buf *row, uint8_t type, uint64_t *bytes, struct rp_error *err)
{
    struct rp_reader r = rp_reader_of(row->data, row->len);
    while (r.left > 0) {
        uint32_t len = rp_get_u32(&r);
        const uint8_t *p = rp_get(&r, len);
        if (!p)
            return rp_error_set(err, EINVAL, "the source gave a torn record of type %u", type);
        rp_buf_reset(&m->record);
        rp_record_open(&m->record, type, 0);
        rp_buf_put(&m->record, p, len);
        *bytes += len;
        int rc = m->record.failed ? rp_error_set(err, ENOMEM, "no memory for a record") : emit_record(m, &m->record, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int emit_disk(struct rp_emitter *m, struct rp_message *msg, struct rp_error *err)
{
    uint64_t bytes = 0;
    int rc = emit_payloads(m, &msg->disk, RP_REC_DISK, &bytes, err);
    m->disk_bytes += bytes;
    atomic_fetch_add(&m->disk_emitted, bytes);
    if (msg->kind == RP_MSG_DISK) {
        atomic_fetch_sub(&m->disk_queued, msg->disk.len);
        m->cfg.wake(m->cfg.ctx);
    }
    return rc;
}

static void note_judgements(struct rp_emitter *m)
{
    pthread_mutex_lock(&m->lock);
    rp_encoder_judged(m->encoder, RP_CODEC_LZ4, &m->judged.of[RP_CODEC_LZ4]);
    rp_encoder_judged(m->encoder, RP_CODEC_DELTA, &m->judged.of[RP_CODEC_DELTA]);
    pthread_mutex_unlock(&m->lock);
}

/* The end of the first epoch: what it took. */
static void note_sync(struct rp_emitter *m)
{
    const struct rp_encode_stats *s = rp_encoder_stats(m->encoder);
    uint64_t sent = 0;
    if (atomic_load(&m->synced.wire_bytes))
        return;
    for (unsigned i = 0; i < RP_CODEC_COUNT; i++)
        sent += atomic_load(&s->pages[i]);
    atomic_store(&m->synced.sent_pages, sent);
    atomic_store(&m->synced.equal_pages, atomic_load(&s->unchanged));
    atomic_store(&m->synced.wire_bytes, rp_emitter_bytes(m));
}

void rp_emitter_synced(const struct rp_emitter *m, struct rp_sync_stats *out)
{
    *out = (struct rp_sync_stats){.sent_pages = atomic_load(&m->synced.sent_pages), .equal_pages = atomic_load(&m->synced.equal_pages),
                                  .wire_bytes = atomic_load(&m->synced.wire_bytes)};
}

static int emit_end(struct rp_emitter *m, struct rp_message *msg, struct rp_error *err)
{
    uint64_t section_bytes = 0;
    int rc = emit_payloads(m, &msg->sections.buf, RP_REC_SECTION, &section_bytes, err);
    if (rc == 0)
        rc = emit_disk(m, msg, err);
    if (rc < 0)
        return rc;
    msg->trailer.sections = msg->sections.count;
    msg->trailer.ram_records = m->records;
    msg->trailer.ram_pages = m->entries;
    msg->trailer.disk_bytes = m->disk_bytes;
    msg->trailer.digest_lo = m->digest.sum.lo;
    msg->trailer.digest_hi = m->digest.sum.hi;
    rp_buf_reset(&m->record);
    rc = rp_put_epoch_end(&m->record, 0, &msg->trailer);
    if (rc < 0)
        return rp_error_set(err, rc, "no memory for an epoch trailer");
    rc = emit_record(m, &m->record, err);
    note_sync(m);
    uint64_t t0 = rp_clock_ns();
    if (rc == 0)
        rc = m->cfg.sink->ops->flush(m->cfg.sink, msg->epoch, err);
    m->emit_ns += rp_clock_ns() - t0;
    set_price(m);
    note_judgements(m);
    return rc;
}

/* Pages that were named, not copied. */
static bool is_live(const struct rp_message *msg)
{
    return msg->kind == RP_MSG_PAGES && msg->n > 0 && msg->pages[0].slot == RP_SLOT_NONE;
}

static int emit_pages(struct rp_emitter *m, struct rp_message *msg, struct rp_error *err)
{
    int rc = rp_encoder_run(m->encoder, msg->epoch, msg->pass, msg->pages, msg->n, emit_record, m, &m->records, &m->entries, err);
    if (is_live(msg)) {
        atomic_fetch_sub(&m->live_queued, msg->n);
        m->cfg.wake(m->cfg.ctx);
    }
    return rc;
}

static int emit_message(struct rp_emitter *m, struct rp_message *msg, struct rp_error *err)
{
    switch (msg->kind) {
    case RP_MSG_EPOCH:
        return emit_epoch(m, msg, err);
    case RP_MSG_PAGES:
        return emit_pages(m, msg, err);
    case RP_MSG_DISK:
        return emit_disk(m, msg, err);
    case RP_MSG_END:
        return emit_end(m, msg, err);
    }
    return -EINVAL;
}

static void *emitter_main(void *arg)
{
    struct rp_emitter *m = arg;
    struct rp_message *msg;
    rp_thread_behind();
    while ((msg = rp_queue_pop(&m->queue))) {
        struct rp_error err = {0};
        if (atomic_exchange(&m->awaited, false))
            m->cfg.wake(m->cfg.ctx);
        int rc = atomic_load(&m->abandoned) ? 0 : emit_message(m, msg, &err);
        if (rc < 0 && !atomic_load(&m->abandoned)) {
            rp_error_wrap(&err, "epoch %llu", (unsigned long long)msg->epoch);
            m->cfg.fail(m->cfg.ctx, rc, &err);
        }
        rp_message_free(msg);
        atomic_fetch_sub(&m->pending, 1);
    }
    pthread_mutex_lock(&m->lock);
    m->cpu_ended_ns = rp_clock_read(CLOCK_THREAD_CPUTIME_ID);
    m->ended = true;
    pthread_cond_broadcast(&m->over);
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

/* --- the engine's side --- */

static void take_held(struct rp_emitter *m, const struct rp_hash128 *held)
{
    for (uint64_t gfn = 0; gfn < m->digest.gfn_end; gfn++)
        rp_digest_update(&m->digest, gfn, held[gfn]);
}

void rp_emitter_mark_held(const struct rp_emitter *m, struct rp_pageset *pages)
{
    for (uint32_t i = 0; i < m->cfg.ram.nregions; i++)
        for (uint64_t g = m->cfg.ram.regions[i].gfn; g < m->cfg.ram.regions[i].gfn + m->cfg.ram.regions[i].pages; g++)
            if (!rp_hash_is_zero(m->digest.pages[g]))
                rp_pageset_set(pages, g);
}

int rp_emitter_create(const struct rp_emitter_config *cfg, struct rp_emitter **out, struct rp_error *err)
{
    struct rp_emitter *m = calloc(1, sizeof(*m));
    if (!m)
        return rp_error_set(err, ENOMEM, "no memory for the emitter");
    m->cfg = *cfg;
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->over, NULL);
    int rc = rp_queue_init(&m->queue, QUEUE + rp_arena_slots(cfg->arena) / QUEUE_PAGES);
    if (rc == 0)
        rc = rp_digest_init(&m->digest, cfg->ram.gfn_end);
    if (rc == 0 && cfg->held)
        take_held(m, cfg->held);
    if (rc < 0)
        rp_error_set(err, rc, "no memory for the digests of %llu pages", (unsigned long long)cfg->ram.gfn_end);
    else
        rc = rp_encoder_create(cfg->arena, &m->cfg.ram, &m->digest, cfg->encoders, &m->encoder, err);
    if (rc < 0) {
        rp_emitter_destroy(m);
        return rc;
    }
    if (cfg->codecs)
        rp_encoder_codecs(m->encoder, cfg->codecs);
    if (cfg->bandwidth_bytes_s)
        rp_encoder_price(m->encoder, 1e9 / (double)cfg->bandwidth_bytes_s);
    note_judgements(m);
    *out = m;
    return 0;
}

int rp_emitter_start(struct rp_emitter *m, struct rp_error *err)
{
    int rc = rp_thread_start(&m->thread, "emit", emitter_main, m, err);
    m->started = rc == 0;
    return rc;
}

int rp_emitter_push(struct rp_emitter *m, struct rp_message *msg, struct rp_error *err)
{
    if (!msg)
        return rp_error_set(err, ENOMEM, "no memory for an epoch's message");
    if (msg->kind == RP_MSG_DISK)
        atomic_fetch_add(&m->disk_queued, msg->disk.len);
    if (is_live(msg))
        atomic_fetch_add(&m->live_queued, msg->n);
    atomic_fetch_add(&m->pending, 1);
    if (rp_queue_push(&m->queue, msg) < 0) {
        atomic_fetch_sub(&m->pending, 1);
        rp_message_free(msg);
        return rp_error_set(err, EPIPE, "the emitter has ended");
    }
    return 0;
}

bool rp_emitter_full(struct rp_emitter *m)
{
    if (!rp_queue_full(&m->queue))
        return false;
    atomic_store(&m->awaited, true);
    return rp_queue_full(&m->queue);
}

uint64_t rp_emitter_pending(const struct rp_emitter *m)
{
    return atomic_load(&m->pending);
}

void rp_emitter_close(struct rp_emitter *m)
{
    rp_queue_close(&m->queue);
}

void rp_emitter_abandon(struct rp_emitter *m)
{
    atomic_store(&m->abandoned, true);
    rp_queue_close(&m->queue);
}

bool rp_emitter_join(struct rp_emitter *m, int timeout_ms)
{
    uint64_t until = rp_clock_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * 1000000u;
    int rc = 0;
    if (!m->started)
        return true;
    pthread_mutex_lock(&m->lock);
    while (!m->ended && rc == 0)
        rc = timeout_ms < 0 ? pthread_cond_wait(&m->over, &m->lock) : rp_cond_wait_until(&m->over, &m->lock, until);
    bool ended = m->ended;
    pthread_mutex_unlock(&m->lock);
    if (ended)
        pthread_join(m->thread, NULL);
    m->started = !ended;
    return ended;
}

void rp_emitter_destroy(struct rp_emitter *m)
{
    struct rp_message *msg;
    if (!m)
        return;
    if (m->queue.items) {
        rp_queue_close(&m->queue);
        while ((msg = rp_queue_pop(&m->queue)))
            rp_message_free(msg);
        rp_queue_fini(&m->queue);
    }
    rp_encoder_destroy(m->encoder);
    rp_digest_fini(&m->digest);
    rp_buf_fini(&m->record);
    pthread_cond_destroy(&m->over);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

uint64_t rp_emitter_disk_queued(const struct rp_emitter *m)
{
    return atomic_load(&m->disk_queued);
}

uint64_t rp_emitter_live_queued(const struct rp_emitter *m)
{
    return atomic_load(&m->live_queued);
}

uint64_t rp_emitter_disk_emitted(const struct rp_emitter *m)
{
    return atomic_load(&m->disk_emitted);
}

uint64_t rp_emitter_bytes(const struct rp_emitter *m)
{
    return atomic_load_explicit(&m->bytes, memory_order_relaxed);
}

uint64_t rp_emitter_cpu_ns(struct rp_emitter *m)
{
    clockid_t clock;
    uint64_t ns = rp_encoder_helpers_cpu_ns(m->encoder);
    pthread_mutex_lock(&m->lock);
    if (m->ended)
        ns += m->cpu_ended_ns;
    else if (m->started && pthread_getcpuclockid(m->thread, &clock) == 0)
        ns += rp_clock_read(clock);
    pthread_mutex_unlock(&m->lock);
    return ns;
}

const struct rp_encode_stats *rp_emitter_stats(const struct rp_emitter *m)
{
    return rp_encoder_stats(m->encoder);
}

void rp_emitter_judged(struct rp_emitter *m, uint8_t codec, struct rp_codec_judgement *out)
{
    pthread_mutex_lock(&m->lock);
    *out = m->judged.of[codec];
    pthread_mutex_unlock(&m->lock);
}
