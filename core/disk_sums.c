#include "core/disk_sums.h"

#include <stdlib.h>
#include <string.h>

uint32_t rp_disk_sums_block_bytes(uint64_t size_bytes)
{
    uint32_t block = RP_DISK_SUMS_BLOCK_MIN;
    while (block < RP_DISK_SUMS_BLOCK_MAX && size_bytes / block > RP_DISK_SUMS_BLOCKS_MAX)
        block *= 2;
    return block;
}

bool rp_disk_sums_possible(uint32_t block_bytes, uint32_t blocks)
{
    return block_bytes >= RP_DISK_SUMS_BLOCK_MIN && block_bytes <= RP_DISK_SUMS_BLOCK_MAX && (block_bytes & (block_bytes - 1)) == 0 &&
           blocks <= RP_DISK_SUMS_BLOCKS_MAX;
}

struct rp_hash128 rp_disk_block_sum(const struct rp_disk_sum_list *l, const uint8_t *block)
{
    return rp_xxh3_128(block, l->block_bytes, l->seed);
}

void rp_disk_sums_fini(struct rp_disk_sums *s)
{
    for (unsigned i = 0; i < RP_DISK_SUMS_DISKS; i++)
        free(s->disks[i].sums);
    memset(s, 0, sizeof(*s));
}
