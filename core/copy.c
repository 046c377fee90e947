#include "core/copy.h"

#include <immintrin.h>

#define LINES (RP_PAGE_SIZE / 128)      /* two cache lines a step */

__attribute__((target("avx2"), no_sanitize("thread")))
static void copy_avx2(uint8_t *to, const uint8_t *from, const uint8_t *next, bool far)
{
    __m256i *out = (__m256i *)(void *)to;
    const __m256i *in = (const __m256i *)(const void *)from;
    for (unsigned i = 0; i < LINES; i++, in += 4, out += 4, next += 128) {
        _mm_prefetch((const char *)next, _MM_HINT_T0);
        _mm_prefetch((const char *)next + 64, _MM_HINT_T0);
        __m256i a = _mm256_load_si256(in), b = _mm256_load_si256(in + 1), c = _mm256_load_si256(in + 2), d = _mm256_load_si256(in + 3);
        if (far) {
            _mm256_stream_si256(out, a);
            _mm256_stream_si256(out + 1, b);
            _mm256_stream_si256(out + 2, c);
            _mm256_stream_si256(out + 3, d);
        } else {
            _mm256_storeu_si256(out, a);
            _mm256_storeu_si256(out + 1, b);
            _mm256_storeu_si256(out + 2, c);
            _mm256_storeu_si256(out + 3, d);
        }
    }
    if (far)
        _mm_sfence();   /* streamed stores are ordered by nothing else */
}

__attribute__((no_sanitize("thread")))
static void copy_sse2(uint8_t *to, const uint8_t *from, const uint8_t *next, bool far)
{
    __m128i *out = (__m128i *)(void *)to;
    const __m128i *in = (const __m128i *)(const void *)from;
    for (unsigned i = 0; i < 2 * LINES; i++, in += 4, out += 4, next += 64) {
        _mm_prefetch((const char *)next, _MM_HINT_T0);
        for (unsigned k = 0; k < 4; k++) {
            __m128i v = _mm_load_si128(in + k);
            if (far)
                _mm_stream_si128(out + k, v);
            else
                _mm_storeu_si128(out + k, v);
        }
    }
    if (far)
        _mm_sfence();
}

void rp_copy_page(uint8_t *to, const uint8_t *from, const uint8_t *next, bool far)
{
    if (__builtin_cpu_supports("avx2"))
        copy_avx2(to, from, next, far);
    else
        copy_sse2(to, from, next, far);
}
