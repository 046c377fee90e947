/* AML; see aml.h. */
#include "vmm/aml.h"

#include <stdlib.h>

#define NAME_OP 0x08u
#define SCOPE_OP 0x10u
#define BUFFER_OP 0x11u
#define PACKAGE_OP 0x12u
#define METHOD_OP 0x14u
#define EXT_OP 0x5bu
#define EXT_DEVICE_OP 0x82u
#define NOTIFY_OP 0x86u

void rp_aml_path(struct rp_buf *b, const char *name)
{
    size_t n;

    if (*name == '\\')
        rp_buf_u8(b, (uint8_t)*name++);
    n = strlen(name) / 4;
    if (n == 2)
        rp_buf_u8(b, 0x2e);     /* DualNamePrefix */
    rp_buf_put(b, name, n * 4);
}

/* PkgLength in its four-byte form, filled in by close. */
static size_t open_block(struct rp_buf *b)
{
    size_t at = b->len;

    rp_buf_u32(b, 0);
    return at;
}

void rp_aml_close(struct rp_buf *b, size_t block)
{
    uint32_t len = (uint32_t)(b->len - block);

    if (b->failed)
        return;
    b->data[block] = (uint8_t)(0xc0 | (len & 0xf));
    b->data[block + 1] = (uint8_t)(len >> 4);
    b->data[block + 2] = (uint8_t)(len >> 12);
    b->data[block + 3] = (uint8_t)(len >> 20);
}

size_t rp_aml_scope(struct rp_buf *b, const char *name)
{
    size_t at;

    rp_buf_u8(b, SCOPE_OP);
    at = open_block(b);
    rp_aml_path(b, name);
    return at;
}

size_t rp_aml_device(struct rp_buf *b, const char *name)
{
    size_t at;

    rp_buf_u8(b, EXT_OP);
    rp_buf_u8(b, EXT_DEVICE_OP);
    at = open_block(b);
    rp_aml_path(b, name);
    return at;
}

size_t rp_aml_method(struct rp_buf *b, const char *name, unsigned args)
{
    size_t at;

    rp_buf_u8(b, METHOD_OP);
    at = open_block(b);
    rp_aml_path(b, name);
    rp_buf_u8(b, (uint8_t)args);
    return at;
}

size_t rp_aml_package(struct rp_buf *b, uint8_t count)
{
    size_t at;

    rp_buf_u8(b, PACKAGE_OP);
    at = open_block(b);
    rp_buf_u8(b, count);
    return at;
}

void rp_aml_name(struct rp_buf *b, const char *name)
{
    rp_buf_u8(b, NAME_OP);
    rp_aml_path(b, name);
}

void rp_aml_int(struct rp_buf *b, uint64_t v)
{
    if (v <= 1) {
        rp_buf_u8(b, (uint8_t)v);       /* ZeroOp, OneOp */
    } else if (v <= 0xff) {
        rp_buf_u8(b, 0x0a);
        rp_buf_u8(b, (uint8_t)v);
    } else if (v <= 0xffffffff) {
        rp_buf_u8(b, 0x0c);
        rp_buf_u32(b, (uint32_t)v);
    } else {
        rp_buf_u8(b, 0x0e);
        rp_buf_u64(b, v);
    }
}

void rp_aml_string(struct rp_buf *b, const char *s)
{
    rp_buf_u8(b, 0x0d);
    rp_buf_put(b, s, strlen(s) + 1);
}

/* Three compressed letters and four hex digits, big-endian (ACPI 6.5, 19.3.4). */
void rp_aml_eisaid(struct rp_buf *b, const char *id)
{
    uint32_t digits = (uint32_t)strtoul(id + 3, NULL, 16);
    uint32_t v = (uint32_t)(id[0] - 0x40) << 26 | (uint32_t)(id[1] - 0x40) << 21 | (uint32_t)(id[2] - 0x40) << 16 | digits;

    rp_buf_u8(b, 0x0c);
    rp_buf_u32(b, __builtin_bswap32(v));
}

void rp_aml_notify(struct rp_buf *b, const char *name, uint64_t value)
{
    rp_buf_u8(b, NOTIFY_OP);
    rp_aml_path(b, name);
    rp_aml_int(b, value);
}

struct rp_aml_crs rp_aml_crs_begin(struct rp_buf *b)
{
    struct rp_aml_crs c;

    rp_buf_u8(b, BUFFER_OP);
    c.block = open_block(b);
    rp_buf_u8(b, 0x0b);         /* WordPrefix: the buffer's size */
    c.start = b->len;
    rp_buf_u16(b, 0);
    return c;
}

void rp_aml_crs_end(struct rp_buf *b, struct rp_aml_crs c)
{
    rp_buf_u8(b, 0x79);         /* end tag, checksum 0: not checked */
    rp_buf_u8(b, 0);
    if (!b->failed)
        rp_st16(b->data + c.start, (uint16_t)(b->len - c.start - 2));
    rp_aml_close(b, c.block);
}

void rp_aml_crs_io(struct rp_buf *b, uint16_t port, uint8_t len)
{
    rp_buf_u8(b, 0x47);
    rp_buf_u8(b, 1);            /* 16-bit decode */
    rp_buf_u16(b, port);
    rp_buf_u16(b, port);
    rp_buf_u8(b, 1);
    rp_buf_u8(b, len);
}

void rp_aml_crs_irq(struct rp_buf *b, unsigned irq)
{
    rp_buf_u8(b, 0x22);         /* edge, active high */
    rp_buf_u16(b, (uint16_t)(1u << irq));
}

static void word_window(struct rp_buf *b, uint8_t type, uint8_t flags, uint16_t first, uint16_t last)
{
    rp_buf_u8(b, 0x88);
    rp_buf_u16(b, 13);
    rp_buf_u8(b, type);
    rp_buf_u8(b, 0x0c);         /* minimum and maximum fixed, positive decode, producer */
    rp_buf_u8(b, flags);
    rp_buf_u16(b, 0);
    rp_buf_u16(b, first);
    rp_buf_u16(b, last);
    rp_buf_u16(b, 0);
    rp_buf_u16(b, (uint16_t)(last - first + 1));
}

void rp_aml_crs_bus(struct rp_buf *b, uint16_t first, uint16_t last)
{
    word_window(b, 2, 0, first, last);
}

void rp_aml_crs_io_window(struct rp_buf *b, uint16_t first, uint16_t last)
{
    word_window(b, 1, 3, first, last);
}

void rp_aml_crs_memory_window(struct rp_buf *b, uint32_t first, uint32_t last)
{
    rp_buf_u8(b, 0x87);
    rp_buf_u16(b, 23);
    rp_buf_u8(b, 0);
    rp_buf_u8(b, 0x0c);
    rp_buf_u8(b, 1);            /* read-write, not cacheable */
    rp_buf_u32(b, 0);
    rp_buf_u32(b, first);
    rp_buf_u32(b, last);
    rp_buf_u32(b, 0);
    rp_buf_u32(b, last - first + 1);
}
