/*
 * PCI at bus 0, by configuration mechanism 1 (0xcf8/0xcfc) or, with pci=ecam:ADDRESS on the command line, by ECAM.
 * Memory BARs that nobody has assigned, or that lie above 4 GiB, are assigned from bars= (default 0xd0000000) on.
 */
#ifndef TESTS_GUESTS_LIB_PCI_H
#define TESTS_GUESTS_LIB_PCI_H

#include <stdbool.h>
#include <stdint.h>

struct rg_pci {
	uint8_t device, function;
	uint16_t vendor_id, device_id;
};

uint32_t rg_pci_read(const struct rg_pci *p, unsigned offset); /* 32 bits at a multiple of 4 */
void rg_pci_write(const struct rg_pci *p, unsigned offset, uint32_t v);
uint8_t rg_pci_read8(const struct rg_pci *p, unsigned offset);

/* The n-th function, from 0, with this vendor and one of the two device ids. */
bool rg_pci_find(uint16_t vendor_id, uint16_t device_id, uint16_t other_id, unsigned n, struct rg_pci *p);

/* Where memory BAR `bar` is, assigned if need be; 0 if there is none. Decoding must have been switched on by rg_pci_enable() to use it. */
uint64_t rg_pci_bar(const struct rg_pci *p, unsigned bar);

/* Memory decoding and bus mastering on, INTx off. */
void rg_pci_enable(const struct rg_pci *p);

#endif
