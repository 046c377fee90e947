/*
 * vmgenid.h - the VM generation id: 16 bytes in guest RAM that change when the VM's past may happen twice (a restore),
 * with a general-purpose event that tells the guest, so that its random generators reseed. Machine lock held.
 */
#ifndef RP_VMM_VMGENID_H
#define RP_VMM_VMGENID_H

#include "core/state.h"
#include "vmm/device.h"
#include "vmm/guest_ram.h"
#include "vmm/power.h"

#define RP_VMGENID_GPA 0xf8000u     /* in the reserved range below 1 MiB */

extern const struct rp_state_table rp_vmgenid_table;
struct rp_vmgenid;
int rp_vmgenid_create(struct rp_guest_ram *ram, struct rp_power *power, struct rp_vmgenid **out, struct rp_device *dev,
                      struct rp_error *err) RP_MUST_CHECK;
/* Puts the id into RAM (a fresh boot). */
int rp_vmgenid_place(struct rp_vmgenid *g, struct rp_error *err) RP_MUST_CHECK;
/* A new id, in RAM, and the event. */
void rp_vmgenid_renew(struct rp_vmgenid *g);

#endif
