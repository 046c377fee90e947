/*
 * virtio_pci.h - what all virtio devices share: the modern PCI transport (virtio 1.2, section 4.1), feature
 * negotiation, queues, kicks and interrupts. A device embeds struct rp_virtio and gives an ops table.
 *
 * Kicks: a guest's notification signals the queue's eventfd in the kernel (ioeventfd); the io thread then calls
 * ops->notify under the machine lock. vCPU threads only ever do register accesses here.
 *
 *     RESET ─ACKNOWLEDGE, DRIVER─► NEGOTIATING ─FEATURES_OK─► SETUP ─DRIVER_OK─► RUNNING ─status 0─► RESET
 *                                                                                  └─ hostile ring ─► NEEDS_RESET ─status 0─► RESET
 *
 *   VIRTIO-1  after NEEDS_RESET no ring of the device is looked at until it was reset;
 *   VIRTIO-2  between stop and start no ring and no guest RAM is touched: kicks and completions wait;
 *   VIRTIO-3  features that were not offered are never in effect (FEATURES_OK does not stick).
 *
 * Thread: machine lock, everywhere.
 */
#ifndef RP_VMM_VIRTIO_PCI_H
#define RP_VMM_VIRTIO_PCI_H

#include "vmm/devices.h"
#include "vmm/pci.h"
#include "vmm/virtq.h"

#define RP_VIRTQS_MAX 33        /* 16 queue pairs and a control queue */

struct rp_virtio_state {        /* first in every virtio device's section */
    struct rp_pci_state pci;
    uint64_t device_features;   /* as offered: who enters the epoch must offer all that the driver took */
    uint64_t driver_features;
    uint32_t device_feature_sel, driver_feature_sel;
    uint16_t config_vector, queue_sel;
    uint8_t status, isr, generation, pad;
    uint32_t nqueues;
    uint32_t pad2;
    struct rp_virtq_state queues[RP_VIRTQS_MAX];
};
extern const struct rp_state_table rp_virtio_state_table;

struct rp_virtio_ops {
    void (*notify)(void *dev, unsigned queue);      /* there may be new requests */
    /* Device configuration, `off + len` anywhere: zero what there is not. NULL: no configuration. */
    void (*config_read)(void *dev, uint32_t off, uint8_t *data, uint32_t len);
    void (*config_write)(void *dev, uint32_t off, const uint8_t *data, uint32_t len);   /* may be NULL */
    void (*driver_ok)(void *dev);                   /* features are final, queues are set up; may be NULL */
    void (*reset)(void *dev);                       /* forget requests in flight: they must not touch RAM again; may be NULL */
};

struct rp_virtio {
    struct rp_device_env env;
    struct rp_pci_dev pci;
    const struct rp_virtio_ops *ops;
    void *dev;
    const char *name;               /* its section's name */
    uint64_t features;              /* offered */
    uint64_t driver_features;
    uint32_t device_feature_sel, driver_feature_sel;
    uint16_t config_vector, queue_sel;
    uint8_t status, isr, generation;
    bool running;                   /* between start and stop */
    bool entered;                   /* from an epoch, and not started since */
    uint32_t cfg_cap;               /* PCI configuration access capability */
    uint64_t said_ns;               /* when it was last said that it is broken; 0: never */
    uint64_t notify_at;             /* where ioeventfds are registered, 0: nowhere */
    unsigned nqueues;
    struct rp_virtio_queue {
        struct rp_virtq q;
        int kick_fd;
        bool kicked;                /* while stopped */
        bool wired;                 /* ioeventfd registered */
        struct rp_virtio *v;
    } queues[RP_VIRTQS_MAX];
};

struct rp_virtio_config {
    const char *name;
    uint16_t type;                  /* VIRTIO_ID_… */
    uint32_t class_code;
    uint64_t features;              /* VERSION_1, EVENT_IDX and INDIRECT_DESC are added */
    unsigned nqueues;
    uint16_t queue_size;
    const struct rp_virtio_ops *ops;
    void *dev;
};

int rp_virtio_init(struct rp_virtio *v, const struct rp_device_env *env, unsigned slot,
                   const struct rp_virtio_config *cfg, struct rp_error *err) RP_MUST_CHECK;
void rp_virtio_fini(struct rp_virtio *v);   /* safe after a failed init */
void rp_virtio_offer(struct rp_virtio *v, uint64_t features);   /* others than at init; while no driver can have seen those */

static inline bool rp_virtio_has(const struct rp_virtio *v, unsigned bit)
{
    return v->driver_features >> bit & 1;
}
/* The queue may be looked at: device running, driver ready, queue enabled, not broken. */
bool rp_virtio_ready(const struct rp_virtio *v, unsigned queue);
static inline struct rp_virtq *rp_virtio_queue(struct rp_virtio *v, unsigned queue)
{
    return &v->queues[queue].q;
}
/* Publishes what was pushed and interrupts when the guest wants it. */
void rp_virtio_publish(struct rp_virtio *v, unsigned queue);
/* Calls notify once more from the loop: a budget was used up. */
void rp_virtio_again(struct rp_virtio *v, unsigned queue);
/* The device's configuration changed: generation and interrupt. */
void rp_virtio_config_changed(struct rp_virtio *v);
/* The guest's rings or requests make no sense: NEEDS_RESET, with an event and a log line, once a second at most. */
void rp_virtio_fail(struct rp_virtio *v, unsigned queue, const struct rp_error *why);

/* --- the common part of struct rp_device_ops --- */
void rp_virtio_save(const struct rp_virtio *v, struct rp_virtio_state *out);
/* -EBADMSG: another device, features this host does not offer, rings outside of RAM. */
int rp_virtio_load(struct rp_virtio *v, const struct rp_virtio_state *s, struct rp_error *err) RP_MUST_CHECK;
void rp_virtio_reset(struct rp_virtio *v);  /* machine reset: device and PCI function */
void rp_virtio_start(struct rp_virtio *v);  /* kicks that came while stopped, or before an epoch, are served */
void rp_virtio_stop(struct rp_virtio *v);
/* The same three as struct rp_device_ops has them, for a device whose struct begins with its struct rp_virtio and has no more to do. */
void rp_virtio_device_reset(void *dev);
void rp_virtio_device_start(void *dev);
void rp_virtio_device_stop(void *dev);

#endif
