/* The standby's side of a link: sessions, frames into the image, acknowledgements, and the primary's death. */
#include "core/clock.h"
#include "core/fault.h"
#include "core/log.h"
#include "core/thread.h"
#include "replicator/control.h"
#include "replicator/doors.h"
#include "replicator/frame.h"
#include "replicator/gather.h"
#include "replicator/link.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define OPENING_MS 10000        /* from the control connection's opening to the primary's first heartbeat */
#define GOODBYE_NS 1000000000u  /* a primary that was refused may take so long to say goodbye */
#define ACCEPT_POLL_MS 50       /* between two times that whoever waits is told so (rp_link_recv_config.alone) */
#define REPORT_BYTES (RP_FRAME_WINDOW / 8)  /* taken without an epoch's end: the primary is told, so that it can go on */

struct rp_link_recv {
    struct rp_doors doors;      /* serving thread; joining thread while it runs */
    struct rp_link_recv_config cfg;
    uint8_t session[16];
    struct rp_hello primary;    /* of the control connection */
    struct rp_control control;
    struct rp_gather *gather;   /* while a session goes on */
    pthread_t joiner;
    uint64_t heard_ns;          /* serving thread */
    uint64_t reported;          /* feeding thread: bytes of frames that the primary knows were taken */
    _Atomic uint64_t epoch;     /* newest applied in this session, 0: none */
    _Atomic uint64_t frames;    /* taken in this session */
    _Atomic uint64_t refused_ns;    /* when what came was refused; 0: it was not */
    _Atomic bool over;          /* the session has ended: `outcome` says how */
    _Atomic bool cancelled;
    bool switching;             /* serving thread: RP_CTL_SWITCH came */
    pthread_t tail;             /* keeps the control connection alive after FINAL */
    bool tailing;               /* serving thread */

    pthread_mutex_t lock;       /* everything below */
    pthread_cond_t change;
    bool answered, tail_over;   /* the source knows that the VM runs here; its connection has ended */
    struct rp_link_outcome outcome;     /* end 0: nothing has ended it */
    struct rp_conn *guest;      /* it is being welcomed, or told what is held */
};

/* Why the session ends; the first reason counts. Lock held. */
static void note_end(struct rp_link_recv *r, enum rp_link_end end, const struct rp_error *why)
{
    if (r->outcome.end)
        return;
    r->outcome.end = end;
    r->outcome.detected_ns = rp_clock_ns();
    if (why)
        r->outcome.why = *why;
}

static void end_session(struct rp_link_recv *r, enum rp_link_end end, const struct rp_error *why)
{
    pthread_mutex_lock(&r->lock);
    note_end(r, end, why);
    if (!atomic_exchange(&r->over, true) && r->guest)
        rp_conn_shutdown(r->guest);
    pthread_mutex_unlock(&r->lock);
    rp_control_interrupt(&r->control);
    rp_doors_wake(&r->doors);
}

/* --- frames: from lanes' threads, one at a time --- */

static int on_record(void *ctx, const struct rp_record *rec, struct rp_error *err)
{
    struct rp_link_recv *r = ctx;
    return rp_image_feed(r->cfg.image, rec, err);
}

static int on_epoch(struct rp_link_recv *r, struct rp_error *err)
{
    uint64_t epoch = rp_image_epoch(r->cfg.image);
    if (r->cfg.applied) {
        int rc = r->cfg.applied(r->cfg.ctx, r->cfg.image, err);
        if (rc < 0)
            return rc;
    }
    if (rp_fault(RP_FAULT_LINK_ACK_SEND))
        return rp_error_set(err, EIO, "acknowledging epoch %llu: fault point", (unsigned long long)epoch);
    atomic_store(&r->epoch, epoch);
    return 0;
}

static int on_taken(void *ctx, uint64_t number, uint64_t bytes, bool epoch, struct rp_error *err)
{
    struct rp_link_recv *r = ctx;
    int rc = epoch ? on_epoch(r, err) : 0;
    if (rc == 0)
        atomic_store(&r->frames, number);
    if (rc < 0 || (!epoch && bytes - r->reported < REPORT_BYTES))
        return rc;
    r->reported = bytes;
    struct rp_control_msg ack = {.type = RP_CTL_ACK, .a = atomic_load(&r->epoch), .c = number};
    if (rp_control_send_one(&r->control, &ack) < 0) {
        /* A control connection that has ended tells its own story; one that lost this message says it again with a beat. */
    }
    return 0;
}

/* The primary is told, and its goodbye is the answer: until it has come the lanes stay, for their end would be the news that comes
 * first, and a link that breaks is another story than an epoch that is refused. */
static void on_refused(void *ctx, int rc, const struct rp_error *why)
{
    struct rp_link_recv *r = ctx;
    (void)rc;
    pthread_mutex_lock(&r->lock);
    note_end(r, RP_LINK_DAMAGED, why);
    pthread_mutex_unlock(&r->lock);
    atomic_store(&r->refused_ns, rp_clock_ns());
    if (rp_control_send_reason(&r->control, RP_CTL_REFUSED, why) < 0)
        end_session(r, RP_LINK_DAMAGED, why);
}

static bool waits_in_vain(const struct rp_link_recv *r)
{
    uint64_t at = atomic_load(&r->refused_ns);
    return at && rp_clock_ns() - at > GOODBYE_NS;
}

/* A primary that dies takes all its connections with it, and the control connection's end tells the story. Should it live,
 * it sees the lane's end and sends what was on it elsewhere. */
static void on_lane_ended(void *ctx, unsigned lane, const char *transport, int rc, unsigned left)
{
    (void)ctx;
    rp_log(RP_LOG_INFO, "lane %u (%s) ended: %s; %u left", lane, transport, strerror(-rc), left);
}

/* --- control --- */

static void control_ended(struct rp_link_recv *r, int rc, unsigned timeout_ms)
{
    struct rp_error why = {0};
    if (rc == -ETIMEDOUT)
        rp_error_set(&why, ETIMEDOUT, "the primary has been silent for %u ms", timeout_ms);
    else
        rp_error_set(&why, rc, "the primary's connection ended: %s", strerror(-rc));
    end_session(r, atomic_load(&r->cancelled) ? RP_LINK_CANCELLED : RP_LINK_LOST, &why);
}

/* The answer to a beat carries how far the standby is: an acknowledgement that was lost with its path is not missed. */
static struct rp_control_msg beats_answer(struct rp_link_recv *r, uint64_t clock)
{
    return (struct rp_control_msg){.type = RP_CTL_HEARTBEAT, .a = atomic_load(&r->epoch), .b = clock, .c = atomic_load(&r->frames)};
}

/* A primary that has said goodbye and closed its end takes no answer; the goodbye is there to be read still, and if it said
 * none, reading will tell. So an answer that cannot be sent ends nothing. */
static void answer(struct rp_link_recv *r, struct rp_control_msg m)
{
    int rc = rp_control_send(&r->control, &m);
    if (rc < 0)
        rp_log(RP_LOG_DEBUG, "the primary could not be answered: %s", strerror(-rc));
}

/* Reads control messages until the session ends. */
static void serve_control(struct rp_link_recv *r)
{
    unsigned usual = r->cfg.timeout_ms ? r->cfg.timeout_ms : r->primary.heartbeat_ms * 4, timeout_ms = OPENING_MS;
    struct rp_control_msg m;
    int rc = 0;
    while (rc == 0 && !atomic_load(&r->over) && !waits_in_vain(r)) {
        rc = rp_control_recv(&r->control, &m, (int)timeout_ms);
        if (rc == -EINTR)
            return;
        if (rc < 0)
            break;
        if (m.type == RP_CTL_PATH_LOST) {
            rp_log(RP_LOG_WARN, "a path of the control connection ended: %s; going on over %s", strerror((int)m.b),
                   rp_control_transport(&r->control));
            continue;
        }
        r->heard_ns = rp_clock_ns();
        timeout_ms = usual;
        if (m.type == RP_CTL_HEARTBEAT) {
            answer(r, beats_answer(r, m.a));
        } else if (m.type == RP_CTL_SWITCH) {
            r->switching = true;
            answer(r, (struct rp_control_msg){.type = RP_CTL_SWITCH});
        } else if (m.type == RP_CTL_BYE) {
            end_session(r, m.a == RP_BYE_FINAL ? RP_LINK_FINAL : m.a == RP_BYE_BROKEN ? RP_LINK_BROKEN : RP_LINK_STOPPED, NULL);
        }
    }
    if (rc < 0)
        control_ended(r, rc, timeout_ms);
    else if (waits_in_vain(r))
        end_session(r, RP_LINK_DAMAGED, NULL);
}

/* After FINAL: the beat goes on while the VM is entered here, until the source knows that it runs. What it said on both
 * paths (the goodbye that began this) comes twice. */
static void *tail_main(void *arg)
{
    struct rp_link_recv *r = arg;
    struct rp_control_msg m;
    int rc;
    do {
        rc = rp_control_recv(&r->control, &m, RP_CONN_FOREVER);
        if (rc == 0 && m.type == RP_CTL_HEARTBEAT)
            answer(r, beats_answer(r, m.a));
        if (rc == 0 && m.type == RP_CTL_BYE && m.a != RP_BYE_FINAL)
            break;
    } while (rc == 0 || rc == -EINTR);
    pthread_mutex_lock(&r->lock);
    r->answered = rc == 0 && m.a == RP_BYE_STOP;
    r->tail_over = true;
    pthread_cond_broadcast(&r->change);
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

static void start_tail(struct rp_link_recv *r)
{
    r->answered = r->tail_over = false;
    r->tailing = rp_thread_start(&r->tail, "link tail", tail_main, r, NULL) == 0;
}

static void end_tail(struct rp_link_recv *r)
{
    if (!r->tailing)
        return;
    rp_control_shutdown(&r->control);
    pthread_join(r->tail, NULL);
    r->tailing = false;
}

/* --- who may connect --- */

static int judge_opening(void *ctx, const struct rp_hello *h, struct rp_welcome *w, struct rp_error *err)
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
    const struct rp_digest *pages = rp_image_pages(r->cfg.image, h->vm_id);
    if (pages)
        w->held = (struct rp_held){.gfn_end = pages->gfn_end, .sum = pages->sum};
    if (r->cfg.disks)
        r->cfg.disks(r->cfg.ctx, h, &w->disks);
    return 0;
}

static int judge_joining(void *ctx, const struct rp_hello *h, struct rp_welcome *w, struct rp_error *err)
{
    struct rp_link_recv *r = ctx;
    if (h->role == RP_LINK_CONTROL || memcmp(h->session, r->session, sizeof(r->session)) != 0)
        return rp_error_set(err, EBUSY, "another primary is being served");
    if (h->role == RP_LINK_LANE && h->lanes >= RP_LANES_MAX)
        return rp_error_set(err, EPROTO, "an impossible lane");
    memcpy(w->session, r->session, sizeof(w->session));
    return 0;
}

/* The connection that is being welcomed, or told what is held: rp_link_cancel, and the session's end, end that too. False: that has happened. */
static bool set_guest(struct rp_link_recv *r, struct rp_conn *c, bool joining)
{
    pthread_mutex_lock(&r->lock);
    r->guest = c;
    bool go_on = !atomic_load(&r->cancelled) && !(joining && atomic_load(&r->over));
    pthread_mutex_unlock(&r->lock);
    return go_on;
}

/* The next connection, if one comes within a moment and passes the handshake: 0; else -EAGAIN. */
static int next_guest(struct rp_link_recv *r, bool joining, struct rp_conn **out, struct rp_hello *hello)
{
    struct rp_error why = {0};
    struct rp_greeting greeting;
    struct rp_conn *c;
    int rc = rp_doors_accept(&r->doors, ACCEPT_POLL_MS, &c, &greeting);
    if (rc < 0)
        return rc;
    bool go_on = set_guest(r, c, joining);
    rc = go_on ? rp_handshake_welcome(&greeting, c, &r->cfg.key, joining ? judge_joining : judge_opening, r, hello, &why) : -ECANCELED;
    set_guest(r, NULL, joining);
    if (rc == 0) {
        *out = c;
        return 0;
    }
    if (rc != -ECANCELED)
        rp_log(RP_LOG_WARN, "%s: %s", c->peer, why.text);
    rp_conn_close(c);
    return -EAGAIN;
}

/* While a session goes on: its lanes and paths may come at any time; strangers do not disturb it. */
static void *join_main(void *arg)
{
    struct rp_link_recv *r = arg;
    while (!atomic_load(&r->over) && !atomic_load(&r->cancelled)) {
        struct rp_error why = {0};
        struct rp_hello h;
        struct rp_conn *c;
        if (next_guest(r, true, &c, &h) < 0)
            continue;
        int rc = 0;
        if (h.role == RP_LINK_LANE) {
            rc = rp_gather_add(r->gather, c, h.lanes, &why);
        } else if ((rc = rp_control_add(&r->control, c, -1)) < 0) {
            rp_error_set(&why, rc, "%s: the control connection has its paths", c->peer);
            rp_conn_close(c);
        }
        if (rc < 0)
            rp_log(RP_LOG_WARN, "%s", why.text);
    }
    return NULL;
}

/* --- sessions --- */

static int tell_sums(struct rp_link_recv *r, struct rp_conn *c, struct rp_error *err)
{
    struct rp_disk_sums sums = {0};
    if (r->cfg.sums)
        r->cfg.sums(r->cfg.ctx, &sums);
    return rp_sums_send(c, &sums, err);
}

/* It was welcomed: tells it what is held here, if it wants to know. -EAGAIN: it is not the one, and was closed. */
static int tell_held(struct rp_link_recv *r, struct rp_conn *c)
{
    struct rp_held_ask ask = {0};
    struct rp_error why = {0};
    const struct rp_digest *pages = rp_image_pages(r->cfg.image, r->primary.vm_id);
    int rc = set_guest(r, c, false) ? rp_held_receive_ask(c, &ask, &why) : -ECANCELED;
    if (rc == 0 && ask.stale && r->cfg.stale)
        r->cfg.stale(r->cfg.ctx);
    if (rc == 0 && ask.wanted)
        rc = pages ? rp_held_send(c, pages, &why) : rp_error_set(&why, EPROTO, "it asks for pages that are not held here");
    if (rc == 0 && ask.sums)
        rc = tell_sums(r, c, &why);
    set_guest(r, NULL, false);
    if (rc == 0)
        return 0;
    if (why.code)
        rp_log(RP_LOG_WARN, "%s: %s", c->peer, why.text);
    rp_conn_close(c);
    return -EAGAIN;
}

/* Waits for a primary. -ECANCELED. */
static int open_session(struct rp_link_recv *r)
{
    struct rp_conn *c = NULL;
    end_tail(r);
    rp_control_close(&r->control);
    int rc = -EAGAIN;
    while (rc == -EAGAIN && !atomic_load(&r->cancelled)) {
        if (r->cfg.alone)
            r->cfg.alone(r->cfg.ctx);
        rc = next_guest(r, false, &c, &r->primary);
        if (rc == 0)
            rc = tell_held(r, c);
    }
    if (rc < 0)
        return -ECANCELED;
    rc = rp_control_add(&r->control, c, -1);
    if (rc < 0)
        rp_conn_close(c);
    return rc < 0 || atomic_load(&r->cancelled) ? -ECANCELED : 0;
}

static int begin(struct rp_link_recv *r, struct rp_error *err)
{
    const struct rp_gather_events events = {
        .ctx = r, .feed = on_record, .taken = on_taken, .refused = on_refused, .lane_ended = on_lane_ended,
    };
    pthread_mutex_lock(&r->lock);
    r->outcome = (struct rp_link_outcome){0};
    pthread_mutex_unlock(&r->lock);
    r->heard_ns = rp_clock_ns();
    r->reported = 0;
    r->switching = false;
    atomic_store(&r->epoch, 0);
    atomic_store(&r->frames, 0);
    atomic_store(&r->refused_ns, 0);
    atomic_store(&r->over, false);
    int rc = rp_gather_create(&events, &r->gather, err);
    if (rc < 0)
        return rc;
    rc = rp_thread_start(&r->joiner, "link join", join_main, r, err);
    if (rc < 0) {
        rp_gather_destroy(r->gather);
        r->gather = NULL;
    }
    return rc;
}

int rp_link_serve(struct rp_link_recv *r, struct rp_link_outcome *out, struct rp_error *err)
{
    if (open_session(r) < 0) {
        *out = (struct rp_link_outcome){.end = RP_LINK_CANCELLED, .epoch = rp_image_epoch(r->cfg.image)};
        return 0;
    }
    int rc = begin(r, err);
    if (rc < 0) {
        rp_control_close(&r->control);
        return rc;
    }
    serve_control(r);
    rp_gather_shutdown(r->gather);
    pthread_join(r->joiner, NULL);
    rp_gather_destroy(r->gather);
    r->gather = NULL;
    rp_image_drop(r->cfg.image);        /* INV-2: half an epoch is thrown away */
    r->outcome.epoch = rp_image_epoch(r->cfg.image);
    r->outcome.last_heard_ns = r->heard_ns;
    r->outcome.switching = r->switching;
    if (r->outcome.end == RP_LINK_FINAL)
        start_tail(r);
    else
        rp_control_close(&r->control);
    *out = r->outcome;
    return 0;
}

void rp_link_recv_image(struct rp_link_recv *r, struct rp_image *image)
{
    r->cfg.image = image;
}

int rp_link_recv_running(struct rp_link_recv *r, int timeout_ms, struct rp_error *err)
{
    uint64_t until = rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    struct rp_control_msg m = {.type = RP_CTL_RUNNING};
    int rc = r->tailing ? rp_control_send(&r->control, &m) : -ENOTCONN, waited = 0;
    pthread_mutex_lock(&r->lock);
    while (rc == 0 && !r->tail_over && waited == 0)
        waited = rp_cond_wait_until(&r->change, &r->lock, until);
    if (rc == 0 && !r->answered)
        rc = r->tail_over ? -EPIPE : -ETIMEDOUT;
    pthread_mutex_unlock(&r->lock);
    return rc < 0 ? rp_error_set(err, rc, "the source did not answer that it knows the VM to run here: %s", strerror(-rc)) : 0;
}

void rp_link_recv_failed(struct rp_link_recv *r, const struct rp_error *why)
{
    if (r->tailing && rp_control_send_reason(&r->control, RP_CTL_FAILED, why) < 0)
        rp_log(RP_LOG_WARN, "the source could not be told that the VM does not run here");
}

void rp_link_cancel(struct rp_link_recv *r)
{
    atomic_store(&r->cancelled, true);
    rp_control_shutdown(&r->control);
    pthread_mutex_lock(&r->lock);
    if (r->guest)
        rp_conn_shutdown(r->guest);
    pthread_mutex_unlock(&r->lock);
    rp_doors_wake(&r->doors);
}

int rp_link_recv_create(struct rp_listener *l, const struct rp_link_recv_config *cfg, struct rp_link_recv **out, struct rp_error *err)
{
    struct rp_link_recv *r = calloc(1, sizeof(*r));
    if (!r)
        return rp_error_set(err, ENOMEM, "no memory to receive");
    int rc = rp_control_init(&r->control, err);
    if (rc < 0) {
        free(r);
        return rc;
    }
    rc = rp_doors_init(&r->doors, l, &r->cfg.key, err);
    if (rc < 0) {
        rp_control_fini(&r->control);
        free(r);
        return rc;
    }
    r->cfg = *cfg;
    atomic_store(&r->over, true);
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->change, NULL);
    *out = r;
    return 0;
}

void rp_link_recv_destroy(struct rp_link_recv *r)
{
    if (!r)
        return;
    end_tail(r);
    rp_control_fini(&r->control);
    rp_doors_fini(&r->doors);
    pthread_cond_destroy(&r->change);
    pthread_mutex_destroy(&r->lock);
    free(r);
}
