/*
 * xxh3.h - XXH3 at the speed this CPU allows: built for AVX2 and for every x86-64, chosen at run time. The values are those of
 * the public XXH3 with a seed (xxhash.h, XXH3_64bits_withSeed, XXH3_128bits_withSeed): they are on the wire and in archives.
 * Pure functions; any thread.
 */
#ifndef RP_CORE_XXH3_H
#define RP_CORE_XXH3_H

#include <stddef.h>
#include <stdint.h>

struct rp_hash128 { uint64_t lo, hi; };

uint64_t rp_xxh3_64(const void *bytes, size_t len, uint64_t seed);
struct rp_hash128 rp_xxh3_128(const void *bytes, size_t len, uint64_t seed);

/* For 32 blocks of 128 bytes: out[i] = the 64-bit hash of block i. */
#define RP_XXH3_BLOCK 128u
#define RP_XXH3_BLOCKS 32u
void rp_xxh3_blocks(const void *bytes, uint64_t seed, uint64_t out[RP_XXH3_BLOCKS]);

/* The two builds; only xxh3.c calls them. The AVX2 one needs a CPU that has it. */
uint64_t rp_xxh3_64_avx2(const void *bytes, size_t len, uint64_t seed);
struct rp_hash128 rp_xxh3_128_avx2(const void *bytes, size_t len, uint64_t seed);

#endif
