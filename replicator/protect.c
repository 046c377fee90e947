#include "replicator/protect.h"

#include "core/clock.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define SWITCH_GRACE_MS 3000

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
    bool stop, switching;           /* lock */
    int switched;                   /* lock: result of a switchover: 1 not yet known, 0, -errno */
    struct rp_error switch_why;     /* lock */
    uint64_t next_epoch;            /* protect thread: numbers go on from run to run */
};

const char *rp_protect_state_name(enum rp_protect_state s)
{
    static const char *const names[] = {"off", "connecting", "syncing", "protected", "unprotected", "paused", "switched"};
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
    struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
    pthread_mutex_lock(&p->lock);
    while (!p->stop && pthread_cond_timedwait(&p->change, &p->lock, &ts) == 0)
        ;
    pthread_mutex_unlock(&p->lock);
}

static bool may_run(struct rp_protect *p)
{
    return !p->cfg.may_run || p->cfg.may_run(p->cfg.ctx);
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
    bool run = may_run(p);
    const char *then = !run ? "outputs stay closed: the lease is not held" : p->cfg.pause_on_loss ? "paused" : "runs unprotected";
    rp_events_emit(p->events, p->next_epoch, "PROTECT_LOST", "{\"reason\": \"%.110s\", \"then\": \"%s\"}", why->text, then);
    if (p->cfg.pause_on_loss && p->cfg.pause)
        p->cfg.pause(p->cfg.ctx, true);
    else if (run)
        p->src->ops->gate(p->src, false);
    set_state(p, p->cfg.pause_on_loss ? RP_PROTECT_PAUSED : RP_PROTECT_UNPROTECTED);
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
            if (p->cfg.pause_on_loss && p->cfg.pause)
                p->cfg.pause(p->cfg.ctx, false);
            pthread_cond_broadcast(&p->change);
        }
        if (p->stop)
            rp_engine_stop(p->engine);
        if (p->switching && announced && !finishing) {
            finishing = true;
            rp_engine_finish(p->engine);
        }
        uint64_t until = rp_clock_ns() + (announced ? 100000000u : 5000000u);
        struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
        pthread_cond_timedwait(&p->change, &p->lock, &ts);
    }
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

/* The source stands after its last committed epoch: hand it over. True when it runs on the other side. */
static bool hand_over(struct rp_protect *p, struct rp_sink *sink, uint64_t epoch)
{
    struct rp_error err = {0};
    int rc = rp_link_sink_bye(sink, RP_BYE_FINAL, epoch, &err);
    if (rc == 0)
        rc = rp_link_sink_wait_running(sink, SWITCH_GRACE_MS, &err);
    if (rc == 0) {
        rp_events_emit(p->events, epoch, "SWITCHED", "{\"to\": \"standby\"}");
        set_state(p, RP_PROTECT_SWITCHED);
    }
    switch_done(p, rc, &err);
    return rc == 0;
}

/* One run over one session. Returns true when there is nothing more to do (stopped, switched). */
static bool one_run(struct rp_protect *p, struct rp_sink *sink, struct rp_error *err)
{
    struct rp_engine_config cfg = p->cfg.engine;
    struct rp_engine *e;
    cfg.first_epoch = p->next_epoch;
    int rc = rp_engine_create(p->src, sink, RP_RUN_CONTINUOUS, &cfg, p->events, &e, err);
    if (rc < 0)
        return false;
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
    bool stands = rp_engine_stands(e), over = false;
    uint64_t committed = p->last.committed;
    pthread_mutex_lock(&p->lock);
    rp_engine_stats(e, &p->last);
    rp_link_sink_stats(sink, &p->last_link);
    p->next_epoch = p->last.cut + 1;
    p->engine = NULL;
    p->sink = NULL;
    pthread_mutex_unlock(&p->lock);
    if (rc == 0 && stands) {
        over = hand_over(p, sink, committed);
        if (!over)
            rp_error_set(err, EIO, "%s", p->switch_why.text);
    } else if (rc == 0) {
        over = true;
        struct rp_error ignored;
        if (rp_link_sink_bye(sink, RP_BYE_STOP, committed, &ignored) < 0)
            rp_events_emit(p->events, committed, "STANDBY_GONE", "{}");
    }
    if (stands && !over) {      /* INV-6: the source goes on */
        struct rp_error why = {0};
        if (p->src->ops->resume(p->src, &why) < 0)
            *err = why;
    }
    rp_engine_destroy(e);
    return over;
}

static int connect_once(struct rp_protect *p, struct rp_sink **sink, struct rp_error *err)
{
    uint64_t held;
    set_state(p, p->losses ? p->state : RP_PROTECT_CONNECTING);
    return rp_link_sink_create(&p->cfg.link, sink, &held, err);
}

static void *protect_main(void *arg)
{
    struct rp_protect *p = arg;
    bool first = true;
    while (!stopping(p)) {
        struct rp_error err = {0};
        struct rp_sink *sink;
        bool over = false;
        if (connect_once(p, &sink, &err) == 0) {
            over = one_run(p, sink, &err);
            sink->ops->destroy(sink);
            if (over)
                break;
            first = false;
            standby_lost(p, &err);
        } else if (first) {
            standby_lost(p, &err);
            if (!p->patient)
                break;
            first = false;
        }
        if (p->switching)
            switch_done(p, -EPIPE, &err);
        pause_ms(p, p->cfg.retry_ms);
    }
    pthread_mutex_lock(&p->lock);
    bool switched = p->state == RP_PROTECT_SWITCHED;
    pthread_mutex_unlock(&p->lock);
    if (!switched) {
        if (may_run(p))
            p->src->ops->gate(p->src, false);
        rp_events_emit(p->events, p->next_epoch, "UNPROTECTED", "{}");
        set_state(p, RP_PROTECT_OFF);
    }
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
    p->state = RP_PROTECT_CONNECTING;
    p->since_wall_ns = rp_wall_ns();
    p->next_epoch = cfg->engine.first_epoch ? cfg->engine.first_epoch : 1;
    if (!p->cfg.retry_ms)
        p->cfg.retry_ms = 500;
    int rc = src->ops->describe(src, &p->info, err);
    if (rc < 0) {
        free(p);
        return rc;
    }
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
    return (struct timespec){.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
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
        while (p->switched == 1 && timeout == 0)
            timeout = pthread_cond_timedwait(&p->change, &p->lock, &ts);
        rc = p->switched == 1 ? rp_error_set(err, ETIMEDOUT, "the switchover did not end in %d ms", timeout_ms) : p->switched;
        if (p->switched < 0 && err)
            *err = p->switch_why;
    }
    pthread_mutex_unlock(&p->lock);
    return rc;
}

void rp_protect_stop(struct rp_protect *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    if (p->engine)
        rp_engine_stop(p->engine);
    pthread_cond_broadcast(&p->change);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    pthread_cond_destroy(&p->change);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

void rp_protect_status(struct rp_protect *p, struct rp_protect_status *out)
{
    memset(out, 0, sizeof(*out));
    rp_uri_format(&p->cfg.link.uri, out->uri, sizeof(out->uri));
    pthread_mutex_lock(&p->lock);
    out->state = p->state;
    out->losses = p->losses;
    out->since_wall_ns = p->since_wall_ns;
    memcpy(out->why, p->why.text, sizeof(out->why) - 1);
    out->have_engine = p->have_last;
    if (p->engine) {
        rp_engine_stats(p->engine, &out->engine);
        rp_link_sink_stats(p->sink, &out->link);
    } else if (p->have_last) {
        memcpy(&out->engine, &p->last, sizeof(out->engine));
        out->link = p->last_link;
    }
    pthread_mutex_unlock(&p->lock);
}
