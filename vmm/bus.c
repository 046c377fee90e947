/* I/O dispatch: a sorted array of disjoint ranges, searched by bisection; see bus.h. */
#include "vmm/bus.h"

#include <errno.h>
#include <string.h>

/* Index of the first range that starts beyond addr. */
static unsigned upper(const struct rp_bus *bus, uint64_t addr)
{
    unsigned lo = 0, hi = bus->n;

    while (lo < hi) {
        unsigned mid = lo + (hi - lo) / 2;
        if (bus->ranges[mid].start <= addr)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

int rp_bus_add(struct rp_bus *bus, uint64_t start, uint64_t len, rp_io_fn *fn, void *dev)
{
    unsigned at = upper(bus, start);
    uint64_t last;

    if (len == 0 || __builtin_add_overflow(start, len - 1, &last))
        return -EINVAL;
    if (at > 0 && start - bus->ranges[at - 1].start < bus->ranges[at - 1].len)
        return -EEXIST;
    if (at < bus->n && bus->ranges[at].start <= last)
        return -EEXIST;
    if (bus->n == RP_BUS_RANGES_MAX)
        return -ENOSPC;
    memmove(&bus->ranges[at + 1], &bus->ranges[at], (bus->n - at) * sizeof bus->ranges[0]);
    bus->ranges[at] = (struct rp_bus_range){.start = start, .len = len, .fn = fn, .dev = dev};
    bus->n++;
    return 0;
}

void rp_bus_remove(struct rp_bus *bus, uint64_t start)
{
    unsigned at = upper(bus, start);

    if (at == 0 || bus->ranges[at - 1].start != start)
        return;
    memmove(&bus->ranges[at - 1], &bus->ranges[at], (bus->n - at) * sizeof bus->ranges[0]);
    bus->n--;
}

void rp_bus_access(struct rp_bus *bus, uint64_t addr, uint8_t *data, uint32_t len, bool write)
{
    unsigned at = upper(bus, addr);

    if (at > 0) {
        const struct rp_bus_range *r = &bus->ranges[at - 1];
        uint64_t off = addr - r->start;
        if (off < r->len && len <= r->len - off) {
            r->fn(r->dev, off, data, len, write);
            return;
        }
    }
    if (!write)
        memset(data, 0xff, len);
}
