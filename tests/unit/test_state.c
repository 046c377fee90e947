/* State tables: encode, decode, and everything that hostile bytes may try (INV-4). */
#include "core/epoch.h"
#include "core/event.h"
#include "core/state.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>

struct part { uint16_t a; uint16_t b; uint32_t c; };
RP_TABLE(part_table, "part", 1, struct part, RP_U16(struct part, a, 1), RP_U16(struct part, b, 2), RP_U32(struct part, c, 3));

struct whole {
    uint64_t id;
    uint32_t nparts;
    uint8_t flag;
    uint8_t pad[3];
    struct part parts[4];
    uint32_t row[6];
    uint32_t nrow;
    uint32_t newer;
    uint8_t mac[6];
    uint16_t port;
};
static const struct rp_field whole_fields[] = {
    RP_U64(struct whole, id, 1),
    RP_U32(struct whole, nparts, 2),
    RP_U8(struct whole, flag, 3),
    RP_PAD(struct whole, pad),
    RP_STRUCTS(struct whole, parts, 4, &part_table, nparts),
    RP_U32(struct whole, nrow, 6),
    RP_COUNTED(struct whole, row, 5, RP_F_U32, nrow),
    RP_FIELD_(struct whole, newer, 7, RP_F_U32, 1, RP_F_OPTIONAL),
    RP_BYTES(struct whole, mac, 8),
    RP_U16(struct whole, port, 9),
};
static const struct rp_state_table whole_table = {
    .name = "whole", .version = 3, .size = sizeof(struct whole), .fields = whole_fields,
    .nfields = sizeof(whole_fields) / sizeof(whole_fields[0]),
};

static struct whole sample(void)
{
    return (struct whole){.id = 0x1122334455667788, .nparts = 2, .flag = 9, .parts = {{1, 2, 3}, {4, 5, 6}}, .nrow = 3,
                          .row = {7, 8, 9}, .newer = 10, .mac = {1, 2, 3, 4, 5, 6}, .port = 80};
}

Test(state, tables_of_core_tile_their_structs)
{
    static const struct rp_state_table *const all[] = {&part_table, &whole_table, &rp_epoch_header_table,
                                                       &rp_epoch_trailer_table, &rp_history_table};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        struct rp_error err = {0};
        cr_assert_eq(rp_state_check(all[i], &err), 0, "%s", err.text);
    }
}

static void refused_table(const struct rp_field *f, uint32_t n, const char *why)
{
    struct rp_state_table t = {.name = "bad", .version = 1, .size = sizeof(struct part), .fields = f, .nfields = n};
    struct rp_error err = {0};
    cr_assert_eq(rp_state_check(&t, &err), -EINVAL);
    cr_assert(strstr(err.text, why), "%s", err.text);
}

Test(state, a_wrong_table_is_found)
{
    struct rp_field f[] = {RP_U16(struct part, a, 1), RP_U16(struct part, b, 2), RP_U32(struct part, c, 3)};
    refused_table(f, 2, "belongs to no field");
    f[1].offset = 1;
    refused_table(f, 3, "overlaps");
    f[1].offset = 2;
    f[1].tag = 1;
    refused_table(f, 3, "share tag");
    f[1].tag = 0;
    refused_table(f, 3, "no tag");
    f[1].tag = 2;
    f[2].count = 2;
    refused_table(f, 3, "beyond the struct");
    f[2].count = 1;
    f[2].counted_by = 1;
    refused_table(f, 3, "what counts");
}

static void encode(const struct whole *w, struct rp_buf *b)
{
    rp_state_encode(&whole_table, w, b);
    cr_assert_not(b->failed);
}

Test(state, decodes_what_it_encoded)
{
    struct rp_buf b = {0};
    struct whole in = sample(), out = {0};
    struct rp_error err = {0};
    encode(&in, &b);
    cr_assert_eq(rp_state_decode(&whole_table, &out, b.data, b.len, &err), 0, "%s", err.text);
    cr_assert_eq(memcmp(&in, &out, sizeof(in)), 0);
    cr_assert_eq(rp_state_diff(&whole_table, &in, &out, NULL, 0), 0);
    out.parts[1].c = 77;
    out.mac[2] = 99;
    cr_assert_eq(rp_state_diff(&whole_table, &in, &out, NULL, 0), 2);
    rp_buf_fini(&b);
}

/* Finds a field's record in the encoding: offset of its tag, length of the whole. */
static size_t find_tag(const struct rp_buf *b, uint16_t tag, size_t *len)
{
    size_t at = 0;
    while (rp_ld16(b->data + at) != tag)
        at += 6 + rp_ld32(b->data + at + 2);
    *len = 6 + rp_ld32(b->data + at + 2);
    return at;
}

static void move_to_end(struct rp_buf *b, uint16_t tag)
{
    size_t len, at = find_tag(b, tag, &len);
    uint8_t *copy = malloc(len);
    memcpy(copy, b->data + at, len);
    memmove(b->data + at, b->data + at + len, b->len - at - len);
    memcpy(b->data + b->len - len, copy, len);
    free(copy);
}

static void refused(const struct rp_buf *b, const char *why)
{
    struct whole out = {0};
    struct rp_error err = {0};
    cr_assert_eq(rp_state_decode(&whole_table, &out, b->data, b->len, &err), -EBADMSG, "expected: %s", why);
    cr_assert(strstr(err.text, why), "expected \"%s\", got \"%s\"", why, err.text);
    cr_assert_eq(err.exit, RP_EXIT_DAMAGED);
}

Test(state, fields_may_be_reordered_but_not_missing_or_doubled)
{
    struct whole in = sample(), out = {0};
    struct rp_buf b = {0};
    size_t len;
    encode(&in, &b);
    move_to_end(&b, 1);
    cr_assert_eq(rp_state_decode(&whole_table, &out, b.data, b.len, NULL), 0);
    cr_assert_eq(memcmp(&in, &out, sizeof(in)), 0);
    find_tag(&b, 1, &len);
    b.len -= len;
    refused(&b, "field id: missing");
    encode(&in, &b);
    refused(&b, "comes twice");
    rp_buf_fini(&b);
}

Test(state, an_optional_field_keeps_its_reset_value)
{
    struct whole in = sample(), out = {.newer = 4711};
    struct rp_buf b = {0};
    size_t len;
    encode(&in, &b);
    move_to_end(&b, 7);
    find_tag(&b, 7, &len);
    b.len -= len;
    cr_assert_eq(rp_state_decode(&whole_table, &out, b.data, b.len, NULL), 0);
    cr_assert_eq(out.newer, 4711);
    rp_buf_fini(&b);
}

Test(state, unknown_tags)
{
    struct whole in = sample(), out = {0};
    struct rp_buf b = {0};
    encode(&in, &b);
    rp_buf_u16(&b, 100 | RP_TAG_OPTIONAL);
    rp_buf_u32(&b, 3);
    rp_buf_put(&b, "abc", 3);
    cr_assert_eq(rp_state_decode(&whole_table, &out, b.data, b.len, NULL), 0, "optional: skipped");
    rp_buf_u16(&b, 100);
    rp_buf_u32(&b, 0);
    refused(&b, "whole: tag 100 is unknown to version 3");
    rp_buf_fini(&b);
}

static void hostile_count(uint16_t tag, uint32_t value)
{
    struct whole in = sample();
    struct rp_buf b = {0};
    size_t len;
    encode(&in, &b);
    rp_st32(b.data + find_tag(&b, tag, &len) + 6, value);
    struct whole out = {0};
    struct rp_error err = {0};
    cr_assert_eq(rp_state_decode(&whole_table, &out, b.data, b.len, &err), -EBADMSG, "tag %u = %u", tag, value);
    rp_buf_fini(&b);
}

Test(state, INV4_hostile_counts)
{
    static const uint32_t values[] = {0, 1, 5, 7, 0x40000000, UINT32_MAX};
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        hostile_count(2, values[i]);    /* not what the row holds, or beyond its capacity */
        hostile_count(6, values[i]);
    }
}

/* The count after its row: the row would be taken with the old count, and the state would then claim more than it holds. */
Test(state, INV4_a_count_after_its_row_is_refused)
{
    struct whole in = sample();
    struct rp_buf b = {0};
    in.nparts = 0;
    size_t len;
    encode(&in, &b);
    move_to_end(&b, 2);
    rp_st32(b.data + find_tag(&b, 2, &len) + 6, 1000);
    refused(&b, "comes before its count");
    rp_buf_fini(&b);
}

Test(state, INV4_cut_at_every_byte)
{
    struct whole in = sample();
    struct rp_buf b = {0};
    encode(&in, &b);
    for (size_t n = 0; n < b.len; n++) {
        uint8_t *exact = malloc(n ? n : 1);     /* so that ASan sees a read beyond */
        memcpy(exact, b.data, n);
        struct whole out = {0};
        struct rp_error err = {0};
        cr_assert_eq(rp_state_decode(&whole_table, &out, exact, n, &err), -EBADMSG, "cut at %zu", n);
        cr_assert(strstr(err.text, "whole"), "%s", err.text);
        free(exact);
    }
    rp_buf_fini(&b);
}

/* A flipped byte may be another valid value; whatever is accepted must be within its capacities. */
Test(state, INV4_every_byte_changed_in_every_way)
{
    struct whole in = sample();
    struct rp_buf b = {0};
    encode(&in, &b);
    for (size_t i = 0; i < b.len; i++)
        for (unsigned x = 1; x < 256; x++) {
            struct whole out = {0};
            b.data[i] ^= (uint8_t)x;
            if (rp_state_decode(&whole_table, &out, b.data, b.len, NULL) == 0) {
                cr_assert_leq(out.nparts, 4);
                cr_assert_leq(out.nrow, 6);
            }
            b.data[i] ^= (uint8_t)x;
        }
    rp_buf_fini(&b);
}

Test(state, prints_name_and_value)
{
    struct whole in = sample();
    char *text;
    size_t len;
    FILE *f = open_memstream(&text, &len);
    rp_state_print(&whole_table, &in, f, 2);
    in.port = 81;
    struct whole was = sample();
    cr_assert_eq(rp_state_diff(&whole_table, &was, &in, f, 0), 1);
    fclose(f);
    cr_assert(strstr(text, "  id = 0x1122334455667788\n"), "%s", text);
    cr_assert(strstr(text, "  mac = 010203040506\n"));
    cr_assert(strstr(text, "    c = 0x6\n"));
    cr_assert(strstr(text, "port: 0x50 -> 0x51\n"), "%s", text);
    free(text);
}

Test(state, epoch_header_layouts)
{
    struct rp_epoch_header h = {.vm_name = "x", .number = 5, .parent = 4, .page_size = 4096, .gfn_end = 20, .nregions = 2,
                                .regions = {{0, 10}, {12, 8}}};
    struct rp_error err = {0};
    cr_assert_eq(rp_epoch_header_table.validate(&h, &err), 0, "%s", err.text);
#define WRONG(change) do { struct rp_epoch_header w = h; w.change; \
        cr_assert_eq(rp_epoch_header_table.validate(&w, &err), -EBADMSG, #change); } while (0)
    WRONG(page_size = 8192);
    WRONG(number = 0);
    WRONG(parent = 5);
    WRONG(parent = 0);
    WRONG(flags = RP_EPOCH_FULL);
    WRONG(nregions = 0);
    WRONG(nregions = 5);
    WRONG(nregions = 1);
    WRONG(gfn_end = 1ull << 41);
    WRONG(gfn_end = 21);
    WRONG(regions[1].gfn = 9);
    WRONG(regions[0].pages = 0);
    WRONG(regions[1].pages = UINT64_MAX);
    memset(h.vm_name, 'a', sizeof(h.vm_name));
    cr_assert_eq(rp_epoch_header_table.validate(&h, &err), -EBADMSG);
}

Test(state, sections_are_found_by_name_and_instance)
{
    struct rp_sections s = {0};
    struct rp_section sec;
    struct part p = {1, 2, 3}, out = {0};
    for (uint32_t i = 0; i < 3; i++) {
        p.c = i;
        cr_assert_eq(rp_sections_add(&s, &part_table, i, &p, NULL), 0);
    }
    cr_assert(rp_sections_find(&s, "part", 2, &sec));
    cr_assert_eq(rp_state_decode(&part_table, &out, sec.bytes, sec.len, NULL), 0);
    cr_assert_eq(out.c, 2);
    cr_assert_not(rp_sections_find(&s, "part", 3, &sec));
    cr_assert_not(rp_sections_find(&s, "par", 0, &sec));
    rp_sections_reset(&s);
    cr_assert_not(rp_sections_find(&s, "part", 2, &sec));
    rp_sections_fini(&s);
}
