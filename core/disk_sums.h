/*
 * disk_sums.h - what a copy of a disk holds, block by block, as hashes: who is to make it equal to another disk need not bring the
 * blocks whose hashes are the same there. docs/disks.md says when a list may be believed.
 *
 * A list begins at the disk's first block, and may end before its last one: a disk that has not been read to its end, blocks beyond
 * RP_DISK_SUMS_BLOCKS_MAX, and what does not fill a block, have no sum. The hash is XXH3_128bits_withSeed of the block; the seed is
 * random in each list, so that who chooses a disk's contents cannot choose two blocks with one hash.
 * Any thread; a list belongs to one at a time.
 */
#ifndef RP_CORE_DISK_SUMS_H
#define RP_CORE_DISK_SUMS_H

#include "core/xxh3.h"

#include <stdbool.h>

#define RP_DISK_SUMS_DISKS 8u
#define RP_DISK_SUMS_BLOCKS_MAX (1u << 20)      /* of one disk: 16 MiB of sums */
#define RP_DISK_SUMS_BLOCK_MIN (64u << 10)
#define RP_DISK_SUMS_BLOCK_MAX (1u << 20)

struct rp_disk_sum_list {
    uint64_t seed;
    uint32_t block_bytes;       /* a power of two, BLOCK_MIN … BLOCK_MAX */
    uint32_t blocks;            /* known, from the disk's beginning on */
    struct rp_hash128 *sums;    /* [blocks], malloc'ed; NULL: there is no list */
};
struct rp_disk_sums {
    struct rp_disk_sum_list disks[RP_DISK_SUMS_DISKS];  /* numbered like the VM's */
};

/* In which blocks a disk of this size is summed: the smallest of which RP_DISK_SUMS_BLOCKS_MAX cover it, or the largest. */
uint32_t rp_disk_sums_block_bytes(uint64_t size_bytes);
/* May a list be of such blocks, so many of them? */
bool rp_disk_sums_possible(uint32_t block_bytes, uint32_t blocks);
struct rp_hash128 rp_disk_block_sum(const struct rp_disk_sum_list *l, const uint8_t *block);
/* Frees the lists; there are none then. */
void rp_disk_sums_fini(struct rp_disk_sums *s);

#endif
