/* One run of the engine over one session, and the switchover that may end it. See protect.h; docs/protection.md has the steps. */
#include "replicator/protect_internal.h"

#include "core/clock.h"
#include "core/thread.h"

#include <errno.h>
#include <stdlib.h>

#define SWITCH_GRACE_MS 8000    /* for the standby to have the lease (which may have to run out first), to enter, and to say so */

/* The run's engine says that it is over: the protect thread, which waits in watch_run, looks. */
static void run_ended(void *ctx, int rc, const struct rp_error *why)
{
    (void)rc;
    (void)why;
    struct rp_protect *p = ctx;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->change);
    pthread_mutex_unlock(&p->lock);
}

void rp_protect_switch_done(struct rp_protect *p, int rc, const struct rp_error *why)
{
    pthread_mutex_lock(&p->lock);
    p->switched = rc;
    p->switching = false;
    if (why)
        p->switch_why = *why;
    pthread_cond_broadcast(&p->change);
    pthread_mutex_unlock(&p->lock);
}

/* lock held; dropped while the standby is asked. True: the run's last epoch is being cut. False: the switchover is off. */
static bool prepare_switch(struct rp_protect *p)
{
    struct rp_error why = {0};
    pthread_mutex_unlock(&p->lock);
    int rc = rp_link_sink_prepare(p->sink, SWITCH_GRACE_MS, &why);
    if (rc == 0)
        rp_engine_finish(p->engine);
    else
        rp_protect_switch_done(p, rc, &why);
    pthread_mutex_lock(&p->lock);
    return rc == 0;
}

/* What making the standby's image whole has taken. */
static void tell_sync(struct rp_protect *p, const struct rp_engine_stats *s)
{
    if (s->resync)
        rp_events_emit(p->events, s->committed, "RESYNC", "{\"sent-pages\": %llu, \"equal-pages\": %llu, \"bytes\": %llu, \"ram-bytes\": %llu}",
                       (unsigned long long)s->sync.sent_pages, (unsigned long long)s->sync.equal_pages,
                       (unsigned long long)s->sync.wire_bytes, (unsigned long long)s->ram_bytes);
    else
        rp_events_emit(p->events, s->committed, "FULL_SYNC", "{\"bytes\": %llu, \"ram-bytes\": %llu, \"reason\": \"%s\"}",
                       (unsigned long long)s->sync.wire_bytes, (unsigned long long)s->ram_bytes,
                       p->resyncs_failed >= RP_RESYNCS_MAX ? "resyncs before it have failed" : p->why_full);
    if (s->disk_sync_bytes)
        rp_events_emit(p->events, s->committed, "DISK_SYNC", "{\"bytes\": %llu, \"equal-bytes\": %llu}",
                       (unsigned long long)s->disk_sync_bytes, (unsigned long long)s->disk_equal_bytes);
}

/* A run has ended: may the next one build upon what the standby says it holds? A standby that refuses what it was sent is not
 * believed a second time; a link that breaks twice may be its doing. */
static void judge_resync(struct rp_protect *p, int rc, bool whole)
{
    p->sums_failed = !whole && (p->sums_failed || rc == -EPROTO);
    if (whole || !p->last.resync)
        p->resyncs_failed = 0;
    else
        p->resyncs_failed += rc == -EPROTO ? RP_RESYNCS_MAX : 1;
}

/* Follows a run until it is over: says when the VM is protected, and carries out a switchover. */
static void watch_run(struct rp_protect *p)
{
    bool announced = false, finishing = false;
    struct rp_engine_stats *s = &p->last;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        rp_engine_stats(p->engine, s);
        if (s->state == RP_ENGINE_DONE || s->state == RP_ENGINE_FAILED)
            break;
        if (!announced && s->committed >= p->next_epoch) {
            announced = true;
            p->state = RP_PROTECT_PROTECTED;
            p->since_wall_ns = rp_wall_ns();
            rp_events_emit(p->events, s->committed, "PROTECTED", "{\"passes\": %u, \"bytes\": %llu}", s->passes,
                           (unsigned long long)s->done_bytes);
            tell_sync(p, s);
            rp_protect_pause_vm(p, false);
            pthread_cond_broadcast(&p->change);
        }
        p->held |= s->cut >= p->next_epoch;
        if (p->stop)
            rp_engine_stop(p->engine);
        if (p->switching && announced && !finishing)
            finishing = prepare_switch(p);
        rp_cond_wait_until(&p->change, &p->lock, rp_clock_ns() + (announced ? 100000000u : 5000000u));
    }
    pthread_mutex_unlock(&p->lock);
}

/* P3: who runs? `rc`: what the wait for RUNNING ended with. False: here; the source is to be resumed. */
static bool settled_elsewhere(struct rp_protect *p, struct rp_sink *sink, int rc, struct rp_error *err)
{
    const struct rp_protect_owner *o = &p->cfg.owner;
    for (;;) {
        struct rp_error why = {0};
        if (rc == 0)
            return true;
        rc = o->retake ? o->retake(o->ctx, &why) : 0;
        if (rc == 0)
            return false;
        if (rc == -ESTALE) {
            *err = why;
            return true;
        }
        if (rp_protect_stopping(p))
            return true;
        rc = rp_link_sink_wait_running(sink, SWITCH_GRACE_MS, &why);
    }
}

/* The source stands after its last committed epoch: hand it over. True when it runs on the other side. */
static bool hand_over(struct rp_protect *p, struct rp_sink *sink, uint64_t epoch)
{
    const struct rp_protect_owner *o = &p->cfg.owner;
    struct rp_error err = {0}, ignored = {0};
    if (p->src->ops->storage && p->src->ops->storage(p->src, false, &ignored) < 0)
        rp_events_emit(p->events, epoch, "STORAGE_NOT_RELEASED", "{}");
    if (o->yield && o->yield(o->ctx, &ignored) < 0)
        rp_events_emit(p->events, epoch, "LEASE_NOT_RELEASED", "{\"then\": \"the standby waits until it runs out\"}");
    int rc = rp_link_sink_bye(sink, RP_BYE_FINAL, epoch, &err);
    if (rc == 0)
        rc = rp_link_sink_wait_running(sink, SWITCH_GRACE_MS, &err);
    if (rc < 0 && settled_elsewhere(p, sink, rc, &err))
        rc = 0;
    if (rc == 0) {
        rp_events_emit(p->events, epoch, "SWITCHED", "{\"to\": \"standby\"}");
        rp_protect_set_state(p, RP_PROTECT_SWITCHED);
    }
    rp_protect_switch_done(p, rc, &err);
    if (rc == 0 && o->switched)
        o->switched(o->ctx);
    return rc == 0;
}

/* The run was stopped, or the VM has ended: a goodbye if that is wanted. */
static enum rp_protect_verdict part(struct rp_protect *p, struct rp_sink *sink, uint64_t committed)
{
    struct rp_error err = {0};
    pthread_mutex_lock(&p->lock);
    while (!p->stop)                /* the VM has ended: whoever watches it says what its standby is to do */
        pthread_cond_wait(&p->change, &p->lock);
    enum rp_protect_end how = p->how;
    pthread_mutex_unlock(&p->lock);
    if (how == RP_PROTECT_FORGET && rp_link_sink_bye(sink, RP_BYE_STOP, committed, &err) < 0)
        rp_events_emit(p->events, committed, "STANDBY_GONE", "{}");
    return RP_PROTECT_OVER;
}

/* After a run: keeps its figures, and takes the engine and the sink out of the others' sight. */
static void note_run(struct rp_protect *p, struct rp_engine *e, struct rp_sink *sink)
{
    pthread_mutex_lock(&p->lock);
    rp_engine_stats(e, &p->last);
    rp_link_sink_stats(sink, &p->last_link);
    p->held |= p->last.cut >= p->next_epoch;
    p->next_epoch = p->last.cut + 1;
    p->engine = NULL;
    p->sink = NULL;
    pthread_mutex_unlock(&p->lock);
}

/* Whatever ended a run, the VM lives here: a standby that hears no goodbye takes the silence for a death. */
static void not_dead(struct rp_sink *sink, uint64_t committed)
{
    if (rp_link_sink_bye(sink, RP_BYE_BROKEN, committed, NULL) < 0) {
        /* the link is down: it has heard, or the lease decides */
    }
}

enum rp_protect_verdict rp_protect_run(struct rp_protect *p, struct rp_sink *sink, struct rp_error *err)
{
    const struct rp_protect_owner *o = &p->cfg.owner;
    struct rp_engine_config cfg = p->cfg.engine;
    struct rp_engine *e;
    cfg.first_epoch = p->next_epoch;
    cfg.term = o->term ? o->term(o->ctx) : 0;
    if (o->term && !cfg.term) {         /* a standby that knows no term would follow any */
        rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "the lease is not held now");
        not_dead(sink, cfg.first_epoch - 1);
        return RP_PROTECT_LOST;
    }
    cfg.disks = true;
    cfg.have = rp_link_sink_disks(sink);
    struct rp_hash128 *held = rp_link_sink_take_held(sink, &p->why_full);
    cfg.held = held;
    struct rp_disk_sums sums;
    rp_link_sink_take_sums(sink, &sums);
    cfg.sums = &sums;
    int rc = rp_engine_create(p->src, sink, RP_RUN_CONTINUOUS, &cfg, p->events, &e, err);
    free(held);
    if (rc < 0) {
        rp_disk_sums_fini(&sums);
        not_dead(sink, cfg.first_epoch - 1);
        return RP_PROTECT_LOST;
    }
    pthread_mutex_lock(&p->lock);
    p->engine = e;
    p->sink = sink;
    p->have_last = true;
    pthread_mutex_unlock(&p->lock);
    rp_protect_set_state(p, RP_PROTECT_SYNCING);
    rc = rp_engine_start(e, run_ended, p, err);
    if (rc == 0) {
        watch_run(p);
        rc = rp_engine_wait(e, err);
    }
    bool stands = rp_engine_stands(e);
    note_run(p, e, sink);
    uint64_t committed = p->last.committed;
    judge_resync(p, rc, committed >= cfg.first_epoch);
    enum rp_protect_verdict v = RP_PROTECT_LOST;
    bool whole = committed == p->last.cut;      /* a run that was stopped does not wait for that */
    if (rc == 0 && stands && whole) {
        v = hand_over(p, sink, committed) ? RP_PROTECT_OVER : RP_PROTECT_LOST;
        if (v == RP_PROTECT_LOST)
            rp_error_set(err, EIO, "%s", p->switch_why.text);
    } else if (rc == 0 || rc == -ESHUTDOWN) {
        v = part(p, sink, committed);
    }
    if (stands && (v == RP_PROTECT_LOST || !whole)) {      /* INV-6: the source goes on */
        struct rp_error why = {0};
        if (p->src->ops->storage && p->src->ops->storage(p->src, true, &why) < 0)
            rp_events_emit(p->events, committed, "STORAGE_NOT_REGAINED", "{}");
        if (p->src->ops->resume(p->src, &why) < 0)
            *err = why;
    }
    if (v == RP_PROTECT_LOST)
        not_dead(sink, committed);
    sink->ops->cancel(sink);    /* it calls the engine until then */
    rp_engine_destroy(e);
    rp_disk_sums_fini(&sums);
    return v;
}
