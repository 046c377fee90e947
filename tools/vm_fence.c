#include "tools/vm_fence.h"

#include "core/log.h"
#include "tools/moved.h"
#include "tools/protection.h"
#include "tools/standby.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>

static void on_changed(void *ctx)
{
    struct rp_vm *vm = ctx;
    (void)eventfd_write(vm->fence_fd, 1);
}

/* A start that waits ends with a signal; what the protect thread waits for, with the protection. */
static bool give_up_waiting(void *ctx)
{
    struct rp_vm *vm = ctx;
    return atomic_load(&vm->fence_give_up) || (!vm->machine && rp_vm_signalled(vm));
}

static void stand_still(struct rp_vm *vm)
{
    struct rp_error err = {0};
    if (vm->machine && rp_machine_pause(vm->machine, RP_PAUSE_LEASE, &err) < 0)
        rp_log(RP_LOG_ERROR, "the lease is lost, and the VM cannot be paused: %s", err.text);
}

/* Nobody has run it since: it goes on under the new term. */
static void go_on(struct rp_vm *vm)
{
    struct rp_error err = {0};
    rp_events_emit(vm->events, vm->epoch, "LEASE_REGAINED", "{\"term\": %llu}", (unsigned long long)rp_fence_term(vm->fence));
    rp_protection_restart(vm);
    if (rp_protection_over(vm) || rp_protection_ending(vm)) {
        /* Protection that was ended while the lease was lost could not open the outputs (F3). Nothing of the term before can be run now. */
        struct rp_source *src = rp_machine_source(vm->machine);
        src->ops->gate(src, false);
    }
    if (rp_machine_resume(vm->machine, RP_PAUSE_LEASE, &err) < 0)
        rp_log(RP_LOG_ERROR, "the lease is held again, and the VM cannot go on: %s", err.text);
}

static void give_up(struct rp_vm *vm)
{
    struct rp_fence_info info;
    struct rp_error why = {0};
    rp_fence_info(vm->fence, &info);
    rp_error_exit(&why, RP_EXIT_REFUSED, ESTALE, "VM \"%s\" goes on elsewhere; this instance has stopped and emits nothing: %s", vm->name, info.why);
    rp_vm_moved(vm, &why);
}

static void on_readable(void *ctx)
{
    struct rp_vm *vm = ctx;
    eventfd_t n;
    if (eventfd_read(vm->fence_fd, &n) < 0)
        return;
    if (vm->standby)
        rp_standby_on_fence(vm);
    if (vm->standby || !vm->fence_taken)
        return;
    uint64_t losses = rp_fence_losses(vm->fence);
    switch (rp_fence_state(vm->fence)) {
    case RP_FENCE_LOST:
    case RP_FENCE_WAITING:
        stand_still(vm);
        break;
    case RP_FENCE_HELD:         /* perhaps lost and held again since the last look */
        if (losses != vm->fence_losses)
            go_on(vm);
        vm->fence_losses = losses;
        break;
    case RP_FENCE_BEHIND:
        if (!rp_protection_switched(vm))
            give_up(vm);
        break;
    default:
        break;
    }
}

int rp_vm_fence_open(struct rp_vm *vm, const char *where, uint64_t ttl_ns, struct rp_error *err)
{
    struct rp_fence_info info;
    if (!where)
        return 0;
    if (vm->fence)
        rp_fence_info(vm->fence, &info);
    if (vm->fence && strcmp(info.where, where) == 0)
        return 0;
    if (vm->fence && !vm->fence_taken)
        rp_vm_fence_close(vm);          /* an attempt that was refused named another place */
    if (vm->fence)
        return rp_error_exit(err, RP_EXIT_REFUSED, EEXIST, "--lease %s: the VM has its lease at %s; keep to that", where, info.where);
    struct rp_fence_config cfg = {.events = vm->events, .changed = on_changed, .give_up = give_up_waiting, .ctx = vm};
    cfg.lease.where = where;
    cfg.lease.ttl_ms = (unsigned)(ttl_ns / 1000000u);
    snprintf(cfg.lease.vm_name, sizeof(cfg.lease.vm_name), "%s", vm->name);
    vm->fence_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = vm->fence_fd < 0 ? rp_error_set(err, errno, "eventfd: %s", strerror(errno)) : 0;
    if (rc == 0)
        rc = rp_vm_watch(vm, vm->fence_fd, on_readable, vm, err);
    if (rc == 0)
        rc = rp_fence_open(&cfg, &vm->fence, err);
    if (rc < 0)
        rp_vm_unwatch_close(vm, vm->fence_fd);
    return rc < 0 ? rp_error_wrap(err, "--lease %s", where) : 0;
}

int rp_vm_fence_take(struct rp_vm *vm, struct rp_error *err)
{
    struct rp_fence_info info;
    if (!vm->fence || vm->fence_taken)
        return 0;
    rp_fence_info(vm->fence, &info);
    vm->fence_losses = rp_fence_losses(vm->fence);
    /* A holder that has died is waited for; one that lives is not. */
    int rc = rp_fence_take(vm->fence, (int)(info.ttl_ms + rp_lease_margin_ns(info.ttl_ms) / 1000000u + info.ttl_ms / 4 + 100), err);
    if (rc < 0)
        return rc;
    vm->fence_taken = true;
    rp_fence_bind(vm->fence, vm->machine);
    rp_events_emit(vm->events, vm->epoch, "LEASE_HELD", "{\"lease\": \"%.80s\", \"term\": %llu}", info.where,
                   (unsigned long long)rp_fence_term(vm->fence));
    return 0;
}

void rp_vm_fence_close(struct rp_vm *vm)
{
    struct rp_error err = {0};
    if (!vm->fence)
        return;
    if (rp_fence_state(vm->fence) == RP_FENCE_HELD && rp_fence_yield(vm->fence, &err) < 0)
        rp_log(RP_LOG_WARN, "the lease could not be released, it runs out by itself: %s", err.text);
    rp_fence_close(vm->fence);
    vm->fence = NULL;
    rp_vm_unwatch_close(vm, vm->fence_fd);
}
