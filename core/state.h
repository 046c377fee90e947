/*
 * state.h - state tables: one const table per device state, one walker for all.
 *
 * `struct foo_state` is plain fixed-width integers without pointers or padding; its table names every
 * field with a permanent tag. The walker encodes, decodes, prints, diffs and checks that the table
 * tiles the struct (rp_state_check; a test runs it on every table).
 *
 * Encoded: for each field  u16 tag | u32 length | bytes (little-endian elements). An unknown tag with
 * RP_TAG_OPTIONAL set is skipped, without it refused. A field missing in the bytes keeps the value that
 * the target had (its reset value) if it is RP_F_OPTIONAL in the table; otherwise it is refused.
 * A row with a count must come after its count, and the count must be within the row's capacity.
 * Source for the idea: QEMU's VMState documentation; CRIU's tagged images.
 */
#ifndef RP_CORE_STATE_H
#define RP_CORE_STATE_H

#include "core/bytes.h"

#include <stdio.h>

#define RP_TAG_OPTIONAL 0x8000u

enum rp_field_kind {
    RP_F_U8 = 1, RP_F_U16, RP_F_U32, RP_F_U64,  /* `count` elements of that width */
    RP_F_BYTES,                                 /* `count` opaque bytes (printed as hex) */
    RP_F_STRUCT,                                /* `count` structs described by `table` */
};

enum rp_field_flags {
    RP_F_OPTIONAL = 1,  /* may be missing in the bytes */
    RP_F_PAD = 2,       /* reserved, zero, not encoded: only tiles the struct */
    RP_F_TEXT = 4,      /* RP_F_BYTES that hold NUL-padded text: printed as such */
};

struct rp_state_table;

struct rp_field {
    uint16_t tag;       /* permanent; unique in its table */
    uint8_t kind;       /* enum rp_field_kind */
    uint8_t flags;
    const char *name;
    uint32_t offset;
    uint32_t count;     /* capacity, elements */
    uint32_t counted_by;/* 1 + offset of the u32 field (earlier in the table) that says how many of `count`
                           elements are in use; 0: all of them */
    const struct rp_state_table *table; /* RP_F_STRUCT only */
};

struct rp_state_table {
    const char *name;       /* "vcpu", "virtio-net": the section's name on the wire */
    uint16_t version;       /* highest version this code writes and reads */
    uint32_t size;          /* sizeof(struct foo_state) */
    const struct rp_field *fields;
    uint32_t nfields;
    /* Optional: cross-field validation after decoding, before anyone uses the state. -EBADMSG. */
    int (*validate)(const void *state, struct rp_error *err);
};

#define RP_FIELD_(s, m, tg, kd, ct, fl) \
    {.tag = (tg), .kind = (kd), .flags = (fl), .name = #m, .offset = offsetof(s, m), .count = (ct)}
#define RP_U8(s, m, tag) RP_FIELD_(s, m, tag, RP_F_U8, 1, 0)
#define RP_U16(s, m, tag) RP_FIELD_(s, m, tag, RP_F_U16, 1, 0)
#define RP_U32(s, m, tag) RP_FIELD_(s, m, tag, RP_F_U32, 1, 0)
#define RP_U64(s, m, tag) RP_FIELD_(s, m, tag, RP_F_U64, 1, 0)
#define RP_BYTES(s, m, tag) RP_FIELD_(s, m, tag, RP_F_BYTES, sizeof(((s *)0)->m), 0)
#define RP_TEXT(s, m, tag) RP_FIELD_(s, m, tag, RP_F_BYTES, sizeof(((s *)0)->m), RP_F_TEXT)
#define RP_ARRAY(s, m, tag, kd) \
    RP_FIELD_(s, m, tag, kd, sizeof(((s *)0)->m) / sizeof(((s *)0)->m[0]), 0)
#define RP_PAD(s, m) RP_FIELD_(s, m, 0, RP_F_BYTES, sizeof(((s *)0)->m), RP_F_PAD)
#define RP_STRUCT(s, m, tg, tb) \
    {.tag = (tg), .kind = RP_F_STRUCT, .name = #m, .offset = offsetof(s, m), .count = 1, .table = (tb)}
#define RP_STRUCTS(s, m, tg, tb, n) \
    {.tag = (tg), .kind = RP_F_STRUCT, .name = #m, .offset = offsetof(s, m), \
     .count = sizeof(((s *)0)->m) / sizeof(((s *)0)->m[0]), .counted_by = 1 + offsetof(s, n), .table = (tb)}
#define RP_COUNTED(s, m, tg, kd, n) \
    {.tag = (tg), .kind = (kd), .name = #m, .offset = offsetof(s, m), \
     .count = sizeof(((s *)0)->m) / sizeof(((s *)0)->m[0]), .counted_by = 1 + offsetof(s, n)}
#define RP_TABLE(var, nm, ver, s, ...) \
    static const struct rp_field var##_fields[] = {__VA_ARGS__}; \
    const struct rp_state_table var = {.name = (nm), .version = (ver), .size = sizeof(s), \
        .fields = var##_fields, .nfields = sizeof(var##_fields) / sizeof(var##_fields[0])}

/* Appends the encoded state to b (check b->failed). */
void rp_state_encode(const struct rp_state_table *t, const void *state, struct rp_buf *b);
/* Decodes into `state` (t->size bytes, holding reset values); on error its contents are undefined: decode
 * into a temporary. -EBADMSG: unknown tag, wrong length, count beyond capacity, missing field, validate(). */
int rp_state_decode(const struct rp_state_table *t, void *state, const void *bytes, size_t len,
                    struct rp_error *err) RP_MUST_CHECK;
void rp_state_print(const struct rp_state_table *t, const void *state, FILE *out, int indent);
/* Prints the fields that differ; returns how many. */
int rp_state_diff(const struct rp_state_table *t, const void *a, const void *b, FILE *out, int indent);
/* One JSON object, on one line: numbers as decimals, bytes as one string of hex digits, texts as strings, rows as arrays
 * of what is in use. */
void rp_state_json(const struct rp_state_table *t, const void *state, FILE *out);
/* `n` bytes, or up to the first NUL, as a JSON string with its quotes. What is not printable ASCII is escaped as U+00XX,
 * byte by byte: whatever a stream holds, the result is JSON and harmless to a terminal. */
void rp_json_text(const void *text, size_t n, FILE *out);
/* 0 when fields tile the struct without gap or overlap and tags are unique; -EINVAL with the place. */
int rp_state_check(const struct rp_state_table *t, struct rp_error *err) RP_MUST_CHECK;

#endif
