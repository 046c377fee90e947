#include "core/codec.h"

#include <errno.h>
#include <immintrin.h>
#include <lz4.h>
#include <string.h>

const char *rp_codec_name(uint8_t id)
{
    static const char *const names[RP_CODEC_COUNT] = {"zero", "raw", "lz4", "delta"};
    return id < RP_CODEC_COUNT ? names[id] : "unknown";
}

static int bad(struct rp_error *err, const char *why)
{
    return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "%s", why);
}

uint32_t rp_lz4_encode(const uint8_t *page, uint8_t *out, uint32_t limit)
{
    int n = LZ4_compress_fast((const char *)page, (char *)out, (int)RP_PAGE_SIZE, (int)limit, 1);
    return n > 0 ? (uint32_t)n : 0;
}

int rp_lz4_decode(const uint8_t *in, uint32_t len, uint8_t *page, struct rp_error *err)
{
    if (len == 0 || len > RP_PAGE_SIZE)
        return bad(err, "an lz4 page has an impossible length");
    int n = LZ4_decompress_safe((const char *)in, (char *)page, (int)len, (int)RP_PAGE_SIZE);
    return n == (int)RP_PAGE_SIZE ? 0 : bad(err, "lz4 data do not decode to one page");
}

/* --- delta: { varint same | varint changed | changed bytes }*, docs/stream.md --- */

/* A gap of equal bytes shorter than this is cheaper sent than described by two further varints. */
#define GAP_MIN 4u

static uint32_t varint_put(uint8_t *out, uint32_t v)
{
    if (v < 0x80) {
        out[0] = (uint8_t)v;
        return 1;
    }
    out[0] = (uint8_t)(v | 0x80);
    out[1] = (uint8_t)(v >> 7);     /* a page's lengths fit in 13 bits */
    return 2;
}

/* The 64 masks of a page: bit i of word w says that byte 64 w + i differs. False as soon as `limit` bytes are known to. */
typedef bool diff_fn(const uint8_t *a, const uint8_t *b, uint64_t mask[64], uint32_t limit);

static bool diff_sse2(const uint8_t *a, const uint8_t *b, uint64_t mask[64], uint32_t limit)
{
    (void)limit;    /* counting bits costs more here than it saves */
    for (unsigned w = 0; w < 64; w++, a += 64, b += 64) {
        uint64_t m = 0;
        for (int i = 0; i < 4; i++) {
            __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(a + 16 * i));
            __m128i y = _mm_loadu_si128((const __m128i *)(const void *)(b + 16 * i));
            m |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(x, y)) << (16 * i);
        }
        mask[w] = ~m;
    }
    return true;
}

__attribute__((target("avx2,popcnt")))
static bool diff_avx2(const uint8_t *a, const uint8_t *b, uint64_t mask[64], uint32_t limit)
{
    uint32_t differ = 0;
    for (unsigned w = 0; w < 64; w++, a += 64, b += 64) {
        __m256i x0 = _mm256_loadu_si256((const __m256i *)(const void *)a);
        __m256i y0 = _mm256_loadu_si256((const __m256i *)(const void *)b);
        __m256i x1 = _mm256_loadu_si256((const __m256i *)(const void *)(a + 32));
        __m256i y1 = _mm256_loadu_si256((const __m256i *)(const void *)(b + 32));
        uint64_t lo = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(x0, y0));
        uint64_t hi = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(x1, y1));
        mask[w] = ~(lo | hi << 32);
        differ += (uint32_t)__builtin_popcountll(mask[w]);
        if (differ >= limit)
            return false;
    }
    return true;
}

/* First byte at or after `at` whose differs-bit equals `want`; RP_PAGE_SIZE when there is none. */
static uint32_t find(const uint64_t mask[64], uint32_t at, bool want)
{
    for (uint32_t w = at / 64; w < 64; w++) {
        uint64_t m = want ? mask[w] : ~mask[w];
        if (w == at / 64)
            m &= UINT64_MAX << (at % 64);
        if (m)
            return w * 64 + (uint32_t)__builtin_ctzll(m);
    }
    return RP_PAGE_SIZE;
}

uint32_t rp_delta_encode(const uint8_t *parent, const uint8_t *page, uint8_t *out, uint32_t limit)
{
    uint64_t mask[64];
    uint32_t at = 0, n = 0;
    diff_fn *diff = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") ? diff_avx2 : diff_sse2;
    if (!diff(parent, page, mask, limit))
        return 0;
    for (;;) {
        uint32_t start = find(mask, at, true);
        if (start == RP_PAGE_SIZE)
            break;
        uint32_t end = find(mask, start, false);
        for (;;) {                  /* run over short gaps of equal bytes */
            uint32_t next = end < RP_PAGE_SIZE ? find(mask, end, true) : RP_PAGE_SIZE;
            if (next == RP_PAGE_SIZE || next - end >= GAP_MIN)
                break;
            end = find(mask, next, false);
        }
        if (n + 4 + (end - start) >= limit)
            return 0;
        n += varint_put(out + n, start - at);
        n += varint_put(out + n, end - start);
        memcpy(out + n, page + start, end - start);
        n += end - start;
        at = end;
    }
    if (n == 0 && limit > 2) {      /* equal pages: one empty run, so that a delta is never empty */
        out[n++] = 0;
        out[n++] = 0;
    }
    return n < limit ? n : 0;
}

uint32_t rp_delta_encode_blocks(uint32_t changed, const uint8_t *page, uint8_t *out, uint32_t limit)
{
    const uint32_t block = RP_PAGE_SIZE / 32;
    uint32_t at = 0, n = 0;
    while (at < 32 && changed >> at) {
        uint32_t start = at + (uint32_t)__builtin_ctz(changed >> at);
        uint32_t end = start;
        while (end < 32 && changed >> end & 1)
            end++;
        uint32_t bytes = (end - start) * block;
        if (n + 4 + bytes >= limit)
            return 0;
        n += varint_put(out + n, (start - at) * block);
        n += varint_put(out + n, bytes);
        memcpy(out + n, page + start * block, bytes);
        n += bytes;
        at = end;
    }
    return n;
}

static bool varint_get(const uint8_t *in, uint32_t len, uint32_t *at, uint32_t *v)
{
    if (*at >= len)
        return false;
    uint32_t b = in[(*at)++];
    *v = b & 0x7F;
    if (b & 0x80) {
        if (*at >= len || in[*at] > 0x3F)
            return false;
        *v |= (uint32_t)in[(*at)++] << 7;
    }
    return true;
}

/* Walks the runs; with `page` it also writes them. */
static bool delta_walk(const uint8_t *in, uint32_t len, uint8_t *page)
{
    uint32_t at = 0, pos = 0;
    while (at < len) {
        uint32_t same, changed;
        if (!varint_get(in, len, &at, &same) || !varint_get(in, len, &at, &changed))
            return false;
        if (same > RP_PAGE_SIZE - pos || changed > RP_PAGE_SIZE - pos - same || changed > len - at)
            return false;
        if (page)
            memcpy(page + pos + same, in + at, changed);
        pos += same + changed;
        at += changed;
    }
    return true;
}

int rp_delta_decode(const uint8_t *in, uint32_t len, uint8_t *page, struct rp_error *err)
{
    if (len == 0 || len > RP_PAGE_SIZE)
        return bad(err, "a delta page has an impossible length");
    if (!delta_walk(in, len, NULL))
        return bad(err, "a delta's runs reach beyond the page or the data");
    delta_walk(in, len, page);
    return 0;
}

void rp_delta_again(const uint8_t *in, uint32_t len, uint8_t *page)
{
    delta_walk(in, len, page);
}
