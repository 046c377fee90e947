/* Every state table of the machine and its devices. tests/lint/run finds one that is missing here. */
#include "vmm/tables.h"

#include "vmm/chipset.h"
#include "vmm/cpuid.h"
#include "vmm/devices.h"
#include "vmm/machine_internal.h"
#include "vmm/pci.h"
#include "vmm/power.h"
#include "vmm/rtc.h"
#include "vmm/serial.h"
#include "vmm/time.h"
#include "vmm/vcpu_state.h"
#include "vmm/virtio_pci.h"
#include "vmm/virtq.h"
#include "vmm/vmgenid.h"

const struct rp_state_table *const rp_vmm_tables[] = {
    &rp_machine_table,
    &rp_run_table,
    &rp_clock_table,
    &rp_vcpu_table,
    &rp_irqchip_table,
    &rp_pit_table,
    &rp_rtc_table,
    &rp_serial_table,
    &rp_power_table,
    &rp_vmgenid_table,
    &rp_pci_host_table,
    &rp_virtio_blk_table,
    &rp_virtio_net_table,
    &rp_virtio_rng_table,
    &rp_virtio_balloon_table,
    &rp_virtio_vsock_table,
    &rp_virtio_console_table,
    /* Parts of others: no section has their name. */
    &rp_cpuid_table,
    &rp_pci_state_table,
    &rp_virtio_state_table,
    &rp_virtq_state_table,
    NULL,
};
