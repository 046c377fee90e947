#include "core/epoch.h"

#include <errno.h>

RP_TABLE(rp_ram_region_table, "ram-region", 1, struct rp_ram_region,
    RP_U64(struct rp_ram_region, gfn, 1),
    RP_U64(struct rp_ram_region, pages, 2));

static int header_bad(struct rp_error *err, const char *why)
{
    return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "epoch header: %s", why);
}

#define GFN_END_MAX (1ull << 40)    /* what a RAM entry's u40 can name */

static int header_validate(const void *state, struct rp_error *err)
{
    const struct rp_epoch_header *h = state;
    uint64_t next = 0;
    if (h->page_size != RP_PAGE_SIZE)
        return header_bad(err, "page size is not 4096");
    if (h->number == 0 || h->parent >= h->number)
        return header_bad(err, "an epoch's number is above its parent's");
    if (((h->flags & RP_EPOCH_FULL) != 0) != (h->parent == 0))
        return header_bad(err, "a full epoch has no parent, a delta has one");
    if ((h->flags & RP_EPOCH_RESYNC) && !(h->flags & RP_EPOCH_FULL))
        return header_bad(err, "a resync is a full epoch");
    if (h->nregions == 0 || h->nregions > RP_RAM_REGIONS_MAX || h->gfn_end > GFN_END_MAX)
        return header_bad(err, "the RAM layout is impossible");
    for (uint32_t i = 0; i < h->nregions; i++) {
        const struct rp_ram_region *r = &h->regions[i];
        if (r->pages == 0 || r->gfn < next || r->gfn > h->gfn_end || r->pages > h->gfn_end - r->gfn)
            return header_bad(err, "the RAM regions overlap or lie beyond the end");
        next = r->gfn + r->pages;
    }
    if (next != h->gfn_end || memchr(h->vm_name, 0, sizeof(h->vm_name)) == NULL)
        return header_bad(err, next != h->gfn_end ? "RAM does not end where it says" : "the name has no end");
    return 0;
}

static const struct rp_field header_fields[] = {
    RP_BYTES(struct rp_epoch_header, vm_id, 1),
    RP_TEXT(struct rp_epoch_header, vm_name, 2),
    RP_U64(struct rp_epoch_header, number, 3),
    RP_U64(struct rp_epoch_header, parent, 4),
    RP_U64(struct rp_epoch_header, term, 5),
    RP_U32(struct rp_epoch_header, flags, 6),
    RP_U32(struct rp_epoch_header, page_size, 7),
    RP_U64(struct rp_epoch_header, gfn_end, 8),
    RP_U32(struct rp_epoch_header, nregions, 9),
    RP_PAD(struct rp_epoch_header, reserved),
    RP_STRUCTS(struct rp_epoch_header, regions, 10, &rp_ram_region_table, nregions),
};
const struct rp_state_table rp_epoch_header_table = {
    .name = "epoch", .version = 1, .size = sizeof(struct rp_epoch_header), .fields = header_fields,
    .nfields = sizeof(header_fields) / sizeof(header_fields[0]), .validate = header_validate,
};

RP_TABLE(rp_epoch_trailer_table, "epoch-end", 1, struct rp_epoch_trailer,
    RP_U64(struct rp_epoch_trailer, number, 1),
    RP_U64(struct rp_epoch_trailer, guest_ns, 2),
    RP_U64(struct rp_epoch_trailer, wall_ns, 3),
    RP_U32(struct rp_epoch_trailer, reason, 4),
    RP_U32(struct rp_epoch_trailer, sections, 5),
    RP_U64(struct rp_epoch_trailer, ram_records, 6),
    RP_U64(struct rp_epoch_trailer, ram_pages, 7),
    RP_U64(struct rp_epoch_trailer, disk_bytes, 8),
    RP_U64(struct rp_epoch_trailer, digest_lo, 9),
    RP_U64(struct rp_epoch_trailer, digest_hi, 10));

void rp_sections_fini(struct rp_sections *s)
{
    rp_buf_fini(&s->buf);
    s->count = 0;
}

void rp_sections_reset(struct rp_sections *s)
{
    rp_buf_reset(&s->buf);
    s->count = 0;
}

/* Payload of a SECTION record: str name, u32 instance, u16 version, fields. Returns where its length stands. */
static size_t open_section(struct rp_sections *s, const char *name, uint32_t instance, uint16_t version)
{
    size_t at = s->buf.len;
    rp_buf_u32(&s->buf, 0);
    rp_buf_str(&s->buf, name);
    rp_buf_u32(&s->buf, instance);
    rp_buf_u16(&s->buf, version);
    return at;
}

static int close_section(struct rp_sections *s, size_t at)
{
    if (s->buf.failed)
        return -ENOMEM;
    rp_st32(s->buf.data + at, (uint32_t)(s->buf.len - at - 4));
    s->count++;
    return 0;
}

int rp_sections_add(struct rp_sections *s, const struct rp_state_table *t, uint32_t instance, const void *state, struct rp_error *err)
{
    size_t at = open_section(s, t->name, instance, t->version);
    rp_state_encode(t, state, &s->buf);
    return close_section(s, at) < 0 ? rp_error_set(err, ENOMEM, "no memory for section \"%s\" %u", t->name, instance) : 0;
}

int rp_sections_put(struct rp_sections *s, const struct rp_section *sec)
{
    size_t at = open_section(s, sec->name, sec->instance, sec->version);
    rp_buf_put(&s->buf, sec->bytes, sec->len);
    return close_section(s, at);
}

bool rp_sections_next(const struct rp_sections *s, size_t *pos, struct rp_section *out)
{
    if (*pos >= s->buf.len)
        return false;
    struct rp_reader r = rp_reader_of(s->buf.data + *pos, s->buf.len - *pos);
    uint32_t len = rp_get_u32(&r);
    struct rp_reader sec = rp_reader_of(rp_get(&r, len), len);
    if (rp_get_str(&sec, out->name, sizeof(out->name)) < 0)
        return false;
    out->instance = rp_get_u32(&sec);
    out->version = rp_get_u16(&sec);
    out->bytes = sec.p;
    out->len = (uint32_t)sec.left;
    *pos += 4 + (size_t)len;
    return true;
}

bool rp_sections_find(const struct rp_sections *s, const char *name, uint32_t instance, struct rp_section *out)
{
    size_t pos = 0;
    struct rp_section sec;
    while (rp_sections_next(s, &pos, &sec))
        if (sec.instance == instance && strcmp(sec.name, name) == 0) {
            *out = sec;
            return true;
        }
    return false;
}

int rp_section_decode(const struct rp_state_table *t, const struct rp_section *sec, void *state, struct rp_error *err)
{
    if (sec->version == 0 || sec->version > t->version)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EPROTONOSUPPORT, "section \"%s\" %u is version %u, this reprise reads up to %u: %s",
                             t->name, sec->instance, sec->version, t->version, sec->version ? "use a newer reprise" : "it is damaged");
    return rp_state_decode(t, state, sec->bytes, sec->len, err);
}
