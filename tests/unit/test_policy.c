/* When to cut and what protection may cost: the pure parts, with time and measurements made up. */
#include "core/epoch.h"
#include "replicator/governor.h"
#include "replicator/policy.h"

#include <criterion/criterion.h>
#include <string.h>

#define MS 1000000ull
#define T0 (1000000 * MS)

static struct rp_policy made(struct rp_goal goal)
{
    struct rp_policy p;
    rp_policy_init(&p, &goal, T0);
    rp_policy_open(&p);
    /* A busy VM with small epochs: not idle, nothing to capture early. */
    for (int i = 0; i < 100; i++) {
        rp_policy_learn_dirty(&p, 40, 20 * MS);
        rp_policy_learn_copy(&p, 40, 40 * 500);
        rp_policy_learn_commit(&p, MS, 40);
    }
    return p;
}

static void expect(const struct rp_policy *p, uint64_t now, enum rp_policy_action action, uint64_t until, int reason)
{
    struct rp_decision d = rp_policy_next(p, now);
    cr_assert_eq(d.action, action, "%d: %s", d.action, d.why);
    if (action == RP_POLICY_WAIT)
        cr_assert_eq(d.until_ns, until, "until %.3f ms: %s", ((double)d.until_ns - T0) / MS, d.why);
    if (action == RP_POLICY_CUT)
        cr_assert_eq(d.reason, reason, "%s", d.why);
    cr_assert(d.why && *d.why, "every decision has its reason");
}

Test(policy, an_epoch_is_cut_when_it_is_over)
{
    struct rp_policy p = made((struct rp_goal){.epoch_ns = 20 * MS});
    expect(&p, T0, RP_POLICY_WAIT, T0 + 20 * MS, 0);
    expect(&p, T0 + 20 * MS - 1, RP_POLICY_WAIT, T0 + 20 * MS, 0);
    expect(&p, T0 + 20 * MS, RP_POLICY_CUT, 0, RP_CUT_PERIOD);
}

Test(policy, an_output_that_waits_is_a_reason_to_cut_now)
{
    struct rp_policy p = made((struct rp_goal){.epoch_ns = 20 * MS});
    p.output_since_ns = T0 + 3 * MS;
    expect(&p, T0 + 3 * MS, RP_POLICY_CUT, 0, RP_CUT_OUTPUT);
    p.output_since_ns = T0 + 100000;        /* … but not twice within half a millisecond */
    expect(&p, T0 + 100000, RP_POLICY_WAIT, T0 + RP_POLICY_GAP_NS, 0);
    expect(&p, T0 + RP_POLICY_GAP_NS, RP_POLICY_CUT, 0, RP_CUT_OUTPUT);
}

/* A limit on resources gathers outputs; the latency goal says for how long it may. */
Test(policy, latency_bounds_what_limits_ask_for)
{
    struct rp_policy p = made((struct rp_goal){.epoch_ns = 20 * MS});
    rp_policy_limit(&p, 20 * MS, 12 * MS);
    p.output_since_ns = T0 + MS;
    expect(&p, T0 + MS, RP_POLICY_WAIT, T0 + 12 * MS, 0);
    struct rp_policy q = made((struct rp_goal){.epoch_ns = 20 * MS, .latency_ns = 5 * MS});
    rp_policy_limit(&q, 20 * MS, 12 * MS);
    q.output_since_ns = T0 + MS;
    struct rp_decision d = rp_policy_next(&q, T0 + MS);
    cr_assert_eq(d.action, RP_POLICY_WAIT);
    cr_assert_geq(d.until_ns, T0 + 4 * MS);
    cr_assert_leq(d.until_ns, T0 + 5 * MS + 1000, "a commit takes 1 ms of the 5 ms");
    expect(&q, d.until_ns, RP_POLICY_CUT, 0, RP_CUT_OUTPUT);
}

/* --- copy-on-write: what a cut's cold pages are worth --- */

/* A VM whose cuts of 10,000 pages take 5 ms to copy; protecting a page takes 50 ns, a run 1 us. */
static struct rp_policy cow_made(void)
{
    struct rp_policy p = made((struct rp_goal){.epoch_ns = 20 * MS});
    p.cow_able = true;
    p.protect_page_ns = 50;
    p.protect_run_ns = 1000;
    p.fault_ns = 10000;
    return p;
}

static void cow_learn(struct rp_policy *p, unsigned cuts, uint64_t held, uint64_t faults, double fault_ns)
{
    for (unsigned i = 0; i < cuts; i++)
        rp_policy_learn_cow(p, 10000, held, faults, fault_ns);
}

Test(policy, cow_is_tried_on_a_few_pages_and_then_used_for_all)
{
    struct rp_policy p = cow_made();
    struct rp_cow_plan plan;
    cr_assert(!rp_policy_cow(&p, 500, &plan), "copying 500 pages takes 0.25 ms, 0.3 ms are aimed at");
    cr_assert(rp_policy_cow(&p, 10000, &plan));
    cr_assert_leq(plan.max_pages, 256, "nothing is known about the guest's writes yet");
    cow_learn(&p, 4, 256, 0, 10000);
    cr_assert(rp_policy_cow(&p, 10000, &plan));
    cr_assert_geq(plan.max_pages, 10000);
    cr_assert(!plan.hot);
    /* Of a page 450 ns are saved, so a run of 1 us needs three; a gap of up to 20 clean pages is cheaper than another run. */
    cr_assert_eq(plan.min_run, 3);
    cr_assert_eq(plan.max_gap, 20);
}

Test(policy, cow_is_off_where_a_fault_is_dear_and_tried_again_now_and_then)
{
    struct rp_policy p = cow_made();
    struct rp_cow_plan plan;
    cow_learn(&p, 8, 256, 3, 150000);       /* 1.2 % of the pages, 1.8 us a page: copying takes 0.5 */
    cr_assert(!rp_policy_cow_pays(&p));
    cr_assert(!rp_policy_cow(&p, 10000, &plan));
    cow_learn(&p, 64, 0, 0, 0);
    cr_assert(rp_policy_cow(&p, 10000, &plan), "after 64 cuts that wanted it");
    cr_assert_leq(plan.max_pages, 256);
    cow_learn(&p, 1, 256, 3, 150000);
    cr_assert(!rp_policy_cow(&p, 10000, &plan));
    cow_learn(&p, 40, 256, 0, 15000);       /* the guest writes other pages now */
    cr_assert(rp_policy_cow(&p, 10000, &plan));
    cr_assert_gt(plan.max_pages, 256);
}

/* Protected pages are written more slowly once: that may take a tenth of the guest's time, 2 ms of each epoch here. */
Test(policy, cow_takes_no_more_pages_than_their_next_writes_may_cost)
{
    struct rp_policy p = cow_made();
    struct rp_cow_plan plan;
    cow_learn(&p, 8, 256, 0, 10000);
    p.after_ns = 1000;
    cr_assert(rp_policy_cow(&p, 10000, &plan));
    cr_assert_eq(plan.max_pages, 2000);
    p.after_ns = 20000;
    cr_assert(!rp_policy_cow_pays(&p), "a hundred pages would save nothing");
    cr_assert(!rp_policy_cow(&p, 10000, &plan));
}

Test(policy, cow_is_off_where_protecting_takes_as_long_as_copying)
{
    struct rp_policy p = cow_made();
    struct rp_cow_plan plan;
    for (unsigned i = 0; i < 100; i++)
        rp_policy_learn_protect(&p, 10, 10000, 10000 * 480 + 10 * 1000);
    cr_assert_float_eq(p.protect_page_ns, 480, 5);
    cr_assert(!rp_policy_cow(&p, 10000, &plan));
    for (unsigned i = 0; i < 100; i++)
        rp_policy_learn_protect(&p, 1000, 3000, 3000 * 480 + 1000 * 7000);      /* short runs say what a run costs */
    cr_assert_float_eq(p.protect_run_ns, 7000, 70);
}

Test(policy, cow_does_what_it_was_told)
{
    struct rp_policy p = cow_made();
    struct rp_cow_plan plan;
    p.choice = RP_CHOOSE_COW;
    cr_assert(rp_policy_cow(&p, 1, &plan));
    cr_assert(plan.hot && plan.min_run == 1 && plan.max_pages == UINT64_MAX);
    cr_assert(!rp_policy_early_pays(&p));
    p.choice = RP_CHOOSE_STOP;
    cr_assert(!rp_policy_cow(&p, 10000, &plan));
    cr_assert(!rp_policy_early_pays(&p));
    p.choice = RP_CHOOSE_BY_MEASURE;
    p.cow_able = false;
    cr_assert(!rp_policy_cow(&p, 10000, &plan), "the host has no userfaultfd");
}

/* Early capture makes a page free in the pause if it stays quiet; where pages do not, copy-on-write costs less. */
Test(policy, cow_and_early_are_compared)
{
    struct rp_policy p = cow_made();
    cow_learn(&p, 60, 9500, 9, 10000);
    p.stay_quiet = 0.99;
    cr_assert(rp_policy_early_pays(&p));
    p.stay_quiet = 0.7;
    cr_assert(!rp_policy_early_pays(&p));
    cow_learn(&p, 60, 1000, 1, 10000);      /* but only a tenth of the pages is cold now */
    cr_assert(rp_policy_early_pays(&p));
}

Test(policy, words_for_capture)
{
    enum rp_capture_choice c;
    cr_assert(rp_capture_choice_parse("copy-on-write", &c) && c == RP_CHOOSE_COW);
    cr_assert(rp_capture_choice_parse("stop-and-copy", &c) && c == RP_CHOOSE_STOP);
    cr_assert(rp_capture_choice_parse("auto", &c) && c == RP_CHOOSE_BY_MEASURE);
    cr_assert(!rp_capture_choice_parse("cow", &c));
}

/* What an output that comes at the worst moment would have to wait for must stay within half of the latency allowed. */
Test(policy, latency_keeps_epochs_small_enough_to_commit_in_time)
{
    struct rp_policy p = made((struct rp_goal){.epoch_ns = 100 * MS, .latency_ns = 10 * MS});
    for (int i = 0; i < 100; i++) {
        rp_policy_learn_dirty(&p, 1000, 10 * MS);       /* 100 pages a ms */
        rp_policy_learn_commit(&p, MS + 1000 * 4000, 1000);     /* 4 us a page */
    }
    p.stay_quiet = 0;
    struct rp_decision d = rp_policy_next(&p, T0);
    cr_assert_eq(d.action, RP_POLICY_WAIT, "%s", d.why);
    cr_assert_geq(d.until_ns, T0 + 9 * MS, "4 ms are room for 1,000 pages: 10 ms");
    cr_assert_leq(d.until_ns, T0 + 11 * MS);
}

Test(policy, an_idle_vm_is_cut_rarely)
{
    struct rp_policy p = made((struct rp_goal){.epoch_ns = 20 * MS});
    uint64_t t = T0 + 20 * MS;
    for (int i = 0; i < 100; i++)
        rp_policy_learn_dirty(&p, 1, 20 * MS);
    unsigned looks = 0;
    for (;;) {
        struct rp_decision d = rp_policy_next(&p, t);
        if (d.action == RP_POLICY_CUT)
            break;
        if (d.action == RP_POLICY_LOOK) {
            looks++;
            rp_policy_learn_look(&p, t, 3);
        } else {
            cr_assert_gt(d.until_ns, t);
            t = d.until_ns;
        }
    }
    cr_assert_eq(t, T0 + 16 * 20 * MS);
    cr_assert_leq(looks, 16);
    /* It begins to work: found at the next look, and cut. */
    t = T0 + 20 * MS;
    rp_policy_open(&p);
    rp_policy_learn_look(&p, t, 3);
    expect(&p, t, RP_POLICY_WAIT, t + 20 * MS, 0);
    rp_policy_learn_look(&p, t + 20 * MS, 900);
    expect(&p, t + 20 * MS, RP_POLICY_CUT, 0, RP_CUT_PERIOD);
    /* It says something: cut at once. */
    rp_policy_learn_look(&p, t, 3);
    p.output_since_ns = t;
    expect(&p, t, RP_POLICY_CUT, 0, RP_CUT_OUTPUT);
}

Test(policy, early_capture_ends_when_the_cut_is_due_and_only_where_it_pays)
{
    struct rp_policy p = made((struct rp_goal){.epoch_ns = 20 * MS});
    for (int i = 0; i < 100; i++)
        rp_policy_learn_dirty(&p, 4000, 20 * MS);       /* 2 ms of copying, 0.3 ms aimed at */
    struct rp_decision d = rp_policy_next(&p, T0);
    cr_assert_eq(d.action, RP_POLICY_WAIT);
    cr_assert(d.until_ns > T0 + 15 * MS && d.until_ns < T0 + 18 * MS, "%.2f ms", ((double)d.until_ns - T0) / MS);
    expect(&p, d.until_ns, RP_POLICY_EARLY, 0, 0);
    rp_policy_learn_early_done(&p, T0 + 19 * MS + MS / 2);
    expect(&p, T0 + 20 * MS, RP_POLICY_CUT, 0, RP_CUT_PERIOD);
    for (int i = 0; i < 40; i++)
        rp_policy_learn_early(&p, 4000, 3900);          /* all are written again: wasted work */
    rp_policy_open(&p);
    cr_assert(!rp_policy_early_pays(&p));
    expect(&p, T0, RP_POLICY_WAIT, T0 + 20 * MS, 0);
    for (int i = 0; i < 64; i++)
        rp_policy_learn_early(&p, 0, 0);
    cr_assert(rp_policy_early_pays(&p), "it is tried again from time to time");
}

Test(policy, INV5_no_more_epochs_in_flight_than_allowed)
{
    struct rp_policy p = made((struct rp_goal){.epoch_ns = 20 * MS, .depth = 3});
    p.in_flight = 3;
    p.output_since_ns = T0;
    cr_assert_eq(rp_policy_next(&p, T0 + 30 * MS).action, RP_POLICY_WAIT);
    cr_assert_eq(rp_policy_next(&p, T0 + 200 * MS).action, RP_POLICY_LOOK, "how much gets dirty meanwhile has to be known");
    rp_policy_learn_look(&p, T0 + 200 * MS, 10);
    cr_assert_eq(rp_policy_next(&p, T0 + 210 * MS).action, RP_POLICY_WAIT);
    p.in_flight = 2;
    expect(&p, T0 + 210 * MS, RP_POLICY_CUT, 0, RP_CUT_OUTPUT);
}

/* --- the governor --- */

struct world {
    struct rp_governor g;
    struct rp_sample s;
};

static struct world world(struct rp_goal goal)
{
    struct world w = {.s = {.now_ns = T0, .slots = 1000}};
    rp_governor_init(&w.g, &goal, T0);
    return w;
}

/* A period of 100 ms in which the engine used `cpu` percent of a core, and the sink took something or did not. */
static bool stuck;      /* no cut comes about */

static void period(struct world *w, unsigned cpu, bool progress)
{
    w->s.now_ns += RP_GOVERNOR_NS;
    w->s.cpu_ns += RP_GOVERNOR_NS / 100 * cpu;
    w->s.wire_bytes += progress;
    w->s.cut += !stuck;
    w->s.outstanding = true;
    rp_governor_look(&w->g, &w->s);
}

Test(governor, nothing_to_do)
{
    struct world w = world((struct rp_goal){.epoch_ns = 20 * MS, .cpu_percent = 50});
    for (int i = 0; i < 100; i++)
        period(&w, 20, true);
    cr_assert_eq(w.g.pressure, RP_PRESSURE_CALM);
    cr_assert_eq(w.g.epoch_ns, 20 * MS);
    cr_assert_eq(w.g.gap_ns, RP_POLICY_GAP_NS);
    cr_assert_eq(w.g.throttle, 0);
}

Test(governor, cpu_goal_makes_cuts_rarer_and_comes_back)
{
    struct world w = world((struct rp_goal){.epoch_ns = 20 * MS, .cpu_percent = 20});
    for (int i = 0; i < 8; i++)
        period(&w, 40, true);
    cr_assert_eq(w.g.pressure, RP_PRESSURE_LONGER);
    cr_assert_gt(w.g.epoch_ns, 20 * MS);
    cr_assert_gt(w.g.gap_ns, RP_POLICY_GAP_NS);
    cr_assert(strstr(w.g.why_epoch, "20 % are allowed"), "%s", w.g.why_epoch);
    cr_assert_eq(w.g.throttle, 0);
    for (int i = 0; i < 200; i++)
        period(&w, 5, true);
    cr_assert_eq(w.g.pressure, RP_PRESSURE_CALM);
    cr_assert_eq(w.g.epoch_ns, 20 * MS);
}

Test(governor, latency_goal_bounds_the_gap_then_vcpus_pay)
{
    struct world w = world((struct rp_goal){.epoch_ns = 20 * MS, .cpu_percent = 10, .latency_ns = 8 * MS});
    for (int i = 0; i < 100; i++)
        period(&w, 60, true);
    cr_assert_eq(w.g.gap_ns, 4 * MS);
    cr_assert_leq(w.g.epoch_ns, 1000 * MS);
    cr_assert_eq(w.g.pressure, RP_PRESSURE_THROTTLED);
    cr_assert_eq(w.g.throttle, 99);
}

Test(governor, INV5_late_commits_make_epochs_longer)
{
    struct world w = world((struct rp_goal){.epoch_ns = 20 * MS});
    for (int i = 0; i < 5; i++) {
        w.s.oldest_cut_ns = w.s.now_ns - 300 * MS;
        period(&w, 10, true);
    }
    cr_assert_eq(w.g.pressure, RP_PRESSURE_LONGER);
    cr_assert_gt(w.g.epoch_ns, 40 * MS);
    for (int i = 0; i < 50; i++) {
        w.s.oldest_cut_ns = 0;
        period(&w, 10, true);
    }
    cr_assert_eq(w.g.pressure, RP_PRESSURE_CALM);
}

/* The guest dirties more between two cuts than the arena holds: throttled in steps, and freed in smaller ones. */
Test(governor, INV5_a_dirty_set_that_does_not_fit_throttles)
{
    struct world w = world((struct rp_goal){.epoch_ns = 20 * MS});
    unsigned before = 0;
    for (int i = 0; i < 20; i++) {
        w.s.put_off++;
        period(&w, 10, true);
        cr_assert_geq(w.g.throttle, before);
        before = w.g.throttle;
    }
    cr_assert_eq(w.g.throttle, 99, "not all of its time");
    cr_assert_eq(w.g.pressure, RP_PRESSURE_THROTTLED);
    for (int i = 0; i < 400; i++)
        period(&w, 10, true);
    cr_assert_eq(w.g.throttle, 0);
    cr_assert_eq(w.g.pressure, RP_PRESSURE_CALM);
    w.s.dirty_pages = 900;
    period(&w, 10, true);
    cr_assert_gt(w.g.throttle, 0, "known to be dirty counts before a cut has failed");
    struct world never = world((struct rp_goal){.epoch_ns = 20 * MS, .throttle_max = 100});
    never.s.put_off++;
    period(&never, 10, true);
    cr_assert_eq(never.g.throttle, 0);
}

Test(governor, INV5_an_epoch_stays_below_what_the_sink_can_take)
{
    struct world w = world((struct rp_goal){.epoch_ns = 20 * MS});
    w.s.epoch_pages = 1000;
    w.s.open_pages = 600;
    period(&w, 10, true);
    cr_assert_eq(w.g.throttle, 0);
    w.s.open_pages = 700;
    w.s.now_ns += MS;
    w.s.wire_bytes++;
    rp_governor_look(&w.g, &w.s);
    cr_assert_eq(w.g.throttle, 99, "at once, and not by steps");
    w.s.open_pages = 300;
    period(&w, 10, true);
    cr_assert_eq(w.g.throttle, 99, "until it is cut");
    w.s.open_pages = 10;
    period(&w, 10, true);
    cr_assert_eq(w.g.throttle, 0, "as before");
    w.s.open_pages = 700;
    for (int i = 0; i < 20; i++)
        period(&w, 10, false);
    cr_assert_eq(w.g.throttle, 0, "a sink that is stuck is not helped by a slower guest");
    w.s.syncing = true;
    period(&w, 10, true);
    cr_assert_eq(w.g.throttle, 0);
}

Test(governor, INV5_a_sink_that_takes_nothing_is_given_up)
{
    struct world w = world((struct rp_goal){.epoch_ns = 20 * MS, .stall_ns = 3000 * MS});
    period(&w, 10, true);
    for (int i = 0; i < 29; i++) {
        w.s.oldest_cut_ns = T0;
        period(&w, 10, false);
        cr_assert_neq(w.g.pressure, RP_PRESSURE_LOST, "after %d periods", i);
    }
    period(&w, 10, false);
    cr_assert_eq(w.g.pressure, RP_PRESSURE_LOST);
    period(&w, 10, true);
    cr_assert_neq(w.g.pressure, RP_PRESSURE_LOST, "slow is not lost");
    struct world patient = world((struct rp_goal){.stall_ns = UINT64_MAX});
    for (int i = 0; i < 1000; i++)
        period(&patient, 0, false);
    cr_assert_neq(patient.g.pressure, RP_PRESSURE_LOST);
}

/* A resync reads for longer than a sink is waited for, and all that it reads is held there: nothing has to be sent. */
Test(governor, INV5_a_sink_that_holds_what_is_read_is_not_given_up)
{
    struct world w = world((struct rp_goal){.epoch_ns = 20 * MS, .stall_ns = 3000 * MS});
    w.s.syncing = true;
    stuck = true;
    period(&w, 10, true);
    for (int i = 0; i < 100; i++) {
        w.s.equal_pages += 64;
        period(&w, 10, false);
        cr_assert_neq(w.g.pressure, RP_PRESSURE_LOST, "after %d periods: %s", i, w.g.why_lost);
    }
    for (int i = 0; i < 30; i++)
        period(&w, 10, false);
    cr_assert_eq(w.g.pressure, RP_PRESSURE_LOST, "nothing is read any more");
}

/* The throttle is at its end, the sink takes what it can, and still no cut comes about. */
Test(governor, INV5_a_guest_that_cannot_be_protected_is_not_slowed_for_ever)
{
    struct world w = world((struct rp_goal){.stall_ns = 3000 * MS, .throttle_max = 50});
    unsigned n = 0;
    stuck = true;
    for (; n < 100 && w.g.pressure != RP_PRESSURE_LOST; n++) {
        w.s.put_off++;
        period(&w, 10, true);
    }
    cr_assert(n >= 30 && n < 50, "%u periods", n);
    cr_assert(strstr(w.g.why_lost, "at 50 % throttle"), "%s", w.g.why_lost);
}

/* The link is slow, the throttle at its end, and epochs wait: but what is in flight travels, so its commit will come. */
Test(governor, INV5_a_slow_commit_is_waited_for)
{
    struct world w = world((struct rp_goal){.epoch_ns = 20 * MS, .stall_ns = 3000 * MS, .throttle_max = 50});
    stuck = true;
    w.s.oldest_cut_ns = T0;
    for (unsigned n = 0; n < 300; n++) {
        period(&w, 10, true);
        cr_assert_neq(w.g.pressure, RP_PRESSURE_LOST, "after %u periods: %s", n, w.g.why_lost);
    }
    cr_assert_eq(w.g.throttle, 50);
}
