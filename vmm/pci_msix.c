/* MSI-X: table, pending bits and routes of one function. The contract is in pci.h. */
#include "vmm/pci_internal.h"
#include "core/log.h"

#include <linux/pci_regs.h>
#include <errno.h>

#define ENTRY PCI_MSIX_ENTRY_SIZE

int rp_pci_dev_msix(struct rp_pci_dev *d, unsigned n, unsigned bar, uint32_t table_off, uint32_t pba_off,
                    struct rp_error *err)
{
    uint8_t cap[PCI_CAP_MSIX_SIZEOF] = {0};
    int at;

    if (n == 0 || n > RP_MSIX_MAX)
        return rp_error_set(err, EINVAL, "PCI slot %u: %u interrupt vectors, at most %u", d->slot, n, RP_MSIX_MAX);
    rp_st16(cap + PCI_MSIX_FLAGS, (uint16_t)(n - 1));
    rp_st32(cap + PCI_MSIX_TABLE, table_off | bar);
    rp_st32(cap + PCI_MSIX_PBA, pba_off | bar);
    at = rp_pci_dev_cap(d, PCI_CAP_ID_MSIX, cap, sizeof(cap), err);
    if (at < 0)
        return at;
    rp_st16(d->wmask + at + PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    d->msix_cap = (uint32_t)at;
    d->msix_bar = bar;
    d->msix_table = table_off;
    d->msix_pba = pba_off;
    d->s.nvectors = n;
    return 0;
}

static uint16_t control(const struct rp_pci_dev *d)
{
    return d->msix_cap ? rp_ld16(d->s.config + d->msix_cap + PCI_MSIX_FLAGS) : 0;
}

static bool open_vector(const struct rp_pci_dev *d, unsigned v)
{
    uint16_t c = control(d);

    return (c & PCI_MSIX_FLAGS_ENABLE) && !(c & PCI_MSIX_FLAGS_MASKALL) && !d->s.msix[v].masked;
}

/* Points the vector's route at what the table says. False: it cannot be delivered now (the guest's nonsense, or
 * no irqchip). */
static bool route_ready(struct rp_pci_dev *d, unsigned v)
{
    struct rp_irqs *irqs = rp_pci_irqs(d->bus);
    const struct rp_msix_vector *vec = &d->s.msix[v];
    struct rp_pci_route *r = &d->route[v];
    struct rp_error err = {0};

    if (!irqs)
        return false;
    if (r->id < 0) {
        r->id = rp_irq_route_add(irqs, &err);
        r->addr = 0;
        r->data = 0;
    } else if (r->addr == vec->addr && r->data == vec->data) {
        return true;
    }
    if (r->id < 0 || rp_irq_route_set(irqs, r->id, vec->addr, vec->data, false, &err)) {
        rp_log(RP_LOG_DEBUG, "PCI slot %u: vector %u (address 0x%llx data 0x%x): %s", d->slot, v,
               (unsigned long long)vec->addr, vec->data, err.text);
        return false;
    }
    r->addr = vec->addr;
    r->data = vec->data;
    return true;
}

static void sync_vector(struct rp_pci_dev *d, unsigned v)
{
    if (!open_vector(d, v) || !route_ready(d, v))
        return;
    if (d->s.msix[v].pending) {
        d->s.msix[v].pending = 0;
        rp_irq_route_signal(rp_pci_irqs(d->bus), d->route[v].id);
    }
}

void rp_msix_sync_all(struct rp_pci_dev *d)
{
    for (unsigned v = 0; v < d->s.nvectors; v++)
        sync_vector(d, v);
}

void rp_pci_msix_signal(struct rp_pci_dev *d, unsigned v)
{
    if (v >= d->s.nvectors || !(control(d) & PCI_MSIX_FLAGS_ENABLE))
        return;
    if (open_vector(d, v) && route_ready(d, v))
        rp_irq_route_signal(rp_pci_irqs(d->bus), d->route[v].id);
    else
        d->s.msix[v].pending = 1;
}

/* An access within one 16-byte entry: the entry's image is changed and taken apart again. */
static void table_access(struct rp_pci_dev *d, uint32_t off, uint8_t *data, uint32_t len, bool write)
{
    struct rp_msix_vector *vec = &d->s.msix[off / ENTRY];
    uint8_t image[ENTRY];

    rp_st64(image + PCI_MSIX_ENTRY_LOWER_ADDR, vec->addr);
    rp_st32(image + PCI_MSIX_ENTRY_DATA, vec->data);
    rp_st32(image + PCI_MSIX_ENTRY_VECTOR_CTRL, vec->masked);
    if (!write) {
        memcpy(data, image + off % ENTRY, len);
        return;
    }
    memcpy(image + off % ENTRY, data, len);
    vec->addr = rp_ld64(image + PCI_MSIX_ENTRY_LOWER_ADDR) & ~3ull;
    vec->data = rp_ld32(image + PCI_MSIX_ENTRY_DATA);
    vec->masked = rp_ld32(image + PCI_MSIX_ENTRY_VECTOR_CTRL) & PCI_MSIX_ENTRY_CTRL_MASKBIT;
    sync_vector(d, off / ENTRY);
}

static void pba_read(const struct rp_pci_dev *d, uint32_t off, uint8_t *data, uint32_t len)
{
    memset(data, 0, len);
    for (unsigned v = 0; v < d->s.nvectors; v++)
        if (d->s.msix[v].pending && v / 8 >= off && v / 8 < off + len)
            data[v / 8 - off] |= (uint8_t)(1u << v % 8);
}

bool rp_msix_access(struct rp_pci_dev *d, unsigned bar, uint64_t off, uint8_t *data, uint32_t len, bool write)
{
    uint32_t table_len = d->s.nvectors * ENTRY, pba_len = (d->s.nvectors + 63) / 64 * 8;

    if (!d->msix_cap || bar != d->msix_bar)
        return false;
    if (off >= d->msix_table && off < d->msix_table + table_len) {
        if (off % ENTRY + len <= ENTRY)
            table_access(d, (uint32_t)off - d->msix_table, data, len, write);
        else if (!write)
            memset(data, 0xff, len);        /* the specification allows only aligned 4 and 8 byte accesses */
        return true;
    }
    if (off >= d->msix_pba && off < d->msix_pba + pba_len) {
        if (!write)
            pba_read(d, (uint32_t)off - d->msix_pba, data, len);
        return true;
    }
    return false;
}

void rp_msix_reset(struct rp_pci_dev *d)
{
    for (unsigned v = 0; v < d->s.nvectors; v++)
        d->s.msix[v] = (struct rp_msix_vector){.masked = 1};
}

void rp_msix_fini(struct rp_pci_dev *d)
{
    for (unsigned v = 0; v < RP_MSIX_MAX; v++) {
        if (d->route[v].id >= 0)
            rp_irq_route_del(rp_pci_irqs(d->bus), d->route[v].id);
        d->route[v].id = -1;
    }
}
