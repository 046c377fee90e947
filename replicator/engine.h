/*
 * engine.h - the one engine: policy → cut → capture → encode → emit → commit.
 *
 * A run takes a source's epochs to a sink. Three kinds of run, one code:
 *   ONCE        one full epoch, then the end (checkpoint to a file)
 *   CONTINUOUS  a full epoch, then deltas for ever (protection, archive)
 *   FINAL       one full epoch after which the source stands still (migration): it resumes only when told to
 *
 * One epoch, as the engine thread sees it:
 *
 *     IDLE ─wait()─► EARLY ─early_pass()─► IDLE          pages captured and, when slots run short, emitted while the guest runs
 *       │                                                  (a full epoch is all early passes until the rest is small)
 *       └─take_cut()─► CUT ─rp_capture_copy─► CAPTURED ─ops->resume─► HANDED OVER (queue to the emitter) ─► IDLE
 *                       └─ more pages than slots: resume, stay in IDLE, capture early  (INV-5: never wait while it stands)
 *   the emitter thread: encode ─► emit ─► flush;  the sink: committed() ─► release outputs (INV-1)
 *
 * E1  Between cut and resume the engine waits for nobody but the capture helpers, and for one write fault that is being served.
 * E2  A page is in `pending`, in a list, or unchanged since the last epoch: nothing dirty is ever dropped.
 * E3  Epoch n+1 is emitted after the whole of epoch n, on one thread: the sink sees epochs in order.
 * E4  release(n) only after the sink said committed(n).
 * E5  Disk writes of an epoch are emitted in the order in which the source gave them, before its EPOCH_END (docs/disks.md).
 * E6  Memory: the arena, plus 8 bytes a page of bookkeeping (copy-on-write, from when it is used: 4 more), 16 of digest; `depth`
 *     epochs of device state.
 * E7  What is write-protected is let go before the epoch is handed over, whether somebody still takes it or not (cow.h).
 * E8  Pages of the first pass are read by the encoders, while the guest runs; all have been before the next harvest: what is read
 *     is what the epoch may hold, or it is dirty again and is sent again.
 *
 * Threads: "engine", "emit", encoders, capture helpers, "cow faults". The public calls are for one control thread; stats any.
 */
#ifndef RP_REPLICATOR_ENGINE_H
#define RP_REPLICATOR_ENGINE_H

#include "core/event.h"
#include "core/histogram.h"
#include "core/sink.h"
#include "core/source.h"
#include "replicator/emitter.h"
#include "replicator/governor.h"

enum rp_run_kind { RP_RUN_ONCE, RP_RUN_CONTINUOUS, RP_RUN_FINAL };

struct rp_engine_config {
    struct rp_goal goal;
    uint64_t memory_bytes;      /* the arena; 0: 24 MiB + RAM/24 */
    unsigned encoders;          /* threads beside the emitter; 0: one for each core that the source's vCPUs leave, at most 3 */
    unsigned capture_threads;   /* helpers in the pause, when vCPUs stand; 0: one per further core, at most 3 */
    enum rp_capture_choice capture;     /* how a cut's pages are captured: by what was measured, or as said */
    uint32_t codecs;            /* mask of 1 << rp_codec_id; 0: all */
    uint64_t first_epoch;       /* number of the first epoch; 0: 1 */
    uint64_t term;              /* lease term in the headers */
    bool disks;                 /* the sink keeps copies of the source's private disks (docs/disks.md) */
    struct rp_disk_base have;   /* what they hold already */
    struct rp_disk_sums *sums;  /* … and block by block (core/source.h). NULL: not known. Borrowed until the run is over */
    /* [gfn_end] the hash of each page that the sink holds already (digest.h): the first epoch brings what differs (docs/link.md).
     * NULL: all. Borrowed by create. */
    const struct rp_hash128 *held;
};

enum rp_engine_state { RP_ENGINE_SYNCING, RP_ENGINE_STEADY, RP_ENGINE_DONE, RP_ENGINE_FAILED };

/* Copy-on-write of cold pages. */
struct rp_cow_state {
    bool able, pays;                    /* it works here; it would pay now */
    uint64_t cuts, pages, faults;       /* with it; protected; written before they were let go */
    double page_ns, run_ns, fault_ns, after_ns;     /* what it costs (cow.h) */
    char why[160];                      /* why it is not able; "" as long as nobody wanted it */
};

struct rp_engine_stats {
    enum rp_engine_state state;
    uint64_t cut, committed;            /* newest epoch cut, newest committed */
    uint64_t committed_wall_ns;         /* when */
    uint64_t ram_bytes, done_bytes;     /* the guest's RAM; looked at so far */
    uint64_t sync_bytes;                /* the first epoch: of RAM, what there is to look at; grows by what is written meanwhile */
    unsigned passes;                    /* of the full epoch */
    uint64_t disk_sync_bytes, disk_done_bytes;  /* the disks' initial copy: how much, done so far */
    uint64_t disk_equal_bytes;          /* of what is done: the sink held it already */
    uint64_t disk_bytes;                /* in DISK records so far */
    bool resync;                        /* the first epoch brings what differs only */
    struct rp_sync_stats sync;          /* what it took, once it was emitted */
    double dirty_pages_s;
    uint64_t arena_bytes;
    uint64_t cuts_put_off;              /* cuts that found more dirty pages than slots */
    enum rp_pressure pressure;          /* what had to be done so that the sink keeps up (governor.h) */
    unsigned throttle;                  /* percent of the vCPUs' time taken */
    uint64_t epoch_ns;                  /* length of an epoch in force */
    double cpu;                         /* of one core that the engine uses, moving average */
    uint64_t wire_bytes;                /* emitted since the start, headers included */
    struct rp_hist pause, commit;       /* ns: vCPUs stand still; cut to commit */
    struct rp_hist dirty;               /* pages per epoch */
    const char *capture;                /* strategy of most of the last cuts: "stop-and-copy", "early", "copy-on-write" */
    double copy_ns;                     /* to copy a page in the pause */
    struct rp_cow_state cow;
    struct rp_encode_stats encode;
};

struct rp_engine;
/* Borrows source, sink and events; they outlive the engine. */
int rp_engine_create(struct rp_source *src, struct rp_sink *sink, enum rp_run_kind kind, const struct rp_engine_config *cfg,
                     struct rp_events *events, struct rp_engine **out, struct rp_error *err) RP_MUST_CHECK;
/* Starts the threads. `ended` is called once, from an engine thread, when the run is over: rc 0 (ONCE and FINAL: committed;
 * CONTINUOUS: stopped) or the failure. It must not call back into the engine. May be NULL. */
int rp_engine_start(struct rp_engine *e, void (*ended)(void *ctx, int rc, const struct rp_error *why), void *ctx,
                    struct rp_error *err) RP_MUST_CHECK;
/* Asks a run to end at once; what is not committed stays so. */
void rp_engine_stop(struct rp_engine *e);
/* CONTINUOUS: one last epoch after which the source stands still (planned switchover). The run then ends like FINAL. */
void rp_engine_finish(struct rp_engine *e);
/* Blocks until the run is over. Returns its result. */
int rp_engine_wait(struct rp_engine *e, struct rp_error *err) RP_MUST_CHECK;
/* True when the source was cut for good (FINAL, finish) and stands still: somebody has to resume it or let it go. */
bool rp_engine_stands(const struct rp_engine *e);
/* After wait, or before start. A sink that was started is cancelled or destroyed before: its callbacks come until then. */
void rp_engine_destroy(struct rp_engine *e);
void rp_engine_stats(struct rp_engine *e, struct rp_engine_stats *out);

#endif
