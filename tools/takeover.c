/* Taking over: the VM goes on here, from the newest epoch. Control thread; the lease is held. docs/protection.md has the steps. */
#include "tools/standby_internal.h"

#include "core/clock.h"
#include "core/fault.h"
#include "core/log.h"
#include "tools/json.h"
#include "tools/notify.h"
#include "tools/protection.h"
#include "tools/vm_fence.h"

#include <errno.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define ANSWER_MS 1000          /* for a source to say that it knows; less than it waits for us (protect.c) */
#define RETRY_MS 20
#define AGAIN_S 1               /* between two attempts to open the disks when the primary is dead */

/* The disks become the VM's. Once. */
static int promote(struct rp_standby *s, struct rp_error *err)
{
    int rc = s->promoted ? 0 : rp_replica_promote(s->replica, s->epoch, rp_fence_term(s->vm->fence), err);
    s->promoted = rc == 0;
    return rc;
}

/* The machine is the newest epoch's. Its outputs are shut until it is bound to the fence. */
static int enter(struct rp_standby *s, struct rp_error *err)
{
    struct rp_vm *vm = s->vm;
    s->again = rp_fault(RP_FAULT_TAKEOVER_CLAIMED);
    if (s->again)
        return rp_error_set(err, EIO, "before the machine: fault point");
    int rc = promote(s, err);
    if (rc == 0) {
        rc = rp_machine_open_disks(s->machine, err);
        s->again = rc < 0;      /* a disk's server that is down, a lock that a dying process holds, … */
    }
    if (rc == 0)
        rc = rp_entry_enter(s->entry, s->machine, vm->events, true, err);
    if (rc < 0)
        return rc;
    vm->machine = s->machine;
    s->machine = NULL;
    vm->epoch = s->epoch;
    return rp_fault(RP_FAULT_TAKEOVER_ENTERED) ? rp_error_set(err, EIO, "running it: fault point") : 0;
}

/* In a switchover the source stands and may be waiting for us: it has to know, or must not be able to go on (F2). */
static int settle_with_source(struct rp_standby *s, struct rp_error *err)
{
    struct rp_fence *f = s->vm->fence;
    struct rp_error why = {0};
    if (!s->outcome.switching)
        return 0;
    if (s->outcome.end == RP_LINK_FINAL && rp_fence_term(f) == 0)
        return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "the lease was lost before the VM could run here");
    int rc = s->outcome.end == RP_LINK_FINAL ? rp_link_recv_running(s->recv, ANSWER_MS, &why) : -EPIPE;
    if (rc == 0)
        return 0;
    if (rp_fence_is_none(f) && s->outcome.end != RP_LINK_FINAL)
        return 0;       /* silence is a death, as ever without a lease */
    if (rp_fence_is_none(f))
        return rp_error_exit(err, RP_EXIT_REFUSED, rc, "without a lease only the source's answer can say that it stays down: %s", why.text);
    while ((rc = rp_fence_disown(f, err)) < 0 && rc != -ESTALE)
        nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000}, NULL);
    /* Lost on the way. A source that is dead takes nothing back: this is the VM, its outputs shut until the lease is had again. */
    return rc == -ESTALE && s->outcome.end != RP_LINK_FINAL ? 0 : rc;
}

static int run_here(struct rp_standby *s, struct rp_error *err)
{
    struct rp_vm *vm = s->vm;
    vm->fence_taken = true;
    rp_fence_bind(vm->fence, vm->machine);
    int rc = s->o->paused ? rp_machine_pause(vm->machine, RP_PAUSE_USER, err) : 0;
    if (rc == 0)
        rc = rp_machine_start(vm->machine, err);
    if (rp_fault(RP_FAULT_TAKEOVER_RUNS))
        rp_log(RP_LOG_WARN, "fault point: nothing is left that could fail");
    return rc;
}

/* It does not run here: the lease is given up first, so that the source that hears of it can have it at once. */
static void takeover_failed(struct rp_standby *s, struct rp_error *err)
{
    struct rp_error ignored;
    rp_error_wrap(err, "taking over VM \"%s\" at epoch %llu", s->vm->name, (unsigned long long)s->epoch);
    if (rp_fence_yield(s->vm->fence, &ignored) < 0)
        rp_log(RP_LOG_WARN, "%s", ignored.text);
    rp_link_recv_failed(s->recv, err);
    rp_vm_leave_because(s->vm, err);
}

/* The primary is dead and what is held here is all there is of the VM: the lease is kept, and it is tried again. */
static void try_again_later(struct rp_standby *s, const struct rp_error *why)
{
    const struct itimerspec in = {.it_value.tv_sec = AGAIN_S};
    char text[160];
    pthread_mutex_lock(&s->lock);
    bool told = strcmp(s->why, why->text) == 0;
    snprintf(s->why, sizeof(s->why), "%.250s", why->text);
    pthread_mutex_unlock(&s->lock);
    if (!told) {
        rp_log(RP_LOG_ERROR, "taking over VM \"%s\" at epoch %llu: %s; it is tried again every %u s", s->vm->name,
               (unsigned long long)s->epoch, why->text, AGAIN_S);
        rp_events_emit(s->vm->events, s->epoch, "TAKEOVER_WAITS", "{\"reason\": \"%s\"}", rp_json_escape(why->text, text, sizeof(text)));
    }
    (void)timerfd_settime(s->again_fd, 0, &in, NULL);
}

/* The VM runs here and is alone: it gets its next standby as soon as there is one at --protect, without being asked. */
static void protect_again(struct rp_vm *vm)
{
    const struct rp_pair_options *o = &vm->options->pair;
    struct rp_error err = {0};
    if (o->protect && rp_protection_start(vm, o, true, &err) < 0)
        rp_log(RP_LOG_ERROR, "VM \"%s\" runs here unprotected: %s; `reprise protect %s URI` protects it", vm->name, err.text, vm->name);
}

static void takeover(struct rp_standby *s)
{
    struct rp_vm *vm = s->vm;
    struct rp_error err = {0};
    uint64_t start = rp_clock_ns(), detected = s->outcome.detected_ns, heard = s->outcome.last_heard_ns;
    bool handed_over = rp_standby_state(s) == RP_STANDBY_HANDED_OVER;
    rp_standby_end_serving(s, !handed_over);
    if (!s->again)
        rp_events_emit(vm->events, s->epoch, "LEASE_HELD", "{\"term\": %llu}", (unsigned long long)rp_fence_term(vm->fence));
    rp_standby_set_state(s, RP_STANDBY_TAKING);
    int rc = enter(s, &err);
    s->again &= !handed_over;
    if (s->again) {
        if (!rp_vm_signalled(vm))       /* that may be why */
            try_again_later(s, &err);
        return;
    }
    uint64_t entered = rp_clock_ns();
    if (rc == 0)
        rc = settle_with_source(s, &err);
    if (rc == 0)
        rc = run_here(s, &err);
    if (rc < 0) {
        takeover_failed(s, &err);
        return;
    }
    uint64_t now = rp_clock_ns();
    rp_qmp_ready(vm->qmp);
    rp_notify("STATUS=running");
    rp_events_emit(vm->events, vm->epoch, handed_over ? "SWITCHED_HERE" : "TAKEN_OVER",
                   "{\"term\": %llu, \"silent-us\": %llu, \"lease-us\": %llu, \"enter-us\": %llu, \"run-us\": %llu}",
                   (unsigned long long)rp_fence_term(vm->fence), (unsigned long long)((detected - heard) / 1000),
                   (unsigned long long)((start - detected) / 1000), (unsigned long long)((entered - start) / 1000),
                   (unsigned long long)((now - entered) / 1000));
    rp_standby_stop(vm);
    protect_again(vm);
}

void rp_standby_on_fence(struct rp_vm *vm)
{
    struct rp_standby *s = vm->standby;
    struct rp_error err = {0};
    struct rp_fence_info info;
    enum rp_standby_state state = rp_standby_state(s);
    vm->fence_losses = rp_fence_losses(vm->fence);      /* before it is seen to be held: a loss while the VM is entered is yet to be seen to */
    switch (rp_fence_state(vm->fence)) {
    case RP_FENCE_HELD:
        if (state == RP_STANDBY_ALONE || state == RP_STANDBY_HANDED_OVER || s->again)
            takeover(s);
        break;
    case RP_FENCE_BEHIND:
        if (state != RP_STANDBY_ALONE && state != RP_STANDBY_HANDED_OVER && !s->again)
            break;
        rp_fence_info(vm->fence, &info);
        if (s->again) {
            rp_error_exit(&err, RP_EXIT_REFUSED, ESTALE, "taking over VM \"%s\": %s; meanwhile %s has taken the lease (term %llu)", vm->name,
                          s->why, info.holder, (unsigned long long)info.term);
            rp_vm_leave_because(vm, &err);
            break;
        }
        rp_standby_set_state(s, RP_STANDBY_BEHIND);
        rp_events_emit(vm->events, s->epoch, "STANDBY_BEHIND", "{\"epoch\": %llu, \"holder\": \"%.60s\", \"lease-term\": %llu}",
                       (unsigned long long)s->epoch, info.holder, (unsigned long long)info.term);
        if (state == RP_STANDBY_HANDED_OVER) {      /* the source took it back: wait for it again */
            rp_standby_end_serving(s, false);
            if (rp_standby_serve(s, &err) < 0)
                rp_vm_leave_because(vm, &err);
        }
        break;
    default:
        break;
    }
}

/* admission held. */
static int force(struct rp_standby *s, struct rp_error *err)
{
    struct rp_vm *vm = s->vm;
    pthread_mutex_lock(&s->lock);
    enum rp_standby_state state = s->state;
    uint64_t epoch = s->epoch, age_ns = rp_wall_ns() - s->epoch_wall_ns;
    bool can = (state == RP_STANDBY_ALONE || state == RP_STANDBY_BEHIND) && epoch;
    if (can) {
        s->stale = false;
        s->state = RP_STANDBY_ALONE;
    }
    pthread_mutex_unlock(&s->lock);
    if (!can)
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "this standby cannot be forced: %s",
                             state == RP_STANDBY_READY || state == RP_STANDBY_SYNCING ? "its primary is connected; `failover` is for that one to do"
                             : epoch ? "it is taking over" : "it holds no whole epoch");
    rp_log(RP_LOG_WARN, "VM \"%s\" is made to go on here from epoch %llu, %.1f s old: what it has done since is lost", vm->name,
           (unsigned long long)epoch, (double)age_ns / 1e9);
    rp_events_emit(vm->events, epoch, "TAKEOVER_FORCED", "{\"epoch\": %llu, \"age-ms\": %llu}", (unsigned long long)epoch,
                   (unsigned long long)(age_ns / 1000000));
    rp_fence_follow(vm->fence, 0);
    return 0;
}

int rp_standby_force(struct rp_vm *vm, struct rp_error *err)
{
    struct rp_standby *s = vm->standby;
    pthread_mutex_lock(&s->admission);
    int rc = force(s, err);
    pthread_mutex_unlock(&s->admission);
    return rc;
}

void rp_standby_on_again(void *ctx)
{
    struct rp_standby *s = ctx;
    uint64_t n;
    if (read(s->again_fd, &n, sizeof(n)) == sizeof(n) && s->again)
        rp_standby_on_fence(s->vm);
}
