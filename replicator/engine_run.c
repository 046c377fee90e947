/* The engine thread: the full epoch, then one delta epoch after the other; see engine.h. */
#include "replicator/engine_internal.h"

#include "core/clock.h"
#include "core/thread.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#define MAX_PASSES 30u          /* of a full epoch: then the cut comes, however much is dirty still */
#define PASS_CHUNK 2048u        /* pages handed to the emitter at a time while the guest runs */
#define LIVE_CHUNK 8192u        /* pages named at a time for the encoders to read: they come together at its end */
#define LIVE_QUEUED 16384u      /* pages that may wait for them */
#define DISK_CHUNK (1u << 20)   /* bytes of a disk's initial copy asked for at a time */
#define DISK_QUEUED (8u << 20)  /* bytes of DISK records that may wait for the emitter */
#define FEW_SLOTS 64u           /* worth going on with */
#define TICK_NS 100000000u      /* longest wait for anything without looking around */

/* Beside a guest that runs for as long as this takes it keeps out of its way; around a cut, and as long as outputs wait for it, it does not. */
static void keep_aside(struct rp_engine *e, bool on)
{
    e->stays_aside = on;
    rp_thread_patient(on);
    if (on)
        rp_aside_step(&e->aside);
    else
        rp_aside_leave();
}

static void look_aside(struct rp_engine *e)
{
    rp_aside_look(&e->aside, e->src);
    if (e->stays_aside)
        rp_aside_step(&e->aside);
}

static int hand_over(struct rp_engine *e, struct rp_message *m, struct rp_error *err)
{
    if (!m)
        return rp_error_set(err, ENOMEM, "no memory for an epoch's message");
    m->epoch = e->epoch;
    /* Not in the queue's own wait: whoever waits has to notice that the sink takes nothing any more, or that the run is to end (INV-5). */
    while (rp_emitter_full(e->emitter) && !rp_engine_over(e)) {
        rp_engine_wait_for(e, rp_clock_ns() + TICK_NS);
        int late = rp_engine_govern(e, false, err);
        if (late < 0) {
            rp_message_free(m);
            return late;
        }
    }
    if (rp_engine_over(e)) {
        rp_message_free(m);
        return -ECANCELED;
    }
    int rc = rp_emitter_push(e->emitter, m, err);
    look_aside(e);
    return rc;
}

static int open_epoch(struct rp_engine *e, bool full, struct rp_error *err)
{
    struct rp_message *m = rp_message_new(RP_MSG_EPOCH);
    if (m) {
        const struct rp_ram_view *ram = &e->info.ram;
        struct rp_epoch_header *h = &m->header;
        memcpy(h->vm_id, e->info.vm_id, sizeof(h->vm_id));
        memcpy(h->vm_name, e->info.name, sizeof(h->vm_name));
        h->number = e->epoch;
        h->parent = full ? 0 : e->epoch - 1;
        h->term = e->cfg.term;
        h->flags = !full ? 0 : e->resync ? RP_EPOCH_FULL | RP_EPOCH_RESYNC : RP_EPOCH_FULL;
        h->page_size = RP_PAGE_SIZE;
        h->gfn_end = ram->gfn_end;
        h->nregions = ram->nregions;
        for (uint32_t i = 0; i < ram->nregions; i++) {
            h->regions[i].gfn = ram->regions[i].gfn;
            h->regions[i].pages = ram->regions[i].pages;
        }
    }
    e->pass = 0;
    e->early = e->again = e->streamed = 0;
    rp_policy_open(&e->policy);
    return hand_over(e, m, err);
}

int rp_engine_hand_part(struct rp_engine *e, struct rp_captured *pages, uint64_t n, struct rp_error *err)
{
    struct rp_message *m = rp_message_new(RP_MSG_PAGES);
    if (!m) {
        free(pages);
        return rp_error_set(err, ENOMEM, "no memory for an epoch's message");
    }
    m->pages = pages;
    m->n = n;
    m->pass = e->pass;
    return hand_over(e, m, err);
}

/* Hands the captured list to the emitter. */
static int hand_pages(struct rp_engine *e, struct rp_error *err)
{
    e->again += e->capture.again;
    uint64_t n;
    struct rp_captured *pages = rp_capture_take(&e->capture, &n);
    return pages ? rp_engine_hand_part(e, pages, n, err) : 0;
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
void rp_engine_wait_for(struct rp_engine *e, uint64_t until_ns)
{
    uint64_t now = rp_clock_ns();
    uint64_t ns = until_ns > now ? until_ns - now : 0;
    struct timespec ts = rp_timespec(ns);
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
    struct rp_message *m = rp_message_new(RP_MSG_DISK);
    if (!m)
        return rp_error_set(err, ENOMEM, "no memory for an epoch's message");
    m->disk = *disk;
    *disk = (struct rp_buf){0};
    return hand_over(e, m, err);
}

/* Until no more than `max` of what `queued` counts wait for the emitter. */
static int await_emitter(struct rp_engine *e, uint64_t (*queued)(const struct rp_emitter *), uint64_t max, struct rp_error *err)
{
    while (queued(e->emitter) > max && !rp_engine_over(e)) {
        rp_engine_wait_for(e, rp_clock_ns() + TICK_NS);
        int late = rp_engine_govern(e, false, err);
        if (late < 0)
            return late;
    }
    return rp_engine_over(e) ? -ECANCELED : 0;
}

/* Takes what the source has kept of its disks, and `max` bytes of their initial copy. 1: there is more of that. */
static int pull_disks(struct rp_engine *e, size_t max, struct rp_error *err)
{
    struct rp_buf disk = {0};
    if (!e->disks)
        return 0;
    int rc = await_emitter(e, rp_emitter_disk_queued, DISK_QUEUED, err);
    if (rc < 0)
        return rc;
    int more = e->src->ops->disk_pull(e->src, &disk, max, err);
    rc = more < 0 ? more : hand_disk(e, &disk, err);
    rp_buf_fini(&disk);
    return rc < 0 ? rc : more;
}

static int start_disks(struct rp_engine *e, struct rp_error *err)
{
    struct rp_disk_run run = {.have = e->cfg.have, .term = e->cfg.term, .sums = e->cfg.sums};
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

/* Until the arena has `n` slots. The guest's disk writes are taken meanwhile: it waits when too many are kept. */
static int await_slots(struct rp_engine *e, uint32_t n, struct rp_error *err)
{
    while (!rp_arena_wait(e->arena, n, rp_clock_ns() + TICK_NS)) {
        int rc = rp_engine_govern(e, false, err);
        if (rc == 0)
            rc = pull_disks(e, 0, err);
        if (rc < 0 || rp_engine_over(e))
            return rc < 0 ? rc : -ECANCELED;
    }
    return 0;
}

/* Captures everything pending and emits it while the guest runs, waiting for slots as needed. */
static int stream_pending(struct rp_engine *e, struct rp_error *err)
{
    while (rp_pageset_next(&e->capture.pending, 0) < e->capture.pending.bits) {
        int rc = await_slots(e, FEW_SLOTS, err);
        if (rc < 0)
            return rc;
        uint64_t t0 = rp_clock_ns();
        uint64_t n = rp_capture_copy(&e->capture, PASS_CHUNK, false);
        if (rp_pool_threads(e->capture_pool) == 0)      /* or a cut is quicker */
            rp_policy_learn_copy(&e->policy, n, rp_clock_ns() - t0);
        atomic_fetch_add(&e->done_pages, n);
        e->streamed += n;
        rc = hand_pages(e, err);
        if (rc == 0)
            rc = pull_disks(e, 0, err);
        if (rc == 0)
            rc = rp_engine_govern(e, false, err);
        if (rc < 0 || rp_engine_over(e))
            return rc < 0 ? rc : -ECANCELED;
    }
    e->pass++;
    atomic_store(&e->passes, e->pass);
    return 0;
}

/* The first pass, all of RAM: the encoders read it while the guest runs, which saves a copy of each page. Over only when they have: a page
 * that were read later could be newer than what is harvested next (E8). */
static int stream_live(struct rp_engine *e, struct rp_error *err)
{
    int rc;
    while (rp_pageset_next(&e->capture.pending, 0) < e->capture.pending.bits) {
        rc = await_emitter(e, rp_emitter_live_queued, LIVE_QUEUED, err);
        if (rc < 0)
            return rc;
        atomic_fetch_add(&e->done_pages, rp_capture_name(&e->capture, LIVE_CHUNK));
        rc = hand_pages(e, err);
        if (rc == 0)
            rc = pull_disks(e, 0, err);
        if (rc < 0)
            return rc;
    }
    for (uint64_t done = 0; e->kind == RP_RUN_CONTINUOUS && !rp_engine_over(e) && rp_arena_populate(e->arena, &done); )
        ;
    rc = await_emitter(e, rp_emitter_live_queued, 0, err);
    atomic_store(&e->passes, ++e->pass);
    return rc;
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
        atomic_store(&e->sync_pages, atomic_load(&e->done_pages) + pages);
        int rc = i == 0 ? stream_live(e, err) : stream_pending(e, err);
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
        bool small = left <= final_pages(e, pages, ns), room = e->kind == RP_RUN_FINAL || left <= rp_arena_available(e->arena);
        if ((small && room) || (!shrinking && i > 2 && e->kind != RP_RUN_FINAL))
            break;
        /* What this pass captured is on its way still. A cut that finds no room is put off, and costs the guest some of its speed: one more pass. */
        if (small && !room && left <= rp_arena_slots(e->arena))
            rc = await_slots(e, (uint32_t)left, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* A harvest for the open epoch, while the guest runs: this is how it grows. The governor hears at once when it has come half-way to
 * what the sink can take. *pages: what it would bring, cut now. */
static int harvest_open(struct rp_engine *e, uint64_t *pages, struct rp_error *err)
{
    int rc = harvest(e, err);
    *pages = rp_pageset_count(&e->capture.pending) + e->early + e->streamed;
    return rc == 0 && e->epoch_pages && *pages > e->epoch_pages / 2 ? rp_engine_govern(e, true, err) : rc;
}

/* Captures pending pages while the guest runs and keeps them for the cut; emits them when slots run short. */
static int early_pass(struct rp_engine *e, struct rp_error *err)
{
    uint64_t pages;
    int rc = harvest_open(e, &pages, err);
    if (rc < 0)
        return rc;
    uint64_t t0 = rp_clock_ns();
    uint64_t n = rp_capture_copy(&e->capture, UINT64_MAX, true);
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

static struct rp_message *new_end(struct rp_engine *e, enum rp_epoch_reason reason, const struct rp_cut *cut)
{
    struct rp_message *m = rp_message_new(RP_MSG_END);
    if (!m)
        return NULL;
    m->trailer = (struct rp_epoch_trailer){.number = e->epoch, .guest_ns = cut->guest_ns, .wall_ns = cut->wall_ns,
                                           .reason = reason};
    return m;
}

static void let_run(struct rp_engine *e)
{
    struct rp_error err = {0};
    int rc = e->src->ops->resume(e->src, &err);
    if (rc < 0)
        rp_engine_fail(e, rc, &err);
}

/* Copies what the cut found, or protects it (*held pages). False when it is more than the arena, or the list, can take now: the cut is
 * then off. */
static bool capture_cut(struct rp_engine *e, bool final, uint64_t dirty, uint64_t *held)
{
    *held = 0;
    if (final)
        return rp_capture_name(&e->capture, UINT64_MAX) == dirty;
    if (rp_capture_need(&e->capture) > rp_arena_available(e->arena))
        return false;
    *held = rp_engine_cow_protect(e, dirty);
    uint64_t t0 = rp_clock_ns();
    uint64_t n = rp_capture_copy(&e->capture, UINT64_MAX, true);
    rp_policy_learn_copy(&e->policy, n, rp_clock_ns() - t0);
    return rp_pageset_next(&e->capture.pending, 0) == e->capture.pending.bits;
}

static void note_cut(struct rp_engine *e, const struct rp_cut *cut, uint64_t dirty, uint64_t held, uint64_t pause_end)
{
    uint64_t pause = pause_end - cut->pause_start_ns, pages = dirty + e->early - e->again;
    atomic_store(&e->flight[e->epoch % RP_COMMIT_RING].commit_ns, 0);
    atomic_store(&e->flight[e->epoch % RP_COMMIT_RING].pages, pages);
    atomic_store(&e->flight[e->epoch % RP_COMMIT_RING].cut_ns, cut->pause_start_ns);
    atomic_store(&e->cut, e->epoch);
    rp_hist_add(&e->pause, pause);
    rp_hist_add(&e->dirty, pages);
    rp_policy_learn_pause(&e->policy, pause - (held ? e->cold.protect_ns : 0), dirty - held);
    rp_policy_learn_early(&e->policy, e->early, e->again);
    rp_policy_learn_dirty(&e->policy, dirty + e->early, pause_end - e->policy.last_cut_ns);
    atomic_store(&e->copy_ns, (uint64_t)e->policy.copy_ns_per_page);
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
    uint64_t held = 0;
    if (!final)
        rp_engine_cow_ready(e);
    keep_aside(e, false);
    int rc = e->src->ops->cut(e->src, &cut, err);
    if (rc < 0)
        goto out;
    uint64_t dirty = rp_pageset_count(&e->capture.pending);
    struct rp_message *end = new_end(e, reason, &cut);
    if (!end || !capture_cut(e, final, dirty, &held)) {
        let_run(e);
        atomic_fetch_add(&e->put_off, 1);
        rc = end ? hand_disk(e, &disk, err) : rp_error_set(err, ENOMEM, "no memory for an epoch's message");
        free(end);
        rc = rc ? rc : -EAGAIN;
        goto out;
    }
    if (final) {
        atomic_store(&e->stands, true);
        rp_aside_end(&e->aside);
    } else {
        let_run(e);
    }
    uint64_t resumed = rp_clock_ns();
    e->again += e->capture.again;
    e->capture.again = 0;
    note_cut(e, &cut, dirty, held, resumed);
    end->sections = sections;
    end->disk = disk;
    sections = (struct rp_sections){0};
    disk = (struct rp_buf){0};
    rp_engine_cow_note(e);
    rc = hand_pages(e, err);
    int cow = rp_engine_cow_hand(e, dirty, rc < 0 ? NULL : err);
    rc = rc < 0 ? rc : cow;
    if (rc < 0)
        rp_message_free(end);
    else
        rc = hand_over(e, end, err);
    e->epoch++;
out:
    if (e->kind != RP_RUN_CONTINUOUS)
        keep_aside(e, true);
    rp_engine_cow_withdraw(e);      /* nothing is left, unless the cut was off */
    rp_sections_fini(&sections);
    rp_buf_fini(&disk);
    return rc;
}

/* A cut that was put off wants room: emit what is captured, wait for slots with the guest running, and try again. A guest that
 * dirties more meanwhile than fits is slowed down until it does not (the governor hears of each cut that was put off). */
static int cut_until_done(struct rp_engine *e, enum rp_epoch_reason reason, bool final, struct rp_error *err)
{
    for (;;) {
        int rc = take_cut(e, reason, final, err);
        if (rc != -EAGAIN)
            return rc;
        rc = rp_engine_govern(e, true, err);
        if (rc == 0)
            rc = hand_pages(e, err);
        if (rc == 0)
            rc = stream_pending(e, err);
        if (rc < 0)
            return rc;
    }
}

/* How long epochs took to be committed, for the policy. */
static void learn_commits(struct rp_engine *e)
{
    uint64_t newest = atomic_load(&e->committed);
    if (newest - e->commits_learnt > RP_COMMIT_RING / 2)
        e->commits_learnt = newest - RP_COMMIT_RING / 2;
    while (e->commits_learnt < newest) {
        uint64_t n = ++e->commits_learnt % RP_COMMIT_RING;
        uint64_t at = atomic_load(&e->flight[n].cut_ns), end = atomic_load(&e->flight[n].commit_ns);
        if (at && end > at)
            rp_policy_learn_commit(&e->policy, end - at, atomic_load(&e->flight[n].pages));
    }
}

static int look(struct rp_engine *e, struct rp_error *err)
{
    uint64_t pages;
    int rc = harvest_open(e, &pages, err);
    rp_policy_learn_look(&e->policy, rp_clock_ns(), pages - e->streamed);
    return rc;
}

static int follow(struct rp_engine *e, const struct rp_decision *d, struct rp_error *err)
{
    int rc;
    switch (d->action) {
    case RP_POLICY_WAIT:
        rp_engine_wait_for(e, d->until_ns);
        return 0;
    case RP_POLICY_LOOK:
        return look(e, err);
    case RP_POLICY_EARLY:
        rc = early_pass(e, err);
        rp_policy_learn_early_done(&e->policy, rp_clock_ns());
        return rc;
    case RP_POLICY_CUT:
        break;
    }
    e->policy.output_since_ns = 0;
    return cut_until_done(e, (enum rp_epoch_reason)d->reason, false, err);
}

/* One delta epoch: opened, waited for, captured early where that pays, cut. */
static int delta_epoch(struct rp_engine *e, struct rp_error *err)
{
    uint64_t epoch = e->epoch;
    int rc = open_epoch(e, false, err);
    while (rc == 0 && e->epoch == epoch) {
        if (rp_engine_over(e))
            return -ECANCELED;
        learn_commits(e);
        rc = rp_engine_govern(e, false, err);
        if (rc < 0)
            return rc;
        e->policy.in_flight = (unsigned)(e->epoch - 1 - atomic_load(&e->committed));
        if (atomic_load(&e->finish))
            return cut_until_done(e, RP_CUT_FINAL, true, err);
        if (e->policy.in_flight < e->policy.goal.depth && disks_press(e))
            return cut_until_done(e, RP_CUT_MEMORY, false, err);
        struct rp_decision d = rp_policy_next(&e->policy, rp_clock_ns());
        rc = follow(e, &d, err);
    }
    return rc;
}

int rp_engine_run(struct rp_engine *e, struct rp_error *err)
{
    rp_aside_look(&e->aside, e->src);
    keep_aside(e, true);
    int rc = e->src->ops->track_start(e->src, true, err);
    if (rc < 0)
        return rc;
    e->tracking = true;
    rc = harvest(e, err);
    atomic_store(&e->sync_pages, rp_pageset_count(&e->capture.pending));    /* the disks are copied first */
    if (e->resync)
        rp_emitter_mark_held(e->emitter, &e->capture.pending);
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
    while (rc == 0 && !rp_engine_over(e) && !atomic_load(&e->stands))
        rc = delta_epoch(e, err);
    return rc == -ECANCELED && !atomic_load(&e->failed) ? 0 : rc;
}

