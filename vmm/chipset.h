/*
 * chipset.h - what lives in the kernel besides the vCPUs, as devices of the machine: the two PICs and the IOAPIC
 * (section "irqchip"), the interval timer (section "pit"). Control thread, vCPUs still.
 */
#ifndef RP_VMM_CHIPSET_H
#define RP_VMM_CHIPSET_H

#include "core/state.h"
#include "vmm/device.h"

extern const struct rp_state_table rp_irqchip_table, rp_pit_table;

/* Makes the irqchip and the PIT of a VM. Before any vCPU. `out`: two devices. */
int rp_chipset_create(int vmfd, struct rp_device out[2], struct rp_error *err) RP_MUST_CHECK;

#endif
