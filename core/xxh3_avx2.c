/* XXH3 built for AVX2 (files.mk), whatever the rest is built for; see xxh3.h. */
#define XXH_VECTOR XXH_AVX2
#include "core/xxh3_impl.h"

#include "core/xxh3.h"

uint64_t rp_xxh3_64_avx2(const void *bytes, size_t len, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, len, seed);
}

struct rp_hash128 rp_xxh3_128_avx2(const void *bytes, size_t len, uint64_t seed)
{
    XXH128_hash_t h = XXH3_128bits_withSeed(bytes, len, seed);
    return (struct rp_hash128){h.low64, h.high64};
}
