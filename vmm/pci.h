/*
 * pci.h - one PCI bus (bus 0, ECAM and CF8/CFC), its host bridge, and MSI-X.
 *
 * The VMM is its own firmware: BARs are assigned at creation from the window [RP_PCI_MMIO_START, RP_PCI_MMIO_END)
 * and may be moved by the guest. Config space and the MSI-X table are state and travel in the epoch.
 */
#ifndef RP_VMM_PCI_H
#define RP_VMM_PCI_H

#include "core/state.h"
#include "vmm/bus.h"
#include "vmm/irq.h"

#define RP_PCI_ECAM_START 0xE0000000ull     /* MCFG: bus 0 only, 1 MiB */
#define RP_PCI_ECAM_LEN 0x100000ull
#define RP_PCI_MMIO_START 0xC0000000ull     /* 32-bit BAR window, given to the guest in the DSDT's _CRS */
#define RP_PCI_MMIO_END 0xE0000000ull
#define RP_PCI_SLOTS 32
#define RP_MSIX_MAX 66                      /* vectors per function: 32 queue pairs + control + config */

struct rp_msix_vector { uint64_t addr; uint32_t data; uint32_t masked; uint32_t pending; uint32_t pad; };

struct rp_pci_state {                       /* in every PCI device's section */
    uint8_t config[256];
    uint64_t bar[6];                        /* assigned addresses as the guest last wrote them */
    uint32_t nvectors;
    uint32_t pad;
    struct rp_msix_vector msix[RP_MSIX_MAX];
};
extern const struct rp_state_table rp_pci_state_table;

struct rp_pci_bus;
struct rp_pci_dev;      /* embedded or owned by the device; see pci.c */

#endif
