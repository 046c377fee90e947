/*
 * bytes.h - little-endian put and get; checked sizes.
 *
 * rp_buf grows by doubling and remembers a failed allocation (`failed`), so that a row of puts is
 * checked once at its end. rp_reader remembers a read beyond its end the same way: the gets then
 * return zero, and the caller checks `failed` before it believes anything.
 * Thread: an object belongs to one thread at a time.
 */
#ifndef RP_CORE_BYTES_H
#define RP_CORE_BYTES_H

#include "core/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>
#include <endian.h>

struct rp_buf {
    uint8_t *data;
    size_t len, cap;
    bool failed;
};

void rp_buf_fini(struct rp_buf *b);                            /* frees; the object is empty again */
void rp_buf_reset(struct rp_buf *b);                           /* len = 0, keeps the memory */
int rp_buf_reserve(struct rp_buf *b, size_t more) RP_MUST_CHECK; /* room for `more` further bytes; -ENOMEM */
void rp_buf_put(struct rp_buf *b, const void *p, size_t n);
uint8_t *rp_buf_extend(struct rp_buf *b, size_t n);            /* n uninitialised bytes at the end; NULL on ENOMEM */
void rp_buf_u8(struct rp_buf *b, uint8_t v);
void rp_buf_u16(struct rp_buf *b, uint16_t v);
void rp_buf_u32(struct rp_buf *b, uint32_t v);
void rp_buf_u64(struct rp_buf *b, uint64_t v);
void rp_buf_str(struct rp_buf *b, const char *s);              /* u16 length + bytes, no NUL */

struct rp_reader {
    const uint8_t *p;
    size_t left;
    bool failed;
};

static inline struct rp_reader rp_reader_of(const void *p, size_t n)
{
    return (struct rp_reader){.p = p, .left = n};
}
const uint8_t *rp_get(struct rp_reader *r, size_t n);          /* n bytes in place, or NULL */
uint8_t rp_get_u8(struct rp_reader *r);
uint16_t rp_get_u16(struct rp_reader *r);
uint32_t rp_get_u32(struct rp_reader *r);
uint64_t rp_get_u64(struct rp_reader *r);
int rp_get_str(struct rp_reader *r, char *out, size_t size) RP_MUST_CHECK; /* NUL-terminates; -EBADMSG */

/* Unaligned little-endian access to raw memory. */
static inline uint16_t rp_ld16(const void *p) { uint16_t v; memcpy(&v, p, 2); return le16toh(v); }
static inline uint32_t rp_ld32(const void *p) { uint32_t v; memcpy(&v, p, 4); return le32toh(v); }
static inline uint64_t rp_ld64(const void *p) { uint64_t v; memcpy(&v, p, 8); return le64toh(v); }
static inline void rp_st16(void *p, uint16_t v) { v = htole16(v); memcpy(p, &v, 2); }
static inline void rp_st32(void *p, uint32_t v) { v = htole32(v); memcpy(p, &v, 4); }
static inline void rp_st64(void *p, uint64_t v) { v = htole64(v); memcpy(p, &v, 8); }

/* Checked arithmetic on sizes that came from outside: false on overflow, *out then unchanged. */
static inline bool rp_add(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}
static inline bool rp_mul(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

#endif
