/*
 * standby.h - a VM's process that waits: holds the newest epoch of a VM that runs elsewhere, and is that VM when its time
 * has come. docs/protection.md.
 *
 *            a primary connects        its first epoch is whole
 *   WAITING ──────────────────► SYNCING ─────────────────► READY ──it is lost──► ALONE ──the lease is ours──► (the VM runs)
 *      ▲                           │ lost                    │ FINAL               │ ▲│
 *      │                           ▼                         └──► HANDED_OVER ─────┘ └┴─ it is back: SYNCING
 *      └── it says: forget ── (anywhere) ; ALONE ─ somebody has held the lease since: BEHIND ─ a primary connects: SYNCING
 *
 * S1  What is entered is a whole verified epoch (INV-2), under the term that follows the one it was made under (F2).
 * S2  While the lease is ours or about to be, no primary is admitted: the image does not change any more.
 * S3  Nothing is announced and nothing leaves before the lease is held (F1).
 * S4  What a primary has called stale (outputs have left since) is not entered; its pages serve a resync.
 * S5  rp_standby_force sets S1's term and S4 aside, on demand: what left after the epoch is lost. Never a live holder's lease.
 *
 * Threads: "standby" serves the link; everything else is the control thread's.
 */
#ifndef RP_TOOLS_STANDBY_H
#define RP_TOOLS_STANDBY_H

#include "tools/vm.h"
#include "tools/vm_options.h"

/* Listens at o->pair.listen; vm->fence is open. `o` is borrowed until the VM runs. */
int rp_standby_start(struct rp_vm *vm, struct rp_vm_options *o, struct rp_error *err) RP_MUST_CHECK;
/* The same for a process whose VM `vm_id` goes on elsewhere: `ram`, what it held here, is taken over (also on error) and is what a
 * resync starts from; the fence is no longer held. */
int rp_standby_return(struct rp_vm *vm, struct rp_vm_options *o, struct rp_guest_ram *ram, const uint8_t vm_id[16], struct rp_error *err) RP_MUST_CHECK;
void rp_standby_stop(struct rp_vm *vm);         /* vm->standby may be NULL */
/* Control thread. The VM goes on here from the epoch that is held, whatever has run it since, as soon as nobody holds the lease.
 * RP_EXIT_REFUSED: there is no whole epoch, or the primary is alive. */
int rp_standby_force(struct rp_vm *vm, struct rp_error *err) RP_MUST_CHECK;
/* The lease's state has changed. */
void rp_standby_on_fence(struct rp_vm *vm);
/* The VM that it stands by for; false: no primary has said yet. */
bool rp_standby_vm_id(struct rp_vm *vm, uint8_t vm_id[16]);
/* For query-standby and query-vm. */
json_t *rp_standby_query(struct rp_vm *vm);

#endif
