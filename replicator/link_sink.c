/* The primary's side of a link: a sink whose commits are the standby's acknowledgements. */
#include "core/clock.h"
#include "core/fault.h"
#include "replicator/control.h"
#include "replicator/link.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define LANE_BUFFER (256u << 10)    /* a lane's records are sent when they are so many bytes, or at a flush */

struct lane {
    struct rp_conn *conn;
    struct rp_buf out;      /* sealed records not yet sent */
    uint64_t seq;
};

struct link_sink {
    struct rp_sink base;
    struct rp_sink_events events;
    struct rp_link_config cfg;
    struct rp_control control;
    unsigned nlanes;
    struct lane lanes[RP_LANES_MAX];    /* emitting thread, once started */
    unsigned turn;                      /* emitting thread: whose turn the next RAM record is */
    pthread_t reader, beater;
    bool started;
    _Atomic bool cancelled, told;
    _Atomic uint64_t bytes, rtt_ns, heard_ns, last_beat;
    pthread_mutex_t lock;
    pthread_cond_t change;
    bool running, failed, prepared, over;   /* lock: what the target has said */
};

static struct link_sink *of(struct rp_sink *s)
{
    return (struct link_sink *)s;
}

static void down(struct link_sink *s)
{
    if (s->control.conn)
        s->control.conn->ops->shutdown(s->control.conn);
    for (unsigned i = 0; i < s->nlanes; i++)
        s->lanes[i].conn->ops->shutdown(s->lanes[i].conn);
}

/* The session is over; the engine hears of it once. */
static void lost(struct link_sink *s, int rc, const char *what)
{
    pthread_mutex_lock(&s->lock);
    s->over = true;
    pthread_cond_broadcast(&s->change);
    pthread_mutex_unlock(&s->lock);
    if (atomic_exchange(&s->told, true) || atomic_load(&s->cancelled))
        return;
    char uri[400];
    struct rp_error why = {0};
    rp_uri_format(&s->cfg.uri, uri, sizeof(uri));
    rp_error_set(&why, rc, "standby %s: %s", uri, what);
    /* A standby that hears no goodbye takes our silence for our death. */
    if (rp_control_send(&s->control, RP_CTL_BYE, RP_BYE_BROKEN, 0) < 0) {
        /* then it cannot be helped: the lease decides */
    }
    down(s);
    s->events.failed(s->events.ctx, &s->base, &why);
}

/* --- control: what the standby says --- */

static void heartbeat_back(struct link_sink *s, uint64_t ours)
{
    uint64_t now = rp_clock_ns();
    if (ours && ours <= now)
        atomic_store(&s->rtt_ns, now - ours);
}

/* The target has said this. */
static void note(struct link_sink *s, bool *what)
{
    pthread_mutex_lock(&s->lock);
    *what = true;
    pthread_cond_broadcast(&s->change);
    pthread_mutex_unlock(&s->lock);
}

static void *reader_main(void *arg)
{
    struct link_sink *s = arg;
    struct rp_control_msg m;
    int rc;
    while ((rc = rp_control_recv(&s->control, &m, (int)s->cfg.timeout_ms)) == 0) {
        atomic_store(&s->heard_ns, rp_clock_ns());
        switch (m.type) {
        case RP_CTL_HEARTBEAT:
            heartbeat_back(s, m.b);
            break;
        case RP_CTL_ACK:
            if (rp_fault(RP_FAULT_LINK_ACK_RECV))
                break;
            s->events.committed(s->events.ctx, &s->base, m.a);
            break;
        case RP_CTL_RUNNING:
            note(s, &s->running);
            break;
        case RP_CTL_FAILED:
            note(s, &s->failed);
            break;
        case RP_CTL_SWITCH:
            note(s, &s->prepared);
            break;
        case RP_CTL_REFUSED:
            lost(s, -EPROTO, "refused what it was sent (its log says why)");
            return NULL;
        default:
            lost(s, -EPROTO, "said something this version does not know");
            return NULL;
        }
    }
    lost(s, rc, rc == -ETIMEDOUT ? "has been silent for too long" : "has gone");
    return NULL;
}

static void *beater_main(void *arg)
{
    struct link_sink *s = arg;
    const struct timespec pause = {.tv_sec = s->cfg.heartbeat_ms / 1000, .tv_nsec = (long)(s->cfg.heartbeat_ms % 1000) * 1000000};
    while (!atomic_load(&s->cancelled) && !atomic_load(&s->told)) {
        if (rp_fault(RP_FAULT_LINK_HEARTBEAT) || rp_control_send(&s->control, RP_CTL_HEARTBEAT, rp_clock_ns(), 0) < 0) {
            lost(s, -EPIPE, "cannot be sent a heartbeat");
            break;
        }
        nanosleep(&pause, NULL);
    }
    return NULL;
}

/* --- the sink --- */

static int send_lane(struct link_sink *s, struct lane *l, struct rp_error *err)
{
    if (l->out.len == 0)
        return 0;
    int rc = rp_fault(RP_FAULT_LINK_RECORD) ? -EIO : rp_conn_send(l->conn, l->out.data, l->out.len);
    atomic_fetch_add(&s->bytes, l->out.len);
    rp_buf_reset(&l->out);
    if (rc < 0) {
        lost(s, rc, "a lane broke");
        return rp_error_set(err, EPIPE, "the link to the standby broke");
    }
    return 0;
}

static int put_record(struct link_sink *s, struct lane *l, struct rp_buf *record, struct rp_error *err)
{
    if (rp_record_seal(record, 0, l->seq++) < 0)
        return rp_error_set(err, ENOMEM, "a record could not be made");
    rp_buf_put(&l->out, record->data, record->len);
    if (l->out.failed)
        return rp_error_set(err, ENOMEM, "no memory for a lane's buffer");
    return l->out.len >= LANE_BUFFER ? send_lane(s, l, err) : 0;
}

static int link_start(struct rp_sink *base, const struct rp_sink_events *events, struct rp_error *err)
{
    struct link_sink *s = of(base);
    s->events = *events;
    for (unsigned i = 0; i < s->nlanes; i++)
        if (rp_put_begin(&s->lanes[i].out, s->lanes[i].seq++) < 0)
            return rp_error_set(err, ENOMEM, "no memory for a lane's buffer");
    int rc = pthread_create(&s->reader, NULL, reader_main, s);
    if (rc)
        return rp_error_set(err, rc, "cannot start the link's thread: %s", strerror(rc));
    pthread_setname_np(s->reader, "link ctl");
    rc = pthread_create(&s->beater, NULL, beater_main, s);
    if (rc) {
        down(s);
        pthread_join(s->reader, NULL);
        return rp_error_set(err, rc, "cannot start the heartbeat thread: %s", strerror(rc));
    }
    pthread_setname_np(s->beater, "link beat");
    s->started = true;
    return 0;
}

static int link_emit(struct rp_sink *base, struct rp_buf *record, struct rp_error *err)
{
    struct link_sink *s = of(base);
    if (atomic_load(&s->told) || atomic_load(&s->cancelled))
        return rp_error_set(err, EPIPE, "the link to the standby is down");
    uint8_t type = record->data[2];
    if (type == RP_REC_RAM)
        return put_record(s, &s->lanes[s->turn++ % s->nlanes], record, err);
    int rc = 0;
    for (unsigned i = 0; i < (type == RP_REC_EPOCH ? s->nlanes : 1) && rc == 0; i++)
        rc = put_record(s, &s->lanes[i], record, err);
    return rc;
}

/* RAM lanes first: when lane 0's EPOCH_END arrives the rest is mostly there. */
static int link_flush(struct rp_sink *base, uint64_t epoch, struct rp_error *err)
{
    struct link_sink *s = of(base);
    (void)epoch;
    if (rp_fault(RP_FAULT_LINK_EPOCH_END)) {
        lost(s, -EIO, "fault point at an epoch's end");
        return rp_error_set(err, EIO, "fault point at an epoch's end");
    }
    int rc = 0;
    for (unsigned i = s->nlanes; i-- > 0 && rc == 0;)
        rc = send_lane(s, &s->lanes[i], err);
    return rc;
}

static void link_cancel(struct rp_sink *base)
{
    struct link_sink *s = of(base);
    atomic_store(&s->cancelled, true);
    down(s);
    if (s->started) {       /* no callback comes after this */
        pthread_join(s->reader, NULL);
        pthread_join(s->beater, NULL);
    }
    s->started = false;
}

static void link_destroy(struct rp_sink *base)
{
    struct link_sink *s = of(base);
    link_cancel(base);
    for (unsigned i = 0; i < s->nlanes; i++) {
        s->lanes[i].conn->ops->close(s->lanes[i].conn);
        rp_buf_fini(&s->lanes[i].out);
    }
    if (s->control.conn)
        s->control.conn->ops->close(s->control.conn);
    free(s);
}

static const struct rp_sink_ops link_ops = {
    .name = "standby", .start = link_start, .emit = link_emit, .flush = link_flush, .cancel = link_cancel, .destroy = link_destroy,
};

static int join_lane(struct link_sink *s, struct rp_hello *hello, unsigned index, struct rp_error *err)
{
    struct rp_welcome w;
    struct rp_conn *c;
    hello->role = RP_LINK_LANE;
    hello->lanes = index;
    if (rp_fault(RP_FAULT_LINK_LANE))
        return rp_error_set(err, EIO, "lane %u: fault point", index);
    int rc = rp_connect(&s->cfg.uri, s->cfg.connect_ms, &c, err);
    if (rc < 0)
        return rc;
    rc = rp_handshake_connect(c, &s->cfg.key, hello, &w, err);
    if (rc < 0) {
        c->ops->close(c);
        rp_error_wrap(err, "lane %u", index);
        return rc;
    }
    s->lanes[index].conn = c;
    s->nlanes++;
    return 0;
}

int rp_link_sink_create(const struct rp_link_config *cfg, struct rp_sink **out, uint64_t *held, struct rp_error *err)
{
    struct link_sink *s = calloc(1, sizeof(*s));
    if (!s)
        return rp_error_set(err, ENOMEM, "no memory for a link");
    s->base.ops = &link_ops;
    s->cfg = *cfg;
    unsigned lanes = cfg->lanes ? cfg->lanes : 1;
    if (lanes > RP_LANES_MAX)
        lanes = RP_LANES_MAX;
    if (!s->cfg.heartbeat_ms)
        s->cfg.heartbeat_ms = 20;
    if (!s->cfg.timeout_ms)
        s->cfg.timeout_ms = s->cfg.heartbeat_ms * 25 < 500 ? 500 : s->cfg.heartbeat_ms * 25;
    if (!s->cfg.connect_ms)
        s->cfg.connect_ms = 3000;
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->control.send_lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->change, &attr);
    pthread_condattr_destroy(&attr);
    struct rp_hello hello = {.role = RP_LINK_CONTROL, .lanes = lanes, .heartbeat_ms = s->cfg.heartbeat_ms};
    memcpy(hello.vm_id, cfg->vm_id, sizeof(hello.vm_id));
    memcpy(hello.vm_name, cfg->vm_name, sizeof(hello.vm_name));
    struct rp_welcome w;
    int rc = rp_connect(&cfg->uri, s->cfg.connect_ms, &s->control.conn, err);
    if (rc == 0)
        rc = rp_handshake_connect(s->control.conn, &cfg->key, &hello, &w, err);
    if (rc == 0)
        memcpy(hello.session, w.session, sizeof(hello.session));
    for (unsigned i = 0; i < lanes && rc == 0; i++)
        rc = join_lane(s, &hello, i, err);
    if (rc < 0) {
        char uri[400];
        rp_uri_format(&cfg->uri, uri, sizeof(uri));
        rp_error_wrap(err, "standby %s", uri);
        link_destroy(&s->base);
        return rc;
    }
    *held = w.epoch;
    *out = &s->base;
    return 0;
}

int rp_link_sink_bye(struct rp_sink *base, enum rp_bye why, uint64_t epoch, struct rp_error *err)
{
    struct link_sink *s = of(base);
    if (why == RP_BYE_STOP)
        atomic_store(&s->told, true);   /* its going away is no news */
    int rc = rp_control_send(&s->control, RP_CTL_BYE, why, epoch);
    return rc < 0 ? rp_error_set(err, rc, "the standby could not be told goodbye: %s", strerror(-rc)) : 0;
}

/* Waits until `what`, `failed` or the session's end. 0, -ECANCELED, -EPIPE, -ETIMEDOUT. */
static int wait_for(struct link_sink *s, const bool *what, int timeout_ms)
{
    uint64_t until = rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
    pthread_mutex_lock(&s->lock);
    int rc = 0;
    while (!*what && !s->failed && !s->over && rc == 0)
        rc = pthread_cond_timedwait(&s->change, &s->lock, &ts);
    rc = *what ? 0 : s->failed ? -ECANCELED : s->over ? -EPIPE : -ETIMEDOUT;
    pthread_mutex_unlock(&s->lock);
    return rc;
}

int rp_link_sink_prepare(struct rp_sink *base, int timeout_ms, struct rp_error *err)
{
    struct link_sink *s = of(base);
    int rc = rp_control_send(&s->control, RP_CTL_SWITCH, 0, 0);
    if (rc == 0)
        rc = wait_for(s, &s->prepared, timeout_ms);
    return rc < 0 ? rp_error_set(err, rc, "the standby did not answer that it is prepared for a switchover: %s", strerror(-rc)) : 0;
}

int rp_link_sink_wait_running(struct rp_sink *base, int timeout_ms, struct rp_error *err)
{
    struct link_sink *s = of(base);
    int rc = wait_for(s, &s->running, timeout_ms);
    if (rc == -ECANCELED)
        return rp_error_set(err, ECANCELED, "the target could not enter the VM (its log says why)");
    if (rc == -EPIPE)
        return rp_error_set(err, EPIPE, "the target went away before it said that the VM runs");
    if (rc < 0)
        return rp_error_set(err, ETIMEDOUT, "the target did not say in %d ms that the VM runs", timeout_ms);
    atomic_store(&s->told, true);       /* its going away is no news from here on */
    if (rp_control_send(&s->control, RP_CTL_BYE, RP_BYE_STOP, 0) < 0) {
        /* it waits a moment, and then makes sure by the lease */
    }
    return 0;
}

void rp_link_sink_stats(struct rp_sink *base, struct rp_link_stats *out)
{
    struct link_sink *s = of(base);
    static const char *const names[] = {"tcp", "rdma", "unix"};
    *out = (struct rp_link_stats){.bytes = atomic_load(&s->bytes), .rtt_ns = atomic_load(&s->rtt_ns), .lanes = s->nlanes,
                                  .transport = names[s->cfg.uri.scheme]};
}
