/*
 * source.h - the contract of what epochs come from: a live machine (vmm/), an archived chain (store/).
 * The engine (replicator/) drives it; neither knows the other.
 *
 *   describe ─► track_start ─► { harvest }* ─► cut ─► (engine copies dirty pages) ─► resume ─► … ─► track_stop
 *
 * Between cut and resume the machine stands still: RAM, devices and outputs do not change. All calls come
 * from the engine's thread, except release (the committer's thread), and disk_whole (between runs).
 */
#ifndef RP_CORE_SOURCE_H
#define RP_CORE_SOURCE_H

#include "core/disk_sums.h"
#include "core/epoch.h"
#include "core/stream.h"

#include <sched.h>

struct rp_source_info {
    uint8_t vm_id[16];
    char name[RP_VM_NAME_MAX];
    struct rp_ram_view ram;     /* borrowed from the source, constant while it lives */
    unsigned cpus;              /* cores that it uses while it runs (vCPUs); who works beside it leaves them to it */
};

struct rp_cut {
    struct rp_sections *sections;   /* in: emptied by the engine; out: every device's state */
    struct rp_pageset *dirty;       /* in/out: pages dirtied since the last harvest are ORed in */
    struct rp_buf *disk;            /* in: empty; out: DISK payloads not pulled yet, u32 length + payload each. NULL without disk_start */
    uint64_t epoch;                 /* in: the number this cut ends; outputs until now belong to it */
    uint64_t guest_ns, wall_ns;     /* out */
    uint64_t pause_start_ns;        /* out: CLOCK_MONOTONIC when the first vCPU was kicked */
};

/* Private disks (docs/disks.md): the sink keeps copies of them. */
struct rp_disk_run {
    struct rp_disk_base have;       /* what the sink's copies hold; all zero: nothing */
    uint64_t term;                  /* lease term the VM runs under, for the disks' marks */
    /* The blocks that they hold, should they have to be made whole. Borrowed by disk_start, which takes the lists that it needs out of it;
     * the rest stays the caller's. NULL: nothing is known. */
    struct rp_disk_sums *sums;
};
struct rp_disk_progress {
    uint64_t sync_bytes, done_bytes;    /* of this run's initial copy: how much, how much of it was pulled */
    uint64_t equal_bytes;               /* of done_bytes: the copies held that already, and it does not travel */
    bool pressed;                       /* uncommitted writes near their bound: cut now (RP_CUT_MEMORY); output_fd was signalled */
};

struct rp_source;
struct rp_source_ops {
    const char *name;
    int (*describe)(struct rp_source *s, struct rp_source_info *out, struct rp_error *err);
    /* From here on harvest and cut report every page that changes, whoever writes it. `all`: the first harvest
     * reports every RAM page but those known to be zero (a full epoch is wanted: what it does not name is zero). */
    int (*track_start)(struct rp_source *s, bool all, struct rp_error *err);
    void (*track_stop)(struct rp_source *s);
    /* While the machine runs: ORs pages dirtied since the last call into `dirty` and starts watching them again. */
    int (*harvest)(struct rp_source *s, struct rp_pageset *dirty, struct rp_error *err);
    /* While true, no page is given back to the host: somebody has write-protected pages and will copy what they held. The
     * machine runs or stands. May be NULL: no page ever is. */
    void (*keep)(struct rp_source *s, bool keep);
    /* Stops the machine at a consistent point and takes its state. On error the machine runs on. -ESHUTDOWN: it has ended. */
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
    /* Adds the CPUs on which vCPUs run at this moment. Any thread. May be NULL: there are none. */
    void (*running_on)(struct rp_source *s, cpu_set_t *cpus);

    /* The run's sink takes disk writes: from here on every one is kept for disk_pull or the next cut, in bounded memory
     * (then the guest's requests wait). Before the run's first cut; all five NULL: no disks. */
    int (*disk_start)(struct rp_source *s, const struct rp_disk_run *run, struct rp_error *err);
    void (*disk_stop)(struct rp_source *s);
    /* Would disk_start have to make copies at `have` whole? Then also how large the disks are; those that are not private are left alone. */
    bool (*disk_whole)(struct rp_source *s, const struct rp_disk_base *have, uint64_t size_bytes[RP_DISK_SUMS_DISKS]);
    /* While the machine runs: appends DISK payloads to `out` (like rp_cut.disk): all writes kept so far and about `max`
     * bytes of what the copies lack. 1: they lack more; 0: from now on writes only. They belong to the epoch that the next
     * cut ends. */
    int (*disk_pull)(struct rp_source *s, struct rp_buf *out, size_t max_bytes, struct rp_error *err);
    void (*disk_progress)(struct rp_source *s, struct rp_disk_progress *out);
    /* Gives up (false) or takes back (true) what only one host may hold: shared storage. The machine stands, after the final
     * cut was committed and before the target is told to run. May be NULL. */
    int (*storage)(struct rp_source *s, bool hold, struct rp_error *err);
};
struct rp_source {
    const struct rp_source_ops *ops;
};

#endif
