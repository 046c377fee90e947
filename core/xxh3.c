#include "core/xxh3_impl.h"

#include "core/xxh3.h"

#define VECTORS_FROM 241u   /* bytes: shorter inputs take scalar code in either build */

static int have_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

uint64_t rp_xxh3_64(const void *bytes, size_t len, uint64_t seed)
{
    return len >= VECTORS_FROM && have_avx2() ? rp_xxh3_64_avx2(bytes, len, seed) : XXH3_64bits_withSeed(bytes, len, seed);
}

struct rp_hash128 rp_xxh3_128(const void *bytes, size_t len, uint64_t seed)
{
    if (len >= VECTORS_FROM && have_avx2())
        return rp_xxh3_128_avx2(bytes, len, seed);
    XXH128_hash_t h = XXH3_128bits_withSeed(bytes, len, seed);
    return (struct rp_hash128){h.low64, h.high64};
}

void rp_xxh3_blocks(const void *bytes, uint64_t seed, uint64_t out[RP_XXH3_BLOCKS])
{
    const unsigned char *p = bytes;
    for (unsigned i = 0; i < RP_XXH3_BLOCKS; i++)
        out[i] = XXH3_64bits_withSeed(p + RP_XXH3_BLOCK * i, RP_XXH3_BLOCK, seed);
}
