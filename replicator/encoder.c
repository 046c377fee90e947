#include "replicator/encoder.h"

#include "core/clock.h"
#include "core/copy.h"
#include "core/pool.h"
#include "core/thread.h"
#include "replicator/fingerprint.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define LZ4_LIMIT (RP_PAGE_SIZE - RP_PAGE_SIZE / 8) /* longer results are not worth decompressing */
#define DELTA_LIMIT (RP_PAGE_SIZE / 2)
#define PROBE_EVERY 32u     /* a codec that does not pay is tried on one page in so many */
#define SAMPLE_EVERY 8u     /* one attempt in so many is timed: reading the clock is not free */
#define VAIN_SKIPS 15u      /* a page on which a codec failed is not tried with it for so many turns */
#define PROBE_FRAMES 4u     /* while deltas do not pay, fingerprints are kept of one frame in so many */
#define KEEP_PRINTS 64u     /* epochs: for so long after the cache was last too small */
#define HASHES_PER_PAGE (RP_PAGE_SIZE / sizeof(struct rp_hash128))
#define PRICE_MIN 1.0       /* ns a byte costs both sides at least: checksums, copies, system calls */
#define COST_STEP_NS 200.0  /* by how much more than twice itself one sample may say that the cost is */

/*
 * Whether a codec pays: what an attempt saves on average (bytes × price) less what it costs. One per worker and codec.
 * A worker judges by its own pages, so nothing is shared.
 */
struct payoff {
    double saved_bytes, cost_ns;    /* moving averages over attempts */
    bool on;
    unsigned attempts, passed;
};

struct worker {
    struct rp_encoder *e;
    struct payoff lz4, delta;
    struct rp_buf record;       /* has room for a chunk */
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
    struct rp_fingerprints *prints;
    uint8_t *vain;              /* [gfn_end] turns left without lz4 (low nibble), delta (high); its page's worker */
    _Atomic uint32_t codecs;
    double price;               /* caller: ns a byte on the wire costs */
    uint64_t base;              /* caller: the first epoch, a full one: nothing is a delta in it */
    uint64_t evicted, prints_until;     /* caller: fingerprints are kept up to that epoch */
    struct rp_encode_stats stats;
    struct rp_pool *pool;
    struct worker *workers;     /* one per pool thread, the last is the caller's */
    unsigned nworkers;
    pthread_mutex_t emit_lock;
};

/* --- what pays --- */

/* `vain`: for how many turns more this page is not worth it. */
static bool worth_trying(struct payoff *p, unsigned vain)
{
    return (p->on && vain == 0) || ++p->passed % PROBE_EVERY == 0;
}

static uint64_t sample_begin(struct payoff *p)
{
    return ++p->attempts % SAMPLE_EVERY == 0 ? rp_clock_ns() : 0;
}

/* An attempt is over: it made `len` bytes of a page (0: it failed). `t0`: when it began, if it is timed. */
static void learn(struct payoff *p, uint32_t len, uint64_t t0, double price)
{
    double weight = p->on ? 1.0 / 256 : 1.0 / 8;    /* probes are few: a codec comes back after some that succeed */
    p->saved_bytes += ((len ? RP_PAGE_SIZE - len : 0) - p->saved_bytes) * weight;
    if (t0) {                   /* an attempt during which the thread was preempted says nothing about the codec */
        double ns = (double)(rp_clock_ns() - t0), most = 2 * p->cost_ns + COST_STEP_NS;
        p->cost_ns += ((ns < most ? ns : most) - p->cost_ns) / 16;
    }
    double gain = p->saved_bytes * price;
    p->on = p->on ? gain > p->cost_ns : gain > p->cost_ns * 1.25;
}

static unsigned vain_of(const struct rp_encoder *e, uint64_t gfn, unsigned shift)
{
    return (unsigned)e->vain[gfn] >> shift & 15u;
}

static void set_vain(struct rp_encoder *e, uint64_t gfn, unsigned shift, unsigned turns)
{
    e->vain[gfn] = (uint8_t)((e->vain[gfn] & ~(15u << shift)) | turns << shift);
}

static void turn_passed(struct rp_encoder *e, uint64_t gfn, unsigned shift)
{
    unsigned left = vain_of(e, gfn, shift);
    if (left)
        set_vain(e, gfn, shift, left - 1);
}

/* What one chunk is made of before its payloads are written. */
struct chunk {
    uint32_t n;
    uint64_t gfns[RP_ENCODE_CHUNK];
    uint32_t slots[RP_ENCODE_CHUNK];
    uint32_t parents[RP_ENCODE_CHUNK];
    const uint8_t *pages[RP_ENCODE_CHUNK];
    uint8_t kind[RP_ENCODE_CHUNK];      /* PAGE_* */
    struct rp_hash128 delta;
};
enum { PAGE_SAME, PAGE_ZERO, PAGE_DATA };

/* Bytes of a record's beginning, before its payloads. */
static size_t head_bytes(uint32_t entries)
{
    return RP_RECORD_HEADER + 8 + 8 * (size_t)entries;
}

/*
 * Page i as it is hashed and sent. What is read out of guest RAM is read once, to where in the record it belongs if all of the chunk
 * travels as it is; what travels otherwise moves towards the front, over what has moved already.
 */
static const uint8_t *take_page(struct worker *w, const struct chunk *c, uint32_t i)
{
    const struct rp_ram_view *ram = &w->e->ram;
    if (c->slots[i] != RP_SLOT_NONE)
        return rp_arena_page(w->e->arena, c->slots[i]);
    if (i == 0 || c->gfns[i] / HASHES_PER_PAGE != c->gfns[i - 1] / HASHES_PER_PAGE)
        rp_digest_touch(w->e->digest, c->gfns[i]);
    uint8_t *to = w->record.data + head_bytes(c->n) + (size_t)i * RP_PAGE_SIZE;
    rp_copy_page(to, rp_ram_page(ram, c->gfns[i]), rp_ram_page(ram, c->gfns[i + 1 < c->n ? i + 1 : i]), false);
    return to;
}

/* Hashes every page, updates the digest, and says which have to travel. Returns the number of entries at most. */
static uint32_t classify(struct worker *w, struct chunk *c)
{
    struct rp_encoder *e = w->e;
    uint32_t travel = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        c->pages[i] = take_page(w, c, i);
        struct rp_hash128 h = rp_page_hash(c->gfns[i], c->pages[i]);
        const struct rp_hash128 *had = &e->digest->pages[c->gfns[i]];
        if (h.lo == had->lo && h.hi == had->hi) {
            c->kind[i] = PAGE_SAME;
            continue;
        }
        c->kind[i] = rp_hash_is_zero(h) ? PAGE_ZERO : PAGE_DATA;
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

/* Is it worth knowing what this page holds, for when it is rewritten and no longer cached? Of the full epoch only what was rewritten
 * during it. While deltas do not pay, a fixed part of the frames goes on being known: enough of them to find out when that changes. */
static bool keep_print(const struct worker *w, uint64_t gfn, const struct job *j)
{
    return (j->epoch != w->e->base || j->pass > 0) && j->epoch < w->e->prints_until && (w->delta.on || gfn % PROBE_FRAMES == 0);
}

/* As a delta into scratch: against the parent, or else by the blocks that its fingerprints say have changed. 0: no. */
static uint32_t try_delta(struct worker *w, uint64_t gfn, const uint8_t *page, const uint8_t *parent, const struct job *j)
{
    struct rp_encoder *e = w->e;
    struct payoff *p = &w->delta;
    bool keep = keep_print(w, gfn, j), want = worth_trying(p, vain_of(e, gfn, 4));
    uint64_t t0 = sample_begin(p);
    uint32_t changed = 0, len = 0;
    if (!keep)
        rp_fingerprints_forget(e->prints, gfn);
    else if (!rp_fingerprints_update(e->prints, gfn, page, j->epoch, &changed))
        changed = 0;
    bool tried = (parent && want) || (!parent && changed);
    if (!tried)
        turn_passed(e, gfn, 4);
    else if (parent)
        len = rp_delta_encode(parent, page, w->scratch, DELTA_LIMIT);
    else
        len = rp_delta_encode_blocks(changed, page, w->scratch, DELTA_LIMIT);
    if (tried || (keep && j->epoch != e->base))     /* a fingerprint taken for later counts as a cost that has saved nothing yet */
        learn(p, len, t0, e->price);
    if (tried)
        set_vain(e, gfn, 4, len ? 0 : VAIN_SKIPS);
    return len;
}

static uint32_t try_lz4(struct worker *w, uint64_t gfn, const uint8_t *page)
{
    struct rp_encoder *e = w->e;
    struct payoff *p = &w->lz4;
    if (!worth_trying(p, vain_of(e, gfn, 0))) {
        turn_passed(e, gfn, 0);
        return 0;
    }
    uint64_t t0 = sample_begin(p);
    uint32_t len = rp_lz4_encode(page, w->scratch, LZ4_LIMIT);
    learn(p, len, t0, e->price);
    set_vain(e, gfn, 0, len ? 0 : VAIN_SKIPS);
    return len;
}

/* Appends the page's payload to the record. Returns the codec; *len: payload bytes. */
static uint8_t encode_page(struct worker *w, uint64_t gfn, const uint8_t *page, const uint8_t *parent, const struct job *j,
                           struct rp_buf *b, uint32_t *len)
{
    uint32_t mask = atomic_load_explicit(&w->e->codecs, memory_order_relaxed);
    uint8_t codec = RP_CODEC_DELTA;
    *len = mask & 1u << RP_CODEC_DELTA ? try_delta(w, gfn, page, parent, j) : 0;
    if (!*len && mask & 1u << RP_CODEC_LZ4) {
        codec = RP_CODEC_LZ4;
        *len = try_lz4(w, gfn, page);
    }
    if (!*len) {
        *len = RP_PAGE_SIZE;
        memmove(rp_buf_extend(b, RP_PAGE_SIZE), page, RP_PAGE_SIZE);
        return RP_CODEC_RAW;
    }
    rp_buf_put(b, w->scratch, *len);
    return codec;
}

static void put_entry(uint8_t *at, uint64_t gfn, uint8_t codec, uint16_t arg)
{
    rp_st64(at, gfn & 0xFFFFFFFFFFull);     /* u40; the codec and the argument follow */
    at[5] = codec;
    rp_st16(at + 6, arg);
}

/* Writes the RAM record of a chunk into w->record. Returns the number of entries. */
static uint32_t write_record(struct worker *w, struct chunk *c, uint32_t travel, const struct job *j)
{
    struct rp_buf *b = &w->record;
    rp_record_open(b, RP_REC_RAM, 0);
    rp_buf_u32(b, j->pass);
    rp_buf_u32(b, travel);
    size_t table = b->len;
    rp_buf_extend(b, (size_t)travel * 8);
    uint32_t k = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->kind[i] == PAGE_SAME)
            continue;
        if (c->kind[i] == PAGE_ZERO) {
            put_entry(b->data + table + 8 * (size_t)k++, c->gfns[i], RP_CODEC_ZERO, 1);
            rp_fingerprints_forget(w->e->prints, c->gfns[i]);
            count(w->e, RP_CODEC_ZERO, 0);
            continue;
        }
        const uint8_t *parent = c->parents[i] == RP_SLOT_NONE ? NULL : rp_arena_page(w->e->arena, c->parents[i]);
        uint32_t len;
        uint8_t codec = encode_page(w, c->gfns[i], c->pages[i], parent, j, b, &len);
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
    rp_buf_reset(&w->record);
    uint32_t travel = classify(w, &c);
    uint32_t entries = travel ? write_record(w, &c, travel, j) : 0;
    rp_arena_retire(e->arena, c.gfns, c.slots, c.parents, c.n, j->epoch);
    atomic_fetch_add_explicit(&e->stats.unchanged, c.n - travel, memory_order_relaxed);

    pthread_mutex_lock(&e->emit_lock);
    j->delta.lo += c.delta.lo;
    j->delta.hi += c.delta.hi;
    if (entries && j->rc == 0) {
        j->rc = j->emit(j->ctx, &w->record, &j->err);
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

/* The cache was too small a moment ago: pages will come back whose contents it no longer has. */
static void note_epoch(struct rp_encoder *e, uint64_t epoch)
{
    uint64_t evicted = rp_arena_evicted(e->arena);
    if (!e->base)
        e->base = epoch;
    if (evicted != e->evicted)
        e->prints_until = epoch + KEEP_PRINTS;
    e->evicted = evicted;
}

int rp_encoder_run(struct rp_encoder *e, uint64_t epoch, uint32_t pass, const struct rp_captured *pages, uint64_t n,
                   rp_encoder_emit *emit, void *ctx, uint64_t *records, uint64_t *entries, struct rp_error *err)
{
    struct job j = {.e = e, .epoch = epoch, .pass = pass, .pages = pages, .n = n, .emit = emit, .ctx = ctx};
    note_epoch(e, epoch);
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
    e->nworkers = threads + 1;
    e->arena = arena;
    e->ram = *ram;
    e->digest = digest;
    e->price = 1;
    atomic_init(&e->codecs, UINT32_MAX);
    pthread_mutex_init(&e->emit_lock, NULL);
    for (unsigned i = 0; i <= threads; i++)
        e->workers[i] = (struct worker){.e = e, .lz4 = {.on = true, .saved_bytes = RP_PAGE_SIZE},
                                        .delta = {.on = true, .saved_bytes = RP_PAGE_SIZE}};
    int rc = rp_fingerprints_create(ram->gfn_end, &e->prints, err);
    for (unsigned i = 0; rc == 0 && i <= threads; i++)
        if (rp_buf_reserve(&e->workers[i].record, head_bytes(RP_ENCODE_CHUNK) + RP_ENCODE_CHUNK * RP_PAGE_SIZE) < 0)
            rc = rp_error_set(err, ENOMEM, "no memory for the encoder");
    if (rc == 0 && !(e->vain = calloc(ram->gfn_end, 1)))
        rc = rp_error_set(err, ENOMEM, "no memory for the encoder");
    if (rc == 0)
        rc = rp_pool_create("encode", threads, true, &e->pool, err);
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
    rp_pool_destroy(e->pool);
    for (unsigned i = 0; i < e->nworkers; i++)
        rp_buf_fini(&e->workers[i].record);
    rp_fingerprints_destroy(e->prints);
    free(e->vain);
    free(e->workers);
    free(e);
}

void rp_encoder_codecs(struct rp_encoder *e, uint32_t mask)
{
    atomic_store(&e->codecs, mask | 1u << RP_CODEC_RAW | 1u << RP_CODEC_ZERO);
}

void rp_encoder_price(struct rp_encoder *e, double ns_per_byte)
{
    e->price = ns_per_byte > PRICE_MIN ? ns_per_byte : PRICE_MIN;
}

void rp_encoder_judged(const struct rp_encoder *e, uint8_t codec, struct rp_codec_judgement *out)
{
    const struct worker *w = &e->workers[rp_pool_threads(e->pool)];     /* the caller's own */
    const struct payoff *p = codec == RP_CODEC_DELTA ? &w->delta : &w->lz4;
    *out = (struct rp_codec_judgement){.on = p->on, .saved_bytes = p->saved_bytes, .cost_ns = p->cost_ns, .price = e->price};
}

uint64_t rp_encoder_helpers_cpu_ns(const struct rp_encoder *e)
{
    return rp_pool_cpu_ns(e->pool);
}

const struct rp_encode_stats *rp_encoder_stats(const struct rp_encoder *e)
{
    return &e->stats;
}
