#include "tools/moved.h"

#include "tools/notify.h"
#include "tools/protection.h"
#include "tools/standby.h"
#include "tools/vm_fence.h"

#include <malloc.h>

static void leave(struct rp_vm *vm, const struct rp_error *why)
{
    if (why)
        rp_vm_leave_because(vm, why);
    else
        rp_vm_leave(vm, RP_EXIT_DONE);
}

/* The machine's memory, and nothing else of it. The host-side options stay, for the machine that may be made here again. */
static void take_apart(struct rp_vm *vm, struct rp_guest_ram *ram)
{
    rp_protection_stop(vm, false);
    rp_fence_bind(vm->fence, NULL);
    rp_machine_dissolve(vm->machine, ram);
    vm->machine = NULL;
    vm->fence_taken = false;
    vm->stop_deadline_ns = 0;
    vm->options->paused = false;
}

static int wait_here(struct rp_vm *vm, struct rp_error *err)
{
    struct rp_guest_ram ram = {.memfd = -1};
    struct rp_source_info info;
    struct rp_source *src = rp_machine_source(vm->machine);
    int rc = src->ops->describe(src, &info, err);
    if (rc < 0)
        return rc;
    take_apart(vm, &ram);
    (void)malloc_trim(0);       /* the machine's and its engine's, of which little will be asked for soon */
    return rp_standby_return(vm, vm->options, &ram, info.vm_id, err);
}

void rp_vm_moved(struct rp_vm *vm, const struct rp_error *why)
{
    struct rp_error err = {0};
    const char *reason = why ? "somebody else has held the lease since" : "it was handed over";
    /* Who was asked to end (SIGTERM) does not stay because the VM went elsewhere meanwhile. */
    if (vm->leaving || !vm->options->pair.stays || vm->stop_deadline_ns || rp_machine_state(vm->machine) == RP_VM_SHUTDOWN ||
        rp_machine_state(vm->machine) == RP_VM_FAILED || (why && rp_jobs_running(vm->jobs, NULL))) {
        leave(vm, why);
        return;
    }
    if (wait_here(vm, &err) < 0) {
        rp_error_wrap(&err, "VM \"%s\" goes on elsewhere, and this process cannot be its standby", vm->name);
        rp_vm_leave_because(vm, &err);
        return;
    }
    rp_events_emit(vm->events, vm->epoch, "WAITS_HERE", "{\"reason\": \"%s\"}", reason);
    rp_notify("STATUS=waiting");
}
