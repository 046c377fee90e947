/*
 * process.h - what run, restore and (later) standby do alike: be the process of a VM from the options to the exit code.
 *
 *   name and sockets ─► make(): the machine ─► sandbox ─► clients served ─► pidfile, READY ─► loop ─► all closed
 *
 * Thread: main.
 */
#ifndef RP_TOOLS_PROCESS_H
#define RP_TOOLS_PROCESS_H

#include "tools/vm.h"
#include "tools/vm_options.h"

/* Sets vm->machine: CREATED when it shall boot, PAUSED when an epoch was entered; not at all when an epoch is waited for
 * (standby): the machine is then made from within the loop. The lease, if there is one, is held unless o->pair.waits. */
typedef int rp_process_make(struct rp_vm *vm, struct rp_vm_options *o, void *ctx, struct rp_error *err);

/* Do the options agree with each other? rp_process_run asks, too; for who has long work to do before. */
int rp_process_check(const struct rp_vm_options *o, struct rp_error *err) RP_MUST_CHECK;
/* Returns an exit code, or -errno with the sentence. */
int rp_process_run(struct rp_vm_options *o, rp_process_make *make, void *ctx, struct rp_error *err);

#endif
