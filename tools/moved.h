/*
 * moved.h - what a VM's process does once the VM runs elsewhere: it was handed over, or the lease was lost and somebody else has
 * held it since. It ends, or (--then standby) waits here as the VM's next standby: the machine is taken apart, its memory stays,
 * and whoever protects the VM from there is asked for what differs only (docs/link.md).
 *
 *   runs here ──SWITCHED, or BEHIND──► outputs shut ─► protection ended ─► machine dissolved ─► WAITING (standby.h) ─► runs here …
 *
 * Its outputs are shut before (F1): nothing leaves, whatever becomes of it here.
 * Thread: control.
 */
#ifndef RP_TOOLS_MOVED_H
#define RP_TOOLS_MOVED_H

#include "tools/vm.h"

/* `why`: the lease was lost; ending here is this error. NULL: it was handed over; ending is success. */
void rp_vm_moved(struct rp_vm *vm, const struct rp_error *why);

#endif
