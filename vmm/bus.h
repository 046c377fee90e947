/*
 * bus.h - port and memory-mapped I/O dispatch. Ranges are registered before the vCPUs start (PCI BARs may move
 * later, under the machine lock). Handlers run on a vCPU thread with the machine lock held and must not block.
 */
#ifndef RP_VMM_BUS_H
#define RP_VMM_BUS_H

#include "core/error.h"

#include <stdbool.h>
#include <stdint.h>

/* `off`: from the range's start; `len`: 1, 2, 4 or 8 (never across the range's end); little-endian bytes at `data`. */
typedef void rp_io_fn(void *dev, uint64_t off, uint8_t *data, uint32_t len, bool write);

struct rp_bus_range {
    uint64_t start, len;
    rp_io_fn *fn;
    void *dev;
};

#define RP_BUS_RANGES_MAX 192
struct rp_bus {                 /* machine lock */
    unsigned n;
    struct rp_bus_range ranges[RP_BUS_RANGES_MAX]; /* ascending by start, disjoint */
};

int rp_bus_add(struct rp_bus *bus, uint64_t start, uint64_t len, rp_io_fn *fn, void *dev) RP_MUST_CHECK; /* -EEXIST, -ENOSPC, -EINVAL */
void rp_bus_remove(struct rp_bus *bus, uint64_t start);
/* Unclaimed reads give all ones, unclaimed writes nothing. Accesses that cross a range's end are unclaimed. */
void rp_bus_access(struct rp_bus *bus, uint64_t addr, uint8_t *data, uint32_t len, bool write);

#endif
