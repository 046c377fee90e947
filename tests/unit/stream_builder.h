/*
 * stream_builder.h - builds small epoch streams in memory, record by record, right or wrong as the test wants.
 * `ram` is the model: what the source's RAM holds; sb_epoch_end computes the trailer from it.
 */
#ifndef RP_TESTS_STREAM_BUILDER_H
#define RP_TESTS_STREAM_BUILDER_H

#include "core/event.h"
#include "core/image.h"
#include "core/stream.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define SB_GFN_END 40u
#define SB_BYTES (SB_GFN_END * RP_PAGE_SIZE)

struct sb {
    struct rp_buf b;                    /* the stream so far */
    uint64_t seq;
    struct rp_ram_view ram;
    struct rp_epoch_trailer trailer;    /* counts of the epoch being built */
    struct rp_buf entries, payload;     /* of the RAM record being built */
    uint32_t nentries, pass;
};

static inline void *sb_pages(void)
{
    void *p = mmap(NULL, SB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        abort();
    return p;
}

/* Two regions with a hole between them. */
static inline void sb_view(struct rp_ram_view *v)
{
    *v = (struct rp_ram_view){.gfn_end = SB_GFN_END, .pages = 32, .nregions = 2, .regions = {{0, 16}, {24, 16}}, .base = sb_pages()};
}

static inline void sb_check(int rc)
{
    if (rc != 0)
        abort();
}

static inline void sb_init(struct sb *s)
{
    *s = (struct sb){0};
    sb_view(&s->ram);
}

static inline void sb_fini(struct sb *s)
{
    rp_buf_fini(&s->b);
    rp_buf_fini(&s->entries);
    rp_buf_fini(&s->payload);
    munmap(s->ram.base, SB_BYTES);
}

/* Text-like and different for every (gfn, salt). */
static inline void sb_text(uint8_t *page, uint64_t gfn, unsigned salt)
{
    for (unsigned i = 0; i < RP_PAGE_SIZE; i++)
        page[i] = (uint8_t)('a' + (gfn * 7 + salt * 3 + i / 37) % 26);
}

/* Incompressible, the same on every machine. */
static inline void sb_noise(uint8_t *page, uint64_t gfn, unsigned salt)
{
    uint64_t x = gfn * 0x9E3779B97F4A7C15ull + salt + 1;
    for (unsigned i = 0; i < RP_PAGE_SIZE; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        page[i] = (uint8_t)(x >> 32);
    }
}

static inline void sb_begin(struct sb *s)
{
    sb_check(rp_put_begin(&s->b, s->seq++));
}

static inline struct rp_epoch_header sb_header(uint64_t number, uint64_t parent)
{
    struct rp_epoch_header h = {.vm_id = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, .vm_name = "golden",
                                .number = number, .parent = parent, .term = 3, .flags = parent ? 0 : RP_EPOCH_FULL,
                                .page_size = RP_PAGE_SIZE, .gfn_end = SB_GFN_END, .nregions = 2, .regions = {{0, 16}, {24, 16}}};
    return h;
}

static inline void sb_epoch_with(struct sb *s, const struct rp_epoch_header *h)
{
    sb_check(rp_put_epoch(&s->b, s->seq++, h));
    s->trailer = (struct rp_epoch_trailer){.number = h->number, .guest_ns = 1000000 * h->number,
                                           .wall_ns = 1700000000000000000ull + h->number, .reason = RP_CUT_PERIOD};
}

static inline void sb_epoch(struct sb *s, uint64_t number, uint64_t parent)
{
    struct rp_epoch_header h = sb_header(number, parent);
    sb_epoch_with(s, &h);
}

static inline void sb_ram_open(struct sb *s, uint32_t pass)
{
    rp_buf_reset(&s->entries);
    rp_buf_reset(&s->payload);
    s->nentries = 0;
    s->pass = pass;
}

static inline void sb_entry(struct sb *s, uint64_t gfn, uint8_t codec, uint16_t arg, const void *payload, size_t len)
{
    rp_buf_u32(&s->entries, (uint32_t)gfn);
    rp_buf_u8(&s->entries, (uint8_t)(gfn >> 32));
    rp_buf_u8(&s->entries, codec);
    rp_buf_u16(&s->entries, arg);
    rp_buf_put(&s->payload, payload, len);
    s->nentries++;
}

static inline void sb_zero(struct sb *s, uint64_t gfn, uint16_t pages)
{
    memset(rp_ram_page(&s->ram, gfn), 0, (size_t)pages * RP_PAGE_SIZE);
    sb_entry(s, gfn, RP_CODEC_ZERO, pages, NULL, 0);
}

/* The next three send what the model holds. */
static inline void sb_raw(struct sb *s, uint64_t gfn, uint16_t pages)
{
    sb_entry(s, gfn, RP_CODEC_RAW, pages, rp_ram_page(&s->ram, gfn), (size_t)pages * RP_PAGE_SIZE);
}

static inline void sb_lz4(struct sb *s, uint64_t gfn)
{
    uint8_t out[RP_PAGE_SIZE];
    uint32_t n = rp_lz4_encode(rp_ram_page(&s->ram, gfn), out, sizeof(out));
    sb_check(n ? 0 : -1);
    sb_entry(s, gfn, RP_CODEC_LZ4, (uint16_t)n, out, n);
}

static inline void sb_delta(struct sb *s, uint64_t gfn, const uint8_t *parent)
{
    uint8_t out[RP_PAGE_SIZE];
    uint32_t n = rp_delta_encode(parent, rp_ram_page(&s->ram, gfn), out, sizeof(out));
    sb_check(n ? 0 : -1);
    sb_entry(s, gfn, RP_CODEC_DELTA, (uint16_t)n, out, n);
}

/* The same for a page of sb_text as an LZ4 block that no encoder chose, so that it is the same with every liblz4: one
 * period as literals, a match of all that follows, the last five bytes as literals (as the block format wants it). */
#define SB_TEXT_PERIOD (26u * 37u)
static inline void sb_lz4_fixed(struct sb *s, uint64_t gfn)
{
    const uint8_t *page = rp_ram_page(&s->ram, gfn);
    uint8_t out[RP_PAGE_SIZE];
    uint32_t n = 0, literals = SB_TEXT_PERIOD - 15, match = RP_PAGE_SIZE - SB_TEXT_PERIOD - 5 - 4 - 15;
    out[n++] = 0xFF;
    for (; literals >= 255; literals -= 255)
        out[n++] = 255;
    out[n++] = (uint8_t)literals;
    memcpy(out + n, page, SB_TEXT_PERIOD);
    n += SB_TEXT_PERIOD;
    rp_st16(out + n, SB_TEXT_PERIOD);
    n += 2;
    for (; match >= 255; match -= 255)
        out[n++] = 255;
    out[n++] = (uint8_t)match;
    out[n++] = 5 << 4;
    memcpy(out + n, page + RP_PAGE_SIZE - 5, 5);
    n += 5;
    sb_entry(s, gfn, RP_CODEC_LZ4, (uint16_t)n, out, n);
}

/* Any record from a payload. */
static inline void sb_record(struct sb *s, uint8_t type, uint8_t flags, const void *payload, size_t len)
{
    size_t pos = rp_record_open(&s->b, type, flags);
    rp_buf_put(&s->b, payload, len);
    sb_check(rp_record_seal(&s->b, pos, s->seq++));
}

static inline void sb_ram_close(struct sb *s)
{
    size_t pos = rp_record_open(&s->b, RP_REC_RAM, 0);
    rp_buf_u32(&s->b, s->pass);
    rp_buf_u32(&s->b, s->nentries);
    rp_buf_put(&s->b, s->entries.data, s->entries.len);
    rp_buf_put(&s->b, s->payload.data, s->payload.len);
    sb_check(rp_record_seal(&s->b, pos, s->seq++));
    s->trailer.ram_records++;
    s->trailer.ram_pages += s->nentries;
}

static inline void sb_section(struct sb *s, const char *name, uint32_t instance, const char *bytes)
{
    struct rp_section sec = {.instance = instance, .version = 1, .bytes = (const uint8_t *)bytes, .len = (uint32_t)strlen(bytes)};
    snprintf(sec.name, sizeof(sec.name), "%s", name);
    sb_check(rp_put_section(&s->b, s->seq++, &sec));
    s->trailer.sections++;
}

/* The section "history" with one event, as rp_events_save writes it. */
static inline void sb_history(struct sb *s, const char *event)
{
    struct { uint32_t count, pad; struct rp_event events[256]; } *h = calloc(1, sizeof(*h));
    struct rp_sections row = {0};
    struct rp_section sec;
    size_t pos = 0;
    h->count = 1;
    h->events[0] = (struct rp_event){.wall_ns = 1700000000000000000ull, .epoch = 1, .host = "host-a", .data = "{\"why\": \"golden\"}"};
    snprintf(h->events[0].name, sizeof(h->events[0].name), "%s", event);
    sb_check(rp_sections_add(&row, &rp_history_table, 0, h, NULL));
    sb_check(rp_sections_next(&row, &pos, &sec) ? 0 : -1);
    sb_check(rp_put_section(&s->b, s->seq++, &sec));
    s->trailer.sections++;
    rp_sections_fini(&row);
    free(h);
}

static inline void sb_disk(struct sb *s, uint32_t disk, uint64_t offset, const char *data)
{
    struct rp_buf p = {0};
    rp_buf_u32(&p, disk);
    rp_buf_u32(&p, 2);
    rp_buf_u64(&p, offset);
    rp_buf_u32(&p, (uint32_t)strlen(data));
    rp_buf_u32(&p, RP_DISK_KIND_WRITE);
    rp_buf_u64(&p, offset + 65536);
    rp_buf_u32(&p, 4096);
    rp_buf_u32(&p, RP_DISK_KIND_ZERO);
    rp_buf_put(&p, data, strlen(data));
    sb_record(s, RP_REC_DISK, 0, p.data, p.len);
    s->trailer.disk_bytes += p.len;
    rp_buf_fini(&p);
}

static inline void sb_epoch_end(struct sb *s)
{
    struct rp_hash128 d = rp_digest_of(&s->ram);
    s->trailer.digest_lo = d.lo;
    s->trailer.digest_hi = d.hi;
    sb_check(rp_put_epoch_end(&s->b, s->seq++, &s->trailer));
}

static inline void sb_end(struct sb *s, uint64_t epochs)
{
    sb_check(rp_put_end(&s->b, s->seq++, epochs));
}

/*
 * The sample that golden file v1-sample.rps is: a full epoch with every codec that one may have, in two passes; a delta
 * epoch with a delta page that was sent twice, disk writes, a changed section. `after1`: RAM after the first epoch
 * (SB_BYTES, may be NULL); the model holds RAM after the second.
 */
static inline void sb_sample(struct sb *s, uint8_t *after1)
{
    uint8_t parent[RP_PAGE_SIZE];
    sb_begin(s);
    sb_epoch(s, 1, 0);
    sb_ram_open(s, 0);
    sb_text(rp_ram_page(&s->ram, 3), 3, 0);
    sb_lz4_fixed(s, 3);
    sb_zero(s, 8, 4);
    sb_ram_close(s);
    sb_ram_open(s, 1);
    sb_text(rp_ram_page(&s->ram, 3), 3, 1);
    sb_lz4_fixed(s, 3);
    sb_noise(rp_ram_page(&s->ram, 24), 24, 0);
    sb_raw(s, 24, 1);
    sb_text(rp_ram_page(&s->ram, 39), 39, 0);
    sb_lz4_fixed(s, 39);
    sb_ram_close(s);
    sb_history(s, "CHECKPOINT");
    sb_section(s, "sample", 0, "zero");
    sb_section(s, "sample", 1, "one");
    sb_epoch_end(s);
    if (after1)
        memcpy(after1, s->ram.base, SB_BYTES);
    sb_epoch(s, 2, 1);
    memcpy(parent, rp_ram_page(&s->ram, 24), RP_PAGE_SIZE);
    sb_ram_open(s, 0);
    memset(rp_ram_page(&s->ram, 24) + 100, 0x11, 64);
    sb_delta(s, 24, parent);
    sb_text(rp_ram_page(&s->ram, 0), 0, 5);
    sb_lz4_fixed(s, 0);
    sb_ram_close(s);
    sb_ram_open(s, 1);
    memset(rp_ram_page(&s->ram, 24) + 3000, 0x22, 8);
    sb_delta(s, 24, parent);            /* again against the parent, not against the first pass */
    sb_zero(s, 39, 1);
    sb_ram_close(s);
    sb_section(s, "sample", 1, "uno");
    sb_disk(s, 0, 8192, "sector");
    sb_epoch_end(s);
    sb_end(s, 2);
}

/* --- reading from memory --- */

struct sb_memory { const uint8_t *p; size_t left; };

static inline ssize_t sb_read(void *ctx, void *buf, size_t len)
{
    struct sb_memory *m = ctx;
    size_t n = len < m->left ? len : m->left;
    memcpy(buf, m->p, n);
    m->p += n;
    m->left -= n;
    return (ssize_t)n;
}

/* A receiver with its own RAM and a log of disk records: those of the epoch being taken, and those that count. */
struct sb_target {
    enum rp_image_mode mode;
    struct rp_ram_view ram;
    struct rp_image *image;
    unsigned disk_staged, disk_records, disk_commits, epochs;
    int disk_rc;
};

static inline int sb_target_ram(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err)
{
    struct sb_target *t = ctx;
    if (h->gfn_end != SB_GFN_END || h->nregions != 2 || h->regions[0].pages != 16)
        return rp_error_exit(err, RP_EXIT_REFUSED, EINVAL, "stream offset ?: not the test's layout");
    sb_view(&t->ram);
    *out = t->ram;
    return 0;
}

static inline int sb_target_disk(void *ctx, const struct rp_epoch_header *h, const struct rp_record *r, struct rp_error *err)
{
    struct sb_target *t = ctx;
    (void)h;
    (void)r;
    (void)err;
    t->disk_staged++;
    return 0;
}

static inline int sb_target_disk_commit(void *ctx, const struct rp_epoch_header *h, struct rp_error *err)
{
    struct sb_target *t = ctx;
    (void)h;
    if (t->disk_rc < 0)
        return rp_error_set(err, t->disk_rc, "the disk is full");
    t->disk_records += t->disk_staged;
    t->disk_staged = 0;
    t->disk_commits++;
    return 0;
}

static inline void sb_target_disk_drop(void *ctx)
{
    ((struct sb_target *)ctx)->disk_staged = 0;
}

static inline void sb_target_init(struct sb_target *t, enum rp_image_mode mode, uint64_t staging_max)
{
    *t = (struct sb_target){.mode = mode};
    struct rp_image_ops ops = {.ctx = t, .ram = sb_target_ram, .disk = sb_target_disk,
                               .disk_commit = sb_target_disk_commit, .disk_drop = sb_target_disk_drop};
    sb_check(rp_image_create(mode, &ops, staging_max, &t->image, NULL));
}

static inline void sb_target_fini(struct sb_target *t)
{
    rp_image_destroy(t->image);
    if (t->ram.base)
        munmap(t->ram.base, SB_BYTES);
}

/* Feeds a whole stream; 0 at its end, or the first error. */
static inline int sb_feed(struct sb_target *t, const uint8_t *p, size_t len, struct rp_error *err)
{
    struct sb_memory m = {p, len};
    struct rp_stream_reader *reader;
    struct rp_record rec;
    sb_check(rp_stream_reader_create_fn(sb_read, &m, &reader, err));
    int rc;
    while ((rc = rp_stream_next(reader, &rec, err)) > 0) {
        rc = rp_image_feed(t->image, &rec, err);
        if (rc < 0)
            break;
        t->epochs += rc == 1;
    }
    rp_stream_reader_destroy(reader);
    return rc;
}

#endif
