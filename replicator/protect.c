/* Protection's thread, its states, and what others ask of it. See protect.h; a run of the engine is protect_run.c's. */
#include "replicator/protect_internal.h"

#include "core/clock.h"
#include "core/thread.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define REFUSED_MAX 6u          /* doublings of the time between two attempts */

const char *rp_protect_state_name(enum rp_protect_state s)
{
    static const char *const names[] = {"off", "leasing", "connecting", "syncing", "protected", "unprotected", "paused", "switched"};
    return names[s];
}

void rp_protect_set_state(struct rp_protect *p, enum rp_protect_state s)
{
    pthread_mutex_lock(&p->lock);
    if (p->state != s) {
        p->state = s;
        p->since_wall_ns = rp_wall_ns();
        pthread_cond_broadcast(&p->change);
    }
    pthread_mutex_unlock(&p->lock);
}

bool rp_protect_stopping(struct rp_protect *p)
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
    pthread_mutex_lock(&p->lock);
    while (!p->stop && rp_cond_wait_until(&p->change, &p->lock, until) == 0)
        ;
    pthread_mutex_unlock(&p->lock);
}

void rp_protect_pause_vm(struct rp_protect *p, bool paused)
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

static void standby_lost(struct rp_protect *p, struct rp_error *why)
{
    rp_event_plain(why->text);
    pthread_mutex_lock(&p->lock);
    p->why = *why;
    p->losses++;
    pthread_mutex_unlock(&p->lock);
    struct rp_error not = {0};
    rp_protect_pause_vm(p, true);
    bool open = !p->cfg.pause_on_loss && open_outputs(p, &not) == 0;
    const char *then = p->cfg.pause_on_loss ? "paused" : open ? "runs unprotected" : "outputs wait for the lease";
    rp_events_emit(p->events, p->next_epoch - 1, "PROTECT_LOST", "{\"reason\": \"%.110s\", \"then\": \"%s\"}", why->text, then);
    rp_protect_set_state(p, p->cfg.pause_on_loss ? RP_PROTECT_PAUSED : RP_PROTECT_UNPROTECTED);
}

/* The next attempt to reach a standby is due: outputs that had to wait for the lease try again first. */
static void try_outputs(struct rp_protect *p)
{
    struct rp_error err = {0};
    if (!p->cfg.pause_on_loss && outputs_held(p) && open_outputs(p, &err) == 0)
        rp_events_emit(p->events, p->next_epoch - 1, "OUTPUTS_OPEN", "{\"reason\": \"no standby can take over any more\"}");
}

/* Does this standby lack whole disks? See struct rp_link_config. */
static bool whole_disks(void *ctx, const struct rp_disk_base *have, uint64_t size_bytes[RP_DISK_SUMS_DISKS])
{
    struct rp_protect *p = ctx;
    return p->src->ops->disk_whole && p->src->ops->disk_whole(p->src, have, size_bytes);
}

static int connect_once(struct rp_protect *p, struct rp_sink **sink, struct rp_error *err)
{
    uint64_t held;
    struct rp_link_config cfg = p->cfg.link;
    rp_protect_set_state(p, p->losses ? p->state : RP_PROTECT_CONNECTING);
    cfg.gfn_end = p->resyncs_failed < RP_RESYNCS_MAX ? p->info.ram.gfn_end : 0;
    cfg.stale = !outputs_held(p);
    cfg.term = p->cfg.owner.term ? p->cfg.owner.term(p->cfg.owner.ctx) : 0;
    cfg.holder = p->cfg.owner.holder ? p->cfg.owner.holder(p->cfg.owner.ctx) : 0;
    cfg.whole_disks = p->sums_failed ? NULL : whole_disks;
    cfg.ctx = p;
    int rc = rp_link_sink_create(&cfg, sink, &held, err);
    if (rc == -EPROTO && (cfg.gfn_end || cfg.whole_disks)) {     /* what it says it holds is nothing to build upon */
        p->resyncs_failed = RP_RESYNCS_MAX;
        p->sums_failed = true;
    }
    return rc;
}

/* Protection is over, and the VM runs on without it, or has ended: what waits may leave. */
static void end_protection(struct rp_protect *p)
{
    struct rp_error err = {0};
    pthread_mutex_lock(&p->lock);
    bool failed = !p->stop, forget = failed || p->how == RP_PROTECT_FORGET;
    pthread_mutex_unlock(&p->lock);
    int rc = forget ? open_outputs(p, &err) : 0;
    while (rc < 0 && rc != -ESTALE) {
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
        rc = open_outputs(p, &err);
    }
    if (failed)         /* it never had a standby: it goes on as before */
        rp_protect_pause_vm(p, false);
    rp_events_emit(p->events, p->next_epoch - 1, "UNPROTECTED", "{\"asked\": %s}", forget ? "true" : "false");
    rp_protect_set_state(p, RP_PROTECT_OFF);
}

/* Connects, again and again, and follows what comes of it, until it is over. */
static void keep_protected(struct rp_protect *p)
{
    bool first = true;
    unsigned refused = 0;       /* in a row: what was sent, after it had travelled; each time it is tried again later */
    while (!rp_protect_stopping(p)) {
        struct rp_error err = {0};
        struct rp_sink *sink;
        if (connect_once(p, &sink, &err) == 0) {
            enum rp_protect_verdict v = rp_protect_run(p, sink, &err);
            sink->ops->destroy(sink);
            if (v == RP_PROTECT_OVER)
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
            rp_protect_switch_done(p, -EPIPE, &err);
        refused = err.code == -EPROTO && refused < REFUSED_MAX ? refused + 1 : err.code == -EPROTO ? refused : 0;
        pause_ms(p, p->cfg.retry_ms << refused);
        try_outputs(p);
    }
}

static void *protect_main(void *arg)
{
    struct rp_protect *p = arg;
    const struct rp_protect_owner *o = &p->cfg.owner;
    struct rp_error err = {0};
    if (!o->acquire || o->acquire(o->ctx, &err) == 0)
        keep_protected(p);
    else if (!rp_protect_stopping(p))       /* else it was ended while it waited: nothing is lost */
        standby_lost(p, &err);
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
    pthread_cond_init(&p->change, NULL);
    rc = rp_thread_start(&p->thread, "protect", protect_main, p, err);
    if (rc < 0) {
        free(p);
        return rc;
    }
    *out = p;
    return 0;
}

int rp_protect_wait(struct rp_protect *p, int timeout_ms, struct rp_error *err)
{
    uint64_t until = rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    pthread_mutex_lock(&p->lock);
    int timeout = 0;
    while (timeout == 0 && p->state != RP_PROTECT_PROTECTED && p->losses == 0)
        timeout = rp_cond_wait_until(&p->change, &p->lock, until);
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
    uint64_t until = rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
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
            timeout = rp_cond_wait_until(&p->change, &p->lock, until);
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
