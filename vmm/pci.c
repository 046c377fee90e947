/* PCI: the bus, configuration space and BARs. MSI-X is in pci_msix.c. The contract is in pci.h. */
#include "vmm/pci_internal.h"
#include "core/log.h"

#include <linux/pci_regs.h>
#include <errno.h>
#include <stdlib.h>

struct rp_pci_bus {
    struct rp_bus *mmio, *pio;
    struct rp_irqs *irqs;
    struct rp_pci_dev *slots[RP_PCI_SLOTS];
    uint64_t next_bar;                      /* first free address of the window */
    struct rp_pci_dev bridge;
    uint32_t cf8;                           /* CONFIG_ADDRESS latch */
    void (*reset_port)(void *ctx, uint8_t value);   /* 0xcf9; may be NULL */
    void *reset_ctx;
};

/* The bridge's section: what the bus itself remembers. */
struct rp_pci_host_state {
    struct rp_pci_state pci;
    uint32_t cf8;
    uint32_t pad;
};

static const struct rp_field rp_msix_vector_fields[] = {
    RP_U64(struct rp_msix_vector, addr, 1),
    RP_U32(struct rp_msix_vector, data, 2),
    RP_U32(struct rp_msix_vector, masked, 3),
    RP_U32(struct rp_msix_vector, pending, 4),
    {.kind = RP_F_U32, .flags = RP_F_PAD, .name = "pad", .offset = offsetof(struct rp_msix_vector, pad), .count = 1},
};
static const struct rp_state_table rp_msix_vector_table = {
    .name = "msix-vector", .version = 1, .size = sizeof(struct rp_msix_vector), .fields = rp_msix_vector_fields,
    .nfields = sizeof(rp_msix_vector_fields) / sizeof(rp_msix_vector_fields[0]),
};

RP_TABLE(rp_pci_state_table, "pci", 1, struct rp_pci_state,
    RP_BYTES(struct rp_pci_state, config, 1),
    RP_ARRAY(struct rp_pci_state, bar, 2, RP_F_U64),
    RP_U32(struct rp_pci_state, nvectors, 3),
    {.kind = RP_F_U32, .flags = RP_F_PAD, .name = "pad", .offset = offsetof(struct rp_pci_state, pad), .count = 1},
    RP_STRUCTS(struct rp_pci_state, msix, 4, &rp_msix_vector_table, nvectors));

RP_TABLE(rp_pci_host_table, "pci-host", 1, struct rp_pci_host_state,
    RP_STRUCT(struct rp_pci_host_state, pci, 1, &rp_pci_state_table),
    RP_U32(struct rp_pci_host_state, cf8, 2),
    {.kind = RP_F_U32, .flags = RP_F_PAD, .name = "pad", .offset = offsetof(struct rp_pci_host_state, pad), .count = 1});

struct rp_irqs *rp_pci_irqs(struct rp_pci_bus *bus)
{
    return bus->irqs;
}

/* --- BARs --- */

static void bar_io(void *dev, unsigned bar, uint64_t off, uint8_t *data, uint32_t len, bool write)
{
    struct rp_pci_dev *d = dev;

    if (rp_msix_access(d, bar, off, data, len, write))
        return;
    if (d->ops && d->ops->bar)
        d->ops->bar(d->ctx, bar, off, data, len, write);
    else if (!write)
        memset(data, 0xff, len);
}

/* The bus hands a handler one pointer; one handler per BAR number tells which BAR it was. */
#define BAR_HANDLER(n) \
    static void bar##n(void *dev, uint64_t off, uint8_t *data, uint32_t len, bool write) \
    { \
        bar_io(dev, n, off, data, len, write); \
    }
BAR_HANDLER(0)
BAR_HANDLER(1)
BAR_HANDLER(2)
BAR_HANDLER(3)
BAR_HANDLER(4)
BAR_HANDLER(5)
static rp_io_fn *const bar_handlers[RP_PCI_BARS] = {bar0, bar1, bar2, bar3, bar4, bar5};

void rp_pci_bar_access(struct rp_pci_dev *d, unsigned bar, uint64_t off, uint8_t *data, uint32_t len, bool write)
{
    if (bar < RP_PCI_BARS && len <= d->bar_len[bar] && off <= d->bar_len[bar] - len)
        bar_io(d, bar, off, data, len, write);
    else if (!write)
        memset(data, 0xff, len);
}

/* Where a BAR should be decoded as config space stands: 0 when nowhere. */
static uint64_t bar_wanted(const struct rp_pci_dev *d, unsigned bar)
{
    uint64_t at = d->s.bar[bar];

    if (d->bar_len[bar] == 0 || !(rp_ld16(d->s.config + PCI_COMMAND) & PCI_COMMAND_MEMORY))
        return 0;
    if (at < RP_PCI_MMIO_START || at + d->bar_len[bar] > RP_PCI_MMIO_END)
        return 0;
    return at;
}

static void bar_unmap(struct rp_pci_dev *d, unsigned bar)
{
    rp_bus_remove(d->bus->mmio, d->bar_at[bar]);
    d->bar_at[bar] = 0;
    if (d->ops && d->ops->bar_moved)
        d->ops->bar_moved(d->ctx, bar, 0);
}

static void bar_map(struct rp_pci_dev *d, unsigned bar, uint64_t at)
{
    /* The guest put it over another BAR: stays undecoded until one of the two moves. */
    if (rp_bus_add(d->bus->mmio, at, d->bar_len[bar], bar_handlers[bar], d))
        return;
    d->bar_at[bar] = at;
    if (d->ops && d->ops->bar_moved)
        d->ops->bar_moved(d->ctx, bar, at);
}

/* Brings decoding in line with what all config spaces say: first everything that leaves, then what comes, so that
 * two BARs can swap places and one that was covered appears once it is free. */
static void bus_remap(struct rp_pci_bus *bus)
{
    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned slot = 0; slot < RP_PCI_SLOTS; slot++) {
            struct rp_pci_dev *d = bus->slots[slot];

            for (unsigned bar = 0; d && bar < RP_PCI_BARS; bar++) {
                uint64_t wanted = bar_wanted(d, bar);

                if (wanted == d->bar_at[bar])
                    continue;
                if (pass == 0 && d->bar_at[bar])
                    bar_unmap(d, bar);
                else if (pass == 1 && wanted)
                    bar_map(d, bar, wanted);
            }
        }
    }
}

/* s.bar from the registers. */
static void bars_decode(struct rp_pci_dev *d)
{
    for (unsigned bar = 0; bar < RP_PCI_BARS; bar++)
        d->s.bar[bar] = d->bar_len[bar] ? rp_ld32(d->s.config + PCI_BASE_ADDRESS_0 + 4 * bar) & PCI_BASE_ADDRESS_MEM_MASK : 0;
}

/* --- configuration space --- */

static void config_read(struct rp_pci_dev *d, uint32_t off, uint8_t *data, uint32_t len)
{
    if (d->ops && d->ops->config)
        d->ops->config(d->ctx, off, len, false);
    memcpy(data, d->s.config + off, len);
}

static bool overlaps(uint32_t off, uint32_t len, uint32_t start, uint32_t n)
{
    return off < start + n && start < off + len;
}

static void config_write(struct rp_pci_dev *d, uint32_t off, const uint8_t *data, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++) {
        uint8_t mask = d->wmask[off + i], *byte = &d->s.config[off + i];

        *byte = (uint8_t)((*byte & ~mask) | (data[i] & mask));
    }
    if (overlaps(off, len, PCI_COMMAND, 2) || overlaps(off, len, PCI_BASE_ADDRESS_0, 24)) {
        bars_decode(d);
        bus_remap(d->bus);
    }
    if (d->msix_cap && overlaps(off, len, d->msix_cap + PCI_MSIX_FLAGS, 2))
        rp_msix_sync_all(d);
    if (d->ops && d->ops->config)
        d->ops->config(d->ctx, off, len, true);
}

void rp_pci_config(struct rp_pci_bus *bus, unsigned slot, unsigned function, uint32_t off, uint8_t *data,
                   uint32_t len, bool write)
{
    struct rp_pci_dev *d = slot < RP_PCI_SLOTS && function == 0 ? bus->slots[slot] : NULL;

    if (!write)
        memset(data, d ? 0 : 0xff, len);    /* no function: all ones; beyond 256 bytes: no extended capabilities */
    if (!d || off >= sizeof(d->s.config) || len > sizeof(d->s.config) - off)
        return;
    if (write)
        config_write(d, off, data, len);
    else
        config_read(d, off, data, len);
}

static void ecam(void *dev, uint64_t off, uint8_t *data, uint32_t len, bool write)
{
    /* bits 19:15 device, 14:12 function, 11:0 register; an access may not leave its function */
    uint32_t reg = (uint32_t)(off & 0xfff);

    if (reg + len > 0x1000) {
        if (!write)
            memset(data, 0xff, len);
        return;
    }
    rp_pci_config(dev, (unsigned)(off >> 15) & 31, (unsigned)(off >> 12) & 7, reg, data, len, write);
}

/* 0xCF8 CONFIG_ADDRESS (dword accesses only), 0xCFC CONFIG_DATA (any part of it). */
static void cf8(void *dev, uint64_t off, uint8_t *data, uint32_t len, bool write)
{
    struct rp_pci_bus *bus = dev;
    uint32_t a = bus->cf8;

    if (off == 1 && len == 1 && write && bus->reset_port) {    /* 0xcf9 lies in between, and is not PCI's */
        bus->reset_port(bus->reset_ctx, data[0]);
        return;
    }
    if (off == 0 && len == 4) {
        if (write)
            bus->cf8 = rp_ld32(data) & 0x80fffffcu;
        else
            rp_st32(data, a);
        return;
    }
    if (off >= 4 && (a & 0x80000000u) && ((a >> 16) & 0xff) == 0)
        rp_pci_config(bus, (a >> 11) & 31, (a >> 8) & 7, (a & 0xfc) + (uint32_t)off - 4, data, len, write);
    else if (!write)
        memset(data, 0xff, len);
}

void rp_pci_bus_reset_port(struct rp_pci_bus *bus, void (*fn)(void *ctx, uint8_t value), void *ctx)
{
    bus->reset_port = fn;
    bus->reset_ctx = ctx;
}

/* --- making a function --- */

int rp_pci_dev_init(struct rp_pci_dev *d, struct rp_pci_bus *bus, unsigned slot, const struct rp_pci_id *id,
                    const struct rp_pci_ops *ops, void *ctx, struct rp_error *err)
{
    if (slot >= RP_PCI_SLOTS || bus->slots[slot])
        return rp_error_set(err, EBUSY, "PCI slot %u is %s", slot, slot < RP_PCI_SLOTS ? "taken" : "beyond the bus");
    memset(d, 0, sizeof(*d));
    d->bus = bus;
    d->slot = slot;
    d->ops = ops;
    d->ctx = ctx;
    d->cap_end = 0x40;
    for (unsigned v = 0; v < RP_MSIX_MAX; v++)
        d->route[v].id = -1;
    rp_st16(d->s.config + PCI_VENDOR_ID, id->vendor);
    rp_st16(d->s.config + PCI_DEVICE_ID, id->device);
    rp_st16(d->s.config + PCI_SUBSYSTEM_VENDOR_ID, id->subsystem_vendor);
    rp_st16(d->s.config + PCI_SUBSYSTEM_ID, id->subsystem);
    rp_st32(d->s.config + PCI_CLASS_REVISION, id->class_code << 8 | id->revision);
    rp_st16(d->wmask + PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
    d->wmask[PCI_CACHE_LINE_SIZE] = 0xff;
    d->wmask[PCI_INTERRUPT_LINE] = 0xff;
    return 0;
}

int rp_pci_dev_bar(struct rp_pci_dev *d, unsigned bar, uint32_t len, struct rp_error *err)
{
    uint64_t at = (d->bus->next_bar + len - 1) & ~(uint64_t)(len - 1);

    if (at + len > RP_PCI_MMIO_END)
        return rp_error_set(err, ENOSPC, "no room for a BAR of %u bytes in the PCI window", len);
    d->bus->next_bar = at + len;
    d->bar_len[bar] = len;
    rp_st32(d->s.config + PCI_BASE_ADDRESS_0 + 4 * bar, (uint32_t)at | PCI_BASE_ADDRESS_SPACE_MEMORY);
    rp_st32(d->wmask + PCI_BASE_ADDRESS_0 + 4 * bar, ~(len - 1));
    return 0;
}

int rp_pci_dev_cap(struct rp_pci_dev *d, uint8_t cap_id, const uint8_t *bytes, uint32_t len, struct rp_error *err)
{
    uint32_t at = d->cap_end, link = PCI_CAPABILITY_LIST;

    if (len < 2 || at + len > sizeof(d->s.config))
        return rp_error_set(err, ENOSPC, "no room for PCI capability 0x%x", cap_id);
    while (d->s.config[link])               /* the list's last link */
        link = d->s.config[link] + 1u;
    d->s.config[link] = (uint8_t)at;
    memcpy(d->s.config + at, bytes, len);
    d->s.config[at] = cap_id;
    d->s.config[at + 1] = 0;
    d->cap_end = (at + len + 3) & ~3u;
    d->s.config[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
    return (int)at;
}

int rp_pci_dev_plug(struct rp_pci_dev *d, struct rp_error *err)
{
    if (d->bus->slots[d->slot])
        return rp_error_set(err, EBUSY, "PCI slot %u is taken", d->slot);
    d->s.config[PCI_COMMAND] = PCI_COMMAND_MEMORY;
    memcpy(d->reset_config, d->s.config, sizeof(d->reset_config));
    d->bus->slots[d->slot] = d;
    rp_pci_dev_reset(d);
    return 0;
}

void rp_pci_dev_fini(struct rp_pci_dev *d)
{
    if (!d->bus || d->bus->slots[d->slot] != d)
        return;
    for (unsigned bar = 0; bar < RP_PCI_BARS; bar++)
        if (d->bar_at[bar])
            bar_unmap(d, bar);
    d->bus->slots[d->slot] = NULL;
    rp_msix_fini(d);
}

void rp_pci_dev_reset(struct rp_pci_dev *d)
{
    memcpy(d->s.config, d->reset_config, sizeof(d->s.config));
    rp_msix_reset(d);
    bars_decode(d);
    bus_remap(d->bus);
}

int rp_pci_dev_load(struct rp_pci_dev *d, const struct rp_pci_state *s, struct rp_error *err)
{
    if (memcmp(s->config, d->reset_config, 4) || memcmp(s->config + PCI_SUBSYSTEM_VENDOR_ID, d->reset_config + PCI_SUBSYSTEM_VENDOR_ID, 4))
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "PCI slot %u: the epoch has %04x:%04x there, this machine %04x:%04x",
                             d->slot, rp_ld16(s->config), rp_ld16(s->config + 2), rp_ld16(d->reset_config),
                             rp_ld16(d->reset_config + 2));
    if (s->nvectors != d->s.nvectors)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "PCI slot %u: the epoch has %u interrupt vectors there, this machine %u",
                             d->slot, s->nvectors, d->s.nvectors);
    for (unsigned i = 0; i < sizeof(d->s.config); i++)
        d->s.config[i] = (uint8_t)((d->reset_config[i] & ~d->wmask[i]) | (s->config[i] & d->wmask[i]));
    for (unsigned v = 0; v < s->nvectors; v++) {
        d->s.msix[v] = s->msix[v];
        d->s.msix[v].masked &= 1;
        d->s.msix[v].pending &= 1;
    }
    bars_decode(d);
    bus_remap(d->bus);
    rp_msix_sync_all(d);
    return 0;
}

/* --- the host bridge --- */

static int host_save(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err)
{
    struct rp_pci_bus *bus = dev;
    struct rp_pci_host_state s = {.pci = bus->bridge.s, .cf8 = bus->cf8};

    return rp_sections_add(out, &rp_pci_host_table, instance, &s, err);
}

static int host_load(void *dev, const struct rp_section *sec, struct rp_error *err)
{
    struct rp_pci_bus *bus = dev;
    struct rp_pci_host_state s = {.pci = bus->bridge.s};
    int rc = rp_section_decode(&rp_pci_host_table, sec, &s, err);

    if (rc == 0)
        rc = rp_pci_dev_load(&bus->bridge, &s.pci, err);
    if (rc == 0)
        bus->cf8 = s.cf8 & 0x80fffffcu;
    return rc;
}

static void host_reset(void *dev)
{
    struct rp_pci_bus *bus = dev;

    bus->cf8 = 0;
    rp_pci_dev_reset(&bus->bridge);
}

static const struct rp_device_ops host_ops = {.save = host_save, .load = host_load, .reset = host_reset};

void rp_pci_bus_device(struct rp_pci_bus *bus, struct rp_device *out)
{
    *out = (struct rp_device){.section = rp_pci_host_table.name, .ops = &host_ops, .dev = bus};
}

int rp_pci_bus_create(struct rp_bus *mmio, struct rp_bus *pio, struct rp_irqs *irqs, struct rp_pci_bus **out,
                      struct rp_error *err)
{
    /* QEMU's generic PCIe host bridge: no driver and no quirk of Linux is bound to it. */
    static const struct rp_pci_id id = {.vendor = 0x1b36, .device = 0x0008, .class_code = 0x060000};
    struct rp_pci_bus *bus = calloc(1, sizeof(*bus));
    int rc;

    if (!bus)
        return rp_error_set(err, ENOMEM, "no memory for the PCI bus");
    bus->mmio = mmio;
    bus->pio = pio;
    bus->irqs = irqs;
    bus->next_bar = RP_PCI_MMIO_START;
    rc = rp_bus_add(mmio, RP_PCI_ECAM_START, RP_PCI_ECAM_LEN, ecam, bus);
    if (rc) {
        rp_error_set(err, rc, "PCI: the ECAM range is taken");
        goto free_bus;
    }
    rc = rp_bus_add(pio, 0xcf8, 8, cf8, bus);
    if (rc) {
        rp_error_set(err, rc, "PCI: ports 0xcf8-0xcff are taken");
        goto remove_ecam;
    }
    rc = rp_pci_dev_init(&bus->bridge, bus, 0, &id, NULL, NULL, err);
    if (rc == 0)
        rc = rp_pci_dev_plug(&bus->bridge, err);
    if (rc)
        goto remove_cf8;
    *out = bus;
    return 0;
remove_cf8:
    rp_bus_remove(pio, 0xcf8);
remove_ecam:
    rp_bus_remove(mmio, RP_PCI_ECAM_START);
free_bus:
    free(bus);
    return rc;
}

void rp_pci_bus_destroy(struct rp_pci_bus *bus)
{
    if (!bus)
        return;
    rp_pci_dev_fini(&bus->bridge);
    rp_bus_remove(bus->pio, 0xcf8);
    rp_bus_remove(bus->mmio, RP_PCI_ECAM_START);
    free(bus);
}
