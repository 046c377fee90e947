/*
 * emitter.h - the engine's second half: what was captured becomes records and goes to the sink, in order, on one thread.
 *
 *   engine thread ──rp_emitter_push──► queue ──► encode (encoder.h) ─► emit ─► flush at each epoch's end ──► sink
 *
 * It owns the encoder and the chain's digest, keeps to the goal's bandwidth, and finds out what a byte costs (encoder.h).
 * Threads: "emit" and the encoders. push, close and join are for the engine's thread; failed for any; the rest as said.
 */
#ifndef RP_REPLICATOR_EMITTER_H
#define RP_REPLICATOR_EMITTER_H

#include "core/sink.h"
#include "replicator/aside.h"
#include "replicator/encoder.h"

enum rp_message_kind { RP_MSG_EPOCH, RP_MSG_PAGES, RP_MSG_DISK, RP_MSG_END };

/* Owned by whoever holds the pointer. */
struct rp_message {
    enum rp_message_kind kind;
    uint64_t epoch;
    struct rp_epoch_header header;      /* EPOCH */
    struct rp_captured *pages;          /* PAGES: malloc'ed */
    uint64_t n;
    uint32_t pass;
    struct rp_sections sections;        /* END */
    struct rp_buf disk;                 /* DISK, END */
    struct rp_epoch_trailer trailer;    /* END: counts and digest are filled in here */
};
struct rp_message *rp_message_new(enum rp_message_kind kind);   /* NULL: no memory */
void rp_message_free(struct rp_message *m);

struct rp_emitter_config {
    struct rp_sink *sink;
    struct rp_arena *arena;
    struct rp_ram_view ram;
    unsigned encoders;              /* threads beside the emitter's own */
    uint32_t codecs;                /* mask; 0: all */
    uint64_t bandwidth_bytes_s;     /* 0: unlimited */
    struct rp_aside *aside;         /* whoever encodes follows it at each record; borrowed, NULL: stays where it is */
    const struct rp_hash128 *held;  /* [ram.gfn_end] what the sink holds already; NULL: zeroes. Borrowed by create */
    /* Emitter thread: emitting failed for good. */
    void (*fail)(void *ctx, int rc, const struct rp_error *why);
    /* Emitter thread: there is room again (rp_emitter_disk_queued, rp_emitter_live_queued). */
    void (*wake)(void *ctx);
    void *ctx;
};

struct rp_emitter;
/* Borrows sink and arena. */
int rp_emitter_create(const struct rp_emitter_config *cfg, struct rp_emitter **out, struct rp_error *err) RP_MUST_CHECK;
int rp_emitter_start(struct rp_emitter *m, struct rp_error *err) RP_MUST_CHECK;
/* Takes `msg` in any case. Blocks while too many wait (more than the arena can fill). -EPIPE once closed. */
int rp_emitter_push(struct rp_emitter *m, struct rp_message *msg, struct rp_error *err) RP_MUST_CHECK;
/* Nothing can be pushed now without waiting; `wake` is called when that changes. Engine thread. */
bool rp_emitter_full(struct rp_emitter *m);
/* Messages pushed and not emitted yet. Any thread. */
uint64_t rp_emitter_pending(const struct rp_emitter *m);
/* What is queued is still emitted, nothing more is taken. Any thread. */
void rp_emitter_close(struct rp_emitter *m);
/* What is queued is thrown away, and nothing more is taken: the run is over. Any thread; does not wake a sink that blocks. */
void rp_emitter_abandon(struct rp_emitter *m);
/* Waits for the thread, at most `timeout_ms` (< 0: for ever). False: it still runs (the sink blocks). */
bool rp_emitter_join(struct rp_emitter *m, int timeout_ms);
void rp_emitter_destroy(struct rp_emitter *m);      /* joined, or never started */

/* Marks the pages that the sink holds and that are not zeroes: what a full epoch does not name is to be what they are. Before the
 * first push. */
void rp_emitter_mark_held(const struct rp_emitter *m, struct rp_pageset *pages);

/* The first epoch: what it took. All zero until it was emitted. Any thread. */
struct rp_sync_stats {
    uint64_t sent_pages;            /* a page sent twice counts twice */
    uint64_t equal_pages;           /* looked at, and held already */
    uint64_t wire_bytes;            /* headers included */
};
void rp_emitter_synced(const struct rp_emitter *m, struct rp_sync_stats *out);

uint64_t rp_emitter_cpu_ns(struct rp_emitter *m);               /* of its threads; engine's thread */
/* Any thread. */
uint64_t rp_emitter_disk_queued(const struct rp_emitter *m);    /* bytes of DISK records that wait */
uint64_t rp_emitter_live_queued(const struct rp_emitter *m);    /* pages that the encoder has yet to read out of guest RAM */
uint64_t rp_emitter_disk_emitted(const struct rp_emitter *m);
uint64_t rp_emitter_bytes(const struct rp_emitter *m);          /* emitted, headers included */
const struct rp_encode_stats *rp_emitter_stats(const struct rp_emitter *m);
/* What the emitter's own thread thought of a codec at the last epoch's end. */
void rp_emitter_judged(struct rp_emitter *m, uint8_t codec, struct rp_codec_judgement *out);

#endif
