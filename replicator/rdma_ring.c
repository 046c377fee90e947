#include "replicator/rdma_ring.h"

#include <errno.h>

static uint32_t slots_of(uint32_t len, uint32_t slot_bytes)
{
    return (len + slot_bytes - 1) / slot_bytes;
}

uint32_t rp_rdma_out_room(const struct rp_rdma_out *o)
{
    uint64_t back = o->completed < o->credited ? o->completed : o->credited;
    uint32_t free = RP_RDMA_SLOTS - (uint32_t)(o->posted - back);
    uint32_t contiguous = RP_RDMA_SLOTS - (uint32_t)(o->posted % RP_RDMA_SLOTS);
    uint32_t n = free < contiguous ? free : contiguous;
    return (n < RP_RDMA_MESSAGE_SLOTS ? n : RP_RDMA_MESSAGE_SLOTS) * o->slot_bytes;
}

uint32_t rp_rdma_out_offset(const struct rp_rdma_out *o)
{
    return (uint32_t)(o->posted % RP_RDMA_SLOTS) * o->slot_bytes;
}

void rp_rdma_out_take(struct rp_rdma_out *o, uint32_t len)
{
    o->posted += slots_of(len, o->slot_bytes);
}

int rp_rdma_out_credit(struct rp_rdma_out *o, uint32_t slots)
{
    if (slots > o->posted - o->credited)
        return -EPROTO;
    o->credited += slots;
    return 0;
}

int rp_rdma_in_arrived(struct rp_rdma_in *i, uint32_t len, bool hidden, uint32_t *offset)
{
    if (len == 0 || len > RP_RDMA_MESSAGE_SLOTS * i->slot_bytes)
        return -EPROTO;
    uint32_t n = slots_of(len, i->slot_bytes), at = (uint32_t)(i->arrived % RP_RDMA_SLOTS);
    if (at + n > RP_RDMA_SLOTS || i->arrived + n > i->freed + RP_RDMA_SLOTS)
        return -EPROTO;
    i->messages[at].len = len;
    i->messages[at].skip = hidden ? len : 0;
    i->arrived += n;
    *offset = at * i->slot_bytes;
    return 0;
}

uint32_t rp_rdma_in_ready(struct rp_rdma_in *i, uint32_t *offset)
{
    while (i->read < i->arrived) {
        uint32_t at = (uint32_t)(i->read % RP_RDMA_SLOTS);
        uint32_t len = i->messages[at].len, skip = i->messages[at].skip;
        if (skip < len) {
            *offset = at * i->slot_bytes + skip;
            return len - skip;
        }
        i->read += slots_of(len, i->slot_bytes);
    }
    return 0;
}

void rp_rdma_in_consume(struct rp_rdma_in *i, uint32_t bytes)
{
    uint32_t at = (uint32_t)(i->read % RP_RDMA_SLOTS);
    i->messages[at].skip += bytes;
    if (i->messages[at].skip == i->messages[at].len)
        i->read += slots_of(i->messages[at].len, i->slot_bytes);
}

uint32_t rp_rdma_in_credit(struct rp_rdma_in *i)
{
    uint64_t owed = i->read - i->freed;
    if (owed < RP_RDMA_CREDIT_SLOTS)
        return 0;
    i->freed = i->read;
    return (uint32_t)owed;
}
