/*
 * Fault points of the link, fired one by one under a protected source (tests/faults.mk): whatever breaks, the source goes on, the
 * standby holds a whole epoch (INV-2), the loss is told (INV-7), protection comes back by itself, and no output left before its
 * epoch was committed (INV-1).
 */
#include "core/fault.h"
#include "replicator/protect.h"
#include "tests/own_address.h"
#include "tests/unit/fake_source.h"
#include "tests/unit/told.h"

#include <errno.h>
#include <stdio.h>

TestSuite(faults, .timeout = 120);

struct standby {
    struct rp_ram_view ram;
    struct rp_image *image;
    struct rp_link_recv *recv;
    struct rp_uri uri;
    pthread_t thread;
    _Atomic bool quit;
    _Atomic uint64_t applied;       /* newest epoch */
    unsigned sessions;
};

static int make_ram(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err)
{
    struct standby *s = ctx;
    (void)h, (void)err;
    view_init(&s->ram);
    *out = s->ram;
    return 0;
}

/* Each epoch that is applied is a whole one. */
static int on_applied(void *ctx, struct rp_image *image, struct rp_error *err)
{
    struct standby *s = ctx;
    struct rp_hash128 d = rp_digest_of(&s->ram);
    const struct rp_epoch_trailer *t = rp_image_trailer(image);
    if (d.lo != t->digest_lo || d.hi != t->digest_hi)
        return rp_error_set(err, EIO, "the image is not what was cut");
    atomic_store(&s->applied, rp_image_epoch(image));
    return 0;
}

static void *serve(void *arg)
{
    struct standby *s = arg;
    while (!atomic_load(&s->quit)) {
        struct rp_error err = {0};
        struct rp_link_outcome out;
        int rc = rp_link_serve(s->recv, &out, &err);
        cr_assert_eq(rc, 0, "%s", err.text);
        cr_assert(out.end != RP_LINK_DAMAGED || strstr(out.why.text, "fault point"), "%s", out.why.text);
        s->sessions++;
    }
    return NULL;
}

static void standby_start(struct standby *s)
{
    struct rp_error err = {0};
    struct rp_listener *l;
    memset(s, 0, sizeof(*s));
    s->uri = own_address("unix");
    struct rp_image_ops ops = {.ctx = s, .ram = make_ram};
    cr_assert_eq(rp_image_create(RP_IMAGE_STAGED, &ops, 64u << 20, &s->image, &err), 0);
    cr_assert_eq(rp_listen(&s->uri, &l, &err), 0, "%s", err.text);
    struct rp_link_recv_config cfg = {.vm_name = "fake", .image = s->image, .timeout_ms = 3000, .applied = on_applied, .ctx = s};
    cr_assert_eq(rp_link_recv_create(l, &cfg, &s->recv, &err), 0);
    pthread_create(&s->thread, NULL, serve, s);
}

static void standby_stop(struct standby *s)
{
    atomic_store(&s->quit, true);
    rp_link_cancel(s->recv);
    pthread_join(s->thread, NULL);
    rp_link_recv_destroy(s->recv);
    rp_image_destroy(s->image);
    munmap(s->ram.base, PAGES * RP_PAGE_SIZE);
}

static void arm(const char *fault)
{
    setenv("RP_FAULT", fault, 1);
    rp_fault_reload();
}

/* Until `more` further epochs are at the standby while the source is protected. */
static void protected_for(struct rp_protect *p, struct standby *s, unsigned more)
{
    struct rp_protect_status st;
    uint64_t want = 0;
    for (;;) {
        rp_protect_status(p, &st);
        cr_assert_neq(st.state, RP_PROTECT_OFF);
        if (st.state != RP_PROTECT_PROTECTED)
            want = 0;
        else if (!want)
            want = atomic_load(&s->applied) + more;
        else if (atomic_load(&s->applied) >= want)
            return;
        usleep(2000);
    }
}

/* `loses`: this fault ends the session, which must be told; otherwise the session lives on. */
static void fire(const char *fault, bool at_first, bool loses)
{
    struct fake f;
    struct standby s;
    struct rp_events *events;
    struct rp_protect *p;
    struct rp_error err = {0};
    arm(at_first ? fault : "");
    fake_start(&f, 64, 10, 500);
    standby_start(&s);
    cr_assert_eq(rp_events_create(128, &events), 0);
    struct rp_protect_config cfg = {.link = {.uri = s.uri, .lanes = 2, .timeout_ms = 3000}, .engine.goal.epoch_ns = 2000000, .retry_ms = 50};
    cr_assert_eq(rp_protect_start(&f.base, events, &cfg, true, &p, &err), 0, "%s", err.text);
    if (!at_first) {
        protected_for(p, &s, 3);
        arm(fault);
    }
    while (!rp_fault_fired())
        usleep(2000);
    uint64_t then = atomic_load(&s.applied);
    if (loses)
        while (!told(events, "PROTECT_LOST"))
            usleep(2000);
    protected_for(p, &s, 5);
    cr_assert_gt(atomic_load(&s.applied), then);
    cr_assert_eq(told(events, "PROTECT_LOST") > 0, loses, "%s", fault);
    uint64_t newest = rp_protect_stop(p, RP_PROTECT_LEAVE);
    cr_assert_leq(atomic_load(&s.applied), newest);
    standby_stop(&s);
    /* what was released for good was committed: applied at the standby before */
    uint64_t released = atomic_load(&f.released);
    cr_assert(released == UINT64_MAX || released <= atomic_load(&s.applied), "released %lu, applied %lu", released, atomic_load(&s.applied));
    rp_events_destroy(events);
    fake_stop(&f);
}

Test(faults, INV7_link_hello) { fire("link-hello:1", true, true); }
Test(faults, INV2_link_epoch_end) { fire("link-epoch-end:3", false, true); }
Test(faults, INV1_link_ack_send) { fire("link-ack-send:3", false, true); }
/* A heartbeat says the same again. */
Test(faults, INV1_link_ack_recv) { fire("link-ack-recv:3", false, false); }
Test(faults, INV7_link_heartbeat) { fire("link-heartbeat:3", false, true); }
