#include "core/bytes.h"

#include <errno.h>
#include <stdlib.h>

void rp_buf_fini(struct rp_buf *b)
{
    free(b->data);
    *b = (struct rp_buf){0};
}

void rp_buf_reset(struct rp_buf *b)
{
    b->len = 0;
    b->failed = false;
}

int rp_buf_reserve(struct rp_buf *b, size_t more)
{
    uint64_t need;
    if (!rp_add(b->len, more, &need) || need > SIZE_MAX / 2) {
        b->failed = true;
        return -ENOMEM;
    }
    if (b->data && need <= b->cap)     /* nothing of nothing is memory, too: NULL means that there is none */
        return 0;
    size_t cap = b->cap ? b->cap : 256;
    while (cap < need)
        cap *= 2;
    uint8_t *data = realloc(b->data, cap);
    if (!data) {
        b->failed = true;
        return -ENOMEM;
    }
    b->data = data;
    b->cap = cap;
    return 0;
}

uint8_t *rp_buf_extend(struct rp_buf *b, size_t n)
{
    if (b->failed || rp_buf_reserve(b, n) < 0)
        return NULL;
    uint8_t *p = b->data + b->len;
    b->len += n;
    return p;
}

void rp_buf_put(struct rp_buf *b, const void *p, size_t n)
{
    uint8_t *to = n ? rp_buf_extend(b, n) : NULL;
    if (to)
        memcpy(to, p, n);
}

void rp_buf_u8(struct rp_buf *b, uint8_t v)
{
    rp_buf_put(b, &v, 1);
}

void rp_buf_u16(struct rp_buf *b, uint16_t v)
{
    uint8_t *p = rp_buf_extend(b, 2);
    if (p)
        rp_st16(p, v);
}

void rp_buf_u32(struct rp_buf *b, uint32_t v)
{
    uint8_t *p = rp_buf_extend(b, 4);
    if (p)
        rp_st32(p, v);
}

void rp_buf_u64(struct rp_buf *b, uint64_t v)
{
    uint8_t *p = rp_buf_extend(b, 8);
    if (p)
        rp_st64(p, v);
}

void rp_buf_str(struct rp_buf *b, const char *s)
{
    size_t n = strlen(s);
    if (n > UINT16_MAX) {
        b->failed = true;
        return;
    }
    rp_buf_u16(b, (uint16_t)n);
    rp_buf_put(b, s, n);
}

const uint8_t *rp_get(struct rp_reader *r, size_t n)
{
    if (r->failed || n > r->left) {
        r->failed = true;
        return NULL;
    }
    const uint8_t *p = r->p;
    r->p += n;
    r->left -= n;
    return p;
}

uint8_t rp_get_u8(struct rp_reader *r)
{
    const uint8_t *p = rp_get(r, 1);
    return p ? *p : 0;
}

uint16_t rp_get_u16(struct rp_reader *r)
{
    const uint8_t *p = rp_get(r, 2);
    return p ? rp_ld16(p) : 0;
}

uint32_t rp_get_u32(struct rp_reader *r)
{
    const uint8_t *p = rp_get(r, 4);
    return p ? rp_ld32(p) : 0;
}

uint64_t rp_get_u64(struct rp_reader *r)
{
    const uint8_t *p = rp_get(r, 8);
    return p ? rp_ld64(p) : 0;
}

int rp_get_str(struct rp_reader *r, char *out, size_t size)
{
    uint16_t n = rp_get_u16(r);
    const uint8_t *p = rp_get(r, n);
    if (!p || n >= size || memchr(p, 0, n))
        return -EBADMSG;
    memcpy(out, p, n);
    out[n] = '\0';
    return 0;
}
