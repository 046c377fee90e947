/*
 * pci.h - one PCI bus (bus 0, ECAM and CF8/CFC), its host bridge, and MSI-X.
 *
 * The VMM is its own firmware: BARs are assigned at creation from the window [RP_PCI_MMIO_START, RP_PCI_MMIO_END)
 * and may be moved by the guest inside it (a BAR that the guest puts elsewhere, or over another one, is not decoded).
 * Config space and the MSI-X table are state and travel in the epoch. There is no INTx: a function interrupts by
 * MSI-X or not at all.
 *
 * Signals are sent by this process only, so masking is done here: a masked vector's signal becomes its pending bit,
 * and the kernel's route always stands for the unmasked vector. Thread: everything under the machine lock.
 * Source: PCI Local Bus Specification 3.0, chapter 6 (configuration space), 6.8.2 (MSI-X).
 */
#ifndef RP_VMM_PCI_H
#define RP_VMM_PCI_H

#include "core/state.h"
#include "vmm/bus.h"
#include "vmm/device.h"
#include "vmm/irq.h"

#define RP_PCI_ECAM_START 0xE0000000ull     /* MCFG: bus 0 only, 1 MiB */
#define RP_PCI_ECAM_LEN 0x100000ull
#define RP_PCI_MMIO_START 0xC0000000ull     /* 32-bit BAR window, given to the guest in the DSDT's _CRS */
#define RP_PCI_MMIO_END 0xE0000000ull
#define RP_PCI_SLOTS 32                     /* slot 0: the host bridge */
#define RP_PCI_BARS 6
#define RP_MSIX_MAX 66                      /* vectors per function: 32 queue pairs + control + config */

struct rp_msix_vector { uint64_t addr; uint32_t data; uint32_t masked; uint32_t pending; uint32_t pad; };

struct rp_pci_state {                       /* in every PCI device's section */
    uint8_t config[256];
    uint64_t bar[RP_PCI_BARS];              /* assigned addresses as the guest last wrote them */
    uint32_t nvectors;
    uint32_t pad;
    struct rp_msix_vector msix[RP_MSIX_MAX];
};
extern const struct rp_state_table rp_pci_state_table;

struct rp_pci_bus;

struct rp_pci_ops {
    /* An access to a BAR, outside of the MSI-X table and PBA. Like rp_io_fn. */
    void (*bar)(void *ctx, unsigned bar, uint64_t off, uint8_t *data, uint32_t len, bool write);
    /* The BAR is decoded at `addr` from now on; 0: nowhere. May be NULL. */
    void (*bar_moved)(void *ctx, unsigned bar, uint64_t addr);
    /* Before a config read (write = false: may refresh s.config) and after a config write of [off, off+len). May be NULL. */
    void (*config)(void *ctx, uint32_t off, uint32_t len, bool write);
};

struct rp_pci_id {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint32_t class_code;                    /* 24 bits: class, subclass, programming interface */
    uint8_t revision;
};

/* A type-0 function, embedded in its device. Fields below `s` are pci.c's. */
struct rp_pci_dev {
    struct rp_pci_state s;
    struct rp_pci_bus *bus;
    unsigned slot;
    const struct rp_pci_ops *ops;
    void *ctx;
    uint8_t reset_config[256];              /* as at plug */
    uint8_t wmask[256];                     /* 1: the guest may write this bit */
    uint32_t bar_len[RP_PCI_BARS];          /* power of two, 0: no such BAR */
    uint64_t bar_at[RP_PCI_BARS];           /* where it is decoded now, 0: nowhere */
    uint32_t cap_end;                       /* first free byte for a capability */
    uint32_t msix_cap, msix_bar, msix_table, msix_pba;  /* msix_cap 0: none */
    struct rp_pci_route { int id; uint32_t data; uint64_t addr; } route[RP_MSIX_MAX]; /* id -1: none yet */
};

/* Claims ECAM on `mmio` and 0xCF8-0xCFF on `pio`. `irqs` NULL (tests): every signalled vector becomes pending. */
int rp_pci_bus_create(struct rp_bus *mmio, struct rp_bus *pio, struct rp_irqs *irqs, struct rp_pci_bus **out,
                      struct rp_error *err) RP_MUST_CHECK;
void rp_pci_bus_destroy(struct rp_pci_bus *bus);        /* after its devices */
/* Who takes a byte written to port 0xcf9 (reset control), which the configuration ports enclose. */
void rp_pci_bus_reset_port(struct rp_pci_bus *bus, void (*fn)(void *ctx, uint8_t value), void *ctx);
/* The host bridge and the CF8 latch as a device: section "pci-host", instance 0. */
void rp_pci_bus_device(struct rp_pci_bus *bus, struct rp_device *out);
extern const struct rp_state_table rp_pci_host_table;

/* Making a function: init, then BARs and capabilities, then plug. -EBUSY: slot taken; -ENOSPC. */
int rp_pci_dev_init(struct rp_pci_dev *d, struct rp_pci_bus *bus, unsigned slot, const struct rp_pci_id *id,
                    const struct rp_pci_ops *ops, void *ctx, struct rp_error *err) RP_MUST_CHECK;
/* A 32-bit memory BAR of `len` bytes (power of two, >= 4096), assigned from the window. */
int rp_pci_dev_bar(struct rp_pci_dev *d, unsigned bar, uint32_t len, struct rp_error *err) RP_MUST_CHECK;
/* Appends a capability (`len` bytes, the first two are filled in); returns its offset or -ENOSPC. */
int rp_pci_dev_cap(struct rp_pci_dev *d, uint8_t cap_id, const uint8_t *bytes, uint32_t len,
                   struct rp_error *err) RP_MUST_CHECK;
/* MSI-X with n vectors: table and PBA at these offsets of a BAR. */
int rp_pci_dev_msix(struct rp_pci_dev *d, unsigned n, unsigned bar, uint32_t table_off, uint32_t pba_off,
                    struct rp_error *err) RP_MUST_CHECK;
/* Visible to the guest from now on, memory decoding enabled (what firmware would leave). */
int rp_pci_dev_plug(struct rp_pci_dev *d, struct rp_error *err) RP_MUST_CHECK;
void rp_pci_dev_fini(struct rp_pci_dev *d);             /* unplugs, gives routes back */

void rp_pci_dev_reset(struct rp_pci_dev *d);            /* as at plug */
/* Takes over a decoded state. -EBADMSG when it is of another function (ids, vectors). Bits that the guest cannot
 * write are not taken from it. */
int rp_pci_dev_load(struct rp_pci_dev *d, const struct rp_pci_state *s, struct rp_error *err) RP_MUST_CHECK;

/* Interrupts the guest on a vector: delivered, pending when masked, nothing when MSI-X is off or there is no such vector. */
void rp_pci_msix_signal(struct rp_pci_dev *d, unsigned vector);

/* An access to a BAR as the guest would make it (the virtio PCI configuration access capability). */
void rp_pci_bar_access(struct rp_pci_dev *d, unsigned bar, uint64_t off, uint8_t *data, uint32_t len, bool write);
/* One config access; `off` < 4096, len 1-8. Any slot, any alignment: the arguments are the guest's. */
void rp_pci_config(struct rp_pci_bus *bus, unsigned slot, unsigned function, uint32_t off, uint8_t *data,
                   uint32_t len, bool write);

#endif
