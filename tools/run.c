/* `reprise run`: boots a VM and is its process until it ends. */
#include "tools/process.h"
#include "tools/verbs.h"

#include <errno.h>

static int make(struct rp_vm *vm, struct rp_vm_options *o, void *ctx, struct rp_error *err)
{
    (void)ctx;
    return rp_machine_create(&o->machine, vm->events, &vm->machine, err);
}

static int run(const struct rp_verb *v, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)v, (void)n, (void)operands;
    struct rp_vm_options *o = opts;
    if (!o->machine.name[0])
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--name is missing; the other verbs find the VM by it");
    if (!o->machine.kernel)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--kernel is missing; give a Linux bzImage or an ELF with a PVH entry");
    return rp_process_run(o, make, NULL, err);
}

const struct rp_verb rp_verb_run = {
    .name = "run", .operands = "",
    .summary = "Boot a VM; this process is the VM until it ends.",
    .details = "SIGTERM presses the guest's power button (a second one, or --stop-timeout, ends the VM; so does the first one if the VM was paused), "
               "SIGINT ends it at once.",
    .groups = {RP_VM_GUEST_GROUP, RP_VM_KERNEL_GROUP, RP_VM_HOST_GROUP, RP_RUN_PROTECT_GROUP, RP_PROTECT_GROUP, RP_FENCE_GROUP, RP_THEN_GROUP},
    .opts_size = sizeof(struct rp_vm_options), .defaults = &rp_vm_options_defaults,
    .run = run,
};
