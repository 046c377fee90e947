/* The primary's side of a link: a sink whose commits are the standby's acknowledgements. */
#include "core/clock.h"
#include "core/fault.h"
#include "core/thread.h"
#include "replicator/link_primary.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define LAST_WORD_MS 1000       /* for a goodbye to be sent; and for the other side to close after one */

static struct link_sink *of(struct rp_sink *s)
{
    return (struct link_sink *)s;
}

static void lanes_down(struct link_sink *s)
{
    if (s->bundle)
        rp_bundle_stop(s->bundle);
    pthread_mutex_lock(&s->lock);
    if (s->mending)
        rp_conn_shutdown(s->mending);
    pthread_cond_broadcast(&s->change);
    pthread_mutex_unlock(&s->lock);
}

static void down(struct link_sink *s)
{
    rp_control_shutdown(&s->control);
    lanes_down(s);
}

static void say(struct link_sink *s, const struct rp_error *why)
{
    pthread_mutex_lock(&s->lock);
    s->said = true;
    if (why)
        s->why = *why;
    pthread_cond_broadcast(&s->change);
    pthread_mutex_unlock(&s->lock);
}

/* That the standby goes away is no news from here on. */
static void hush(struct link_sink *s)
{
    if (!atomic_exchange(&s->told, true))
        say(s, NULL);
}

/* Until *what, a moment at most. */
static void await(struct link_sink *s, const bool *what)
{
    uint64_t until = rp_clock_ns() + LAST_WORD_MS * 1000000ull;
    pthread_mutex_lock(&s->lock);
    while (!*what && rp_cond_wait_until(&s->change, &s->lock, until) == 0)
        ;
    pthread_mutex_unlock(&s->lock);
}

/* Whoever ends the session lets the one thread that tells of its end finish: a goodbye that is cut off leaves a death. */
static void await_said(struct link_sink *s)
{
    if (atomic_load(&s->told))
        await(s, &s->said);
}

/* Closing after a goodbye, with what the other side has sent unread or on its way, takes back from the wire what of the
 * goodbye is not yet there (a reset): the other side closes first. */
static void await_gone(struct link_sink *s)
{
    if (s->started && atomic_load(&s->parting))
        await(s, &s->gone);
}

/* Something failed at (perhaps) the session's end: the engine hears why it ends, not what of it it met first. */
static int ended(struct link_sink *s, int rc, struct rp_error *err)
{
    await_said(s);
    pthread_mutex_lock(&s->lock);
    if (s->why.code) {
        rc = s->why.code;
        if (err)
            *err = s->why;
    }
    pthread_mutex_unlock(&s->lock);
    return rc;
}

/* What the standby has said of its reason, for the end of a sentence. */
static const char *add_reason(struct link_sink *s, char out[RP_CONTROL_REASON + 2])
{
    pthread_mutex_lock(&s->lock);
    snprintf(out, RP_CONTROL_REASON + 2, "%s%s", s->reason[0] ? ": " : "", s->reason);
    pthread_mutex_unlock(&s->lock);
    return out;
}

/* The session is over; the engine hears of it once. */
static void lost(struct link_sink *s, int rc, const char *what)
{
    pthread_mutex_lock(&s->lock);
    s->over = true;
    pthread_cond_broadcast(&s->change);
    pthread_mutex_unlock(&s->lock);
    if (atomic_load(&s->cancelled) || atomic_exchange(&s->told, true))
        return;
    char uri[400], reason[RP_CONTROL_REASON + 2];
    struct rp_error why = {0};
    rp_uri_format(&s->cfg.uri, uri, sizeof(uri));
    rp_error_set(&why, rc, "standby %s: %s%s", uri, what, add_reason(s, reason));
    /* A standby that hears no goodbye takes our silence for our death. */
    atomic_store(&s->parting, true);
    struct rp_control_msg bye = {.type = RP_CTL_BYE, .a = RP_BYE_BROKEN};
    if (rp_control_send(&s->control, &bye) < 0) {
        /* then it cannot be helped: the lease decides */
    }
    s->events.failed(s->events.ctx, &s->base, &why);
    say(s, &why);
    lanes_down(s);
}

/* --- what is lost on the way --- */

static void degraded(struct link_sink *s, const char *reason)
{
    rp_events_emit(s->cfg.events, atomic_load(&s->epoch), "TRANSPORT_DEGRADED", "{\"from\": \"rdma\", \"to\": \"tcp\", \"reason\": \"%.80s\"}",
                   reason);
}

static void on_lane_lost(void *ctx, const struct rp_lane_loss *loss)
{
    struct link_sink *s = ctx;
    char why[96];
    if (atomic_load(&s->parting))
        return;             /* the standby needs its lanes no more */
    atomic_fetch_add(&s->lanes_lost, 1);
    snprintf(why, sizeof(why), "lane %u: %s", loss->lane, strerror(-loss->rc));
    if (!atomic_load(&s->told) && !atomic_load(&s->cancelled)) {
        rp_events_emit(s->cfg.events, atomic_load(&s->epoch), "LANE_LOST",
                       "{\"lane\": %u, \"transport\": \"%s\", \"reason\": \"%.60s\", \"sent-again\": %u, \"left\": %u}", loss->lane,
                       loss->transport, strerror(-loss->rc), loss->again, loss->left);
        if (loss->spares)
            degraded(s, why);
    }
    if (loss->left == 0)
        lost(s, loss->rc, "its last lane broke");
    else
        rp_link_miss_lane(s, loss->lane);
}

static void path_lost(struct link_sink *s, unsigned path, int rc)
{
    char why[96];
    if (atomic_load(&s->parting) || atomic_load(&s->told) || atomic_load(&s->cancelled))
        return;             /* that is how it ends */
    snprintf(why, sizeof(why), "control connection: %s", strerror(-rc));
    rp_events_emit(s->cfg.events, atomic_load(&s->epoch), "PATH_LOST", "{\"path\": %u, \"left\": \"%s\", \"reason\": \"%.80s\"}", path,
                   rp_control_transport(&s->control), strerror(-rc));
    if (path == 0 && s->cfg.have_spare)
        degraded(s, why);
    rp_link_miss_path(s, path);
}

/* --- control: what the standby says --- */

/* What it has taken and holds. False: it says what cannot be. */
static bool standing(struct link_sink *s, uint64_t epoch, uint64_t frames)
{
    if (epoch > atomic_load(&s->epoch) || rp_bundle_taken(s->bundle, frames) < 0)
        return false;
    s->events.committed(s->events.ctx, &s->base, epoch);
    return true;
}

/* The standby has said this. */
static const char *note(struct link_sink *s, bool *what)
{
    pthread_mutex_lock(&s->lock);
    *what = true;
    pthread_cond_broadcast(&s->change);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* NULL, or why the session ends. */
static const char *take(struct link_sink *s, const struct rp_control_msg *m)
{
    uint64_t now = rp_clock_ns();
    switch (m->type) {
    case RP_CTL_PATH_LOST:
        path_lost(s, (unsigned)m->a, -(int)m->b);
        return NULL;
    case RP_CTL_HEARTBEAT:
        atomic_store(&s->heard_ns, now);
        if (m->b && m->b <= now)
            atomic_store(&s->rtt_ns, now - m->b);
        rp_bundle_look(s->bundle);
        return standing(s, m->a, m->c) ? NULL : "acknowledged what was never sent";
    case RP_CTL_ACK:
        atomic_store(&s->heard_ns, now);
        if (rp_fault(RP_FAULT_LINK_ACK_RECV))
            return NULL;
        return standing(s, m->a, m->c) ? NULL : "acknowledged what was never sent";
    case RP_CTL_RUNNING:
        return note(s, &s->running);
    case RP_CTL_FAILED:
        return note(s, &s->failed);
    case RP_CTL_SWITCH:
        return note(s, &s->prepared);
    case RP_CTL_REASON:
        pthread_mutex_lock(&s->lock);
        rp_control_reason(m, s->reason);
        pthread_mutex_unlock(&s->lock);
        return NULL;
    case RP_CTL_REFUSED:
        return "refused what it was sent";
    default:
        return "said something this version does not know";
    }
}

/* What a standby says that has been told goodbye is read, and that is all: its end is waited for. */
static void drain(struct link_sink *s)
{
    uint64_t until = rp_clock_ns() + LAST_WORD_MS * 1000000ull;
    struct rp_control_msg m;
    while (rp_clock_ns() < until && rp_control_recv(&s->control, &m, LAST_WORD_MS) == 0)
        ;
}

static void *reader_main(void *arg)
{
    struct link_sink *s = arg;
    struct rp_control_msg m;
    const char *wrong = NULL;
    int rc = 0;
    while (!wrong && !atomic_load(&s->told) && (rc = rp_control_recv(&s->control, &m, (int)s->cfg.timeout_ms)) == 0)
        wrong = take(s, &m);
    if (wrong)
        lost(s, -EPROTO, wrong);
    else if (rc < 0)
        lost(s, rc, rc == -ETIMEDOUT ? "has been silent for too long" : "has gone");
    if (rc == 0)
        drain(s);
    note(s, &s->gone);
    return NULL;
}

static int beat(struct link_sink *s)
{
    struct rp_control_msg m = {.type = RP_CTL_HEARTBEAT, .a = rp_clock_ns()};
    if (rp_fault(RP_FAULT_LINK_PATH))
        rp_control_break(&s->control, 0);
    return rp_fault(RP_FAULT_LINK_HEARTBEAT) ? -EIO : rp_control_send(&s->control, &m);
}

/* Until the next beat is due. False: the session is over, and whoever ends it joins the beater. */
static bool await_beat(struct link_sink *s)
{
    uint64_t until = rp_clock_ns() + s->cfg.heartbeat_ms * 1000000ull;
    pthread_mutex_lock(&s->lock);
    while (!atomic_load(&s->cancelled) && !s->over && rp_cond_wait_until(&s->change, &s->lock, until) == 0)
        ;
    bool over = s->over;
    pthread_mutex_unlock(&s->lock);
    return !over && !atomic_load(&s->cancelled);
}

static void *beater_main(void *arg)
{
    struct link_sink *s = arg;
    do {
        if (atomic_load(&s->told))
            return NULL;
        if (beat(s) < 0) {
            lost(s, -EPIPE, "cannot be sent a heartbeat");
            return NULL;
        }
    } while (await_beat(s));
    return NULL;
}

/* --- the sink --- */

static int start_threads(struct link_sink *s, struct rp_error *err)
{
    const struct { pthread_t *thread; void *(*main)(void *); const char *name; } all[] = {
        {&s->reader, reader_main, "link ctl"}, {&s->beater, beater_main, "link beat"}, {&s->mender, rp_link_mend_main, "link mend"},
    };
    for (unsigned i = 0; i < 3; i++) {
        int rc = rp_thread_start(all[i].thread, all[i].name, all[i].main, s, err);
        if (rc < 0) {
            atomic_store(&s->cancelled, true);
            down(s);
            while (i-- > 0)
                pthread_join(*all[i].thread, NULL);
            return rc;
        }
    }
    s->started = true;
    return 0;
}

static int link_start(struct rp_sink *base, const struct rp_sink_events *events, struct rp_error *err)
{
    struct link_sink *s = of(base);
    struct rp_buf begin = {0};
    s->events = *events;
    int rc = rp_put_begin(&begin, 0);
    rc = rc < 0 ? rp_error_set(err, ENOMEM, "no memory for a stream's beginning") : rp_bundle_put(s->bundle, &begin, err);
    rp_buf_fini(&begin);
    return rc < 0 ? rc : start_threads(s, err);
}

/* The end of an epoch may leave with a frame that it fills, before the flush: from now on the epoch may be acknowledged. */
static void note_end(struct link_sink *s, const struct rp_buf *record)
{
    struct rp_record r;
    struct rp_epoch_trailer t;
    if (rp_record_peek(record->data, 0, &r, NULL) < 0 || r.type != RP_REC_EPOCH_END)
        return;
    r.payload = record->data + RP_RECORD_HEADER;
    if (rp_get_epoch_end(&r, &t, NULL) == 0)
        atomic_store(&s->epoch, t.number);
}

static int link_emit(struct rp_sink *base, struct rp_buf *record, struct rp_error *err)
{
    struct link_sink *s = of(base);
    note_end(s, record);
    int rc = atomic_load(&s->told) || atomic_load(&s->cancelled) ? rp_error_set(err, EPIPE, "the link to the standby is down")
                                                                 : rp_bundle_put(s->bundle, record, err);
    return rc < 0 ? ended(s, rc, err) : rc;
}

static int link_flush(struct rp_sink *base, uint64_t epoch, struct rp_error *err)
{
    struct link_sink *s = of(base);
    (void)epoch;
    if (rp_fault(RP_FAULT_LINK_EPOCH_END)) {
        lost(s, -EIO, "fault point at an epoch's end");
        return rp_error_set(err, EIO, "fault point at an epoch's end");
    }
    int rc = rp_bundle_flush(s->bundle, err);
    return rc < 0 ? ended(s, rc, err) : rc;
}

/* Its owner has yet to say why the run has ended: a standby that hears nothing takes us for dead. */
static void link_stop(struct rp_sink *base)
{
    lanes_down(of(base));
}

static void link_cancel(struct rp_sink *base)
{
    struct link_sink *s = of(base);
    atomic_store(&s->cancelled, true);
    await_said(s);
    await_gone(s);
    down(s);
    if (s->started) {       /* no callback comes after this */
        pthread_join(s->reader, NULL);
        pthread_join(s->beater, NULL);
        pthread_join(s->mender, NULL);
    }
    s->started = false;
    if (s->bundle)
        rp_bundle_join(s->bundle);
}

static void link_destroy(struct rp_sink *base)
{
    struct link_sink *s = of(base);
    link_cancel(base);
    rp_bundle_destroy(s->bundle);
    rp_control_fini(&s->control);
    free(s->held);
    rp_disk_sums_fini(&s->sums);
    pthread_cond_destroy(&s->change);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static const struct rp_sink_ops link_ops = {
    .name = "standby", .start = link_start, .emit = link_emit, .flush = link_flush, .stop = link_stop, .cancel = link_cancel,
    .destroy = link_destroy,
};

static void defaults(struct rp_link_config *cfg)
{
    if (!cfg->lanes)
        cfg->lanes = 1;
    if (cfg->lanes > RP_LANES_MAX - 1)
        cfg->lanes = RP_LANES_MAX - 1;      /* one place is the spare lane's */
    if (!cfg->heartbeat_ms)
        cfg->heartbeat_ms = 20;
    if (!cfg->timeout_ms)
        cfg->timeout_ms = cfg->heartbeat_ms * 25 < 500 ? 500 : cfg->heartbeat_ms * 25;
    if (!cfg->connect_ms)
        cfg->connect_ms = 3000;
    if (cfg->uri.scheme == RP_URI_RDMA && !cfg->have_spare) {
        cfg->have_spare = true;
        cfg->spare = cfg->uri;
        cfg->spare.scheme = RP_URI_TCP;
    }
}

int rp_link_sink_create(const struct rp_link_config *cfg, struct rp_sink **out, uint64_t *held, struct rp_error *err)
{
    struct link_sink *s = calloc(1, sizeof(*s));
    if (!s)
        return rp_error_set(err, ENOMEM, "no memory for a link");
    s->base.ops = &link_ops;
    s->base.stages = true;
    s->cfg = *cfg;
    defaults(&s->cfg);
    int rc = rp_control_init(&s->control, err);
    if (rc < 0) {
        free(s);
        return rc;
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->change, NULL);
    struct rp_welcome w = {0};
    const struct rp_bundle_events events = {.ctx = s, .lane_lost = on_lane_lost};
    rc = rp_bundle_create(&events, &s->bundle, err);
    if (rc == 0)
        rc = rp_link_connect(s, &w, err);
    if (rc < 0) {
        char uri[400];
        rp_uri_format(&cfg->uri, uri, sizeof(uri));
        rp_error_wrap(err, "standby %s", uri);
        link_destroy(&s->base);
        return rc;
    }
    atomic_store(&s->heard_ns, rp_clock_ns());
    *held = w.epoch;
    s->disks = w.disks;
    *out = &s->base;
    return 0;
}

struct rp_disk_base rp_link_sink_disks(const struct rp_sink *base)
{
    return ((const struct link_sink *)base)->disks;
}

struct rp_hash128 *rp_link_sink_take_held(struct rp_sink *base, const char **why)
{
    struct link_sink *s = of(base);
    struct rp_hash128 *held = s->held;
    s->held = NULL;
    *why = s->why_full;
    return held;
}

void rp_link_sink_take_sums(struct rp_sink *base, struct rp_disk_sums *out)
{
    struct link_sink *s = of(base);
    *out = s->sums;
    s->sums = (struct rp_disk_sums){0};
}

/* Waits until `what`, `failed` or the session's end. 0, -ECANCELED, -EPIPE, -ETIMEDOUT. */
static int wait_for(struct link_sink *s, const bool *what, int timeout_ms)
{
    uint64_t until = rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    pthread_mutex_lock(&s->lock);
    int rc = 0;
    while (!*what && !s->failed && !s->over && rc == 0)
        rc = rp_cond_wait_until(&s->change, &s->lock, until);
    rc = *what ? 0 : s->failed ? -ECANCELED : s->over ? -EPIPE : -ETIMEDOUT;
    pthread_mutex_unlock(&s->lock);
    return rc;
}

int rp_link_sink_bye(struct rp_sink *base, enum rp_bye why, uint64_t epoch, struct rp_error *err)
{
    struct link_sink *s = of(base);
    atomic_store(&s->parting, true);
    if (why == RP_BYE_STOP)
        hush(s);
    struct rp_control_msg bye = {.type = RP_CTL_BYE, .a = why, .b = epoch};
    int rc = rp_control_send(&s->control, &bye);
    return rc < 0 ? rp_error_set(err, rc, "the standby could not be told goodbye: %s", strerror(-rc)) : 0;
}

int rp_link_sink_prepare(struct rp_sink *base, int timeout_ms, struct rp_error *err)
{
    struct link_sink *s = of(base);
    struct rp_control_msg m = {.type = RP_CTL_SWITCH};
    int rc = rp_control_send(&s->control, &m);
    if (rc == 0)
        rc = wait_for(s, &s->prepared, timeout_ms);
    return rc < 0 ? rp_error_set(err, rc, "the standby did not answer that it is prepared for a switchover: %s", strerror(-rc)) : 0;
}

int rp_link_sink_wait_running(struct rp_sink *base, int timeout_ms, struct rp_error *err)
{
    struct link_sink *s = of(base);
    int rc = wait_for(s, &s->running, timeout_ms);
    char reason[RP_CONTROL_REASON + 2];
    if (rc == -ECANCELED)
        return rp_error_set(err, ECANCELED, "the target could not enter the VM%s", add_reason(s, reason));
    if (rc == -EPIPE)
        return rp_error_set(err, EPIPE, "the target went away before it said that the VM runs");
    if (rc < 0)
        return rp_error_set(err, ETIMEDOUT, "the target did not say in %d ms that the VM runs", timeout_ms);
    hush(s);
    struct rp_control_msg bye = {.type = RP_CTL_BYE, .a = RP_BYE_STOP};
    if (rp_control_send(&s->control, &bye) < 0) {
        /* it waits a moment, and then makes sure by the lease */
    }
    return 0;
}

void rp_link_sink_stats(struct rp_sink *base, struct rp_link_stats *out)
{
    struct link_sink *s = of(base);
    struct rp_bundle_stats b;
    rp_bundle_stats(s->bundle, &b);
    *out = (struct rp_link_stats){.bytes = b.bytes, .rtt_ns = atomic_load(&s->rtt_ns), .lanes = b.lanes, .transport = b.transport,
                                  .lanes_lost = atomic_load(&s->lanes_lost)};
}
