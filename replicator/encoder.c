#include "replicator/encoder.h"

#include "core/clock.h"
#include "core/pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define LZ4_PAYS (RP_PAGE_SIZE - RP_PAGE_SIZE / 8)  /* below that decompressing costs more than the bytes saved */
#define DELTA_PAYS (RP_PAGE_SIZE / 2)
#define PROBE_EVERY 32u     /* a codec that stopped paying is tried on one page in so many */

/* How well one codec pays: a moving average of success, 0 … 256. Touched by one worker at a time per instance. */
struct payoff { int score; unsigned tick; };

struct worker {
    struct rp_encoder *e;
    struct payoff lz4, delta;
    struct rp_buf record;
    uint8_t scratch[RP_PAGE_SIZE];
};

struct job {
    struct rp_encoder *e;
    uint64_t epoch;
    uint32_t pass;
    const struct rp_captured *pages;
    uint64_t n;
    rp_encoder_emit *emit;
    void *ctx;
    _Atomic uint64_t next;      /* next chunk to take */
    uint64_t records, entries;  /* emit_lock */
    struct rp_hash128 delta;    /* emit_lock */
    struct rp_error err;        /* emit_lock */
    int rc;                     /* emit_lock */
};

struct rp_encoder {
    struct rp_arena *arena;
    struct rp_ram_view ram;
    struct rp_digest *digest;
    _Atomic uint32_t codecs;
    struct rp_encode_stats stats;
    struct rp_pool *pool;
    struct worker *workers;     /* one per pool thread, the last is the caller's */
    pthread_mutex_t emit_lock;
};

static bool worth_trying(struct payoff *p)
{
    return p->score > 32 || ++p->tick % PROBE_EVERY == 0;
}

static void learn(struct payoff *p, bool paid)
{
    p->score += ((paid ? 256 : 0) - p->score) / 8;
    if (paid && p->score < 64)
        p->score = 64;          /* one success is enough to look again */
}

/* What one chunk is made of before its payloads are written. */
struct chunk {
    uint32_t n;
    uint64_t gfns[RP_ENCODE_CHUNK];
    uint32_t slots[RP_ENCODE_CHUNK];
    uint32_t parents[RP_ENCODE_CHUNK];
    uint8_t kind[RP_ENCODE_CHUNK];      /* PAGE_* */
    struct rp_hash128 delta;
};
enum { PAGE_SAME, PAGE_ZERO, PAGE_DATA };

static const uint8_t *page_of(struct rp_encoder *e, uint64_t gfn, uint32_t slot)
{
    return slot == RP_SLOT_NONE ? rp_ram_page(&e->ram, gfn) : rp_arena_page(e->arena, slot);
}

/* Hashes every page, updates the digest, and says which have to travel. Returns the number of entries at most. */
static uint32_t classify(struct worker *w, struct chunk *c)
{
    struct rp_encoder *e = w->e;
    uint32_t travel = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        const uint8_t *p = page_of(e, c->gfns[i], c->slots[i]);
        struct rp_hash128 h = rp_page_hash(c->gfns[i], p);
        const struct rp_hash128 *had = &e->digest->pages[c->gfns[i]];
        if (h.lo == had->lo && h.hi == had->hi) {
            c->kind[i] = PAGE_SAME;
            continue;
        }
        c->kind[i] = (h.lo | h.hi) == 0 ? PAGE_ZERO : PAGE_DATA;
        rp_digest_update_delta(e->digest, c->gfns[i], h, &c->delta);
        travel++;
    }
    return travel;
}

static void count(struct rp_encoder *e, unsigned codec, uint64_t bytes)
{
    atomic_fetch_add_explicit(&e->stats.pages[codec], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&e->stats.bytes[codec], bytes, memory_order_relaxed);
}

/* Appends the page's payload to the record. Returns the codec; *len: payload bytes. */
static uint8_t encode_page(struct worker *w, const uint8_t *page, const uint8_t *parent, struct rp_buf *b, uint32_t *len)
{
    struct rp_encoder *e = w->e;
    uint32_t mask = atomic_load_explicit(&e->codecs, memory_order_relaxed);
    if (parent && (mask & 1u << RP_CODEC_DELTA) && worth_trying(&w->delta)) {
        *len = rp_delta_encode(parent, page, w->scratch, DELTA_PAYS);
        learn(&w->delta, *len != 0);
        if (*len) {
            rp_buf_put(b, w->scratch, *len);
            return RP_CODEC_DELTA;
        }
    }
    if ((mask & 1u << RP_CODEC_LZ4) && worth_trying(&w->lz4)) {
        *len = rp_lz4_encode(page, w->scratch, LZ4_PAYS);
        learn(&w->lz4, *len != 0);
        if (*len) {
            rp_buf_put(b, w->scratch, *len);
            return RP_CODEC_LZ4;
        }
    }
    *len = RP_PAGE_SIZE;
    rp_buf_put(b, page, RP_PAGE_SIZE);
    return RP_CODEC_RAW;
}

static void put_entry(uint8_t *at, uint64_t gfn, uint8_t codec, uint16_t arg)
{
    rp_st64(at, gfn & 0xFFFFFFFFFFull);     /* u40; the codec and the argument follow */
    at[5] = codec;
    rp_st16(at + 6, arg);
}

/* Writes the RAM record of a chunk into w->record. Returns the number of entries. */
static uint32_t write_record(struct worker *w, struct chunk *c, uint32_t travel, uint32_t pass)
{
    struct rp_buf *b = &w->record;
    rp_buf_reset(b);
    rp_record_open(b, RP_REC_RAM, 0);
    rp_buf_u32(b, pass);
    rp_buf_u32(b, travel);
    size_t table = b->len;
    if (!rp_buf_extend(b, (size_t)travel * 8) || rp_buf_reserve(b, (size_t)travel * RP_PAGE_SIZE) < 0)
        return 0;
    uint32_t k = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->kind[i] == PAGE_SAME)
            continue;
        if (c->kind[i] == PAGE_ZERO) {
            put_entry(b->data + table + 8 * (size_t)k++, c->gfns[i], RP_CODEC_ZERO, 1);
            count(w->e, RP_CODEC_ZERO, 0);
            continue;
        }
        const uint8_t *parent = c->parents[i] == RP_SLOT_NONE ? NULL : rp_arena_page(w->e->arena, c->parents[i]);
        uint32_t len;
        uint8_t codec = encode_page(w, page_of(w->e, c->gfns[i], c->slots[i]), parent, b, &len);
        uint16_t arg = codec == RP_CODEC_RAW ? 1 : (uint16_t)len;
        put_entry(b->data + table + 8 * (size_t)k++, c->gfns[i], codec, arg);
        count(w->e, codec, len);
    }
    return k;
}

static void run_chunk(struct worker *w, struct job *j, uint64_t first)
{
    struct rp_encoder *e = w->e;
    struct chunk c = {.n = (uint32_t)(j->n - first < RP_ENCODE_CHUNK ? j->n - first : RP_ENCODE_CHUNK)};
    for (uint32_t i = 0; i < c.n; i++) {
        c.gfns[i] = j->pages[first + i].gfn;
        c.slots[i] = j->pages[first + i].slot;
    }
    rp_arena_take(e->arena, c.gfns, c.n, j->epoch, c.parents);
    uint32_t travel = classify(w, &c);
    uint32_t entries = travel ? write_record(w, &c, travel, j->pass) : 0;
    rp_arena_retire(e->arena, c.gfns, c.slots, c.parents, c.n, j->epoch);
    atomic_fetch_add_explicit(&e->stats.unchanged, c.n - travel, memory_order_relaxed);

    pthread_mutex_lock(&e->emit_lock);
    j->delta.lo += c.delta.lo;
    j->delta.hi += c.delta.hi;
    if (entries && j->rc == 0) {
        j->rc = w->record.failed ? rp_error_set(&j->err, ENOMEM, "no memory for a RAM record")
                                 : j->emit(j->ctx, &w->record, &j->err);
        j->records++;
        j->entries += entries;
    }
    pthread_mutex_unlock(&e->emit_lock);
}

static void run_chunks(void *ctx, unsigned worker)
{
    struct job *j = ctx;
    struct worker *w = &j->e->workers[worker];
    uint64_t t0 = rp_clock_read(CLOCK_THREAD_CPUTIME_ID);
    for (;;) {
        uint64_t first = atomic_fetch_add_explicit(&j->next, RP_ENCODE_CHUNK, memory_order_relaxed);
        if (first >= j->n)
            break;
        run_chunk(w, j, first);
    }
    atomic_fetch_add_explicit(&w->e->stats.cpu_ns, rp_clock_read(CLOCK_THREAD_CPUTIME_ID) - t0, memory_order_relaxed);
}

int rp_encoder_run(struct rp_encoder *e, uint64_t epoch, uint32_t pass, const struct rp_captured *pages, uint64_t n,
                   rp_encoder_emit *emit, void *ctx, uint64_t *records, uint64_t *entries, struct rp_error *err)
{
    struct job j = {.e = e, .epoch = epoch, .pass = pass, .pages = pages, .n = n, .emit = emit, .ctx = ctx};
    if (n > 2 * RP_ENCODE_CHUNK)
        rp_pool_run(e->pool, run_chunks, &j);
    else
        run_chunks(&j, rp_pool_threads(e->pool));
    rp_digest_add(e->digest, j.delta);
    *records += j.records;
    *entries += j.entries;
    if (j.rc < 0 && err)
        *err = j.err;
    return j.rc;
}

int rp_encoder_create(struct rp_arena *arena, const struct rp_ram_view *ram, struct rp_digest *digest, unsigned threads,
                      struct rp_encoder **out, struct rp_error *err)
{
    struct rp_encoder *e = calloc(1, sizeof(*e));
    if (!e || !(e->workers = calloc(threads + 1, sizeof(*e->workers)))) {
        free(e);
        return rp_error_set(err, ENOMEM, "no memory for the encoder");
    }
    e->arena = arena;
    e->ram = *ram;
    e->digest = digest;
    atomic_init(&e->codecs, UINT32_MAX);
    pthread_mutex_init(&e->emit_lock, NULL);
    for (unsigned i = 0; i <= threads; i++)
        e->workers[i] = (struct worker){.e = e, .lz4 = {.score = 256}, .delta = {.score = 256}};
    int rc = rp_pool_create("encode", threads, &e->pool, err);
    if (rc < 0) {
        rp_encoder_destroy(e);
        return rc;
    }
    *out = e;
    return 0;
}

void rp_encoder_destroy(struct rp_encoder *e)
{
    if (!e)
        return;
    unsigned threads = e->pool ? rp_pool_threads(e->pool) : 0;
    rp_pool_destroy(e->pool);
    for (unsigned i = 0; i <= threads; i++)
        rp_buf_fini(&e->workers[i].record);
    free(e->workers);
    free(e);
}

void rp_encoder_codecs(struct rp_encoder *e, uint32_t mask)
{
    atomic_store(&e->codecs, mask | 1u << RP_CODEC_RAW | 1u << RP_CODEC_ZERO);
}

const struct rp_encode_stats *rp_encoder_stats(const struct rp_encoder *e)
{
    return &e->stats;
}
