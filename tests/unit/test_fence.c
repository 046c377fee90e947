/*
 * The fence (tools/fence.h): who may run a VM, by a real lease in a directory. Two fences are two hosts; each is opened as
 * another owner, and no lock of one tells the other anything that time does not.
 */
#include "tools/fence.h"

#include "core/clock.h"
#include "core/fault.h"
#include "replicator/lease.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TTL_MS 1500u            /* a machine that is busy renews late */
#define LONG_MS 20000           /* whatever has to happen does so long before */

static char dir[64];

/* In memory: a disk that others keep busy may take longer for a sync than a lease lasts. */
static void make_dir(void)
{
    strcpy(dir, "/dev/shm/rp-fence-XXXXXX");
    if (mkdtemp(dir))
        return;
    strcpy(dir, "/tmp/rp-fence-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void remove_dir(void)
{
    char command[128];
    unsetenv("RP_FAULT");
    rp_fault_reload();
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(fence, .init = make_dir, .fini = remove_dir, .timeout = 60);

static _Atomic unsigned changes;

static void on_changed(void *ctx)
{
    (void)ctx;
    atomic_fetch_add(&changes, 1);
}

static struct rp_fence *open_fence(const char *owner)
{
    struct rp_fence *f = NULL;
    struct rp_error err = {0};
    char where[100];
    struct rp_fence_config cfg = {.lease = {.vm_name = "vm", .ttl_ms = TTL_MS}, .changed = on_changed};
    snprintf(where, sizeof(where), "file:%s", dir);
    snprintf(cfg.lease.owner, sizeof(cfg.lease.owner), "%s", owner);
    cfg.lease.where = where;
    cr_assert_eq(rp_fence_open(&cfg, &f, &err), 0, "%s", err.text);
    return f;
}

static enum rp_fence_state wait_for(struct rp_fence *f, enum rp_fence_state want)
{
    for (unsigned ms = 0; ms < LONG_MS && rp_fence_state(f) != want; ms += 5)
        usleep(5000);
    return rp_fence_state(f);
}

static void fault(const char *what)
{
    setenv("RP_FAULT", what, 1);
    rp_fault_reload();
}

Test(fence, a_vm_starts_once)
{
    struct rp_fence *a = open_fence("a"), *b = open_fence("b");
    struct rp_error err = {0};
    cr_assert_eq(rp_fence_take(a, 0, &err), 0, "%s", err.text);
    cr_assert_eq(rp_fence_term(a), 1u);
    cr_assert_lt(rp_fence_take(b, 100, &err), 0);
    cr_assert_eq(err.exit, RP_EXIT_REFUSED, "%s", err.text);
    cr_assert(strstr(err.text, "held by a"), "%s", err.text);
    cr_assert_eq(rp_fence_yield(a, &err), 0, "%s", err.text);
    cr_assert_eq(rp_fence_take(b, LONG_MS, &err), 0, "a lease that was given up is free: %s", err.text);
    rp_fence_close(a);
    rp_fence_close(b);
}

/* The standby's way: it watches, follows the term of its epoch, and has the next one once the holder is gone. */
Test(fence, INV3_the_next_term_is_had_only_when_the_holder_has_gone)
{
    struct rp_fence *a = open_fence("a"), *b = open_fence("b");
    struct rp_error err = {0};
    cr_assert_eq(rp_fence_take(a, 0, &err), 0);
    rp_fence_watch(b);
    rp_fence_follow(b, rp_fence_term(a));
    cr_assert_eq(rp_fence_wait(b, (int)TTL_MS * 3, &err), -ETIMEDOUT, "the holder lives, and renews");
    cr_assert_eq(rp_fence_state(a), RP_FENCE_HELD);
    cr_assert(rp_fence_stand_back(b), "nothing was claimed yet");
    cr_assert_eq(rp_fence_state(b), RP_FENCE_WATCHING);
    rp_fence_follow(b, 1);
    rp_fence_close(a);          /* gives nothing up, as a process that dies */
    cr_assert_eq(rp_fence_wait(b, LONG_MS, &err), 0, "%s", err.text);
    cr_assert_eq(rp_fence_term(b), 2u);
    cr_assert_not(rp_fence_stand_back(b), "S2: it is ours");
    rp_fence_close(b);
}

/* F2, F3: once the primary has disowned its standbys, none of them gets to run what it holds, not even when it dies. */
Test(fence, F3_a_disowned_standby_stays_behind)
{
    struct rp_fence *a = open_fence("a"), *b = open_fence("b");
    struct rp_error err = {0};
    cr_assert_eq(rp_fence_take(a, 0, &err), 0);
    rp_fence_watch(b);
    cr_assert_eq(rp_fence_disown(a, &err), 0, "%s", err.text);
    cr_assert_eq(rp_fence_term(a), 2u);
    rp_fence_follow(b, 1);
    cr_assert_eq(rp_fence_wait(b, LONG_MS, &err), -ESTALE, "its epoch is of term 1");
    cr_assert_eq(rp_fence_yield(a, &err), 0);
    rp_fence_follow(b, 1);
    cr_assert_eq(rp_fence_wait(b, LONG_MS, &err), -ESTALE, "given up or not");
    rp_fence_follow(b, 2);
    cr_assert_eq(rp_fence_wait(b, LONG_MS, &err), 0, "an epoch of term 2 may be run: %s", err.text);
    cr_assert_eq(rp_fence_term(b), 3u);
    rp_fence_close(a);
    rp_fence_close(b);
}

/* A disown that fails leaves the term as it was; one that works after that counts. */
Test(fence, F3_a_failed_disown_says_so)
{
    struct rp_fence *a = open_fence("a");
    struct rp_error err = {0};
    cr_assert_eq(rp_fence_take(a, 0, &err), 0);
    fault("lease-advance:1");
    cr_assert_eq(rp_fence_disown(a, &err), -EIO);
    cr_assert_eq(rp_fence_state(a), RP_FENCE_HELD);
    cr_assert_eq(rp_fence_term(a), 1u);
    cr_assert_eq(rp_fence_disown(a, &err), 0, "%s", err.text);
    cr_assert_eq(rp_fence_term(a), 2u);
    rp_fence_close(a);
}

/* The storage is gone for longer than the lease: the holder stops, and goes on when nobody has run the VM since. */
Test(fence, F1_lost_and_held_again_when_nobody_was_in_between)
{
    struct rp_fence *a = open_fence("a");
    struct rp_fence_info info;
    struct rp_error err = {0};
    cr_assert_eq(rp_fence_take(a, 0, &err), 0);
    unsigned before = atomic_load(&changes);
    fault("lease-renew:1");
    for (unsigned i = 0; i < 4000 && atomic_load(&changes) == before; i++) {
        fault("lease-renew:1");
        usleep(5000);
    }
    cr_assert_gt(atomic_load(&changes), before, "renewals that fail end a lease");
    unsetenv("RP_FAULT");
    rp_fault_reload();
    cr_assert_eq(wait_for(a, RP_FENCE_HELD), RP_FENCE_HELD);
    cr_assert_eq(rp_fence_term(a), 2u, "the next term, and nobody else's in between");
    rp_fence_info(a, &info);
    cr_assert_str_eq(info.holder, "a");
    rp_fence_close(a);
}

/* Likewise, but the standby was faster: the old holder is behind for good. */
/* A directory that is another one on the two hosts (a mount that is missing): a lease, but not the VM's. */
Test(fence, INV3_another_lease_is_not_the_vms)
{
    struct rp_fence *a = open_fence("a"), *b = open_fence("b");
    struct rp_error err = {0};
    struct rp_fence_info info;
    cr_assert_eq(rp_fence_take(a, 0, &err), 0, "%s", err.text);
    uint64_t term = rp_fence_term(a);
    cr_assert_eq(rp_fence_sees(b, term, rp_fence_holder(a), &err), 0, "%s", err.text);
    cr_assert_lt(rp_fence_sees(b, term + 4, 0, &err), 0);
    cr_assert_eq(err.exit, RP_EXIT_REFUSED, "%s", err.text);
    cr_assert_lt(rp_fence_sees(b, term, rp_fence_holder(b), &err), 0, "two leases that are at the same term");
    cr_assert(strstr(err.text, "held by a"), "%s", err.text);
    cr_assert_lt(rp_fence_sees(b, rp_wall_ns(), 0, &err), 0, "a primary without a lease");
    cr_assert_eq(rp_fence_yield(a, &err), 0, "%s", err.text);
    rp_fence_follow(b, term + 4);
    cr_assert_eq(wait_for(b, RP_FENCE_BEHIND), RP_FENCE_BEHIND, "the VM ran under a term that this lease has never come to");
    rp_fence_info(b, &info);
    cr_assert(strstr(info.why, "not the VM's lease"), "%s", info.why);
    rp_fence_close(a);
    rp_fence_close(b);
}

/* A claim that was granted and whose answer was lost: the term is gone, and nobody else has had it. */
Test(fence, F2_a_term_of_ones_own_is_nobody_elses)
{
    struct rp_fence *a = open_fence("a"), *b = open_fence("b");
    struct rp_lease *claim;
    struct rp_lease_grant g = {0};
    struct rp_error err = {0};
    char where[100];
    cr_assert_eq(rp_fence_take(a, 0, &err), 0, "%s", err.text);
    uint64_t term = rp_fence_term(a);
    rp_fence_close(a);                      /* dies */
    snprintf(where, sizeof(where), "file:%s", dir);
    struct rp_lease_config cfg = {.where = where, .vm_name = "vm", .owner = "b", .ttl_ms = TTL_MS};
    cr_assert_eq(rp_lease_open(&cfg, &claim, &err), 0, "%s", err.text);
    cr_assert_eq(rp_lease_acquire(claim, LONG_MS, NULL, NULL, &g, &err), 0, "%s", err.text);
    cr_assert_eq(g.term, term + 1);
    rp_lease_destroy(claim);                /* b never heard of it */
    rp_fence_follow(b, term);
    for (unsigned ms = 0; ms < LONG_MS && rp_fence_state(b) == RP_FENCE_WAITING; ms += 5)
        usleep(5000);
    struct rp_fence_info info;
    rp_fence_info(b, &info);
    cr_assert_eq(info.state, RP_FENCE_HELD, "%s", info.why);
    cr_assert_eq(rp_fence_losses(b), 0u);
    rp_fence_close(b);
}

Test(fence, F1_lost_and_behind_when_somebody_has_taken_over)
{
    struct rp_fence *a = open_fence("a"), *b = open_fence("b");
    struct rp_error err = {0};
    cr_assert_eq(rp_fence_take(a, 0, &err), 0);
    rp_fence_watch(b);
    usleep(100000);
    rp_fence_follow(b, 1);
    unsigned before = atomic_load(&changes);
    for (unsigned i = 0; i < 4000 && atomic_load(&changes) == before; i++) {
        fault("lease-renew:1");
        usleep(5000);
    }
    fault("lease-acquire:1");       /* whoever asks first is put off once; the storage then answers both */
    enum rp_fence_state sa, sb;
    for (unsigned i = 0; i < 4000; i++) {
        sa = rp_fence_state(a);
        sb = rp_fence_state(b);
        cr_assert_not(sa == RP_FENCE_HELD && sb == RP_FENCE_HELD, "INV-3");
        if ((sa == RP_FENCE_HELD && sb == RP_FENCE_BEHIND) || (sb == RP_FENCE_HELD && sa == RP_FENCE_BEHIND))
            break;
        usleep(5000);
    }
    cr_assert((sa == RP_FENCE_HELD && sb == RP_FENCE_BEHIND) || (sb == RP_FENCE_HELD && sa == RP_FENCE_BEHIND),
              "one holds it and the other knows that it does not: a is %s, b is %s", rp_fence_state_name(sa), rp_fence_state_name(sb));
    rp_fence_close(a);
    rp_fence_close(b);
}

/* A switchover whose standby dies before it has taken the lease: the term that was given up is the newest there is. */
Test(fence, F2_a_source_goes_on_when_nobody_has_taken_what_it_gave_up)
{
    struct rp_fence *a = open_fence("a");
    struct rp_error err = {0};
    cr_assert_eq(rp_fence_take(a, 0, &err), 0, "%s", err.text);
    uint64_t term = rp_fence_term(a);
    cr_assert_eq(rp_fence_yield(a, &err), 0, "%s", err.text);
    rp_fence_retake(a, term);
    cr_assert_eq(rp_fence_wait(a, LONG_MS, &err), 0, "%s", err.text);
    cr_assert_eq(rp_fence_term(a), term + 1);
    rp_fence_close(a);
}

/* A switchover in the dark: the source has given the lease up and hears nothing more. */
Test(fence, F2_a_source_in_the_dark_goes_on_only_while_the_standby_has_not)
{
    struct rp_fence *a = open_fence("a"), *b = open_fence("b");
    struct rp_error err = {0};
    cr_assert_eq(rp_fence_take(a, 0, &err), 0);
    cr_assert_eq(rp_fence_yield(a, &err), 0);
    rp_fence_follow(b, 1);
    cr_assert_eq(rp_fence_wait(b, LONG_MS, &err), 0);
    rp_fence_retake(a, 1);          /* 1 was ours, 2 may be the standby's, whose outputs are shut under it */
    cr_assert_eq(rp_fence_wait(a, (int)TTL_MS, &err), -ETIMEDOUT, "it holds the lease still");
    rp_fence_close(b);              /* and dies before it opened them */
    cr_assert_eq(rp_fence_wait(a, LONG_MS, &err), 0, "%s", err.text);
    cr_assert_eq(rp_fence_term(a), 3u);

    struct rp_fence *c = open_fence("c");
    cr_assert_eq(rp_fence_yield(a, &err), 0);
    rp_fence_follow(c, 3);
    cr_assert_eq(rp_fence_wait(c, LONG_MS, &err), 0);
    cr_assert_eq(rp_fence_disown(c, &err), 0);      /* this one opens them without having heard from the source */
    rp_fence_retake(a, 3);
    cr_assert_eq(rp_fence_wait(a, LONG_MS, &err), -ESTALE);
    rp_fence_close(a);
    rp_fence_close(c);
}
