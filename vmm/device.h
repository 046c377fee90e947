/*
 * device.h - what the machine knows of a device: its name, its state, and what happens around a cut.
 *
 * A device keeps `struct foo_state` (plain, see core/state.h) inside `struct foo` (descriptors, timers). The
 * machine walks its devices in the order they were added: for a cut quiesce → save → (resume), for entering an
 * epoch load in the same order, then start. All calls with the machine lock held.
 */
#ifndef RP_VMM_DEVICE_H
#define RP_VMM_DEVICE_H

#include "core/epoch.h"

struct rp_device_ops {
    /* Brings `state` up to date from host resources (timers, in-flight requests). No side effect the guest can see. */
    int (*save)(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err);
    /* Takes a decoded, validated section. Resources are opened already; nothing runs yet. The whole load either
     * succeeds or the machine is destroyed by its owner, so a device may leave itself half-loaded on error. */
    int (*load)(void *dev, const struct rp_section *s, struct rp_error *err);
    /* Waits until no request is in flight at the host (before the process lets go of a disk). May block. */
    int (*drain)(void *dev, struct rp_error *err);
    void (*reset)(void *dev);           /* guest reset */
    void (*start)(void *dev);           /* the vCPUs are about to run: re-issue in-flight requests, arm timers, kick queues */
    void (*stop)(void *dev);            /* the vCPUs stand still; keep accepting nothing new until start */
    void (*announce)(void *dev);        /* it runs on another host now (network: announce addresses) */
    void (*destroy)(void *dev);
};

struct rp_device {
    const char *section;                /* section name, = its state table's name */
    uint32_t instance;
    const struct rp_device_ops *ops;    /* any op may be NULL but save and load come together */
    void *dev;
};

#endif
