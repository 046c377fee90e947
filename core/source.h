/*
 * source.h - the contract of what epochs come from: a live machine (vmm/), an archived chain (store/).
 * The engine (replicator/) drives it; neither knows the other.
 *
 *   describe ─► track_start ─► { harvest }* ─► cut ─► (engine copies dirty pages) ─► resume ─► … ─► track_stop
 *
 * Between cut and resume the machine stands still: RAM, devices and outputs do not change. All calls come
 * from the engine's thread, except release (the committer's thread).
 */
#ifndef RP_CORE_SOURCE_H
#define RP_CORE_SOURCE_H

#include "core/epoch.h"

struct rp_source_info {
    uint8_t vm_id[16];
    char name[RP_VM_NAME_MAX];
    struct rp_ram_view ram;     /* borrowed from the source, constant while it lives */
};

struct rp_cut {
    struct rp_sections *sections;   /* in: emptied by the engine; out: every device's state */
    struct rp_pageset *dirty;       /* in/out: pages dirtied since the last harvest are ORed in */
    struct rp_buf *disk;            /* out: sealed-less DISK payloads of the epoch, u32 length + payload each; may be NULL */
    uint64_t epoch;                 /* in: the number this cut ends; outputs until now belong to it */
    uint64_t guest_ns, wall_ns;     /* out */
    uint64_t pause_start_ns;        /* out: CLOCK_MONOTONIC when the first vCPU was kicked */
};

struct rp_source;
struct rp_source_ops {
    const char *name;
    int (*describe)(struct rp_source *s, struct rp_source_info *out, struct rp_error *err);
    /* From here on harvest and cut report every page that changes, whoever writes it. `all`: the first harvest
     * reports every RAM page (a full epoch is wanted). */
    int (*track_start)(struct rp_source *s, bool all, struct rp_error *err);
    void (*track_stop)(struct rp_source *s);
    /* While the machine runs: ORs pages dirtied since the last call into `dirty` and starts watching them again. */
    int (*harvest)(struct rp_source *s, struct rp_pageset *dirty, struct rp_error *err);
    /* Stops the machine at a consistent point and takes its state. On error the machine runs on. */
    int (*cut)(struct rp_source *s, struct rp_cut *cut, struct rp_error *err);
    /* Lets it run again. A machine that was paused by its user before the cut stays paused. */
    int (*resume)(struct rp_source *s, struct rp_error *err);
    /* Outputs of epochs <= `epoch` may leave (output commit, INV-1). UINT64_MAX: the gate is open for good. */
    void (*release)(struct rp_source *s, uint64_t epoch);
    /* From the next cut on outputs wait for release (true) or leave at once (false, releases what waits). */
    void (*gate)(struct rp_source *s, bool hold);
    /* An eventfd that becomes readable when an output starts to wait in an empty gate; -1: none. */
    int (*output_fd)(struct rp_source *s);
    /* Slows the vCPUs: 0 none … 99 percent of their time taken. */
    void (*throttle)(struct rp_source *s, unsigned percent);
};
struct rp_source {
    const struct rp_source_ops *ops;
};

#endif
