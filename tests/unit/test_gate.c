/* The output gate: INV-1 (output commit) through GATE-1 … GATE-4. */
#include "core/clock.h"
#include "vmm/gate.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>

struct wire {               /* where outputs arrive */
    char got[4096];
    size_t n;
    bool full;              /* the host takes nothing */
    unsigned resumed, blocked, flushed;
};

static struct rp_gate *gate;
static struct rp_gate_port *port, *other;
static struct wire wire, wire2;

static int wire_write(void *ctx, const struct iovec *iov, int n)
{
    struct wire *w = ctx;

    if (w->full)
        return -EAGAIN;
    for (int i = 0; i < n; i++) {
        memcpy(w->got + w->n, iov[i].iov_base, iov[i].iov_len);
        w->n += iov[i].iov_len;
    }
    w->got[w->n] = 0;
    return 0;
}
static int wire_flush(void *ctx) { ((struct wire *)ctx)->flushed++; return 0; }
static void wire_resume(void *ctx) { ((struct wire *)ctx)->resumed++; }
static void wire_blocked(void *ctx) { ((struct wire *)ctx)->blocked++; }
static const struct rp_gate_ops ops = {.write = wire_write, .flush = wire_flush, .resume = wire_resume, .blocked = wire_blocked};

static void setup(void)
{
    struct rp_error err = {0};

    memset(&wire, 0, sizeof(wire));
    memset(&wire2, 0, sizeof(wire2));
    cr_assert_eq(rp_gate_create(NULL, 4096, &gate, &err), 0, "%s", err.text);
    cr_assert_eq(rp_gate_port_add(gate, &ops, &wire, &port), 0);
    cr_assert_eq(rp_gate_port_add(gate, &ops, &wire2, &other), 0);
}
static void teardown(void) { rp_gate_destroy(gate); }
TestSuite(gate, .init = setup, .fini = teardown);

static int out(struct rp_gate_port *p, const char *s)
{
    union { const char *c; void *v; } u = {.c = s};
    struct iovec iov[2] = {{.iov_base = u.v, .iov_len = 1}, {.iov_base = (char *)u.v + 1, .iov_len = strlen(s) - 1}};

    return rp_gate_send(p, iov, 2);
}

Test(gate, open_passes_at_once)
{
    cr_assert_eq(out(port, "ab"), 0);
    cr_assert_str_eq(wire.got, "ab");
    rp_gate_flush(port);
    cr_assert_eq(wire.flushed, 1u);
}

Test(gate, INV_1_nothing_leaves_before_its_epoch_is_released)
{
    eventfd_t v;

    rp_gate_hold(gate, true);
    cr_assert_eq(out(port, "a1"), 0);
    cr_assert_str_eq(wire.got, "a1", "holding begins at the next cut");
    rp_gate_cut(gate, 7);
    cr_assert_eq(out(port, "b1"), 0);       /* belongs to 8 */
    cr_assert_eq(eventfd_read(rp_gate_fd(gate), &v), 0, "an output waits");
    cr_assert_eq(out(port, "b2"), 0);
    cr_assert_neq(eventfd_read(rp_gate_fd(gate), &v), 0, "told once per epoch");
    rp_gate_release(gate, 7);
    cr_assert_str_eq(wire.got, "a1");
    rp_gate_cut(gate, 8);
    cr_assert_eq(out(port, "c1"), 0);       /* 9 */
    cr_assert_eq(eventfd_read(rp_gate_fd(gate), &v), 0, "the next epoch's first output waits");
    cr_assert_str_eq(wire.got, "a1", "a cut is not a commit");
    rp_gate_release(gate, 8);
    cr_assert_str_eq(wire.got, "a1b1b2");
    rp_gate_cut(gate, 9);
    rp_gate_cut(gate, 10);
    cr_assert_eq(out(port, "d1"), 0);       /* 11 */
    rp_gate_release(gate, 10);
    cr_assert_str_eq(wire.got, "a1b1b2c1");
    rp_gate_release(gate, 9);               /* late and old: no step back */
    rp_gate_release(gate, 11);
    cr_assert_str_eq(wire.got, "a1b1b2c1d1", "GATE-2");
}

Test(gate, opening_for_good_lets_everything_out)
{
    rp_gate_hold(gate, true);
    rp_gate_cut(gate, 1);
    cr_assert_eq(out(port, "aa"), 0);
    rp_gate_release(gate, UINT64_MAX);
    cr_assert_str_eq(wire.got, "aa");
    cr_assert_eq(out(port, "bb"), 0);
    cr_assert_str_eq(wire.got, "aabb");
    rp_gate_hold(gate, true);
    rp_gate_cut(gate, 2);
    cr_assert_eq(out(port, "cc"), 0);
    cr_assert_str_eq(wire.got, "aabb", "a release for good does not outlive the next hold");
    rp_gate_hold(gate, false);
    cr_assert_str_eq(wire.got, "aabbcc");
}

Test(gate, INV_3_past_the_deadline_nothing_leaves)
{
    struct rp_gate_stats s;

    rp_gate_set_deadline(gate, 1);          /* long ago */
    cr_assert_eq(out(port, "aa"), 0);
    cr_assert_str_eq(wire.got, "", "open, and still nothing");
    rp_gate_hold(gate, true);
    rp_gate_cut(gate, 1);
    cr_assert_eq(out(port, "bb"), 0);
    rp_gate_release(gate, 5);
    rp_gate_hold(gate, false);
    rp_gate_release(gate, UINT64_MAX);
    cr_assert_str_eq(wire.got, "", "GATE-3");
    rp_gate_stats(gate, &s);
    cr_assert_gt(s.late, 0u);
    cr_assert_eq(s.waiting_frames, 2u);
    rp_gate_set_deadline(gate, rp_clock_ns() + 60000000000u);
    cr_assert_str_eq(wire.got, "aabb", "renewed: it leaves, in order");
    rp_gate_stats(gate, &s);
    cr_assert_eq(s.waiting_bytes, 0u);
    cr_assert_gt(s.hold_p50_ns, 0u);
}

Test(gate, a_full_gate_pushes_back_and_drops_nothing)
{
    struct rp_gate_stats s;
    char frame[129] = {0};
    unsigned sent = 0;

    memset(frame, 'x', 128);
    rp_gate_hold(gate, true);
    rp_gate_cut(gate, 1);
    while (out(port, frame) == 0)
        cr_assert_lt(++sent, 100u, "no bound");
    cr_assert_gt(sent, 5u);
    cr_assert_eq(out(other, "oo"), 0, "one port does not fill the gate for others");
    rp_gate_poll(gate);
    cr_assert_eq(wire.resumed, 0u);
    rp_gate_release(gate, 2);
    rp_gate_poll(gate);
    cr_assert_eq(wire.resumed, 1u, "GATE-4");
    cr_assert_eq(wire.n, 128u * sent);
    rp_gate_stats(gate, &s);
    cr_assert_eq(s.full, 1u);
    cr_assert_eq(s.held_frames, sent + 1u);
}

Test(gate, a_slow_host_pushes_back_and_others_go_on)
{
    wire.full = true;
    cr_assert_eq(out(port, "aa"), -EAGAIN);
    rp_gate_poll(gate);
    cr_assert_eq(wire.blocked, 1u);
    cr_assert_eq(wire.resumed, 0u);
    cr_assert_eq(out(other, "bb"), 0);
    cr_assert_str_eq(wire2.got, "bb");
    cr_assert_not(rp_gate_writable(port) && wire.resumed == 0, "not writable yet: nothing to send, so it resumes and is refused again");
    wire.full = false;
    wire.resumed = 0;
    cr_assert_eq(out(port, "aa"), 0);

    rp_gate_hold(gate, true);
    rp_gate_cut(gate, 1);
    cr_assert_eq(out(port, "c1"), 0);
    cr_assert_eq(out(port, "c2"), 0);
    wire.full = true;
    rp_gate_release(gate, 2);
    cr_assert_str_eq(wire.got, "aa");
    rp_gate_poll(gate);
    cr_assert_eq(wire.blocked, 2u);
    cr_assert_not(rp_gate_writable(port));
    wire.full = false;
    cr_assert(rp_gate_writable(port));
    cr_assert_str_eq(wire.got, "aac1c2");
}

/* Releases come from the committer's thread while the machine sends: order and count hold. */
static void *committer(void *arg)
{
    (void)arg;
    for (uint64_t e = 1; e <= 200; e++)
        rp_gate_release(gate, e);
    return NULL;
}

Test(gate, release_from_another_thread)
{
    pthread_t t;
    char digit[3] = "0\n";

    rp_gate_hold(gate, true);
    rp_gate_cut(gate, 1);
    cr_assert_eq(pthread_create(&t, NULL, committer, NULL), 0);
    for (uint64_t e = 2; e <= 150; e++) {
        digit[0] = (char)('0' + e % 10);
        while (out(port, digit) == -EAGAIN)
            ;
        rp_gate_cut(gate, e);
    }
    pthread_join(t, NULL);
    cr_assert_eq(wire.n, 149u * 2);
    for (uint64_t e = 2; e <= 150; e++)
        cr_assert_eq(wire.got[2 * (e - 2)], (char)('0' + e % 10));
}
