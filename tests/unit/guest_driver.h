/*
 * guest_driver.h - the guest's side of PCI and virtio for tests: RAM, bus, loop and PCI bus without KVM, and a driver
 * that negotiates, lays out rings in guest RAM and posts buffers the way Linux does. Interrupts show in the PBA,
 * because there is no irqchip (pci.h).
 */
#ifndef RP_TESTS_GUEST_DRIVER_H
#define RP_TESTS_GUEST_DRIVER_H

#include "core/clock.h"
#include "vmm/devices.h"
#include "vmm/virtio_pci.h"

#include <criterion/criterion.h>
#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

struct board {
    pthread_mutex_t lock;
    struct rp_guest_ram ram;
    struct rp_bus mmio, pio;
    struct rp_loop *loop;
    struct rp_pci_bus *pci;
    struct rp_device_env env;
};

static inline void board_make(struct board *b, uint64_t ram_bytes)
{
    struct rp_error err = {0};
    struct rp_ram_config cfg = {.size_bytes = ram_bytes};

    memset(b, 0, sizeof(*b));
    pthread_mutex_init(&b->lock, NULL);
    cr_assert_eq(rp_guest_ram_init(&b->ram, &cfg, &err), 0, "%s", err.text);
    cr_assert_eq(rp_loop_create(&b->lock, &b->loop, &err), 0, "%s", err.text);
    cr_assert_eq(rp_pci_bus_create(&b->mmio, &b->pio, NULL, &b->pci, &err), 0, "%s", err.text);
    b->env = (struct rp_device_env){.ram = &b->ram, .pci = b->pci, .loop = b->loop, .vcpus = 1};
}

static inline void board_free(struct board *b)
{
    rp_loop_stop(b->loop);
    rp_gate_destroy(b->env.gate);       /* if the test made one */
    rp_pci_bus_destroy(b->pci);
    rp_loop_destroy(b->loop);
    rp_guest_ram_fini(&b->ram);
}

static inline void board_free_with(struct board *b, struct rp_device *dev)
{
    pthread_mutex_lock(&b->lock);
    dev->ops->destroy(dev->dev);
    pthread_mutex_unlock(&b->lock);
    board_free(b);
}

/* A stopped device is given its own state. The lock is held. */
static inline void board_reload(struct rp_device *dev, uint32_t slot)
{
    struct rp_sections sections = {0};
    struct rp_section sec;
    struct rp_error err = {0};

    cr_assert_eq(dev->ops->save(dev->dev, &sections, slot, &err), 0, "%s", err.text);
    dev->ops->reset(dev->dev);
    cr_assert(rp_sections_find(&sections, dev->section, slot, &sec));
    cr_assert_eq(dev->ops->load(dev->dev, &sec, &err), 0, "%s", err.text);
    rp_sections_fini(&sections);
}

/* --- configuration space through CF8/CFC, registers through MMIO --- */

static inline uint32_t cfg_get(struct board *b, unsigned slot, uint32_t off, uint32_t len)
{
    uint8_t d[8] = {0};
    uint64_t at = RP_PCI_ECAM_START + ((uint64_t)slot << 15) + off;

    rp_bus_access(&b->mmio, at, d, len, false);
    return rp_ld32(d);
}

static inline void cfg_set(struct board *b, unsigned slot, uint32_t off, uint32_t len, uint32_t v)
{
    uint8_t d[8];

    rp_st32(d, v);
    rp_bus_access(&b->mmio, RP_PCI_ECAM_START + ((uint64_t)slot << 15) + off, d, len, true);
}

static inline uint64_t mmio_get(struct board *b, uint64_t at, uint32_t len)
{
    uint8_t d[8] = {0};

    rp_bus_access(&b->mmio, at, d, len, false);
    return rp_ld64(d);
}

static inline void mmio_set(struct board *b, uint64_t at, uint32_t len, uint64_t v)
{
    uint8_t d[8];

    rp_st64(d, v);
    rp_bus_access(&b->mmio, at, d, len, true);
}

/* --- a virtio driver --- */

struct drv_queue {
    uint64_t desc, avail, used, notify;
    uint16_t size, avail_idx, seen, next_desc;
};

struct drv {
    struct board *b;
    unsigned slot;
    uint64_t common, isr, device, notify, table, pba;
    uint32_t notify_step;
    uint64_t heap;              /* next free guest address */
    unsigned nqueues;
    struct drv_queue q[RP_VIRTQS_MAX];
};

static inline uint64_t drv_alloc(struct drv *d, uint64_t n)
{
    uint64_t at = (d->heap + 4095) & ~4095ull;

    d->heap = at + n;
    cr_assert(rp_ram_at(&d->b->ram, rp_gpa(at), n) != NULL, "the test's guest has too little RAM");
    return at;
}

static inline void *drv_at(struct drv *d, uint64_t gpa)
{
    return rp_ram_at(&d->b->ram, rp_gpa(gpa), 1);
}

static inline void drv_find(struct drv *d, struct board *b, unsigned slot)
{
    uint64_t bar = cfg_get(b, slot, PCI_BASE_ADDRESS_0, 4) & ~15u;

    memset(d, 0, sizeof(*d));
    d->b = b;
    d->slot = slot;
    d->heap = 0x100000;
    for (uint32_t cap = cfg_get(b, slot, PCI_CAPABILITY_LIST, 1); cap; cap = cfg_get(b, slot, cap + 1, 1)) {
        uint32_t off = cfg_get(b, slot, cap + 8, 4);

        if (cfg_get(b, slot, cap, 1) == PCI_CAP_ID_MSIX) {
            d->table = bar + (cfg_get(b, slot, cap + PCI_MSIX_TABLE, 4) & ~7u);
            d->pba = bar + (cfg_get(b, slot, cap + PCI_MSIX_PBA, 4) & ~7u);
            cfg_set(b, slot, cap + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE);
            continue;
        }
        switch (cfg_get(b, slot, cap + 3, 1)) {
        case VIRTIO_PCI_CAP_COMMON_CFG: d->common = bar + off; break;
        case VIRTIO_PCI_CAP_ISR_CFG: d->isr = bar + off; break;
        case VIRTIO_PCI_CAP_DEVICE_CFG: d->device = bar + off; break;
        case VIRTIO_PCI_CAP_NOTIFY_CFG:
            d->notify = bar + off;
            d->notify_step = cfg_get(b, slot, cap + VIRTIO_PCI_NOTIFY_CAP_MULT, 4);
            break;
        default: break;
        }
    }
    cr_assert(d->common && d->isr && d->notify && d->table, "capabilities are missing");
    d->nqueues = (unsigned)mmio_get(b, d->common + VIRTIO_PCI_COMMON_NUMQ, 2);
}

static inline void drv_status(struct drv *d, uint8_t s)
{
    mmio_set(d->b, d->common + VIRTIO_PCI_COMMON_STATUS, 1, s);
}
static inline uint8_t drv_get_status(struct drv *d)
{
    return (uint8_t)mmio_get(d->b, d->common + VIRTIO_PCI_COMMON_STATUS, 1);
}

static inline uint64_t drv_offered(struct drv *d)
{
    uint64_t f;

    mmio_set(d->b, d->common + VIRTIO_PCI_COMMON_DFSELECT, 4, 0);
    f = mmio_get(d->b, d->common + VIRTIO_PCI_COMMON_DF, 4);
    mmio_set(d->b, d->common + VIRTIO_PCI_COMMON_DFSELECT, 4, 1);
    return f | mmio_get(d->b, d->common + VIRTIO_PCI_COMMON_DF, 4) << 32;
}

/* Accepts `features` (VERSION_1 added); returns whether FEATURES_OK stuck. */
static inline bool drv_negotiate(struct drv *d, uint64_t features)
{
    features |= 1ull << VIRTIO_F_VERSION_1;
    drv_status(d, 0);
    cr_assert_eq(drv_get_status(d), 0);
    drv_status(d, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    for (uint32_t i = 0; i < 2; i++) {
        mmio_set(d->b, d->common + VIRTIO_PCI_COMMON_GFSELECT, 4, i);
        mmio_set(d->b, d->common + VIRTIO_PCI_COMMON_GF, 4, (uint32_t)(features >> 32 * i));
    }
    drv_status(d, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
    return drv_get_status(d) & VIRTIO_CONFIG_S_FEATURES_OK;
}

static inline void drv_queue(struct drv *d, unsigned n)
{
    struct drv_queue *q = &d->q[n];
    uint64_t c = d->common;

    mmio_set(d->b, c + VIRTIO_PCI_COMMON_Q_SELECT, 2, n);
    *q = (struct drv_queue){.size = (uint16_t)mmio_get(d->b, c + VIRTIO_PCI_COMMON_Q_SIZE, 2)};
    q->notify = d->notify + mmio_get(d->b, c + VIRTIO_PCI_COMMON_Q_NOFF, 2) * d->notify_step;
    q->desc = drv_alloc(d, 16ull * q->size);
    q->avail = drv_alloc(d, 6 + 2ull * q->size);
    q->used = drv_alloc(d, 6 + 8ull * q->size);
    memset(drv_at(d, q->desc), 0, 16ull * q->size);     /* nothing of before a reset is offered again */
    memset(drv_at(d, q->avail), 0, 6 + 2ull * q->size);
    memset(drv_at(d, q->used), 0, 6 + 8ull * q->size);
    mmio_set(d->b, c + VIRTIO_PCI_COMMON_Q_MSIX, 2, n + 1);
    mmio_set(d->b, c + VIRTIO_PCI_COMMON_Q_DESCLO, 4, q->desc);
    mmio_set(d->b, c + VIRTIO_PCI_COMMON_Q_DESCHI, 4, q->desc >> 32);
    mmio_set(d->b, c + VIRTIO_PCI_COMMON_Q_AVAILLO, 4, q->avail);
    mmio_set(d->b, c + VIRTIO_PCI_COMMON_Q_USEDLO, 4, q->used);
    mmio_set(d->b, c + VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
}

/* Everything up to DRIVER_OK. */
static inline void drv_up(struct drv *d, struct board *b, unsigned slot, uint64_t features)
{
    drv_find(d, b, slot);
    cr_assert(drv_negotiate(d, features), "features 0x%llx were refused", (unsigned long long)features);
    mmio_set(b, d->common + VIRTIO_PCI_COMMON_MSIX, 2, 0);
    for (unsigned n = 0; n < d->nqueues; n++)
        drv_queue(d, n);
    drv_status(d, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

static inline void drv_desc(struct drv *d, unsigned n, uint16_t i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    uint8_t *e = (uint8_t *)drv_at(d, d->q[n].desc) + 16u * i;

    rp_st64(e, addr);
    rp_st32(e + 8, len);
    rp_st16(e + 12, flags);
    rp_st16(e + 14, next);
}

static inline void drv_offer(struct drv *d, unsigned n, uint16_t head)
{
    struct drv_queue *q = &d->q[n];
    uint8_t *a = drv_at(d, q->avail);

    rp_st16(a + 4 + 2u * (q->avail_idx % q->size), head);
    q->avail_idx++;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    rp_st16(a + 2, q->avail_idx);
}

struct seg { uint64_t addr; uint32_t len; bool in; };

/* Posts one chain and returns its head; descriptors are used round and round. */
static inline uint16_t drv_post(struct drv *d, unsigned n, const struct seg *s, unsigned count)
{
    struct drv_queue *q = &d->q[n];
    uint16_t head = q->next_desc;

    for (unsigned i = 0; i < count; i++) {
        uint16_t at = (uint16_t)((head + i) % q->size), next = (uint16_t)((at + 1) % q->size);

        drv_desc(d, n, at, s[i].addr, s[i].len,
                 (uint16_t)((s[i].in ? VRING_DESC_F_WRITE : 0) | (i + 1 < count ? VRING_DESC_F_NEXT : 0)), next);
    }
    q->next_desc = (uint16_t)((head + count) % q->size);
    drv_offer(d, n, head);
    return head;
}

static inline void drv_kick(struct drv *d, unsigned n)
{
    pthread_mutex_lock(&d->b->lock);
    mmio_set(d->b, d->q[n].notify, 2, n);
    pthread_mutex_unlock(&d->b->lock);
}

static inline uint16_t drv_used_idx(struct drv *d, unsigned n)
{
    return __atomic_load_n((uint16_t *)((uint8_t *)drv_at(d, d->q[n].used) + 2), __ATOMIC_ACQUIRE);
}

/* The next completion, within `ms`. */
static inline bool drv_done(struct drv *d, unsigned n, int ms, uint32_t *head, uint32_t *len)
{
    struct drv_queue *q = &d->q[n];
    uint64_t end = rp_clock_ns() + (uint64_t)ms * 1000000;

    while (drv_used_idx(d, n) == q->seen) {
        if (rp_clock_ns() > end)
            return false;
        usleep(200);
    }
    uint8_t *e = (uint8_t *)drv_at(d, q->used) + 4 + 8u * (q->seen % q->size);

    *head = rp_ld32(e);
    *len = rp_ld32(e + 4);
    q->seen++;
    return true;
}

static inline bool drv_pending(struct drv *d, unsigned vector)
{
    bool on;

    pthread_mutex_lock(&d->b->lock);
    on = mmio_get(d->b, d->pba + vector / 8, 1) >> vector % 8 & 1;
    pthread_mutex_unlock(&d->b->lock);
    return on;
}

static inline bool drv_broken(struct drv *d, int ms)
{
    uint64_t end = rp_clock_ns() + (uint64_t)ms * 1000000;

    do {
        pthread_mutex_lock(&d->b->lock);
        bool broken = drv_get_status(d) & VIRTIO_CONFIG_S_NEEDS_RESET;
        pthread_mutex_unlock(&d->b->lock);
        if (broken)
            return true;
        usleep(500);
    } while (rp_clock_ns() < end);
    return false;
}

#endif
