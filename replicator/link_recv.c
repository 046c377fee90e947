/* The standby's side of a link: sessions, lanes into the image, acknowledgements, and the primary's death. */
#include "core/clock.h"
#include "core/fault.h"
#include "core/log.h"
#include "replicator/control.h"
#include "replicator/link.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define LANE_WAIT_MS 5000       /* lanes of a session join within this time */
#define ACCEPT_POLL_MS 50       /* between two looks at whether to stop */

struct lane {
    struct rp_link_recv *r;
    unsigned index;
    struct rp_conn *conn;
    pthread_t thread;
    bool ended;             /* lane thread: the connection ended or failed, in the middle of a record or not */
};

struct rp_link_recv {
    struct rp_listener *listener;
    struct rp_link_recv_config cfg;
    uint8_t session[16];
    struct rp_hello primary;    /* of the control connection */
    struct rp_control control;
    unsigned nlanes;
    struct lane lanes[RP_LANES_MAX];

    pthread_mutex_t lock;       /* the image and everything below */
    pthread_cond_t progress;
    uint64_t open_epoch;        /* being received, 0: between epochs */
    uint64_t ram_records;       /* of it, on all lanes */
    _Atomic bool over;          /* the session has ended: `outcome` says how. Written under lock; the control thread reads it
                                   without, so that its beat does not wait for an epoch that is being applied. */
    struct rp_link_outcome outcome;
    struct rp_conn *guest;      /* its handshake goes on */
    bool switching;             /* control thread: RP_CTL_SWITCH came */
    pthread_t tail;             /* keeps the control connection alive after FINAL */
    bool tailing;
    bool answered, tail_over;   /* lock: the source knows that the VM runs here; its connection has ended */
    uint64_t heard_ns;          /* control thread */
    _Atomic bool cancelled;
};

/* Ends the session once; the first reason counts. */
static void end_session(struct rp_link_recv *r, enum rp_link_end end, const struct rp_error *why)
{
    pthread_mutex_lock(&r->lock);
    if (!r->over) {
        r->over = true;
        r->outcome.end = end;
        r->outcome.detected_ns = rp_clock_ns();
        if (why)
            r->outcome.why = *why;
        pthread_cond_broadcast(&r->progress);
    }
    pthread_mutex_unlock(&r->lock);
    for (unsigned i = 0; i < r->nlanes; i++)
        r->lanes[i].conn->ops->shutdown(r->lanes[i].conn);
}

/* --- lanes --- */

static ssize_t lane_read(void *ctx, void *buf, size_t len)
{
    struct lane *l = ctx;
    ssize_t n = l->conn->ops->recv(l->conn, buf, len, RP_CONN_FOREVER);
    l->ended = n <= 0;
    return n;
}

/* lock held. A lane that is ahead waits until its epoch is open. False: the session is over. */
static bool wait_open(struct rp_link_recv *r, uint64_t epoch)
{
    while (!r->over && r->open_epoch != epoch)
        pthread_cond_wait(&r->progress, &r->lock);
    return !r->over;
}

static int acknowledge(struct rp_link_recv *r, struct rp_error *err)
{
    uint64_t epoch = rp_image_epoch(r->cfg.image);
    if (r->cfg.applied) {
        int rc = r->cfg.applied(r->cfg.ctx, r->cfg.image, err);
        if (rc < 0)
            return rc;
    }
    if (rp_fault(RP_FAULT_LINK_ACK_SEND))
        return rp_error_set(err, EIO, "acknowledging epoch %llu: fault point", (unsigned long long)epoch);
    /* A control connection that has ended tells its own story (control_ended). */
    return rp_control_send(&r->control, RP_CTL_ACK, epoch, 0) < 0 ? -ECANCELED : 0;
}

/* lock held */
static int feed(struct rp_link_recv *r, const struct rp_record *rec, struct rp_error *err)
{
    int rc = rp_image_feed(r->cfg.image, rec, err);
    if (rc < 0)
        return rc;
    if (rec->type == RP_REC_RAM) {
        r->ram_records++;
        if (r->nlanes > 1)
            pthread_cond_broadcast(&r->progress);
    } else if (rec->type == RP_REC_EPOCH) {
        struct rp_epoch_header h;
        if ((rc = rp_get_epoch(rec, &h, err)) < 0)
            return rc;
        r->open_epoch = h.number;
        r->ram_records = 0;
        if (r->nlanes > 1)
            pthread_cond_broadcast(&r->progress);
    }
    return rc;
}

/* Lane 0: everything but other lanes' RAM. EPOCH_END waits for the RAM records it counts. */
static int take_main(struct rp_link_recv *r, const struct rp_record *rec, struct rp_error *err)
{
    struct rp_epoch_trailer t;
    if (rec->type != RP_REC_EPOCH_END)
        return feed(r, rec, err);
    int rc = rp_get_epoch_end(rec, &t, err);
    if (rc < 0)
        return rc;
    while (!r->over && r->nlanes > 1 && r->ram_records < t.ram_records)
        pthread_cond_wait(&r->progress, &r->lock);
    if (r->over)
        return -ECANCELED;
    rc = feed(r, rec, err);
    r->open_epoch = 0;
    return rc == 1 ? acknowledge(r, err) : rc;
}

/* Other lanes: EPOCH says which epoch the RAM records after it belong to. */
static int take_side(struct rp_link_recv *r, const struct rp_record *rec, uint64_t *epoch, struct rp_error *err)
{
    struct rp_epoch_header h;
    uint32_t version;
    int rc;
    switch (rec->type) {
    case RP_REC_BEGIN:
        return rp_get_begin(rec, &version, err);
    case RP_REC_EPOCH:
        rc = rp_get_epoch(rec, &h, err);
        *epoch = rc < 0 ? 0 : h.number;
        return rc;
    case RP_REC_RAM:
        return wait_open(r, *epoch) ? feed(r, rec, err) : -ECANCELED;
    default:
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "record type %u on a lane that carries RAM only", rec->type);
    }
}

static void *lane_main(void *arg)
{
    struct lane *l = arg;
    struct rp_link_recv *r = l->r;
    struct rp_stream_reader *reader = NULL;
    struct rp_record rec;
    struct rp_error err = {0};
    uint64_t epoch = 0;
    int rc = rp_stream_reader_create_fn(lane_read, l, &reader, &err);
    while (rc == 0 && (rc = rp_stream_next(reader, &rec, &err)) > 0) {
        pthread_mutex_lock(&r->lock);
        rc = l->index == 0 ? take_main(r, &rec, &err) : take_side(r, &rec, &epoch, &err);
        pthread_mutex_unlock(&r->lock);
    }
    if (rc < 0 && rc != -ECANCELED && !l->ended) {
        if (rp_control_send(&r->control, RP_CTL_REFUSED, (uint64_t)-rc, 0) < 0)
            rp_log(RP_LOG_INFO, "the primary could not be told that its epoch was refused");
        end_session(r, RP_LINK_DAMAGED, &err);
    }
    /* A lane that ended: a primary that dies takes all its connections with it, and the control connection's end tells
     * the story. Should it live on, it notices that the lane broke and says goodbye (RP_BYE_BROKEN). */
    l->conn->ops->shutdown(l->conn);
    rp_stream_reader_destroy(reader);
    return NULL;
}

/* --- control --- */

static void control_ended(struct rp_link_recv *r, int rc)
{
    struct rp_error why = {0};
    if (rc == -ETIMEDOUT)
        rp_error_set(&why, ETIMEDOUT, "the primary has been silent for %u ms", r->cfg.timeout_ms);
    else
        rp_error_set(&why, rc, "the primary's connection ended: %s", strerror(-rc));
    end_session(r, atomic_load(&r->cancelled) ? RP_LINK_CANCELLED : RP_LINK_LOST, &why);
}

/* Reads control messages until the session ends. The beat goes back at once, with the primary's clock in it. */
static void serve_control(struct rp_link_recv *r)
{
    struct rp_control_msg m;
    int rc;
    while ((rc = rp_control_recv(&r->control, &m, (int)r->cfg.timeout_ms)) == 0) {
        r->heard_ns = rp_clock_ns();
        if (m.type == RP_CTL_HEARTBEAT) {
            rc = rp_control_send(&r->control, RP_CTL_HEARTBEAT, r->heard_ns, m.a);
            if (rc < 0)
                break;
        } else if (m.type == RP_CTL_SWITCH) {
            r->switching = true;
            if ((rc = rp_control_send(&r->control, RP_CTL_SWITCH, 0, 0)) < 0)
                break;
        } else if (m.type == RP_CTL_BYE) {
            end_session(r, m.a == RP_BYE_FINAL ? RP_LINK_FINAL : m.a == RP_BYE_BROKEN ? RP_LINK_BROKEN : RP_LINK_STOPPED, NULL);
            return;
        }
        if (atomic_load(&r->over))
            return;
    }
    control_ended(r, rc);
}

/* After FINAL: the beat goes on while the VM is entered here, until the source knows that it runs. */
static void *tail_main(void *arg)
{
    struct rp_link_recv *r = arg;
    struct rp_control_msg m;
    int rc;
    while ((rc = rp_control_recv(&r->control, &m, RP_CONN_FOREVER)) == 0) {
        if (m.type == RP_CTL_HEARTBEAT && rp_control_send(&r->control, RP_CTL_HEARTBEAT, rp_clock_ns(), m.a) < 0)
            break;
        if (m.type == RP_CTL_BYE)
            break;
    }
    pthread_mutex_lock(&r->lock);
    r->answered = rc == 0 && m.type == RP_CTL_BYE && m.a == RP_BYE_STOP;
    r->tail_over = true;
    pthread_cond_broadcast(&r->progress);
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

static void start_tail(struct rp_link_recv *r)
{
    r->answered = r->tail_over = false;
    r->tailing = pthread_create(&r->tail, NULL, tail_main, r) == 0;
    if (r->tailing)
        pthread_setname_np(r->tail, "link tail");
}

static void end_tail(struct rp_link_recv *r)
{
    if (!r->tailing)
        return;
    r->control.conn->ops->shutdown(r->control.conn);
    pthread_join(r->tail, NULL);
    r->tailing = false;
}

/* --- sessions --- */

static int judge_control(void *ctx, const struct rp_hello *h, struct rp_welcome *w, struct rp_error *err)
{
    struct rp_link_recv *r = ctx;
    const struct rp_epoch_header *held = rp_image_header(r->cfg.image);
    if (h->role != RP_LINK_CONTROL)
        return rp_error_set(err, EPROTO, "no session is open that this lane could belong to");
    if (*r->cfg.vm_name && strncmp(r->cfg.vm_name, h->vm_name, sizeof(h->vm_name)) != 0)
        return rp_error_set(err, EPERM, "this standby waits for VM \"%s\"", r->cfg.vm_name);
    if (h->lanes == 0 || h->lanes > RP_LANES_MAX || h->heartbeat_ms == 0 || h->heartbeat_ms > 60000)
        return rp_error_set(err, EPROTO, "an impossible number of lanes or heartbeat");
    if (rp_image_epoch(r->cfg.image) && memcmp(held->vm_id, h->vm_id, sizeof(h->vm_id)) != 0)
        return rp_error_set(err, EPERM, "this standby holds another VM");
    if (r->cfg.admit && r->cfg.admit(r->cfg.ctx, r->guest->peer, h, err) < 0)
        return -EPERM;
    uint8_t random[RP_NONCE_BYTES];
    int rc = rp_secret_nonce(random, err);
    if (rc < 0)
        return rc;
    memcpy(r->session, random, sizeof(r->session));
    memcpy(w->session, r->session, sizeof(w->session));
    w->epoch = rp_image_epoch(r->cfg.image);
    return 0;
}

static int judge_lane(void *ctx, const struct rp_hello *h, struct rp_welcome *w, struct rp_error *err)
{
    struct rp_link_recv *r = ctx;
    if (h->role != RP_LINK_LANE || memcmp(h->session, r->session, sizeof(r->session)) != 0 || h->lanes != r->nlanes)
        return rp_error_set(err, EBUSY, "another primary is being served");
    memcpy(w->session, r->session, sizeof(w->session));
    return 0;
}

/* The connection whose handshake goes on: rp_link_cancel ends that too. False: cancelled already. */
static bool set_guest(struct rp_link_recv *r, struct rp_conn *c)
{
    pthread_mutex_lock(&r->lock);
    r->guest = c;
    bool go_on = !atomic_load(&r->cancelled);
    pthread_mutex_unlock(&r->lock);
    return go_on;
}

/* The next connection that passes the handshake. -ETIMEDOUT after timeout_ms (< 0: never), -ECANCELED. */
static int next_conn(struct rp_link_recv *r, rp_handshake_judge *judge, int timeout_ms, struct rp_conn **out,
                     struct rp_hello *hello, struct rp_error *err)
{
    uint64_t until = timeout_ms < 0 ? UINT64_MAX : rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    while (!atomic_load(&r->cancelled)) {
        struct rp_error why = {0};
        struct rp_conn *c;
        if (rp_clock_ns() > until)
            return rp_error_set(err, ETIMEDOUT, "the primary's lanes did not join in time");
        int rc = rp_listener_accept(r->listener, ACCEPT_POLL_MS, &c, err);
        if (rc == -EAGAIN)
            continue;
        if (rc < 0)
            return rc;
        bool go_on = set_guest(r, c);
        rc = go_on ? rp_handshake_accept(c, &r->cfg.key, judge, r, hello, &why) : -ECANCELED;
        set_guest(r, NULL);
        if (rc == 0) {
            *out = c;
            return 0;
        }
        if (rc != -ECANCELED)
            rp_log(RP_LOG_WARN, "%s: %s", c->peer, why.text);
        c->ops->close(c);
    }
    return -ECANCELED;
}

static void close_session(struct rp_link_recv *r)
{
    end_tail(r);
    for (unsigned i = 0; i < r->nlanes; i++)
        r->lanes[i].conn->ops->close(r->lanes[i].conn);
    pthread_mutex_lock(&r->lock);       /* rp_link_cancel may be about to shut it down */
    struct rp_conn *control = r->control.conn;
    r->control.conn = NULL;
    pthread_mutex_unlock(&r->lock);
    if (control)
        control->ops->close(control);
    r->nlanes = 0;
}

static int open_session(struct rp_link_recv *r, struct rp_error *err)
{
    close_session(r);
    if (r->cfg.alone)
        r->cfg.alone(r->cfg.ctx);
    struct rp_conn *control = NULL;
    int rc = next_conn(r, judge_control, -1, &control, &r->primary, err);
    pthread_mutex_lock(&r->lock);
    r->control.conn = control;
    pthread_mutex_unlock(&r->lock);
    while (rc == 0 && r->nlanes < r->primary.lanes) {
        struct rp_hello h;
        struct lane *l = &r->lanes[r->nlanes];
        *l = (struct lane){.r = r, .index = r->nlanes};
        rc = next_conn(r, judge_lane, LANE_WAIT_MS, &l->conn, &h, err);
        if (rc == 0)
            r->nlanes++;
    }
    return rc;
}

int rp_link_serve(struct rp_link_recv *r, struct rp_link_outcome *out, struct rp_error *err)
{
    int rc;
    while ((rc = open_session(r, err)) == -ETIMEDOUT)
        rp_log(RP_LOG_WARN, "a primary connected, but its lanes did not");
    memset(&r->outcome, 0, sizeof(r->outcome));
    if (rc == -ECANCELED) {
        *out = (struct rp_link_outcome){.end = RP_LINK_CANCELLED, .epoch = rp_image_epoch(r->cfg.image)};
        return 0;
    }
    if (rc < 0)
        return rc;
    unsigned configured = r->cfg.timeout_ms;
    if (!configured)
        r->cfg.timeout_ms = r->primary.heartbeat_ms * 4;
    r->over = false;
    r->switching = false;
    r->open_epoch = 0;
    r->heard_ns = rp_clock_ns();
    unsigned started = 0;
    while (rc == 0 && started < r->nlanes) {
        rc = -pthread_create(&r->lanes[started].thread, NULL, lane_main, &r->lanes[started]);
        if (rc == 0)
            pthread_setname_np(r->lanes[started++].thread, "link lane");
    }
    if (rc == 0)
        serve_control(r);
    else
        end_session(r, RP_LINK_DAMAGED, NULL);
    for (unsigned i = 0; i < started; i++)
        pthread_join(r->lanes[i].thread, NULL);
    rp_image_drop(r->cfg.image);        /* INV-2: half an epoch is thrown away */
    r->outcome.epoch = rp_image_epoch(r->cfg.image);
    r->outcome.last_heard_ns = r->heard_ns;
    r->outcome.switching = r->switching;
    r->cfg.timeout_ms = configured;
    if (r->outcome.end == RP_LINK_FINAL)
        start_tail(r);
    else
        close_session(r);
    *out = r->outcome;
    return rc < 0 ? rp_error_set(err, rc, "cannot start a lane's thread: %s", strerror(-rc)) : 0;
}

void rp_link_recv_image(struct rp_link_recv *r, struct rp_image *image)
{
    r->cfg.image = image;
}

int rp_link_recv_running(struct rp_link_recv *r, int timeout_ms, struct rp_error *err)
{
    uint64_t until = rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
    int rc = r->tailing ? rp_control_send(&r->control, RP_CTL_RUNNING, 0, 0) : -ENOTCONN, waited = 0;
    pthread_mutex_lock(&r->lock);
    while (rc == 0 && !r->tail_over && waited == 0)
        waited = pthread_cond_clockwait(&r->progress, &r->lock, CLOCK_MONOTONIC, &ts);
    if (rc == 0 && !r->answered)
        rc = r->tail_over ? -EPIPE : -ETIMEDOUT;
    pthread_mutex_unlock(&r->lock);
    return rc < 0 ? rp_error_set(err, rc, "the source did not answer that it knows the VM to run here: %s", strerror(-rc)) : 0;
}

void rp_link_recv_failed(struct rp_link_recv *r)
{
    if (r->tailing && rp_control_send(&r->control, RP_CTL_FAILED, 0, 0) < 0)
        rp_log(RP_LOG_WARN, "the source could not be told that the VM does not run here");
}

void rp_link_cancel(struct rp_link_recv *r)
{
    atomic_store(&r->cancelled, true);
    pthread_mutex_lock(&r->lock);
    if (r->control.conn)
        r->control.conn->ops->shutdown(r->control.conn);
    if (r->guest)
        r->guest->ops->shutdown(r->guest);
    pthread_mutex_unlock(&r->lock);
}

int rp_link_recv_create(struct rp_listener *l, const struct rp_link_recv_config *cfg, struct rp_link_recv **out, struct rp_error *err)
{
    struct rp_link_recv *r = calloc(1, sizeof(*r));
    if (!r)
        return rp_error_set(err, ENOMEM, "no memory to receive");
    r->listener = l;
    r->cfg = *cfg;
    pthread_mutex_init(&r->lock, NULL);
    pthread_mutex_init(&r->control.send_lock, NULL);
    pthread_cond_init(&r->progress, NULL);
    *out = r;
    return 0;
}

void rp_link_recv_destroy(struct rp_link_recv *r)
{
    if (!r)
        return;
    close_session(r);
    r->listener->ops->close(r->listener);
    free(r);
}
