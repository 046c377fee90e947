/*
 * encoder.h - captured pages become RAM records: unchanged pages are left out, the rest is coded by what pays.
 *
 * For each page, in this order: its hash (for the digest; equal to what the chain holds: left out) · zero · delta against the
 * cached contents of the parent epoch, or of the blocks whose fingerprints changed · lz4 · raw.
 *
 * lz4 and delta are tried where they pay: what an attempt saved on average, times what a byte on the wire costs
 * (rp_encoder_price), against the time it takes. One that does not pay is tried on a page now and then, and comes back when it
 * does; a page on which a codec failed is left alone with it for some turns.
 *
 * Pages are coded in chunks of RP_ENCODE_CHUNK by the calling thread and `threads` helpers; each finished chunk is
 * handed to emit under one lock, in any order (a pass holds a page at most once, so order does not matter).
 */
#ifndef RP_REPLICATOR_ENCODER_H
#define RP_REPLICATOR_ENCODER_H

#include "core/codec.h"
#include "core/digest.h"
#include "core/sink.h"
#include "replicator/arena.h"

#define RP_ENCODE_CHUNK 128u

struct rp_captured {
    uint64_t gfn;
    uint32_t slot;      /* arena slot with the contents, or RP_SLOT_NONE: read guest RAM, once; it may change meanwhile */
    uint32_t reserved;
};

struct rp_encode_stats {            /* since creation; relaxed atomics, any thread may read */
    _Atomic uint64_t pages[RP_CODEC_COUNT];
    _Atomic uint64_t bytes[RP_CODEC_COUNT];     /* payload bytes on the wire, without entries and headers */
    _Atomic uint64_t unchanged;                 /* dirty but equal to what the chain holds */
    _Atomic uint64_t cpu_ns;
};

struct rp_encoder;
typedef int rp_encoder_emit(void *ctx, struct rp_buf *record, struct rp_error *err);

/* Borrows all of them. `digest`: the digest of the chain so far. `threads`: helpers beside the caller, may be 0. */
int rp_encoder_create(struct rp_arena *arena, const struct rp_ram_view *ram, struct rp_digest *digest, unsigned threads,
                      struct rp_encoder **out, struct rp_error *err) RP_MUST_CHECK;
void rp_encoder_destroy(struct rp_encoder *e);
/* Which codecs may be used: bit rp_codec_id. Default all. */
void rp_encoder_codecs(struct rp_encoder *e, uint32_t mask);

/* What a byte on the wire costs the pair, in ns of its time: what emitting it takes now, more where the link is the limit.
 * Default 1. Between runs, on the caller's thread. */
void rp_encoder_price(struct rp_encoder *e, double ns_per_byte);
/* What the caller's worker thinks of a codec (lz4 or delta); on the caller's thread. */
struct rp_codec_judgement { bool on; double saved_bytes, cost_ns, price; };
void rp_encoder_judged(const struct rp_encoder *e, uint8_t codec, struct rp_codec_judgement *out);

/* The first epoch an encoder sees has to be a full one. Encodes `pages` as pass `pass` of `epoch` and emits the records. The slots belong to the encoder from here on, also on
 * error. Adds the number of records and entries emitted to *records and *entries. Blocks until all is emitted. */
int rp_encoder_run(struct rp_encoder *e, uint64_t epoch, uint32_t pass, const struct rp_captured *pages, uint64_t n,
                   rp_encoder_emit *emit, void *ctx, uint64_t *records, uint64_t *entries,
                   struct rp_error *err) RP_MUST_CHECK;
const struct rp_encode_stats *rp_encoder_stats(const struct rp_encoder *e);
uint64_t rp_encoder_helpers_cpu_ns(const struct rp_encoder *e); /* any thread */

#endif
