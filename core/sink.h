/*
 * sink.h - the contract of where epochs go: a standby (replicator/), an archive (store/), a file or pipe.
 *
 * The engine hands it whole sealed records in the stream's order (stream.h). A sink may have several lanes;
 * RAM records of one epoch may then overtake each other, nothing else may. Calls come from the engine's
 * emitting thread; commit and failure are told through the callbacks, from any thread of the sink.
 */
#ifndef RP_CORE_SINK_H
#define RP_CORE_SINK_H

#include "core/stream.h"

struct rp_sink;
struct rp_sink_events {
    void *ctx;
    /* Every epoch up to `epoch` is safe at this sink: on stable storage, or held whole and verified by the standby. */
    void (*committed)(void *ctx, struct rp_sink *sink, uint64_t epoch);
    /* The sink can take nothing more. Called once; `why` is borrowed. */
    void (*failed)(void *ctx, struct rp_sink *sink, const struct rp_error *why);
};

struct rp_sink_ops {
    const char *name;
    /* Before the first record. `events` stays valid until destroy. */
    int (*start)(struct rp_sink *s, const struct rp_sink_events *events, struct rp_error *err);
    /* A record's bytes: header with magic, type, flags and length filled in; the sink seals sequence and checksum
     * (rp_record_seal) on its lane. Takes ownership of nothing: `record` is the caller's again on return.
     * May block for backpressure; returns -EPIPE once the sink failed or was cancelled. */
    int (*emit)(struct rp_sink *s, struct rp_buf *record, struct rp_error *err);
    /* EPOCH_END of `epoch` was emitted: push everything out now; `committed` follows. */
    int (*flush)(struct rp_sink *s, uint64_t epoch, struct rp_error *err);
    /* The run is over: wakes a blocked emit, and nothing more is emitted; callbacks, and what is said to the other side, go on until
     * cancel. Engine's thread. May be NULL: then it is cancelled. */
    void (*stop)(struct rp_sink *s);
    /* Wakes a blocked emit; no callback comes after it returns. Not from a callback; one control thread. */
    void (*cancel)(struct rp_sink *s);
    void (*destroy)(struct rp_sink *s);
};
struct rp_sink {
    const struct rp_sink_ops *ops;
    bool stages;            /* it keeps an epoch beside RAM until it is whole, within rp_image_staging_bytes (image.h) */
};

/* core/sink_fd.c: a file or pipe. BEGIN is written by start, END by rp_sink_fd_finish. `sync`: fdatasync before
 * committed is called. Owns fd. After a failed write nothing more is written: the stream ends torn, and reads so.
 * The process must ignore SIGPIPE. */
int rp_sink_fd_create(int fd, bool sync, struct rp_sink **out, struct rp_error *err) RP_MUST_CHECK;
/* Writes END (and syncs); 0 when the whole stream is safely there. */
int rp_sink_fd_finish(struct rp_sink *s, struct rp_error *err) RP_MUST_CHECK;
uint64_t rp_sink_fd_bytes(const struct rp_sink *s);

#endif
