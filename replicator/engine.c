/* The engine as others see it: control, stats, the sink's callbacks, and the frame of its thread. */
#include "replicator/engine_internal.h"

#include "core/clock.h"
#include "core/image.h"
#include "core/thread.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define TICK_NS 100000000u
#define EMPTY_MS 200        /* an emitter that is told to stop ends at once, unless the sink blocks */

void rp_engine_wake(struct rp_engine *e)
{
    uint64_t one = 1;
    if (write(e->wake_fd, &one, sizeof(one)) < 0) {
        /* the counter is full: it is awake */
    }
}

void rp_engine_fail(struct rp_engine *e, int rc, const struct rp_error *why)
{
    pthread_mutex_lock(&e->result_lock);
    if (e->rc == 0) {
        e->rc = rc;
        if (why)
            e->why = *why;
    }
    pthread_mutex_unlock(&e->result_lock);
    atomic_store(&e->failed, true);
    rp_arena_close(e->arena);
    rp_emitter_abandon(e->emitter);
    rp_engine_wake(e);
}

/* --- the sink's callbacks: any thread --- */

static void on_committed(void *ctx, struct rp_sink *sink, uint64_t epoch)
{
    (void)sink;
    struct rp_engine *e = ctx;
    uint64_t now = rp_clock_ns(), had = atomic_load(&e->committed);
    while (had < epoch && !atomic_compare_exchange_weak(&e->committed, &had, epoch))
        ;
    if (had >= epoch)
        return;
    atomic_store(&e->committed_wall_ns, rp_wall_ns());
    for (uint64_t n = had + 1; n <= epoch; n++) {
        uint64_t at = atomic_load(&e->flight[n % RP_COMMIT_RING].cut_ns);
        atomic_store(&e->flight[n % RP_COMMIT_RING].commit_ns, now);
        if (at && epoch - n < RP_COMMIT_RING)
            rp_hist_add(&e->commit, now - at);
    }
    if (e->kind == RP_RUN_CONTINUOUS)
        e->src->ops->release(e->src, epoch);
    rp_engine_wake(e);
}

static void on_failed(void *ctx, struct rp_sink *sink, const struct rp_error *why)
{
    (void)sink;
    rp_engine_fail(ctx, why && why->code ? why->code : -EPIPE, why);
}

/* Waits for the sink to commit everything that was cut; a run that was stopped has nobody who waits for that. */
static void settle(struct rp_engine *e)
{
    while (!rp_engine_over(e) && atomic_load(&e->committed) < atomic_load(&e->cut))
    {
        rp_engine_wait_for(e, rp_clock_ns() + TICK_NS);
        struct rp_error err = {0};
        int rc = rp_engine_govern(e, false, &err);
        if (rc < 0)
            rp_engine_fail(e, rc, &err);
    }
}

/* A run that succeeds ends when all is emitted; one that is stopped or has failed drops what waits. A sink that blocks the emitter
 * then is stopped. */
static void end_emitter(struct rp_engine *e)
{
    if (!rp_engine_over(e)) {
        rp_emitter_close(e->emitter);
        while (!rp_emitter_join(e->emitter, EMPTY_MS))
            if (rp_engine_over(e))
                break;
    }
    rp_emitter_abandon(e->emitter);
    if (rp_emitter_join(e->emitter, EMPTY_MS))
        return;
    (e->sink->ops->stop ? e->sink->ops->stop : e->sink->ops->cancel)(e->sink);
    (void)rp_emitter_join(e->emitter, -1);
}

static void *engine_main(void *arg)
{
    struct rp_engine *e = arg;
    struct rp_error err = {0};
    int rc = rp_engine_run(e, &err);
    if (rc == -ECANCELED && !err.code)
        rp_error_exit(&err, RP_EXIT_INTERRUPTED, ECANCELED, "stopped before the first epoch was complete");
    if (rc < 0)
        rp_engine_fail(e, rc, &err);
    else
        settle(e);
    rp_engine_cow_end(e);       /* before the emitter: what it waits for may take long */
    end_emitter(e);
    rp_engine_ungovern(e);
    if (e->tracking)
        e->src->ops->track_stop(e->src);
    if (e->disks)
        e->src->ops->disk_stop(e->src);
    pthread_mutex_lock(&e->result_lock);
    rc = e->rc;
    err = e->why;
    pthread_mutex_unlock(&e->result_lock);
    atomic_store(&e->state, rc < 0 ? RP_ENGINE_FAILED : RP_ENGINE_DONE);
    if (e->ended)
        e->ended(e->ended_ctx, rc, &err);
    return NULL;
}

/* --- the control thread --- */

/* Helpers of a thread: one for each core but its own and `taken`, at most 3. */
static unsigned helpers(unsigned asked, unsigned taken)
{
    if (asked)
        return asked;
    long n = sysconf(_SC_NPROCESSORS_ONLN) - 1 - (long)taken;
    return n < 0 ? 0 : n > 3 ? 3 : (unsigned)n;
}

static void emitter_failed(void *ctx, int rc, const struct rp_error *why)
{
    rp_engine_fail(ctx, rc, why);
}

static void emitter_wakes(void *ctx)
{
    rp_engine_wake(ctx);
}

/* In pages; 0: the sink takes one of any size, or RAM is no larger. */
static uint64_t largest_epoch(const struct rp_sink *sink, const struct rp_ram_view *ram)
{
    uint64_t pages = rp_image_staging_bytes(ram->pages << RP_PAGE_SHIFT) >> RP_PAGE_SHIFT;
    return sink->stages && pages < ram->pages ? pages : 0;
}

int rp_engine_create(struct rp_source *src, struct rp_sink *sink, enum rp_run_kind kind, const struct rp_engine_config *cfg,
                     struct rp_events *events, struct rp_engine **out, struct rp_error *err)
{
    struct rp_engine *e = calloc(1, sizeof(*e));
    if (!e)
        return rp_error_set(err, ENOMEM, "no memory for the engine");
    e->src = src;
    e->sink = sink;
    e->kind = kind;
    e->cfg = *cfg;
    e->events = events;
    e->epoch = cfg->first_epoch ? cfg->first_epoch : 1;
    e->resync = cfg->held != NULL;
    e->cfg.held = NULL;
    atomic_store(&e->committed, e->epoch - 1);
    atomic_store(&e->cut, e->epoch - 1);
    pthread_mutex_init(&e->result_lock, NULL);
    rp_aside_init(&e->aside);
    e->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = src->ops->describe(src, &e->info, err);
    if (rc < 0)
        goto fail;
    const struct rp_ram_view *ram = &e->info.ram;
    e->epoch_pages = largest_epoch(sink, ram);
    if (!e->cfg.memory_bytes)
        e->cfg.memory_bytes = (24u << 20) + ram->pages * RP_PAGE_SIZE / 24;
    struct rp_emitter_config emit = {
        .sink = sink, .ram = *ram, .encoders = helpers(cfg->encoders, e->info.cpus), .codecs = cfg->codecs,
        .bandwidth_bytes_s = cfg->goal.bandwidth_bytes_s, .held = cfg->held, .aside = &e->aside, .fail = emitter_failed, .wake = emitter_wakes, .ctx = e};
    if ((rc = rp_arena_create(e->cfg.memory_bytes, ram->gfn_end, &e->arena, err)) < 0 ||
        (rc = rp_pool_create("capture", helpers(cfg->capture_threads, 0), false, &e->capture_pool, err)) < 0 ||
        (rc = rp_capture_init(&e->capture, ram, e->arena, e->capture_pool, err)) < 0)
        goto fail;
    emit.arena = e->arena;
    if ((rc = rp_emitter_create(&emit, &e->emitter, err)) < 0)
        goto fail;
    e->output_fd = src->ops->output_fd(src);
    rp_policy_init(&e->policy, &cfg->goal, rp_clock_ns());
    e->policy.choice = cfg->capture;
    rp_governor_init(&e->governor, &cfg->goal, rp_clock_ns());
    e->commits_learnt = e->epoch - 1;
    *out = e;
    return 0;
fail:
    if (err && !err->code)
        rp_error_set(err, rc, "cannot make the engine: %s", strerror(-rc));
    rp_engine_destroy(e);
    return rc;
}

int rp_engine_start(struct rp_engine *e, void (*ended)(void *ctx, int rc, const struct rp_error *why), void *ctx,
                    struct rp_error *err)
{
    e->ended = ended;
    e->ended_ctx = ctx;
    e->sink_events = (struct rp_sink_events){.ctx = e, .committed = on_committed, .failed = on_failed};
    int rc = e->sink->ops->start(e->sink, &e->sink_events, err);
    if (rc < 0)
        return rc;
    rc = rp_emitter_start(e->emitter, err);
    if (rc < 0)
        return rc;
    rc = rp_thread_start(&e->thread, "engine", engine_main, e, err);
    if (rc < 0) {
        rp_emitter_abandon(e->emitter);
        (void)rp_emitter_join(e->emitter, -1);
    }
    e->started = rc == 0;
    return rc;
}

void rp_engine_stop(struct rp_engine *e)
{
    atomic_store(&e->stop, true);
    rp_engine_wake(e);
}

void rp_engine_finish(struct rp_engine *e)
{
    atomic_store(&e->finish, true);
    rp_engine_wake(e);
}

int rp_engine_wait(struct rp_engine *e, struct rp_error *err)
{
    if (e->started) {
        pthread_join(e->thread, NULL);
        e->started = false;
    }
    if (e->rc < 0 && err)
        *err = e->why;
    return e->rc;
}

bool rp_engine_stands(const struct rp_engine *e)
{
    return atomic_load(&e->stands);
}

void rp_engine_destroy(struct rp_engine *e)
{
    if (!e)
        return;
    rp_emitter_destroy(e->emitter);
    rp_capture_fini(&e->capture);
    rp_pool_destroy(e->capture_pool);
    rp_arena_destroy(e->arena);
    rp_aside_fini(&e->aside);
    close(e->wake_fd);
    free(e);
}

void rp_engine_stats(struct rp_engine *e, struct rp_engine_stats *out)
{
    out->state = (enum rp_engine_state)atomic_load(&e->state);
    out->cut = atomic_load(&e->cut);
    out->committed = atomic_load(&e->committed);
    out->committed_wall_ns = atomic_load(&e->committed_wall_ns);
    out->ram_bytes = e->info.ram.pages * RP_PAGE_SIZE;
    out->done_bytes = atomic_load(&e->done_pages) * RP_PAGE_SIZE;
    out->sync_bytes = atomic_load(&e->sync_pages) * RP_PAGE_SIZE;
    out->passes = atomic_load(&e->passes);
    out->disk_bytes = rp_emitter_disk_emitted(e->emitter);
    out->resync = e->resync;
    rp_emitter_synced(e->emitter, &out->sync);
    struct rp_disk_progress disks = {0};
    if (e->cfg.disks && e->src->ops->disk_progress)
        e->src->ops->disk_progress(e->src, &disks);
    out->disk_sync_bytes = disks.sync_bytes;
    out->disk_done_bytes = disks.done_bytes;
    out->disk_equal_bytes = disks.equal_bytes;
    out->dirty_pages_s = (double)atomic_load(&e->dirty_milli_s) / 1000;
    out->arena_bytes = e->cfg.memory_bytes;
    out->pressure = (enum rp_pressure)atomic_load(&e->pressure);
    out->throttle = atomic_load(&e->throttle);
    out->epoch_ns = atomic_load(&e->epoch_ns);
    out->cpu = (double)atomic_load(&e->cpu_permille) / 1000;
    out->wire_bytes = rp_emitter_bytes(e->emitter);
    out->cuts_put_off = atomic_load(&e->put_off);
    static const char *const strategies[] = {"stop-and-copy", "stop-and-copy", "early", "copy-on-write"};
    out->capture = strategies[atomic_load(&e->strategy)];
    out->copy_ns = (double)atomic_load(&e->copy_ns);
    pthread_mutex_lock(&e->result_lock);
    out->cow = e->cow_state;
    pthread_mutex_unlock(&e->result_lock);
    memcpy(&out->pause, &e->pause, sizeof(out->pause));
    memcpy(&out->commit, &e->commit, sizeof(out->commit));
    memcpy(&out->dirty, &e->dirty, sizeof(out->dirty));
    memcpy(&out->encode, rp_emitter_stats(e->emitter), sizeof(out->encode));
}
