/*
 * Lanes that die. Frames from a bundle arrive at a gather in order and once, whatever happens to the connections between
 * them (B2, G1); what no bundle sends is refused; and a protected source stays protected when its lanes, or its control
 * connection's first path, are lost (INV-7: with events).
 */
#include "core/fault.h"
#include "replicator/bundle.h"
#include "replicator/engine.h"
#include "replicator/frame.h"
#include "replicator/gather.h"
#include "tests/unit/fake_standby.h"
#include "tests/unit/told.h"

#include <errno.h>
#include <semaphore.h>
#include <sys/socket.h>

TestSuite(lanes, .timeout = 120);

/* --- a bundle and a gather, joined by unix sockets --- */

struct far {
    pthread_mutex_t lock;
    uint64_t records, next, taken, bytes;
    unsigned ended, refused;
    struct rp_error why;
    struct rp_bundle *b;        /* told what was taken */
    struct rp_gather *g;
    unsigned pause_us;
};

static int far_feed(void *ctx, const struct rp_record *r, struct rp_error *err)
{
    struct far *f = ctx;
    if (r->type == RP_REC_END)
        return rp_error_set(err, EBADMSG, "no");
    cr_assert_eq(r->type, RP_REC_JOURNAL);
    cr_assert_eq(rp_ld64(r->payload), f->next, "record %lu comes instead of %lu", rp_ld64(r->payload), f->next);
    f->next++;
    f->bytes += r->len;
    return 0;
}

static int far_taken(void *ctx, uint64_t number, uint64_t bytes, bool epoch, struct rp_error *err)
{
    struct far *f = ctx;
    (void)bytes, (void)epoch, (void)err;
    cr_assert_eq(number, f->taken + 1);
    pthread_mutex_lock(&f->lock);
    f->taken = number;
    f->records = f->next;
    pthread_mutex_unlock(&f->lock);
    if (f->pause_us)
        usleep(f->pause_us);
    if (f->b)
        cr_assert_eq(rp_bundle_taken(f->b, number), 0);
    return 0;
}

static void far_refused(void *ctx, int rc, const struct rp_error *why)
{
    struct far *f = ctx;
    cr_assert_lt(rc, 0);
    pthread_mutex_lock(&f->lock);
    f->refused++;
    f->why = *why;
    pthread_mutex_unlock(&f->lock);
    rp_gather_shutdown(f->g);
}

static void far_ended(void *ctx, unsigned lane, const char *transport, int rc, unsigned left)
{
    struct far *f = ctx;
    (void)lane, (void)transport, (void)rc, (void)left;
    pthread_mutex_lock(&f->lock);
    f->ended++;
    pthread_mutex_unlock(&f->lock);
}

static uint64_t far_records(struct far *f)
{
    pthread_mutex_lock(&f->lock);
    uint64_t n = f->records;
    pthread_mutex_unlock(&f->lock);
    return n;
}

static struct rp_gather *far_create(struct far *f)
{
    const struct rp_gather_events ev = {.ctx = f, .feed = far_feed, .taken = far_taken, .refused = far_refused, .lane_ended = far_ended};
    pthread_mutex_init(&f->lock, NULL);
    cr_assert_eq(rp_gather_create(&ev, &f->g, NULL), 0);
    return f->g;
}

struct near {
    struct rp_listener *listener;
    _Atomic unsigned lost, again, left;
};

static void near_lost(void *ctx, const struct rp_lane_loss *loss)
{
    struct near *n = ctx;
    atomic_fetch_add(&n->lost, 1);
    atomic_fetch_add(&n->again, loss->again);
    atomic_store(&n->left, loss->left);
}

static void connect_pair(struct near *n, struct rp_conn **a, struct rp_conn **b)
{
    struct rp_error err = {0};
    if (!n->listener) {
        struct rp_uri uri = own_address("unix");
        cr_assert_eq(rp_listen(&uri, &n->listener, &err), 0, "%s", err.text);
    }
    cr_assert_eq(rp_connect(&n->listener->uri, 5000, a, &err), 0, "%s", err.text);
    cr_assert_eq(rp_listener_accept(n->listener, 5000, b, &err), 0, "%s", err.text);
}

static void put(struct rp_bundle *b, uint64_t number, uint32_t len)
{
    struct rp_buf r = {0};
    struct rp_error err = {0};
    rp_record_open(&r, RP_REC_JOURNAL, 0);
    rp_buf_u64(&r, number);
    memset(rp_buf_extend(&r, len), (int)number, len);
    cr_assert_eq(rp_bundle_put(b, &r, &err), 0, "%s", err.text);
    rp_buf_fini(&r);
}

/* Lanes die on either side, in the middle of frames and between them, and others join: everything arrives, in order, once. */
Test(lanes, B2_G1_nothing_is_lost_or_doubled)
{
    static struct near n;
    static struct far f;
    struct rp_bundle *b;
    struct rp_conn *a, *z;
    int killable[4];            /* a descriptor of our own for one end of each lane; -1: killed already */
    uint32_t seed = (uint32_t)getpid() | 1;
    printf("seed %u\n", seed);
    const struct rp_bundle_events ev = {.ctx = &n, .lane_lost = near_lost};
    cr_assert_eq(rp_bundle_create(&ev, &b, NULL), 0);
    struct rp_gather *g = far_create(&f);
    f.b = b;
    for (unsigned i = 0; i < 4; i++) {
        connect_pair(&n, &a, &z);
        int fd = dup(a->ops->poll_fd(a));
        cr_assert_eq(rp_bundle_add(b, a, i, i == 3, NULL), 0);
        cr_assert_eq(rp_gather_add(g, z, i, NULL), 0);
        killable[i] = fd;
    }
    uint64_t sent = 0;
    unsigned killed = 0, added = 0;
    for (unsigned round = 0; round < 400; round++) {
        unsigned records = rnd(&seed) % 8;
        for (unsigned k = 0; k < records; k++)
            put(b, sent++, rnd(&seed) % 4 ? rnd(&seed) % 600 : rnd(&seed) % 300000);
        if (rnd(&seed) % 2)
            cr_assert_eq(rp_bundle_flush(b, NULL), 0);
        rp_bundle_look(b);
        struct rp_bundle_stats st;
        rp_bundle_stats(b, &st);
        int free_index = rp_bundle_free_index(b);
        if (rnd(&seed) % 10 == 0 && free_index >= 0 && free_index < 4) {
            connect_pair(&n, &a, &z);
            int fd = dup(rnd(&seed) % 2 ? a->ops->poll_fd(a) : z->ops->poll_fd(z));
            cr_assert_eq(rp_bundle_add(b, a, (unsigned)free_index, free_index == 3, NULL), 0);
            cr_assert_eq(rp_gather_add(g, z, (unsigned)free_index, NULL), 0);
            killable[free_index] = fd;
            added++;
        }
        unsigned victim = rnd(&seed) % 4;
        if (rnd(&seed) % 12 == 0 && st.lanes >= 2 && killable[victim] >= 0) {
            shutdown(killable[victim], rnd(&seed) % 2 ? SHUT_RDWR : SHUT_WR);
            close(killable[victim]);
            killable[victim] = -1;
            killed++;
            usleep(2000);
        }
    }
    put(b, sent++, 10);
    cr_assert_eq(rp_bundle_flush(b, NULL), 0);
    for (unsigned i = 0; i < 10000 && far_records(&f) < sent; i++) {
        rp_bundle_look(b);
        usleep(1000);
    }
    printf("%lu records, %u lanes killed, %u lost, %u added, %u frames sent again\n", sent, killed, atomic_load(&n.lost), added,
           atomic_load(&n.again));
    cr_assert_eq(far_records(&f), sent, "%lu of %lu; refused: %s", far_records(&f), sent, f.why.text);
    cr_assert_eq(f.refused, 0);
    cr_assert_gt(atomic_load(&n.lost), 3);
    rp_bundle_destroy(b);
    rp_gather_destroy(g);
    rp_listener_close(n.listener);
}

/* A gather that takes slowly stops the bundle at its window (B1); stopping it wakes the emitter. */
static void *put_for_ever(void *arg)
{
    struct rp_bundle *b = arg;
    struct rp_buf r = {0};
    struct rp_error err = {0};
    uint64_t sent = 0;
    int rc;
    do {
        rp_buf_reset(&r);
        rp_record_open(&r, RP_REC_JOURNAL, 0);
        rp_buf_u64(&r, sent++);
        memset(rp_buf_extend(&r, 100000), 1, 100000);
        rc = rp_bundle_put(b, &r, &err);
    } while (rc == 0);
    rp_buf_fini(&r);
    return (void *)(intptr_t)rc;
}

Test(lanes, B1_what_is_not_taken_is_bounded)
{
    static struct near n;
    static struct far f;
    struct rp_bundle *b;
    struct rp_conn *a, *z;
    pthread_t t;
    void *rc;
    const struct rp_bundle_events ev = {.ctx = &n, .lane_lost = near_lost};
    cr_assert_eq(rp_bundle_create(&ev, &b, NULL), 0);
    struct rp_gather *g = far_create(&f);       /* it takes everything and says nothing */
    connect_pair(&n, &a, &z);
    cr_assert_eq(rp_bundle_add(b, a, 0, false, NULL), 0);
    cr_assert_eq(rp_gather_add(g, z, 0, NULL), 0);
    pthread_create(&t, NULL, put_for_ever, b);
    uint64_t before;
    do {
        before = far_records(&f);
        usleep(300000);
    } while (far_records(&f) != before || before == 0);
    cr_assert_leq(f.bytes, RP_FRAME_WINDOW + RP_FRAME_FULL + 200000);
    cr_assert_eq(rp_bundle_taken(b, f.taken + 1000), -EPROTO);
    rp_bundle_stop(b);
    pthread_join(t, &rc);
    cr_assert_eq((intptr_t)rc, -EPIPE);
    rp_bundle_destroy(b);
    rp_gather_destroy(g);
    rp_listener_close(n.listener);
}

/* --- what no bundle sends --- */

static uint8_t *frame(uint64_t number, uint32_t *len)
{
    static struct rp_buf buf;
    rp_buf_reset(&buf);
    rp_buf_extend(&buf, RP_FRAME_HEADER);
    size_t pos = rp_record_open(&buf, RP_REC_JOURNAL, 0);
    rp_buf_u64(&buf, number - 1);
    cr_assert_eq(rp_record_seal(&buf, pos, 0), 0);
    rp_frame_put_header(buf.data, (uint32_t)buf.len - RP_FRAME_HEADER, number);
    *len = (uint32_t)buf.len;
    return buf.data;
}

/* Feeds bytes to a fresh gather. Returns how it ended: 'r' refused, 'e' the lane ended, 't' taken. */
static char feed_bytes(const uint8_t *bytes, size_t len, char *why)
{
    struct near n = {0};
    struct far f = {0};
    struct rp_conn *a, *z;
    struct rp_gather *g = far_create(&f);
    connect_pair(&n, &a, &z);
    cr_assert_eq(rp_gather_add(g, z, 0, NULL), 0);
    if (rp_conn_send(a, bytes, len) < 0) {
        /* it has refused already */
    }
    rp_conn_close(a);
    char how = 0;
    while (!how) {
        pthread_mutex_lock(&f.lock);
        how = f.refused ? 'r' : f.ended ? 'e' : 0;
        pthread_mutex_unlock(&f.lock);
        usleep(200);
    }
    if (how == 'e' && f.taken)
        how = 't';
    snprintf(why, 200, "%s", f.why.text);
    rp_gather_destroy(g);
    rp_listener_close(n.listener);
    return how;
}

Test(lanes, INV4_hostile_frames_are_refused)
{
    char why[200];
    uint32_t len;
    uint8_t *good = frame(1, &len), bad[200];
    cr_assert_eq(feed_bytes(good, len, why), 't', "%s", why);
    for (uint32_t cut = 0; cut < len; cut++)
        cr_assert_eq(feed_bytes(good, cut, why), 'e', "cut at %u: %s", cut, why);
    for (uint32_t at = 0; at < len; at++) {
        memcpy(bad, good, len);
        bad[at] ^= (uint8_t)(1u << at % 8);
        cr_assert_eq(feed_bytes(bad, len, why), 'r', "flipped byte %u", at);
        cr_assert(*why);
    }
    rp_frame_put_header(bad, RP_FRAME_MAX + 1, 1);
    cr_assert_eq(feed_bytes(bad, RP_FRAME_HEADER, why), 'r');
    cr_assert(strstr(why, "impossible length"), "%s", why);
    rp_frame_put_header(bad, 100, 0);
    cr_assert_eq(feed_bytes(bad, RP_FRAME_HEADER, why), 'r');
    memcpy(bad, good, len);
    rp_frame_put_header(bad, len - RP_FRAME_HEADER - 1, 1);      /* its record is longer than it */
    cr_assert_eq(feed_bytes(bad, len, why), 'r');
    cr_assert(strstr(why, "ends inside a record"), "%s", why);
}

/* A frame that is never sent, and ever more after it: what may wait is bounded. */
Test(lanes, INV4_a_gap_does_not_fill_memory)
{
    struct near n = {0};
    struct far f = {0};
    struct rp_conn *a, *z;
    struct rp_gather *g = far_create(&f);
    connect_pair(&n, &a, &z);
    cr_assert_eq(rp_gather_add(g, z, 0, NULL), 0);
    struct rp_buf buf = {0};
    uint64_t sent = 0;
    int rc = 0;
    for (uint64_t number = 2; rc == 0; number++) {
        rp_buf_reset(&buf);
        rp_buf_extend(&buf, RP_FRAME_HEADER);
        size_t pos = rp_record_open(&buf, RP_REC_JOURNAL, 0);
        memset(rp_buf_extend(&buf, 1 << 20), 0, 1 << 20);
        cr_assert_eq(rp_record_seal(&buf, pos, 0), 0);
        rp_frame_put_header(buf.data, (uint32_t)buf.len - RP_FRAME_HEADER, number);
        rc = rp_conn_send(a, buf.data, buf.len);
        sent += buf.len;
        cr_assert_leq(sent, 64u << 20, "it takes and takes");
    }
    for (unsigned refused = 0; !refused; usleep(200)) {
        pthread_mutex_lock(&f.lock);
        refused = f.refused;
        pthread_mutex_unlock(&f.lock);
    }
    cr_assert(strstr(f.why.text, "frame 1 is waited for"), "%s", f.why.text);
    cr_assert_eq(f.next, 0);
    rp_conn_close(a);
    rp_buf_fini(&buf);
    rp_gather_destroy(g);
    rp_listener_close(n.listener);
}

/* --- a protected source --- */

struct pair {
    struct fake f;
    struct standby standby;
    struct rp_events *events;
    struct rp_sink *sink;
    struct rp_engine *e;
};

static void set_fault(const char *text)
{
    setenv("RP_FAULT", text, 1);
    rp_fault_reload();
}

static void arm(const char *text)
{
    set_fault(text ? text : "");
}

/* A pair over rdma where there is one (with tcp beside it), else over tcp with a second way to the same door. */
static void pair_start_to(struct pair *p, unsigned lanes, bool spare, const char *primary_scheme)
{
    struct rp_error err = {0};
    char text[100];
    bool rdma = spare && !primary_scheme && getenv("RP_RDMA_ADDRESS");
    memset(p, 0, sizeof(*p));
    standby_start(&p->standby, rdma ? "rdma" : "tcp", "", 20000);
    p->standby.says = STANDBY_RUNS;
    cr_assert_eq(rp_events_create(64, &p->events), 0);
    fake_start(&p->f, 64, 10, 300);
    struct rp_link_config cfg = {.uri = p->standby.uri, .vm_name = "fake", .lanes = lanes, .timeout_ms = 20000, .connect_ms = 10000,
                                 .have_spare = spare, .spare = p->standby.uri, .events = p->events};
    cfg.spare.scheme = RP_URI_TCP;
    if (primary_scheme) {
        snprintf(text, sizeof(text), "%s://127.0.0.1:%s", primary_scheme, p->standby.uri.port);
        cr_assert_eq(rp_uri_parse(text, &cfg.uri, &err), 0);
        cfg.have_spare = false;
    }
    uint64_t held;
    memset(cfg.vm_id, 7, sizeof(cfg.vm_id));
    cr_assert_eq(rp_link_sink_create(&cfg, &p->sink, &held, &err), 0, "%s", err.text);
    struct rp_engine_config ec = {.goal.epoch_ns = 2000000};
    cr_assert_eq(rp_engine_create(&p->f.base, p->sink, RP_RUN_CONTINUOUS, &ec, p->events, &p->e, &err), 0);
    cr_assert_eq(rp_engine_start(p->e, NULL, NULL, &err), 0, "%s", err.text);
}

static void pair_start(struct pair *p, unsigned lanes, bool spare)
{
    pair_start_to(p, lanes, spare, NULL);
}

static uint64_t committed(struct pair *p)
{
    static struct rp_engine_stats st;
    rp_engine_stats(p->e, &st);
    cr_assert_neq(st.state, RP_ENGINE_FAILED, "the run failed");
    return st.committed;
}

static void must_commit(struct pair *p, unsigned more)
{
    uint64_t want = committed(p) + more;
    while (committed(p) < want)
        usleep(2000);
}

static void await_event(struct pair *p, const char *name)
{
    while (!told(p->events, name)) {
        committed(p);
        usleep(2000);
    }
}

/* The last epoch, and the proof: the image is the source. */
static void pair_end(struct pair *p)
{
    struct rp_error err = {0};
    struct rp_event ev[64];
    arm(NULL);
    rp_engine_finish(p->e);
    cr_assert_eq(rp_engine_wait(p->e, &err), 0, "%s", err.text);
    cr_assert_eq(rp_link_sink_bye(p->sink, RP_BYE_FINAL, committed(p), &err), 0, "%s", err.text);
    cr_assert_eq(rp_link_sink_wait_running(p->sink, 10000, &err), 0, "%s", err.text);
    standby_join(&p->standby);
    cr_assert_eq(p->standby.outcome.end, RP_LINK_FINAL, "%s", p->standby.outcome.why.text);
    cr_assert_eq(p->standby.answered, 0, "the source has answered that it knows");
    standby_is(&p->standby, &p->f);
    unsigned n = rp_events_copy(p->events, ev, 64);
    for (unsigned i = 0; i < n; i++)
        printf("epoch %lu: %s %s\n", ev[i].epoch, ev[i].name, ev[i].data);
    unsigned lost = told(p->events, "LANE_LOST") + told(p->events, "PATH_LOST") + told(p->events, "TRANSPORT_DEGRADED");
    p->sink->ops->cancel(p->sink);
    cr_assert_eq(told(p->events, "LANE_LOST") + told(p->events, "PATH_LOST") + told(p->events, "TRANSPORT_DEGRADED"), lost, "an end that was wanted is no loss");
    rp_engine_destroy(p->e);
    p->sink->ops->destroy(p->sink);
    fake_resume(&p->f.base, NULL);
    fake_stop(&p->f);
    rp_events_destroy(p->events);
    standby_free(&p->standby);
}

static void lose_a_lane(const char *fault)
{
    static struct pair p;
    struct rp_link_stats st;
    pair_start(&p, 3, false);
    must_commit(&p, 5);
    arm(fault);
    await_event(&p, "LANE_LOST");
    must_commit(&p, 20);
    rp_link_sink_stats(p.sink, &st);
    cr_assert_eq(st.lanes_lost, 1);
    await_event(&p, "LANE_BACK");
    rp_link_sink_stats(p.sink, &st);
    cr_assert_eq(st.lanes, 3);
    must_commit(&p, 20);
    pair_end(&p);
}

Test(lanes, a_lane_breaks_at_the_primary) { lose_a_lane("link-record:7"); }
Test(lanes, a_lane_breaks_at_the_standby) { lose_a_lane("link-frame:7"); }

/* In the middle of the full sync: nothing begins anew. */
Test(lanes, a_lane_breaks_during_the_full_sync)
{
    static struct pair p;
    arm("link-record:3");
    pair_start(&p, 2, false);
    must_commit(&p, 5);
    cr_assert_eq(told(p.events, "LANE_LOST"), 1);
    pair_end(&p);
}

/* The only lane dies: the spare one takes over at once, and goes back to waiting when a lane is back. */
Test(lanes, INV7_the_spare_way_carries_on)
{
    static struct pair p;
    struct rp_link_stats st;
    pair_start(&p, 1, true);
    must_commit(&p, 5);
    cr_assert_eq(told(p.events, "SPARE_MISSING"), 0);
    rp_link_sink_stats(p.sink, &st);
    cr_assert_eq(st.lanes, 1);
    printf("over %s\n", st.transport);
    arm("link-record:3");
    await_event(&p, "TRANSPORT_DEGRADED");
    must_commit(&p, 20);
    await_event(&p, "LANE_BACK");
    must_commit(&p, 20);
    rp_link_sink_stats(p.sink, &st);
    printf("over %s again\n", st.transport);
    pair_end(&p);
}

Test(lanes, INV7_the_control_connection_has_a_second_path)
{
    static struct pair p;
    pair_start(&p, 1, true);
    must_commit(&p, 5);
    arm("link-path:2");
    await_event(&p, "PATH_LOST");
    await_event(&p, "TRANSPORT_DEGRADED");      /* which follows it */
    cr_assert_eq(told(p.events, "TRANSPORT_DEGRADED"), 1);
    must_commit(&p, 20);
    await_event(&p, "PATH_BACK");
    arm("link-path:2");         /* and again */
    while (told(p.events, "PATH_LOST") < 2)
        usleep(2000);
    must_commit(&p, 20);
    pair_end(&p);
}

Test(lanes, a_lane_that_cannot_join_is_missed_not_fatal)
{
    static struct pair p;
    arm("link-lane:2");
    pair_start(&p, 2, false);
    cr_assert_eq(told(p.events, "LANE_MISSING"), 1);
    must_commit(&p, 5);
    await_event(&p, "LANE_BACK");
    pair_end(&p);
}

Test(lanes, a_spare_way_that_cannot_be_had_is_said)
{
    static struct pair p;
    arm("link-spare:1");
    pair_start(&p, 1, true);
    cr_assert_eq(told(p.events, "SPARE_MISSING"), 1);
    must_commit(&p, 5);
    await_event(&p, "LANE_BACK");
    pair_end(&p);
}

/* Without a spare way the last lane's death is the session's, and the reason is told. */
Test(lanes, the_last_lane_ends_the_session)
{
    static struct pair p;
    struct rp_error err = {0};
    pair_start(&p, 1, false);
    if (p.standby.uri.scheme == RP_URI_RDMA)
        cr_skip_test("an rdma session has a spare way");
    must_commit(&p, 5);
    arm("link-record:3");
    cr_assert_lt(rp_engine_wait(p.e, &err), 0);
    printf("%s\n", err.text);
    cr_assert(strstr(err.text, "standby") || strstr(err.text, "link"), "%s", err.text);
    standby_join(&p.standby);
    cr_assert_eq(p.standby.outcome.end, RP_LINK_BROKEN);
    cr_assert_gt(p.standby.outcome.epoch, 0);
    standby_is_whole(&p.standby);
    p.sink->ops->cancel(p.sink);        /* from here on it says nothing to the engine */
    rp_engine_destroy(p.e);
    p.sink->ops->destroy(p.sink);
    fake_stop(&p.f);
}

/* An rdma address where there is no rdma (the loopback has none): the session opens over tcp and says so. */
Test(lanes, INV7_rdma_that_cannot_be_had_is_replaced_and_said)
{
    static struct pair p;
    struct rp_link_stats st;
    pair_start_to(&p, 2, false, "rdma");
    cr_assert_eq(told(p.events, "TRANSPORT_DEGRADED"), 1);
    must_commit(&p, 20);
    rp_link_sink_stats(p.sink, &st);
    cr_assert_str_eq(st.transport, "tcp");
    pair_end(&p);
}

/* --- loss at every step of the protocol --- */

/* The session ends with a reason, the standby keeps a whole epoch or knows that it has none, and the guest runs on. */
static void session_ends(const char *fault, enum rp_link_end how)
{
    static struct pair p;
    struct rp_error err = {0};
    pair_start(&p, 1, false);
    must_commit(&p, 5);
    arm(fault);
    cr_assert_lt(rp_engine_wait(p.e, &err), 0);
    printf("%s: %s\n", fault, err.text);
    cr_assert(*err.text);
    p.sink->ops->cancel(p.sink);
    standby_join(&p.standby);
    arm(NULL);
    cr_assert_eq(p.standby.outcome.end, how, "%d: %s", p.standby.outcome.end, p.standby.outcome.why.text);
    cr_assert_gt(p.standby.outcome.epoch, 0);
    standby_is_whole(&p.standby);
    cr_assert_leq(atomic_load(&p.f.released), p.standby.outcome.epoch, "INV-1: outputs of an epoch that nobody holds");
    rp_engine_destroy(p.e);
    p.sink->ops->destroy(p.sink);
    fake_stop(&p.f);
    rp_events_destroy(p.events);
    standby_free(&p.standby);
}

Test(lanes, loss_at_an_epochs_end) { session_ends("link-epoch-end:3", RP_LINK_BROKEN); }
Test(lanes, loss_of_a_heartbeat) { session_ends("link-heartbeat:3", RP_LINK_BROKEN); }
Test(lanes, an_epoch_is_held_but_cannot_be_acknowledged) { session_ends("link-ack-send:3", RP_LINK_DAMAGED); }

/* An acknowledgement that arrives and is lost is made good by the next answer to a heartbeat. */
Test(lanes, an_acknowledgement_is_lost)
{
    static struct pair p;
    pair_start(&p, 1, false);
    must_commit(&p, 5);
    arm("link-ack-recv:2");
    must_commit(&p, 20);
    pair_end(&p);
}

/* The standby hears nothing but a connection that goes: it waits for the next. */
Test(lanes, loss_before_the_greeting)
{
    static struct pair p;
    struct rp_error err = {0};
    struct rp_sink *sink;
    uint64_t held;
    pair_start(&p, 1, false);
    must_commit(&p, 1);
    arm("link-hello:1");
    struct rp_link_config cfg = {.uri = p.standby.uri, .vm_name = "fake", .connect_ms = 10000};
    cr_assert_lt(rp_link_sink_create(&cfg, &sink, &held, &err), 0);
    cr_assert(strstr(err.text, "fault point"), "%s", err.text);
    arm(NULL);
    cr_assert_lt(rp_link_sink_create(&cfg, &sink, &held, &err), 0);
    cr_assert(strstr(err.text, "another primary is being served"), "%s", err.text);     /* and the session goes on */
    must_commit(&p, 20);
    pair_end(&p);
}

/* --- a bundle that is stopped while a frame is being sent --- */

struct slow {
    struct rp_conn base;
    sem_t sending, go;
};

static ssize_t slow_send(struct rp_conn *c, const struct iovec *iov, int n, bool wait)
{
    struct slow *s = (struct slow *)c;
    (void)n, (void)wait;
    sem_post(&s->sending);
    sem_wait(&s->go);
    return (ssize_t)iov[0].iov_len;
}

static void slow_nothing(struct rp_conn *c)
{
    (void)c;
}

static void *go_on_later(void *arg)
{
    usleep(100000);
    sem_post(&((struct slow *)arg)->go);
    return NULL;
}

static void *flush_one(void *arg)
{
    struct rp_buf b = {0};
    struct rp_error err = {0};
    size_t at = rp_record_open(&b, RP_REC_JOURNAL, 0);
    rp_buf_u64(&b, 0);
    rp_st32(b.data + at + 4, 8);
    cr_assert_eq(rp_bundle_put(arg, &b, &err), 0, "%s", err.text);
    if (rp_bundle_flush(arg, &err) < 0) {
        /* it was stopped */
    }
    rp_buf_fini(&b);
    return NULL;
}

/* The lane's thread has heard of the stop, waits for whoever flushes, and is told when that is over: the bundle's end does not hang. */
Test(lanes, a_stop_while_a_frame_is_sent, .timeout = 20)
{
    static const struct rp_conn_ops ops = {.name = "slow", .send = slow_send, .shutdown = slow_nothing, .close = slow_nothing};
    const struct rp_bundle_events events = {0};
    struct slow s = {.base.ops = &ops};
    struct rp_bundle *b;
    struct rp_error err = {0};
    pthread_t flusher, later;
    sem_init(&s.sending, 0, 0);
    sem_init(&s.go, 0, 0);
    cr_assert_eq(rp_bundle_create(&events, &b, &err), 0, "%s", err.text);
    cr_assert_eq(rp_bundle_add(b, &s.base, 0, false, &err), 0, "%s", err.text);
    pthread_create(&flusher, NULL, flush_one, b);
    sem_wait(&s.sending);
    pthread_create(&later, NULL, go_on_later, &s);
    rp_bundle_join(b);
    pthread_join(flusher, NULL);
    pthread_join(later, NULL);
    rp_bundle_destroy(b);
}
