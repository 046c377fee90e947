/* `reprise standby`: waits with a copy of a VM that runs elsewhere, and is that VM when its time has come. */
#include "tools/process.h"
#include "tools/standby.h"
#include "tools/verbs.h"

#include <errno.h>

static int make(struct rp_vm *vm, struct rp_vm_options *o, void *ctx, struct rp_error *err)
{
    (void)ctx;
    return rp_standby_start(vm, o, err);
}

static int run(const struct rp_verb *v, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)v, (void)n, (void)operands;
    struct rp_vm_options *o = opts;
    if (!o->machine.name[0])
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--name is missing: the name of the VM that this standby waits for");
    if (!o->pair.listen)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--listen is missing: tcp://ADDRESS:PORT, rdma://ADDRESS:PORT or unix:PATH");
    if (!o->pair.lease)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--lease is missing: the same as the primary's, file:DIRECTORY, etcd:HOST:PORT, or none, "
                             "and then nothing keeps two instances apart when the link is cut");
    o->pair.waits = true;
    return rp_process_run(o, make, NULL, err);
}

const struct rp_verb rp_verb_standby = {
    .name = "standby", .operands = "",
    .summary = "Wait with a copy of a VM that runs elsewhere, and be that VM when its host dies.",
    .details = "`reprise protect NAME URI` on the VM's host connects to this process, which from then on holds the VM's newest epoch. When the "
               "primary is lost and its lease has run out (or it hands the VM over: `reprise failover NAME`), the VM goes on here.\n\n"
               "What belongs to this host (files of disks, network interfaces) is given in the order of `reprise run`. With --protect the VM, once it "
               "runs here, is protected again by itself: by the standby at that URI, as soon as there is one.",
    .groups = {RP_STANDBY_GROUP, RP_FENCE_GROUP, RP_VM_HOST_GROUP, RP_VM_ENTER_GROUP, RP_VM_KERNEL_GROUP, RP_NEXT_PROTECT_GROUP, RP_PROTECT_GROUP},
    .opts_size = sizeof(struct rp_vm_options), .defaults = &rp_vm_options_defaults,
    .run = run,
};
