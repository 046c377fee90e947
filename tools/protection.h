/*
 * protection.h - the primary's side in a VM's process: protects its machine by a standby under its lease.
 * Thread: control.
 */
#ifndef RP_TOOLS_PROTECTION_H
#define RP_TOOLS_PROTECTION_H

#include "tools/pair_options.h"
#include "tools/vm.h"

/* Begins to protect vm->machine by the standby at p->protect, and returns: rp_protection_query says how far it is. Opens the lease
 * as needed. `patient`: a standby that cannot be reached yet is waited for; otherwise it ends there, and so it does when the lease is
 * refused. Refused with a sentence while protected already, or while a checkpoint runs. */
int rp_protection_start(struct rp_vm *vm, const struct rp_pair_options *p, bool patient, struct rp_error *err) RP_MUST_CHECK;
/* Ends it and has the standby forget the VM; returns before that is over. */
void rp_protection_end(struct rp_vm *vm);
/* rp_protection_stop is to come: nobody waits for a switchover any more. */
void rp_protection_part(struct rp_vm *vm, bool forget);
/* Ends it, if there is one, and waits. `forget`: the standby is told to forget the VM; otherwise it takes over. */
void rp_protection_stop(struct rp_vm *vm, bool forget);
/* A new term: what the standby holds belongs to the old one, so it is synchronized anew. An attempt that failed is not made again. */
void rp_protection_restart(struct rp_vm *vm);
/* The machine stands still because it has no standby (--on-loss pause). */
bool rp_protection_pauses(const struct rp_vm *vm);
bool rp_protection_active(const struct rp_vm *vm);      /* there is one; of an attempt that failed, its reason */
bool rp_protection_over(const struct rp_vm *vm);        /* there is none, or its reason is all that is left */
bool rp_protection_ending(const struct rp_vm *vm);      /* active still, and asked to end */
/* Blocks; from a job's thread: rp_protect_switch. */
int rp_protection_switch(struct rp_vm *vm, int timeout_ms, struct rp_error *err) RP_MUST_CHECK;
/* The VM was handed to the standby and runs there. */
bool rp_protection_switched(const struct rp_vm *vm);
/* The lease's part of it; null without one. */
json_t *rp_protection_lease(struct rp_vm *vm);
/* For query-protect. */
json_t *rp_protection_query(struct rp_vm *vm);

#endif
