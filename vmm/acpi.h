/*
 * acpi.h - the ACPI tables of the machine: RSDP, XSDT, FADT, FACS, MADT, MCFG, DSDT, written into guest RAM from
 * 0xe0000 on (reserved in the memory map). Thread: control, before the guest runs. Source: ACPI 6.5; PCI Firmware 3.2 (MCFG).
 */
#ifndef RP_VMM_ACPI_H
#define RP_VMM_ACPI_H

#include "vmm/guest_ram.h"

#define RP_ACPI_START 0xe0000u
#define RP_ACPI_END 0xf8000u
#define RP_ACPI_GPE_VMGENID 5

/* *rsdp_gpa: where the RSDP lies. */
int rp_acpi_write(struct rp_guest_ram *ram, unsigned vcpus, uint64_t vmgenid_gpa, uint64_t *rsdp_gpa, struct rp_error *err) RP_MUST_CHECK;

#endif
