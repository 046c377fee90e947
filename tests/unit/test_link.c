/*
 * Engine → link → image, in one process over real sockets: commits are the standby's acknowledgements, a death is
 * noticed, a stranger gets nowhere, and the standby's image is always a whole epoch (INV-2).
 */
#include "core/bytes.h"
#include "core/fault.h"
#include "replicator/control.h"
#include "replicator/engine.h"
#include "replicator/frame.h"
#include "replicator/handshake.h"
#include "replicator/link_primary.h"
#include "replicator/protect.h"
#include "tests/unit/fake_standby.h"
#include "tests/unit/shake_hands.h"

#include <errno.h>
#include <sys/socket.h>

#define TIMEOUT_MS 1000         /* of the standby for its primary */

static int connect_to(struct standby *s, const char *key, unsigned lanes, struct rp_sink **sink, struct rp_error *err)
{
    struct rp_link_config cfg = {.uri = s->uri, .vm_name = "fake", .lanes = lanes, .timeout_ms = 2000};
    uint64_t held;
    memset(cfg.vm_id, 7, sizeof(cfg.vm_id));
    cfg.key.len = (uint32_t)strlen(key);
    memcpy(cfg.key.bytes, key, cfg.key.len);
    return rp_link_sink_create(&cfg, sink, &held, err);
}

static struct rp_engine_stats stats;
TestSuite(link, .timeout = 120);

static void protect_for(const char *scheme, unsigned lanes, uint64_t epoch_ns, unsigned ms)
{
    struct fake f;
    struct standby s;
    struct rp_sink *sink;
    struct rp_engine *e;
    struct rp_error err = {0};
    if (strcmp(scheme, "rdma") == 0 && !getenv("RP_RDMA_ADDRESS"))
        cr_skip_test("RP_RDMA_ADDRESS names no address of a verbs device (tests/lab/run unit tests=test_link has one)");
    fake_start(&f, 64, 10, 300);
    standby_start(&s, scheme, "0123456789abcdef", TIMEOUT_MS);
    s.says = STANDBY_RUNS;
    cr_assert_eq(connect_to(&s, "0123456789abcdef", lanes, &sink, &err), 0, "%s", err.text);
    struct rp_engine_config cfg = {.goal.epoch_ns = epoch_ns};
    cr_assert_eq(rp_engine_create(&f.base, sink, RP_RUN_CONTINUOUS, &cfg, NULL, &e, &err), 0);
    cr_assert_eq(rp_engine_start(e, NULL, NULL, &err), 0, "%s", err.text);
    usleep(ms * 1000);
    rp_engine_finish(e);
    cr_assert_eq(rp_engine_wait(e, &err), 0, "%s", err.text);
    rp_engine_stats(e, &stats);
    cr_assert_eq(atomic_load(&f.released), stats.committed);
    cr_assert_eq(rp_link_sink_bye(sink, RP_BYE_FINAL, stats.committed, &err), 0, "%s", err.text);
    cr_assert_eq(rp_link_sink_wait_running(sink, 10000, &err), 0, "%s", err.text);
    standby_join(&s);
    cr_assert_eq(s.outcome.end, RP_LINK_FINAL, "%s", s.outcome.why.text);
    cr_assert_eq(s.outcome.epoch, stats.committed);
    cr_assert_eq(s.answered, 0, "the source has answered that it knows");
    standby_is(&s, &f);
    printf("%s, %u lanes: %lu epochs in %u ms; commit p50 %.3f p99 %.3f ms; pause p50 %.3f ms\n", scheme, lanes, stats.committed,
           ms, (double)rp_hist_quantile(&stats.commit, 0.5) / 1e6, (double)rp_hist_quantile(&stats.commit, 0.99) / 1e6,
           (double)rp_hist_quantile(&stats.pause, 0.5) / 1e6);
    sink->ops->destroy(sink);
    rp_engine_destroy(e);
    fake_resume(&f.base, NULL);
    fake_stop(&f);
    standby_free(&s);
}

Test(link, unix_one_lane) { protect_for("unix", 1, 1, 1000); }
Test(link, tcp_one_lane) { protect_for("tcp", 1, 1, 1000); }
Test(link, tcp_four_lanes) { protect_for("tcp", 4, 5000000, 1000); }
Test(link, rdma_one_lane) { protect_for("rdma", 1, 1, 3000); }
Test(link, rdma_four_lanes) { protect_for("rdma", 4, 5000000, 3000); }

/* The primary dies in the middle: the standby holds a whole epoch, and its digest proves it. */
Test(link, INV2_the_primary_dies)
{
    struct fake f;
    struct standby s;
    struct rp_sink *sink;
    struct rp_engine *e;
    struct rp_error err = {0};
    fake_start(&f, 512, 100, 100);
    standby_start(&s, "unix", "", TIMEOUT_MS);
    cr_assert_eq(connect_to(&s, "", 2, &sink, &err), 0, "%s", err.text);
    struct rp_engine_config cfg = {.goal.epoch_ns = 1000000};
    cr_assert_eq(rp_engine_create(&f.base, sink, RP_RUN_CONTINUOUS, &cfg, NULL, &e, &err), 0);
    cr_assert_eq(rp_engine_start(e, NULL, NULL, &err), 0);
    do {
        usleep(100000);
        rp_engine_stats(e, &stats);
        cr_assert_neq(stats.state, RP_ENGINE_FAILED, "the run ended before it was to");
    } while (stats.committed < 3);
    sink->ops->cancel(sink);        /* every connection ends at once, as when a process is killed */
    standby_join(&s);
    cr_assert_eq(s.outcome.end, RP_LINK_LOST);
    cr_assert_gt(s.outcome.epoch, 0);
    standby_is_whole(&s);
    rp_engine_stop(e);
    int rc = rp_engine_wait(e, &err);
    (void)rc;
    sink->ops->destroy(sink);
    rp_engine_destroy(e);
    fake_stop(&f);
    standby_free(&s);
}

static _Atomic uint64_t told_epoch;
static _Atomic bool told_failed;

static void note_committed(void *ctx, struct rp_sink *sink, uint64_t epoch)
{
    (void)ctx, (void)sink;
    atomic_store(&told_epoch, epoch);
}

static void note_failed(void *ctx, struct rp_sink *sink, const struct rp_error *why)
{
    (void)ctx, (void)sink;
    fprintf(stderr, "%s\n", why->text);
    atomic_store(&told_failed, true);
}

/* Gives the record to the sink, and returns its length. */
static size_t give(struct rp_sink *sink, struct rp_buf *b)
{
    struct rp_error err = {0};
    size_t len = b->len;
    cr_assert_eq(sink->ops->emit(sink, b, &err), 0, "%s", err.text);
    rp_buf_reset(b);
    return len;
}

/* The end of an epoch fills its frame, which leaves at once: the standby may acknowledge the epoch before it is flushed. */
Test(link, an_epoch_is_acknowledged_before_its_flush)
{
    static const struct rp_sink_events events = {.committed = note_committed, .failed = note_failed};
    struct rp_epoch_header h = {.number = 1, .flags = RP_EPOCH_FULL, .page_size = RP_PAGE_SIZE, .vm_name = "fake"};
    struct rp_epoch_trailer end = {.number = 1, .sections = 1};
    struct rp_section section = {.name = "filler"};
    struct rp_buf b = {0};
    struct rp_ram_view view;
    struct standby s;
    struct rp_sink *sink;
    struct rp_error err = {0};
    view_init(&view);
    memset(h.vm_id, 7, sizeof(h.vm_id));
    h.gfn_end = view.gfn_end;
    h.nregions = 1;
    h.regions[0] = view.regions[0];
    standby_start(&s, "unix", "", TIMEOUT_MS);
    cr_assert_eq(connect_to(&s, "", 1, &sink, &err), 0, "%s", err.text);
    cr_assert_eq(sink->ops->start(sink, &events, &err), 0, "%s", err.text);
    cr_assert_eq(rp_put_begin(&b, 0), 0);       /* for its length: start has sent it */
    size_t before = b.len;
    rp_buf_reset(&b);
    cr_assert_eq(rp_put_epoch(&b, 0, &h), 0);
    before += give(sink, &b);
    cr_assert_eq(rp_put_section(&b, 0, &section), 0);
    before += b.len;
    rp_buf_reset(&b);
    section.len = (uint32_t)(RP_FRAME_FULL - RP_FRAME_HEADER - 1 - before);
    section.bytes = calloc(1, section.len);
    cr_assert_eq(rp_put_section(&b, 0, &section), 0);
    give(sink, &b);
    cr_assert_eq(rp_put_epoch_end(&b, 0, &end), 0);
    give(sink, &b);
    for (unsigned i = 0; i < 2000 && atomic_load(&told_epoch) != 1 && !atomic_load(&told_failed); i++)
        usleep(1000);
    cr_assert(!atomic_load(&told_failed));
    cr_assert_eq(atomic_load(&told_epoch), 1u);
    cr_assert_eq(sink->ops->flush(sink, 1, &err), 0, "%s", err.text);
    sink->ops->cancel(sink);
    sink->ops->destroy(sink);
    standby_join(&s);
    standby_free(&s);
    rp_buf_fini(&b);
    free((void *)(uintptr_t)section.bytes);
    munmap(view.base, view.pages * RP_PAGE_SIZE);
}

/* The standby goes away: the engine's run fails with a reason, the guest goes on. */
Test(link, INV5_the_standby_goes_away)
{
    struct fake f;
    struct standby s;
    struct rp_sink *sink;
    struct rp_engine *e;
    struct rp_error err = {0};
    fake_start(&f, 512, 100, 100);
    standby_start(&s, "tcp", "", TIMEOUT_MS);
    cr_assert_eq(connect_to(&s, "", 1, &sink, &err), 0, "%s", err.text);
    struct rp_engine_config cfg = {.goal.epoch_ns = 1000000};
    cr_assert_eq(rp_engine_create(&f.base, sink, RP_RUN_CONTINUOUS, &cfg, NULL, &e, &err), 0);
    cr_assert_eq(rp_engine_start(e, NULL, NULL, &err), 0);
    usleep(500000);
    rp_link_cancel(s.recv);
    cr_assert_lt(rp_engine_wait(e, &err), 0);
    cr_assert(strstr(err.text, "standby"), "%s", err.text);
    standby_join(&s);
    cr_assert_eq(s.outcome.end, RP_LINK_CANCELLED);
    sink->ops->destroy(sink);
    rp_engine_destroy(e);
    fake_stop(&f);
    standby_free(&s);
}

/* A beat and the goodbye behind it, from a primary that reads no answer any more: the goodbye is heard, it was no death. */
Test(link, INV3_a_goodbye_behind_a_beat_is_heard)
{
    struct standby s;
    struct rp_conn *c;
    struct rp_welcome w;
    struct rp_error err = {0};
    const struct rp_secret key = {0};
    const struct rp_held_ask no_pages = {.wanted = false};
    const struct rp_hello hello = {.role = RP_LINK_CONTROL, .lanes = 1, .heartbeat_ms = 20, .vm_id = {7}, .vm_name = "fake"};
    uint8_t words[2 * RP_CONTROL_BYTES] = {0};
    rp_st32(words, RP_CTL_HEARTBEAT);
    rp_st32(words + RP_CONTROL_BYTES, RP_CTL_BYE);
    rp_st64(words + RP_CONTROL_BYTES + 8, RP_BYE_BROKEN);
    standby_start(&s, "unix", "", TIMEOUT_MS);
    cr_assert_eq(rp_connect(&s.uri, 5000, &c, &err), 0, "%s", err.text);
    cr_assert_eq(rp_handshake_connect(c, &key, &hello, &w, &err), 0, "%s", err.text);
    cr_assert_eq(rp_held_send_ask(c, &no_pages, &err), 0, "%s", err.text);
    cr_assert_eq(shutdown(c->ops->poll_fd(c), SHUT_RD), 0);     /* its answers meet EPIPE */
    cr_assert_eq(rp_conn_send(c, words, sizeof(words)), 0);
    standby_join(&s);
    cr_assert_eq(s.outcome.end, RP_LINK_BROKEN, "%s", s.outcome.why.text);
    rp_conn_close(c);
    standby_free(&s);
}

/* A standby that shakes hands, and from then on reads nothing. */
struct deaf { struct rp_listener *l; struct rp_conn *conns[2]; };

static int welcome_all(void *ctx, const struct rp_hello *h, struct rp_welcome *w, struct rp_error *err)
{
    (void)ctx, (void)h, (void)w, (void)err;
    return 0;
}

static void *deaf_main(void *arg)
{
    struct deaf *d = arg;
    const struct rp_secret key = {0};
    for (unsigned i = 0; i < 2; i++) {
        struct rp_hello h;
        struct rp_held_ask ask;
        struct rp_error err = {0};
        cr_assert_eq(rp_listener_accept(d->l, 10000, &d->conns[i], &err), 0, "%s", err.text);
        cr_assert_eq(shake_hands(d->conns[i], &key, welcome_all, NULL, &h, &err), 0, "%s", err.text);
        if (h.role == RP_LINK_CONTROL)
            cr_assert_eq(rp_held_receive_ask(d->conns[i], &ask, &err), 0, "%s", err.text);
    }
    return NULL;
}

/* Sockets of this process have room for a few messages only from here on; as an RDMA ring of 64 slots has. */
static void narrow_sockets(void)
{
    int least = 1;
    for (int fd = 3; fd < 100; fd++)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &least, sizeof(least));
}

/* A standby that hangs takes no more beats; whoever is stuck with one must not keep the engine from hearing that it has been silent
 * for too long. */
Test(link, INV5_a_standby_that_takes_no_beat_is_given_up, .timeout = 60)
{
    static const struct rp_sink_events events = {.committed = note_committed, .failed = note_failed};
    static struct deaf d;
    struct rp_link_config cfg = {.vm_name = "fake", .lanes = 1, .heartbeat_ms = 10, .timeout_ms = 1000};
    struct rp_error err = {0};
    struct rp_sink *sink;
    pthread_t t;
    uint64_t held;
    char text[100];
    snprintf(text, sizeof(text), "unix:/tmp/rp-deaf-%d", getpid());
    cr_assert_eq(rp_uri_parse(text, &cfg.uri, &err), 0, "%s", err.text);
    cr_assert_eq(rp_listen(&cfg.uri, &d.l, &err), 0, "%s", err.text);
    pthread_create(&t, NULL, deaf_main, &d);
    cr_assert_eq(rp_link_sink_create(&cfg, &sink, &held, &err), 0, "%s", err.text);
    pthread_join(t, NULL);
    narrow_sockets();
    cr_assert_eq(sink->ops->start(sink, &events, &err), 0, "%s", err.text);
    for (unsigned i = 0; i < 5000 && !atomic_load(&told_failed); i++)
        usleep(1000);
    cr_assert(atomic_load(&told_failed), "5 s have passed, and nobody was told");
    sink->ops->cancel(sink);
    sink->ops->destroy(sink);
    rp_conn_close(d.conns[0]);
    rp_conn_close(d.conns[1]);
    rp_listener_close(d.l);
}

/* A standby that refuses lanes but the first, until it is told to take them. */
static struct { struct rp_listener *l; struct rp_conn *conns[16]; unsigned n; _Atomic bool takes, over; } picky;

static int pick(void *ctx, const struct rp_hello *h, struct rp_welcome *w, struct rp_error *err)
{
    (void)ctx, (void)w;
    bool refuses = h->role == RP_LINK_LANE && h->lanes > 0 && !atomic_load(&picky.takes);
    return refuses ? rp_error_set(err, EBUSY, "not now") : 0;
}

static void *picky_main(void *arg)
{
    const struct rp_secret key = {0};
    (void)arg;
    while (!atomic_load(&picky.over) && picky.n < 16) {
        struct rp_hello h;
        struct rp_held_ask ask;
        struct rp_error err = {0};
        struct rp_conn *c;
        if (rp_listener_accept(picky.l, 20, &c, &err) < 0)
            continue;
        if (shake_hands(c, &key, pick, NULL, &h, &err) < 0 ||
            (h.role == RP_LINK_CONTROL && rp_held_receive_ask(c, &ask, &err) < 0))
            rp_conn_close(c);
        else
            picky.conns[picky.n++] = c;
    }
    return NULL;
}

/* In place of the C library's: a lane that is back has just been given its thread, and is lost again in this very moment. */
static struct link_sink *loses_lanes;
int pthread_setname_np(pthread_t thread, const char *name)
{
    static unsigned lane;
    (void)thread;
    if (loses_lanes && strcmp(name, "link lane") == 0)
        rp_link_miss_lane(loses_lanes, ++lane);
    return 0;
}

/* Lanes that are lost again as soon as they are back: each is still sought. */
Test(link, a_lane_that_is_lost_again_at_once_is_sought_again, .timeout = 60)
{
    struct rp_link_config cfg = {.vm_name = "fake", .lanes = 8, .heartbeat_ms = 60000};
    struct rp_bundle_stats st = {0};
    struct rp_error err = {0};
    struct rp_sink *sink;
    pthread_t t, mender;
    uint64_t held;
    char text[100];
    snprintf(text, sizeof(text), "unix:/tmp/rp-picky-%d", getpid());
    cr_assert_eq(rp_uri_parse(text, &cfg.uri, &err), 0, "%s", err.text);
    cr_assert_eq(rp_listen(&cfg.uri, &picky.l, &err), 0, "%s", err.text);
    pthread_create(&t, NULL, picky_main, NULL);
    cr_assert_eq(rp_link_sink_create(&cfg, &sink, &held, &err), 0, "%s", err.text);
    struct link_sink *s = (struct link_sink *)sink;
    cr_assert_eq(s->missing_lanes, 0xFEu);
    atomic_store(&picky.takes, true);
    loses_lanes = s;
    pthread_create(&mender, NULL, rp_link_mend_main, s);
    while (st.lanes < 8 && usleep(1000) == 0)
        rp_bundle_stats(s->bundle, &st);
    usleep(100000);
    pthread_mutex_lock(&s->lock);
    cr_assert_eq(s->missing_lanes, 0xFEu, "forgotten: 0x%x", 0xFEu & ~s->missing_lanes);
    pthread_mutex_unlock(&s->lock);
    sink->ops->cancel(sink);
    pthread_join(mender, NULL);
    sink->ops->destroy(sink);
    atomic_store(&picky.over, true);
    pthread_join(t, NULL);
    while (picky.n)
        rp_conn_close(picky.conns[--picky.n]);
    rp_listener_close(picky.l);
}

static void nothing_committed(void *ctx, struct rp_sink *sink, uint64_t epoch)
{
    (void)ctx, (void)sink, (void)epoch;
}

static void nothing_failed(void *ctx, struct rp_sink *sink, const struct rp_error *why)
{
    (void)ctx, (void)sink, (void)why;
}

/* A session that is given up ends at once, however rarely its heartbeat beats: a stalled standby must not hold outputs until the next. */
Test(link, INV5_a_session_ends_between_two_beats, .timeout = 30)
{
    struct standby s;
    struct rp_sink *sink;
    struct rp_error err = {0};
    uint64_t held;
    standby_start(&s, "unix", "", 1000);
    struct rp_link_config cfg = {.uri = s.uri, .vm_name = "fake", .lanes = 1, .heartbeat_ms = 60000, .timeout_ms = 240000};
    memset(cfg.vm_id, 7, sizeof(cfg.vm_id));
    cr_assert_eq(rp_link_sink_create(&cfg, &sink, &held, &err), 0, "%s", err.text);
    struct rp_sink_events events = {.committed = nothing_committed, .failed = nothing_failed};
    cr_assert_eq(sink->ops->start(sink, &events, &err), 0, "%s", err.text);
    usleep(100000);             /* the first beat has been sent, the next is a minute away */
    sink->ops->destroy(sink);
    standby_join(&s);
    standby_free(&s);
}

Test(link, a_stranger_gets_nowhere)
{
    struct standby s;
    struct rp_sink *sink;
    struct rp_error err = {0};
    standby_start(&s, "unix", "0123456789abcdef", TIMEOUT_MS);
    int rc = connect_to(&s, "another key, sir!", 1, &sink, &err);
    cr_assert_lt(rc, 0);
    cr_assert_eq(err.exit, RP_EXIT_REFUSED, "%s", err.text);
    struct rp_conn *c;
    cr_assert_eq(rp_connect(&s.uri, 1000, &c, &err), 0);
    char junk[160];
    memset(junk, 'x', sizeof(junk));
    cr_assert_eq(rp_conn_send(c, junk, sizeof(junk)), 0);
    char answer[300];
    cr_assert_gt(c->ops->recv(c, answer, sizeof(answer), 2000), 0);    /* a refusal, then the end */
    c->ops->close(c);
    cr_assert_eq(rp_image_epoch(s.image), 0);
    standby_cancel(&s);
    standby_free(&s);
}

/* Says HELLO as version 1 would; *answer: what came back, a text at its end. */
static void greet_in_an_old_version(struct standby *s, char answer[300])
{
    struct rp_error err = {0};
    struct rp_conn *c;
    uint8_t hello[160] = {'R', 'P', 'L', 'I', 'N', 'K', 0x0D, 0x0A, 1, 0, 0, 0, RP_LINK_CONTROL};
    size_t have = 0;
    ssize_t n;
    cr_assert_eq(rp_connect(&s->uri, 10000, &c, &err), 0, "%s", err.text);
    cr_assert_eq(rp_conn_send(c, hello, sizeof(hello)), 0);
    memset(answer, 0, 300);
    while (have < 299 && (n = c->ops->recv(c, answer + have, 299 - have, 20000)) > 0)
        have += (size_t)n;
    c->ops->close(c);
}

/* Wrong VM, old version, somebody who says nothing, a lane of no session: each is told why (or left), no memory is spent on it, and
 * the primary that comes after them is served. */
Test(link, strangers_of_every_kind_get_nowhere)
{
    struct standby s;
    struct rp_sink *sink;
    struct rp_error err = {0};
    struct rp_conn *mute;
    char answer[300];
    uint64_t held;
    standby_start(&s, "unix", "0123456789abcdef", TIMEOUT_MS);
    struct rp_link_config cfg = {.uri = s.uri, .vm_name = "other", .lanes = 1, .connect_ms = 10000};
    cfg.key.len = 16;
    memcpy(cfg.key.bytes, "0123456789abcdef", 16);
    cr_assert_lt(rp_link_sink_create(&cfg, &sink, &held, &err), 0);
    cr_assert_eq(err.exit, RP_EXIT_REFUSED, "%s", err.text);
    cr_assert(strstr(err.text, "waits for VM \"fake\""), "%s", err.text);
    greet_in_an_old_version(&s, answer);
    bool told = false;
    for (unsigned i = 0; i < 280 && !told; i++)
        told = strncmp(answer + i, "the two sides speak different versions", 38) == 0;
    cr_assert(told, "an old version is told so");
    cr_assert_eq(rp_connect(&s.uri, 10000, &mute, &err), 0);
    cr_assert_eq(rp_conn_send(mute, "RPL", 3), 0);      /* and never more: given up after a while */
    cr_assert_null(s.ram.base, "no memory was spent on any of them");
    cr_assert_eq(connect_to(&s, "0123456789abcdef", 1, &sink, &err), 0, "the primary is served: %s", err.text);
    mute->ops->close(mute);
    sink->ops->destroy(sink);
    standby_join(&s);
    cr_assert_eq(rp_image_epoch(s.image), 0u);
    standby_free(&s);
}

/* Who greets as a primary does and leaves it at that, with or without the key of the pair, delays neither one who opens a session nor its lanes. */
Test(link, who_does_not_end_a_greeting_is_in_nobodys_way)
{
    enum { STRANGERS = 10 };
    struct standby s;
    struct rp_sink *sink;
    struct rp_error err = {0};
    struct rp_conn *c[STRANGERS];
    uint8_t hello[RP_HELLO_BYTES] = {'R', 'P', 'L', 'I', 'N', 'K', 0x0D, 0x0A, RP_LINK_VERSION, 0, 0, 0, RP_LINK_CONTROL};
    standby_start(&s, "unix", "0123456789abcdef", TIMEOUT_MS);
    for (unsigned i = 0; i < STRANGERS; i++) {
        cr_assert_eq(rp_connect(&s.uri, 10000, &c[i], &err), 0, "%s", err.text);
        cr_assert_eq(rp_conn_send(c[i], hello, i % 2 ? sizeof(hello) : 100), 0);
    }
    uint64_t t0 = rp_clock_ns();
    cr_assert_eq(connect_to(&s, "0123456789abcdef", 2, &sink, &err), 0, "%s", err.text);
    cr_assert_lt(rp_clock_ns() - t0, 4000000000u, "each of them has taken a second");
    for (unsigned i = 0; i < STRANGERS; i++)
        rp_conn_close(c[i]);
    sink->ops->destroy(sink);
    standby_join(&s);
    standby_free(&s);
}

static struct rp_protect_status status;

static enum rp_protect_state wait_state(struct rp_protect *p, enum rp_protect_state want, unsigned ms)
{
    for (unsigned i = 0; i < ms; i += 5) {
        rp_protect_status(p, &status);
        if (status.state == want)
            break;
        usleep(5000);
    }
    return status.state;
}

/* Protected, the standby lost, unprotected and said so, protected again by the next one, switched over to it. */
Test(link, INV7_protection_comes_back)
{
    struct fake f;
    struct standby s1, s2;
    struct rp_events *ev;
    struct rp_protect *p;
    struct rp_error err = {0};
    fake_start(&f, 64, 20, 500);
    cr_assert_eq(rp_events_create(64, &ev), 0);
    standby_start(&s1, "unix", "", TIMEOUT_MS);
    struct rp_protect_config cfg = {.link = {.uri = s1.uri}, .engine.goal.epoch_ns = 2000000, .retry_ms = 50};
    cr_assert_eq(rp_protect_start(&f.base, ev, &cfg, false, &p, &err), 0);
    cr_assert_eq(rp_protect_wait(p, 10000, &err), 0, "%s", err.text);
    usleep(100000);
    standby_cancel(&s1);
    cr_assert_eq(wait_state(p, RP_PROTECT_UNPROTECTED, 5000), RP_PROTECT_UNPROTECTED);
    cr_assert(strstr(status.why, "standby"), "%s", status.why);
    standby_free(&s1);
    standby_start(&s2, "unix", "", TIMEOUT_MS);
    cr_assert_eq(wait_state(p, RP_PROTECT_PROTECTED, 10000), RP_PROTECT_PROTECTED);
    cr_assert_eq(rp_protect_switch(p, 10000, &err) < 0, true);      /* nobody says that it runs: INV-6 */
    cr_assert_eq(wait_state(p, RP_PROTECT_UNPROTECTED, 5000), RP_PROTECT_UNPROTECTED);
    standby_join(&s2);
    cr_assert_eq(s2.outcome.end, RP_LINK_FINAL);
    rp_protect_stop(p, RP_PROTECT_FORGET);
    struct rp_event events[64];
    unsigned n = rp_events_copy(ev, events, 64), lost = 0, back = 0;
    for (unsigned i = 0; i < n; i++) {
        lost += strcmp(events[i].name, "PROTECT_LOST") == 0;
        back += strcmp(events[i].name, "PROTECTED") == 0;
        printf("%s %s\n", events[i].name, events[i].data);
    }
    cr_assert_geq(lost, 2);
    cr_assert_eq(back, 2);
    rp_events_destroy(ev);
    fake_stop(&f);
    standby_free(&s2);
}

static _Atomic bool cuts_fail;

static int failing_cut(struct rp_source *s, struct rp_cut *cut, struct rp_error *err)
{
    return atomic_load(&cuts_fail) ? rp_error_set(err, EIO, "the machine's state cannot be read") : fake_ops.cut(s, cut, err);
}

/* The first epoch is held; until it may be acknowledged the standby's lanes stand, and the primary's emitter with them. */
static _Atomic bool held_up, let_go;
#define PATIENCE_MS 30000       /* of both sides: a busy host is no death */

static int hold_up(void *ctx, struct rp_image *image, struct rp_error *err)
{
    (void)ctx, (void)image, (void)err;
    atomic_store(&held_up, true);
    while (!atomic_load(&let_go))
        usleep(1000);
    return 0;
}

static void slow_standby(struct standby *s)
{
    struct rp_error err = {0};
    struct rp_image_ops ops = {.ctx = s, .ram = standby_ram};
    struct rp_link_recv_config cfg = {.vm_name = "fake", .timeout_ms = PATIENCE_MS, .applied = hold_up};
    struct rp_listener *l;
    char text[100];
    memset(s, 0, sizeof(*s));
    snprintf(text, sizeof(text), "unix:/tmp/rp-slow-%d", getpid());
    cr_assert_eq(rp_uri_parse(text, &s->uri, &err), 0, "%s", err.text);
    cr_assert_eq(rp_image_create(RP_IMAGE_STAGED, &ops, 64u << 20, &s->image, &err), 0, "%s", err.text);
    cr_assert_eq(rp_listen(&s->uri, &l, &err), 0, "%s", err.text);
    cfg.image = s->image;
    cr_assert_eq(rp_link_recv_create(l, &cfg, &s->recv, &err), 0, "%s", err.text);
    pthread_create(&s->thread, NULL, standby_main, s);
}

/* The second epoch is larger than what may be on its way: when the first is held up, there is no cut any more. */
static int cut_that_fails_later(struct rp_source *s, struct rp_cut *cut, struct rp_error *err)
{
    return cut->epoch >= 3 && atomic_load(&held_up) ? rp_error_set(err, EIO, "the machine's state cannot be read") : fake_ops.cut(s, cut, err);
}

/* Nor is it a death when the sink is stuck at that moment, and has to be torn from what it waits for. */
Test(link, INV3_a_primary_that_fails_while_its_sink_is_stuck_says_goodbye)
{
    struct fake f;
    struct standby s;
    struct rp_events *ev;
    struct rp_protect *p;
    struct rp_error err = {0};
    struct rp_source_ops ops = fake_ops;
    ops.cut = cut_that_fails_later;
    fake_start(&f, RP_PAGE_SIZE, 1000, 500);
    f.base.ops = &ops;
    cr_assert_eq(rp_events_create(64, &ev), 0);
    slow_standby(&s);
    struct rp_protect_config cfg = {.link = {.uri = s.uri, .timeout_ms = PATIENCE_MS}, .engine.goal = {.epoch_ns = 200000000},
                                    .retry_ms = 5000};
    cr_assert_eq(rp_protect_start(&f.base, ev, &cfg, false, &p, &err), 0);
    for (unsigned i = 0; i < 20000 && !atomic_load(&held_up); i++)
        usleep(1000);
    rp_protect_status(p, &status);
    cr_assert(atomic_load(&held_up), "the first epoch did not come: %d: %s; %d: %s", status.state, status.why, s.outcome.end, s.outcome.why.text);
    sleep(3);
    atomic_store(&let_go, true);
    standby_join(&s);
    cr_assert_eq(s.outcome.end, RP_LINK_BROKEN, "%d: %s", s.outcome.end, s.outcome.why.text);
    rp_protect_stop(p, RP_PROTECT_FORGET);
    rp_events_destroy(ev);
    fake_stop(&f);
    standby_free(&s);
}

/* A run that ends for a reason of the primary's own is no death either: its standby is told, and waits. */
Test(link, INV3_a_primary_that_fails_at_a_cut_says_goodbye)
{
    struct fake f;
    struct standby s;
    struct rp_events *ev;
    struct rp_protect *p;
    struct rp_error err = {0};
    struct rp_source_ops ops = fake_ops;
    ops.cut = failing_cut;
    fake_start(&f, 64, 20, 500);
    f.base.ops = &ops;
    cr_assert_eq(rp_events_create(64, &ev), 0);
    standby_start(&s, "unix", "", TIMEOUT_MS);
    struct rp_protect_config cfg = {.link = {.uri = s.uri}, .engine.goal.epoch_ns = 2000000, .retry_ms = 5000};
    cr_assert_eq(rp_protect_start(&f.base, ev, &cfg, false, &p, &err), 0);
    cr_assert_eq(rp_protect_wait(p, 10000, &err), 0, "%s", err.text);
    atomic_store(&cuts_fail, true);
    standby_join(&s);
    cr_assert_eq(s.outcome.end, RP_LINK_BROKEN, "%d: %s", s.outcome.end, s.outcome.why.text);
    cr_assert_eq(wait_state(p, RP_PROTECT_UNPROTECTED, 5000), RP_PROTECT_UNPROTECTED);
    cr_assert(strstr(status.why, "cannot be read"), "%s", status.why);
    rp_protect_stop(p, RP_PROTECT_FORGET);
    rp_events_destroy(ev);
    fake_stop(&f);
    standby_free(&s);
}
