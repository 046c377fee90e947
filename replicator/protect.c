#include "replicator/protect.h"

#include "core/clock.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define RESYNCS_MAX 2u          /* that failed in a row: then all of RAM is sent again */
#define SWITCH_GRACE_MS 8000    /* for the standby to have the lease (which may have to run out first), to enter, and to say so */

struct rp_protect {
    struct rp_source *src;
    struct rp_events *events;
    struct rp_protect_config cfg;
    struct rp_source_info info;
    bool patient;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t change;
    enum rp_protect_state state;    /* lock */
    uint64_t since_wall_ns;         /* lock */
    struct rp_engine *engine;       /* lock: while a run goes on */
    struct rp_sink *sink;           /* lock: likewise */
    struct rp_engine_stats last;    /* lock: of the run that ended last */
    struct rp_link_stats last_link; /* lock */
    bool have_last;                 /* lock */
    struct rp_error why;            /* lock: of the last loss */
    uint64_t losses;                /* lock */
    bool stop, switching, over;     /* lock */
    unsigned waiters;               /* lock: calls that wait for a switchover */
    enum rp_protect_end how;        /* lock: with stop */
    bool held;                      /* lock: outputs wait (P1) */
    int switched;                   /* lock: result of a switchover: 1 not yet known, 0, -errno */
    struct rp_error switch_why;     /* lock */
    uint64_t next_epoch;            /* protect thread: numbers go on from run to run */
    unsigned resyncs_failed;        /* protect thread: in a row */
    const char *why_full;           /* protect thread: why the run brings all of RAM */
};

const char *rp_protect_state_name(enum rp_protect_state s)
{
    static const char *const names[] = {"off", "leasing", "connecting", "syncing", "protected", "unprotected", "paused", "switched"};
    return names[s];
}

static void set_state(struct rp_protect *p, enum rp_protect_state s)
{
    pthread_mutex_lock(&p->lock);
    if (p->state != s) {
        p->state = s;
        p->since_wall_ns = rp_wall_ns();
        pthread_cond_broadcast(&p->change);
    }
    pthread_mutex_unlock(&p->lock);
}

static bool stopping(struct rp_protect *p)
{
    pthread_mutex_lock(&p->lock);
    bool stop = p->stop;
    pthread_mutex_unlock(&p->lock);
    return stop;
}

/* Sleeps, or returns early when protection is to end. */
static void pause_ms(struct rp_protect *p, unsigned ms)
{
    uint64_t until = rp_clock_ns() + (uint64_t)ms * 1000000u;
    struct timespec ts = rp_timespec(until);
    pthread_mutex_lock(&p->lock);
    while (!p->stop && pthread_cond_timedwait(&p->change, &p->lock, &ts) == 0)
        ;
    pthread_mutex_unlock(&p->lock);
}

static void pause_vm(struct rp_protect *p, bool paused)
{
    const struct rp_protect_owner *o = &p->cfg.owner;
    if (p->cfg.pause_on_loss && o->pause)
        o->pause(o->ctx, paused);
}

static bool outputs_held(struct rp_protect *p)
{
    pthread_mutex_lock(&p->lock);
    bool held = p->held;
    pthread_mutex_unlock(&p->lock);
    return held;
}

/* P1: what waits, and what comes, may leave once no standby can take it back. 0: outputs flow. */
static int open_outputs(struct rp_protect *p, struct rp_error *err)
{
    const struct rp_protect_owner *o = &p->cfg.owner;
    if (!outputs_held(p)) {
        p->src->ops->gate(p->src, false);       /* a run that ended before its first cut may have asked for it */
        return 0;
    }
    int rc = o->disown ? o->disown(o->ctx, err) : 0;
    if (rc < 0)
        return rc;
    p->src->ops->gate(p->src, false);
    pthread_mutex_lock(&p->lock);
    p->held = false;
    pthread_mutex_unlock(&p->lock);
    return 0;
}

/* Quotes end a JSON string; what goes into an event has none. */
static void plain(char *text)
{
    for (; *text; text++)
        if (*text == '"' || *text == '\\' || (unsigned char)*text < ' ')
            *text = '\'';
}

static void standby_lost(struct rp_protect *p, struct rp_error *why)
{
    plain(why->text);
    pthread_mutex_lock(&p->lock);
    p->why = *why;
    p->losses++;
    pthread_mutex_unlock(&p->lock);
    struct rp_error not = {0};
    pause_vm(p, true);
    bool open = !p->cfg.pause_on_loss && open_outputs(p, &not) == 0;
    const char *then = p->cfg.pause_on_loss ? "paused" : open ? "runs unprotected" : "outputs wait for the lease";
    rp_events_emit(p->events, p->next_epoch - 1, "PROTECT_LOST", "{\"reason\": \"%.110s\", \"then\": \"%s\"}", why->text, then);
    set_state(p, p->cfg.pause_on_loss ? RP_PROTECT_PAUSED : RP_PROTECT_UNPROTECTED);
}

/* The next attempt to reach a standby is due: outputs that had to wait for the lease try again first. */
static void try_outputs(struct rp_protect *p)
{
    struct rp_error err = {0};
    if (!p->cfg.pause_on_loss && outputs_held(p) && open_outputs(p, &err) == 0)
        rp_events_emit(p->events, p->next_epoch - 1, "OUTPUTS_OPEN", "{\"reason\": \"no standby can take over any more\"}");
}

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

static void switch_done(struct rp_protect *p, int rc, const struct rp_error *why)
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
        switch_done(p, rc, &why);
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
                       p->resyncs_failed >= RESYNCS_MAX ? "resyncs before it have failed" : p->why_full);
}

/* A run has ended: may the next one build upon what the standby says it holds? A standby that refuses what it was sent is not
 * believed a second time; a link that breaks twice may be its doing. */
static void judge_resync(struct rp_protect *p, int rc, bool whole)
{
    if (whole || !p->last.resync)
        p->resyncs_failed = 0;
    else
        p->resyncs_failed += rc == -EPROTO ? RESYNCS_MAX : 1;
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
            pause_vm(p, false);
            pthread_cond_broadcast(&p->change);
        }
        p->held |= s->cut >= p->next_epoch;
        if (p->stop)
            rp_engine_stop(p->engine);
        if (p->switching && announced && !finishing)
            finishing = prepare_switch(p);
        uint64_t until = rp_clock_ns() + (announced ? 100000000u : 5000000u);
        struct timespec ts = rp_timespec(until);
        pthread_cond_timedwait(&p->change, &p->lock, &ts);
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
        if (stopping(p))
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
        set_state(p, RP_PROTECT_SWITCHED);
    }
    switch_done(p, rc, &err);
    if (rc == 0 && o->switched)
        o->switched(o->ctx);
    return rc == 0;
}

enum verdict { LOST, OVER };

/* The run was stopped, or the VM has ended: a goodbye if that is wanted. */
static enum verdict part(struct rp_protect *p, struct rp_sink *sink, uint64_t committed)
{
    struct rp_error err = {0};
    pthread_mutex_lock(&p->lock);
    while (!p->stop)                /* the VM has ended: whoever watches it says what its standby is to do */
        pthread_cond_wait(&p->change, &p->lock);
    enum rp_protect_end how = p->how;
    pthread_mutex_unlock(&p->lock);
    if (how == RP_PROTECT_FORGET && rp_link_sink_bye(sink, RP_BYE_STOP, committed, &err) < 0)
        rp_events_emit(p->events, committed, "STANDBY_GONE", "{}");
    return OVER;
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

/* One run over one session. */
static enum verdict one_run(struct rp_protect *p, struct rp_sink *sink, struct rp_error *err)
{
    const struct rp_protect_owner *o = &p->cfg.owner;
    struct rp_engine_config cfg = p->cfg.engine;
    struct rp_engine *e;
    cfg.first_epoch = p->next_epoch;
    cfg.term = o->term ? o->term(o->ctx) : 0;
    cfg.disks = true;
    cfg.have = rp_link_sink_disks(sink);
    struct rp_hash128 *held = rp_link_sink_take_held(sink, &p->why_full);
    cfg.held = held;
    int rc = rp_engine_create(p->src, sink, RP_RUN_CONTINUOUS, &cfg, p->events, &e, err);
    free(held);
    if (rc < 0) {
        not_dead(sink, cfg.first_epoch - 1);
        return LOST;
    }
    pthread_mutex_lock(&p->lock);
    p->engine = e;
    p->sink = sink;
    p->have_last = true;
    pthread_mutex_unlock(&p->lock);
    set_state(p, RP_PROTECT_SYNCING);
    rc = rp_engine_start(e, run_ended, p, err);
    if (rc == 0) {
        watch_run(p);
        rc = rp_engine_wait(e, err);
    }
    bool stands = rp_engine_stands(e);
    note_run(p, e, sink);
    uint64_t committed = p->last.committed;
    judge_resync(p, rc, committed >= cfg.first_epoch);
    enum verdict v = LOST;
    if (rc == 0 && stands) {
        v = hand_over(p, sink, committed) ? OVER : LOST;
        if (v == LOST)
            rp_error_set(err, EIO, "%s", p->switch_why.text);
    } else if (rc == 0 || rc == -ESHUTDOWN) {
        v = part(p, sink, committed);
    }
    if (stands && v == LOST) {      /* INV-6: the source goes on */
        struct rp_error why = {0};
        if (p->src->ops->storage && p->src->ops->storage(p->src, true, &why) < 0)
            rp_events_emit(p->events, committed, "STORAGE_NOT_REGAINED", "{}");
        if (p->src->ops->resume(p->src, &why) < 0)
            *err = why;
    }
    if (v == LOST)
        not_dead(sink, committed);
    sink->ops->cancel(sink);    /* it calls the engine until then */
    rp_engine_destroy(e);
    return v;
}

static int connect_once(struct rp_protect *p, struct rp_sink **sink, struct rp_error *err)
{
    uint64_t held;
    struct rp_link_config cfg = p->cfg.link;
    set_state(p, p->losses ? p->state : RP_PROTECT_CONNECTING);
    cfg.gfn_end = p->resyncs_failed < RESYNCS_MAX ? p->info.ram.gfn_end : 0;
    cfg.stale = !outputs_held(p);
    int rc = rp_link_sink_create(&cfg, sink, &held, err);
    if (rc == -EPROTO && cfg.gfn_end)
        p->resyncs_failed = RESYNCS_MAX;    /* what it says it holds is nothing to build upon */
    return rc;
}

/* Protection is over, and the VM runs on without it, or has ended: what waits may leave. */
static void end_protection(struct rp_protect *p)
{
    struct rp_error err = {0};
    pthread_mutex_lock(&p->lock);
    bool forget = !p->stop || p->how == RP_PROTECT_FORGET;
    pthread_mutex_unlock(&p->lock);
    int rc = forget ? open_outputs(p, &err) : 0;
    while (rc < 0 && rc != -ESTALE) {
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
        rc = open_outputs(p, &err);
    }
    rp_events_emit(p->events, p->next_epoch - 1, "UNPROTECTED", "{\"asked\": %s}", forget ? "true" : "false");
    set_state(p, RP_PROTECT_OFF);
}

/* Connects, again and again, and follows what comes of it, until it is over. */
static void keep_protected(struct rp_protect *p)
{
    bool first = true;
    while (!stopping(p)) {
        struct rp_error err = {0};
        struct rp_sink *sink;
        if (connect_once(p, &sink, &err) == 0) {
            enum verdict v = one_run(p, sink, &err);
            sink->ops->destroy(sink);
            if (v == OVER)
                break;
            standby_lost(p, &err);
        } else if (first) {
            standby_lost(p, &err);
            if (!p->patient)
                break;
        }
        first = false;
        pthread_mutex_lock(&p->lock);
        bool switching = p->switching;
        pthread_mutex_unlock(&p->lock);
        if (switching)
            switch_done(p, -EPIPE, &err);
        pause_ms(p, p->cfg.retry_ms);
        try_outputs(p);
    }
}

static void *protect_main(void *arg)
{
    struct rp_protect *p = arg;
    const struct rp_protect_owner *o = &p->cfg.owner;
    struct rp_error err = {0};
    if (o->acquire && o->acquire(o->ctx, &err) < 0)
        standby_lost(p, &err);
    else
        keep_protected(p);
    pthread_mutex_lock(&p->lock);
    bool switched = p->state == RP_PROTECT_SWITCHED;
    pthread_mutex_unlock(&p->lock);
    if (!switched)
        end_protection(p);
    pthread_mutex_lock(&p->lock);
    p->over = true;
    pthread_mutex_unlock(&p->lock);
    if (o->ended)
        o->ended(o->ctx);
    return NULL;
}

int rp_protect_start(struct rp_source *src, struct rp_events *events, const struct rp_protect_config *cfg, bool patient,
                     struct rp_protect **out, struct rp_error *err)
{
    struct rp_protect *p = calloc(1, sizeof(*p));
    if (!p)
        return rp_error_set(err, ENOMEM, "no memory to protect");
    p->src = src;
    p->events = events;
    p->cfg = *cfg;
    p->patient = patient;
    p->state = RP_PROTECT_LEASING;
    p->since_wall_ns = rp_wall_ns();
    p->next_epoch = cfg->engine.first_epoch ? cfg->engine.first_epoch : 1;
    if (!p->cfg.retry_ms)
        p->cfg.retry_ms = 500;
    int rc = src->ops->describe(src, &p->info, err);
    if (rc < 0) {
        free(p);
        return rc;
    }
    p->cfg.link.events = events;
    memcpy(p->cfg.link.vm_id, p->info.vm_id, sizeof(p->cfg.link.vm_id));
    memcpy(p->cfg.link.vm_name, p->info.name, sizeof(p->cfg.link.vm_name));
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&p->change, &attr);
    pthread_condattr_destroy(&attr);
    rc = pthread_create(&p->thread, NULL, protect_main, p);
    if (rc) {
        free(p);
        return rp_error_set(err, rc, "cannot start the protect thread: %s", strerror(rc));
    }
    pthread_setname_np(p->thread, "protect");
    *out = p;
    return 0;
}

static struct timespec deadline(int timeout_ms)
{
    uint64_t until = rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    return rp_timespec(until);
}

int rp_protect_wait(struct rp_protect *p, int timeout_ms, struct rp_error *err)
{
    struct timespec ts = deadline(timeout_ms);
    pthread_mutex_lock(&p->lock);
    int timeout = 0;
    while (timeout == 0 && p->state != RP_PROTECT_PROTECTED && p->losses == 0)
        timeout = pthread_cond_timedwait(&p->change, &p->lock, &ts);
    int rc = 0;
    if (p->state != RP_PROTECT_PROTECTED) {
        rc = p->losses ? p->why.code : rp_error_set(err, ETIMEDOUT, "not protected after %d ms", timeout_ms);
        if (p->losses && err)
            *err = p->why;
    }
    pthread_mutex_unlock(&p->lock);
    return rc;
}

int rp_protect_switch(struct rp_protect *p, int timeout_ms, struct rp_error *err)
{
    struct timespec ts = deadline(timeout_ms);
    pthread_mutex_lock(&p->lock);
    int rc = 0, timeout = 0;
    if (p->state != RP_PROTECT_PROTECTED) {
        rc = rp_error_exit(err, RP_EXIT_REFUSED, EAGAIN, "the VM is %s, not protected: there is no standby to switch to",
                           rp_protect_state_name(p->state));
    } else {
        p->switching = true;
        p->switched = 1;
        pthread_cond_broadcast(&p->change);
        p->waiters++;
        while (p->switched == 1 && !p->stop && timeout == 0)
            timeout = pthread_cond_timedwait(&p->change, &p->lock, &ts);
        p->waiters--;
        pthread_cond_broadcast(&p->change);
        rc = p->switched != 1 ? p->switched
           : p->stop ? rp_error_set(err, ECANCELED, "protection was ended before the switchover was over")
                     : rp_error_set(err, ETIMEDOUT, "the switchover did not end in %d ms", timeout_ms);
        if (p->switched < 0 && err)
            *err = p->switch_why;
    }
    pthread_mutex_unlock(&p->lock);
    return rc;
}

void rp_protect_end(struct rp_protect *p, enum rp_protect_end how)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->how = p->stop ? p->how : how;
    p->stop = true;
    if (p->engine)
        rp_engine_stop(p->engine);
    pthread_cond_broadcast(&p->change);
    pthread_mutex_unlock(&p->lock);
}

bool rp_protect_over(struct rp_protect *p)
{
    if (!p)
        return true;
    pthread_mutex_lock(&p->lock);
    bool over = p->over;
    pthread_mutex_unlock(&p->lock);
    return over;
}

uint64_t rp_protect_stop(struct rp_protect *p, enum rp_protect_end how)
{
    if (!p)
        return 0;
    rp_protect_end(p, how);
    pthread_join(p->thread, NULL);
    pthread_mutex_lock(&p->lock);
    while (p->waiters)
        pthread_cond_wait(&p->change, &p->lock);
    pthread_mutex_unlock(&p->lock);
    pthread_cond_destroy(&p->change);
    pthread_mutex_destroy(&p->lock);
    uint64_t newest = p->next_epoch - 1;
    free(p);
    return newest;
}

void rp_protect_status(struct rp_protect *p, struct rp_protect_status *out)
{
    memset(out, 0, sizeof(*out));
    rp_uri_format(&p->cfg.link.uri, out->uri, sizeof(out->uri));
    pthread_mutex_lock(&p->lock);
    out->state = p->state;
    out->losses = p->losses;
    out->since_wall_ns = p->since_wall_ns;
    out->held = p->held;
    out->newest_epoch = p->next_epoch - 1;
    memcpy(out->why, p->why.text, sizeof(out->why) - 1);
    out->why_exit = (int)p->why.exit;
    out->have_engine = p->have_last;
    if (p->engine) {
        rp_engine_stats(p->engine, &out->engine);
        rp_link_sink_stats(p->sink, &out->link);
        out->newest_epoch = out->engine.cut;
    } else if (p->have_last) {
        memcpy(&out->engine, &p->last, sizeof(out->engine));
        out->link = p->last_link;
    }
    pthread_mutex_unlock(&p->lock);
}
