/*
 * Protection (replicator/protect.h, P1 to P3) between a fake source and a real standby over a real socket: the owner's part (the
 * lease) is played by the test, which fails it when it wants to.
 */
#include "replicator/protect.h"
#include "tests/unit/fake_standby.h"

#include <errno.h>

#define LONG_MS 60000

static void listen_for_primary(struct standby *s)
{
    standby_start(s, "unix", "", 5000);
    s->says = STANDBY_RUNS;
}

/* --- the owner, and the source's gate --- */

static struct {
    _Atomic bool holds;             /* the gate: outputs wait */
    _Atomic bool storage_gone;      /* disown fails */
    _Atomic unsigned disowned, opened, opened_too_early, yielded, retaken;
    _Atomic bool switched, runs_there;
} world;

static int on_disown(void *ctx, struct rp_error *err)
{
    (void)ctx;
    if (atomic_load(&world.storage_gone))
        return rp_error_set(err, EIO, "the storage is gone");
    atomic_fetch_add(&world.disowned, 1);
    return 0;
}

static int on_yield(void *ctx, struct rp_error *err)
{
    (void)ctx, (void)err;
    atomic_fetch_add(&world.yielded, 1);
    return 0;
}

static int on_retake(void *ctx, struct rp_error *err)
{
    (void)ctx;
    atomic_fetch_add(&world.retaken, 1);
    return atomic_load(&world.runs_there) ? rp_error_set(err, ESTALE, "it runs there") : 0;
}

static void on_switched(void *ctx)
{
    (void)ctx;
    atomic_store(&world.switched, true);
}

static void on_gate(struct rp_source *s, bool hold)
{
    (void)s;
    bool held = atomic_exchange(&world.holds, hold);
    if (hold || !held)
        return;
    atomic_fetch_add(&world.opened, 1);
    if (atomic_load(&world.disowned) < atomic_load(&world.opened))
        atomic_fetch_add(&world.opened_too_early, 1);
}

static struct fake fake;
static struct rp_source_ops ops;
static struct rp_events *events;
static struct rp_protect_status status;

static struct rp_protect *protect(struct standby *s)
{
    struct rp_protect *p;
    struct rp_error err = {0};
    struct rp_protect_config cfg = {.link = {.uri = s->uri}, .engine.goal.epoch_ns = 2000000, .retry_ms = 50};
    cfg.owner = (struct rp_protect_owner){.disown = on_disown, .yield = on_yield, .retake = on_retake, .switched = on_switched};
    fake_start(&fake, 64, 20, 500);
    ops = *fake.base.ops;
    ops.gate = on_gate;
    fake.base.ops = &ops;
    cr_assert_eq(rp_events_create(64, &events), 0);
    cr_assert_eq(rp_protect_start(&fake.base, events, &cfg, false, &p, &err), 0, "%s", err.text);
    cr_assert_eq(rp_protect_wait(p, LONG_MS, &err), 0, "%s", err.text);
    return p;
}

static enum rp_protect_state wait_state(struct rp_protect *p, enum rp_protect_state want)
{
    for (unsigned ms = 0; ms < LONG_MS; ms += 5) {
        rp_protect_status(p, &status);
        if (status.state == want)
            break;
        usleep(5000);
    }
    return status.state;
}

static void end(struct rp_protect *p)
{
    rp_protect_stop(p, RP_PROTECT_FORGET);
    rp_events_destroy(events);
    fake_stop(&fake);
}

TestSuite(protect, .timeout = 180);

/* The standby is lost while the lease's storage is away: outputs wait, and flow once no standby can take them back. */
Test(protect, P1_outputs_flow_only_after_the_standby_was_disowned)
{
    struct standby s;
    listen_for_primary(&s);
    struct rp_protect *p = protect(&s);
    cr_assert(atomic_load(&world.holds));
    atomic_store(&world.storage_gone, true);
    standby_cancel(&s);
    cr_assert_eq(wait_state(p, RP_PROTECT_UNPROTECTED), RP_PROTECT_UNPROTECTED);
    usleep(300000);             /* several attempts to disown */
    cr_assert(atomic_load(&world.holds), "P1");
    rp_protect_status(p, &status);
    cr_assert(status.held);
    atomic_store(&world.storage_gone, false);
    for (unsigned ms = 0; ms < LONG_MS && atomic_load(&world.holds); ms += 5)
        usleep(5000);
    cr_assert_not(atomic_load(&world.holds), "INV-5: the VM's outputs flow again");
    cr_assert_eq(atomic_load(&world.opened_too_early), 0u);
    end(p);
}

/* Unprotect: the standby forgets, and is disowned too, because a goodbye may get lost. */
Test(protect, P1_unprotect_disowns_as_well)
{
    struct standby s;
    listen_for_primary(&s);
    struct rp_protect *p = protect(&s);
    end(p);
    cr_assert_not(atomic_load(&world.holds));
    cr_assert_eq(atomic_load(&world.disowned), 1u);
    cr_assert_eq(atomic_load(&world.opened_too_early), 0u);
    standby_join(&s);
    cr_assert_eq(s.outcome.end, RP_LINK_STOPPED);
    standby_free(&s);
}

Test(protect, P3_a_switchover_that_comes_about)
{
    struct standby s;
    struct rp_error err = {0};
    listen_for_primary(&s);
    struct rp_protect *p = protect(&s);
    cr_assert_eq(rp_protect_switch(p, LONG_MS, &err), 0, "%s", err.text);
    cr_assert_eq(wait_state(p, RP_PROTECT_SWITCHED), RP_PROTECT_SWITCHED);
    standby_join(&s);
    cr_assert_eq(s.outcome.end, RP_LINK_FINAL);
    cr_assert(s.outcome.switching);
    cr_assert_eq(s.answered, 0, "the source has answered that it knows");
    for (unsigned ms = 0; ms < LONG_MS && !atomic_load(&world.switched); ms += 5)
        usleep(5000);           /* the owner is told after the others */
    cr_assert(atomic_load(&world.switched));
    cr_assert(atomic_load(&world.holds), "the source's outputs stay where they are");
    cr_assert_eq(atomic_load(&world.yielded), 1u);
    standby_is(&s, &fake);      /* nothing is lost */
    rp_protect_stop(p, RP_PROTECT_FORGET);
    fake_resume(&fake.base, NULL);      /* so that its thread can end */
    rp_events_destroy(events);
    fake_stop(&fake);
    standby_free(&s);
}

/* INV-6: the target says that it cannot; the source has its lease back and goes on. */
Test(protect, P3_a_switchover_that_fails_leaves_the_source_running)
{
    struct standby s;
    struct rp_error err = {0};
    listen_for_primary(&s);
    s.says = STANDBY_FAILS;
    struct rp_protect *p = protect(&s);
    cr_assert_lt(rp_protect_switch(p, LONG_MS, &err), 0);
    cr_assert(strstr(err.text, "this standby fails whenever it is asked to"), "%s", err.text);
    cr_assert_eq(atomic_load(&world.retaken), 1u);
    cr_assert_eq(wait_state(p, RP_PROTECT_UNPROTECTED), RP_PROTECT_UNPROTECTED);
    pthread_mutex_lock(&fake.run);
    cr_assert_not(fake.stand, "the source runs");
    pthread_mutex_unlock(&fake.run);
    cr_assert_not(atomic_load(&world.switched));
    end(p);
    standby_join(&s);
    standby_free(&s);
}

static void *ask_to_switch(void *protect)
{
    struct rp_error err = {0};
    return rp_protect_switch(protect, LONG_MS, &err) < 0 ? NULL : protect;
}

static bool fake_stands(void)
{
    pthread_mutex_lock(&fake.run);
    bool stands = fake.stand;
    pthread_mutex_unlock(&fake.run);
    return stands;
}

/* INV-6: protection is ended while the standby does not hold the last epoch yet. An older one is not handed over in its place. */
Test(protect, P3_a_switchover_that_is_ended_before_its_epoch_is_committed)
{
    struct standby s;
    pthread_t asker;
    void *moved;
    listen_for_primary(&s);
    struct rp_protect *p = protect(&s);
    atomic_store(&s.holds_back, true);
    pthread_create(&asker, NULL, ask_to_switch, p);
    bool last = false;
    for (unsigned ms = 0; ms < LONG_MS && !last; ms += 5) {
        usleep(5000);       /* a pause for a delta is over by then */
        last = fake_stands() && (usleep(200000), fake_stands());
    }
    cr_assert(last, "the last epoch is cut");
    rp_protect_end(p, RP_PROTECT_FORGET);
    for (unsigned ms = 0; ms < LONG_MS && !rp_protect_over(p); ms += 5)
        usleep(5000);
    atomic_store(&s.holds_back, false);
    pthread_join(asker, &moved);
    cr_assert_null(moved);
    cr_assert_eq(atomic_load(&world.yielded), 0u, "nothing is handed over");
    cr_assert_not(fake_stands(), "the source runs");
    cr_assert_not(atomic_load(&world.switched));
    end(p);
    cr_assert_not(atomic_load(&world.holds));
    cr_assert_eq(atomic_load(&world.opened_too_early), 0u);
    standby_join(&s);
    cr_assert_eq(s.outcome.end, RP_LINK_STOPPED);
    standby_free(&s);
}

static uint64_t no_term(void *ctx)
{
    (void)ctx;
    return 0;
}

/* A run while the lease is lost would give its standby an epoch of no term, which it could enter after anybody's. */
Test(protect, F2_nothing_is_sent_while_no_lease_is_held)
{
    struct standby s;
    struct rp_protect *p;
    struct rp_error err = {0};
    struct rp_protect_config cfg = {.engine.goal.epoch_ns = 2000000, .retry_ms = 50, .owner.term = no_term};
    listen_for_primary(&s);
    cfg.link.uri = s.uri;
    fake_start(&fake, 64, 20, 500);
    cr_assert_eq(rp_events_create(64, &events), 0);
    cr_assert_eq(rp_protect_start(&fake.base, events, &cfg, false, &p, &err), 0, "%s", err.text);
    cr_assert_lt(rp_protect_wait(p, LONG_MS, &err), 0);
    cr_assert(strstr(err.text, "the lease is not held"), "%s", err.text);
    standby_join(&s);
    cr_assert_eq(rp_image_epoch(s.image), 0u);
    end(p);
    standby_free(&s);
}

/* A VM whose protection could not begin anew has none: ending it once more does nothing. */
Test(protect, none_is_over)
{
    rp_protect_end(NULL, RP_PROTECT_FORGET);
    cr_assert(rp_protect_over(NULL));
    cr_assert_eq(rp_protect_stop(NULL, RP_PROTECT_FORGET), 0u);
}
