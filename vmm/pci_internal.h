/* pci_internal.h - between pci.c and pci_msix.c. Machine lock. */
#ifndef RP_VMM_PCI_INTERNAL_H
#define RP_VMM_PCI_INTERNAL_H

#include "vmm/pci.h"

struct rp_irqs *rp_pci_irqs(struct rp_pci_bus *bus);

/* An access to a BAR: true when it was the table's or the PBA's and is done. */
bool rp_msix_access(struct rp_pci_dev *d, unsigned bar, uint64_t off, uint8_t *data, uint32_t len, bool write);
/* After the enable or function mask bit, or the whole table, changed: points routes, delivers what is pending and no
 * longer masked. */
void rp_msix_sync_all(struct rp_pci_dev *d);
void rp_msix_reset(struct rp_pci_dev *d);
void rp_msix_fini(struct rp_pci_dev *d);    /* gives the routes back */

#endif
