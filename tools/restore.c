/* `reprise restore`: a VM goes on from a checkpoint, in a new process. */
#include "tools/enter.h"
#include "tools/process.h"
#include "tools/verbs.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

struct restore { const char *path; struct rp_entry *entry; };

static int make(struct rp_vm *vm, struct rp_vm_options *o, void *ctx, struct rp_error *err)
{
    struct restore *r = ctx;
    vm->epoch = rp_image_epoch(rp_entry_image(r->entry));
    int rc = rp_entry_machine(r->entry, &o->machine, vm->events, true, &vm->machine, err);
    if (rc < 0)
        rp_error_wrap(err, "%s", r->path);
    return rc;
}

static int load(struct restore *r, const struct rp_vm_options *o, struct rp_error *err)
{
    int fd;
    int rc = rp_entry_open(r->path, &fd, err);
    if (rc < 0)
        return rc;
    rc = rp_entry_create(RP_IMAGE_DIRECT, &o->machine.ram, NULL, &r->entry, err);
    if (rc == 0) {
        rc = rp_entry_load(r->entry, fd, err);
        if (rc < 0)
            rp_error_wrap(err, "%s", r->path);
    }
    close(fd);
    return rc;
}

/* The epoch's own name, unless --name gave another. */
static void name_from(struct rp_vm_options *o, struct rp_entry *e)
{
    const struct rp_epoch_header *h = rp_image_header(rp_entry_image(e));
    if (o->machine.name[0])
        return;
    memcpy(o->machine.name, h->vm_name, sizeof(o->machine.name));
    o->machine.name[sizeof(o->machine.name) - 1] = 0;
}

static int run(const struct rp_verb *v, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)v, (void)n;
    struct rp_vm_options *o = opts;
    if (strncmp(operands[0], "file:", 5) != 0 || !operands[0][5])
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "\"%s\": not a place of a checkpoint; give file:F", operands[0]);
    struct restore r = {.path = operands[0] + 5};
    int rc = rp_process_check(o, err);
    if (rc == 0)
        rc = load(&r, o, err);
    if (rc == 0) {
        name_from(o, r.entry);
        rc = rp_process_run(o, make, &r, err);
    }
    rp_entry_destroy(r.entry);
    return rc;
}

const struct rp_verb rp_verb_restore = {
    .name = "restore", .operands = "file:F", .min_operands = 1, .max_operands = 1,
    .summary = "Go on with a VM from a checkpoint; this process is the VM until it ends.",
    .details = "The checkpoint is verified whole before anything is made of it. It brings the machine itself; what belongs to this host "
               "(files of disks, network interfaces) is given again, in the order of `reprise run`. Without --name the VM keeps its name.",
    .groups = {RP_VM_HOST_GROUP, RP_VM_ENTER_GROUP, RP_VM_KERNEL_GROUP, RP_RUN_PROTECT_GROUP, RP_PROTECT_GROUP, RP_FENCE_GROUP, RP_THEN_GROUP},
    .opts_size = sizeof(struct rp_vm_options), .defaults = &rp_vm_options_defaults,
    .run = run,
};
