/*
 * vm_fence.h - a VM's process and its lease: opening it, and what losing it means (docs/protection.md).
 *
 *   lost         outputs are shut (fence.h); the VM stands still
 *   held again   nobody has run it since: it goes on, and protection begins anew under the new term
 *   behind       somebody else has run it: the process ends with RP_EXIT_REFUSED and a sentence, and has emitted nothing
 *
 * Thread: control.
 */
#ifndef RP_TOOLS_VM_FENCE_H
#define RP_TOOLS_VM_FENCE_H

#include "tools/fence.h"
#include "tools/vm.h"

/* Opens vm->fence when `where` is given. The same address again is fine, another is refused. */
int rp_vm_fence_open(struct rp_vm *vm, const char *where, uint64_t ttl_ns, struct rp_error *err) RP_MUST_CHECK;
/* Takes it for a machine that starts or runs here, and binds the machine. No fence: nothing. RP_EXIT_REFUSED: the VM runs
 * somewhere else. -ECANCELED: a signal came while the process had no machine yet (vm->leaving), or the protection that needs it ends. */
int rp_vm_fence_take(struct rp_vm *vm, struct rp_error *err) RP_MUST_CHECK;
/* The end: a lease that is still held is given up, so that nobody has to wait for it. */
void rp_vm_fence_close(struct rp_vm *vm);

#endif
