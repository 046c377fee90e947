#include "core/stream.h"

#include "core/xxh3.h"

#include <errno.h>
#include <unistd.h>
#include <stdlib.h>

#define PRODUCER "reprise"
#define READ_AHEAD (1u << 20)

static int damaged(struct rp_error *err, uint64_t offset, unsigned type, const char *why)
{
    return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "stream offset %llu: record type %u: %s",
                         (unsigned long long)offset, type, why);
}

/* The checksum covers the header's first 16 bytes and the payload. */
static uint64_t record_hash(const uint8_t *hdr, const uint8_t *payload, size_t len)
{
    return rp_xxh3_64(payload, len, rp_xxh3_64(hdr, 16, 0));
}

size_t rp_record_open(struct rp_buf *b, uint8_t type, uint8_t flags)
{
    size_t pos = b->len;
    uint8_t *h = rp_buf_extend(b, RP_RECORD_HEADER);
    if (h) {
        memset(h, 0, RP_RECORD_HEADER);
        rp_st16(h, RP_RECORD_MAGIC);
        h[2] = type;
        h[3] = flags;
    }
    return pos;
}

int rp_record_seal(struct rp_buf *b, size_t pos, uint64_t seq)
{
    if (b->failed)
        return -ENOMEM;
    uint8_t *h = b->data + pos;
    size_t len = b->len - pos - RP_RECORD_HEADER;
    if (len > RP_RECORD_MAX)
        return -EMSGSIZE;
    rp_st32(h + 4, (uint32_t)len);
    rp_st64(h + 8, seq);
    rp_st64(h + 16, record_hash(h, h + RP_RECORD_HEADER, len));
    return 0;
}

int rp_put_begin(struct rp_buf *b, uint64_t seq)
{
    size_t pos = rp_record_open(b, RP_REC_BEGIN, 0);
    rp_buf_u32(b, RP_STREAM_VERSION);
    rp_buf_u32(b, 0);
    rp_buf_str(b, PRODUCER);
    return rp_record_seal(b, pos, seq);
}

int rp_put_epoch(struct rp_buf *b, uint64_t seq, const struct rp_epoch_header *h)
{
    size_t pos = rp_record_open(b, RP_REC_EPOCH, 0);
    rp_state_encode(&rp_epoch_header_table, h, b);
    return rp_record_seal(b, pos, seq);
}

int rp_put_section(struct rp_buf *b, uint64_t seq, const struct rp_section *s)
{
    size_t pos = rp_record_open(b, RP_REC_SECTION, 0);
    rp_buf_str(b, s->name);
    rp_buf_u32(b, s->instance);
    rp_buf_u16(b, s->version);
    rp_buf_put(b, s->bytes, s->len);
    return rp_record_seal(b, pos, seq);
}

int rp_put_epoch_end(struct rp_buf *b, uint64_t seq, const struct rp_epoch_trailer *t)
{
    size_t pos = rp_record_open(b, RP_REC_EPOCH_END, 0);
    rp_state_encode(&rp_epoch_trailer_table, t, b);
    return rp_record_seal(b, pos, seq);
}

int rp_put_end(struct rp_buf *b, uint64_t seq, uint64_t epochs)
{
    size_t pos = rp_record_open(b, RP_REC_END, 0);
    rp_buf_u64(b, epochs);
    return rp_record_seal(b, pos, seq);
}

int rp_record_peek(const uint8_t *hdr, uint64_t offset, struct rp_record *out, struct rp_error *err)
{
    if (rp_ld16(hdr) != RP_RECORD_MAGIC)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "stream offset %llu: no record begins here: not an epoch stream, or damaged",
                             (unsigned long long)offset);
    struct rp_record r = {.type = hdr[2], .flags = hdr[3], .len = rp_ld32(hdr + 4), .seq = rp_ld64(hdr + 8), .offset = offset};
    if (r.len > RP_RECORD_MAX)
        return damaged(err, offset, r.type, "longer than a record may be");
    *out = r;
    return 0;
}

int rp_record_check(const uint8_t *hdr, const uint8_t *payload, uint64_t expect_seq, struct rp_record *rec, struct rp_error *err)
{
    struct rp_record r;
    int rc = rp_record_peek(hdr, rec->offset, &r, err);
    if (rc < 0)
        return rc;
    if (rp_ld64(hdr + 16) != record_hash(hdr, payload, r.len))
        return damaged(err, r.offset, r.type, "checksum mismatch");
    if (r.seq != expect_seq)
        return damaged(err, r.offset, r.type, "out of sequence: a record is missing or repeated");
    r.payload = payload;
    *rec = r;
    return 0;
}

int rp_get_begin(const struct rp_record *r, uint32_t *version, struct rp_error *err)
{
    struct rp_reader in = rp_reader_of(r->payload, r->len);
    uint32_t v = rp_get_u32(&in);
    char producer[64];
    rp_get_u32(&in);
    if (rp_get_str(&in, producer, sizeof(producer)) < 0)
        return damaged(err, r->offset, r->type, "the stream's beginning is malformed");
    if (v != RP_STREAM_VERSION)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EPROTONOSUPPORT,
                             "the stream is version %u (from \"%s\"), this reprise reads version %u: %s", v, producer,
                             RP_STREAM_VERSION, v > RP_STREAM_VERSION ? "use a newer reprise" : "it is too old");
    *version = v;
    return 0;
}

static int wrap(const struct rp_record *r, int rc, struct rp_error *err)
{
    if (rc < 0)
        rp_error_wrap(err, "stream offset %llu: record type %u", (unsigned long long)r->offset, r->type);
    return rc;
}

int rp_get_epoch(const struct rp_record *r, struct rp_epoch_header *h, struct rp_error *err)
{
    memset(h, 0, sizeof(*h));
    return wrap(r, rp_state_decode(&rp_epoch_header_table, h, r->payload, r->len, err), err);
}

int rp_get_section(const struct rp_record *r, struct rp_section *s, struct rp_error *err)
{
    struct rp_reader in = rp_reader_of(r->payload, r->len);
    if (rp_get_str(&in, s->name, sizeof(s->name)) < 0)
        return damaged(err, r->offset, r->type, "the section's name is malformed");
    s->instance = rp_get_u32(&in);
    s->version = rp_get_u16(&in);
    if (in.failed)
        return damaged(err, r->offset, r->type, "the section is cut short");
    s->bytes = in.p;
    s->len = (uint32_t)in.left;
    return 0;
}

int rp_get_epoch_end(const struct rp_record *r, struct rp_epoch_trailer *t, struct rp_error *err)
{
    memset(t, 0, sizeof(*t));
    return wrap(r, rp_state_decode(&rp_epoch_trailer_table, t, r->payload, r->len, err), err);
}

/* --- RAM records --- */

static uint64_t entry_gfn(const uint8_t *e)
{
    return rp_ld64(e) & 0xFFFFFFFFFFull;
}

/* What entry e occupies: pages and payload bytes. False when the codec or its argument is impossible. */
static bool entry_size(const uint8_t *e, uint32_t *pages, uint32_t *len)
{
    uint32_t arg = rp_ld16(e + 6);
    switch (e[5]) {
    case RP_CODEC_ZERO:
        *pages = arg;
        *len = 0;
        return arg > 0;
    case RP_CODEC_RAW:
        *pages = arg;
        *len = arg * RP_PAGE_SIZE;
        return arg > 0 && arg <= RP_RECORD_MAX / RP_PAGE_SIZE;
    case RP_CODEC_LZ4:
    case RP_CODEC_DELTA:
        *pages = 1;
        *len = arg;
        return arg > 0 && arg <= RP_PAGE_SIZE;
    default:
        return false;
    }
}

static int entry_bad(struct rp_error *err, const struct rp_record *r, uint32_t i, uint64_t gfn, const char *why)
{
    return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "stream offset %llu: RAM entry %u: gfn 0x%llx: %s",
                         (unsigned long long)r->offset, i, (unsigned long long)gfn, why);
}

int rp_ram_walk(const struct rp_record *r, const struct rp_ram_view *ram, uint32_t *pass,
                int (*fn)(void *ctx, const struct rp_ram_entry *e, struct rp_error *err), void *ctx, struct rp_error *err)
{
    struct rp_reader in = rp_reader_of(r->payload, r->len);
    uint32_t p = rp_get_u32(&in), n = rp_get_u32(&in);
    if (in.failed || n == 0 || n > RP_RAM_ENTRIES_MAX)
        return damaged(err, r->offset, r->type, "an impossible number of page entries");
    if (p > RP_RAM_PASS_MAX)
        return damaged(err, r->offset, r->type, "an impossible pass");
    const uint8_t *table = rp_get(&in, (size_t)n * 8);
    if (!table)
        return damaged(err, r->offset, r->type, "the page entries are cut short");
    struct rp_reader payload = in;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t pages, len;
        uint64_t gfn = entry_gfn(table + 8 * (size_t)i);
        if (!entry_size(table + 8 * (size_t)i, &pages, &len))
            return entry_bad(err, r, i, gfn, "unknown codec or impossible length");
        if (!rp_ram_contains(ram, gfn, pages))
            return entry_bad(err, r, i, gfn, "not guest RAM");
        rp_get(&in, len);
        if (in.failed)
            return entry_bad(err, r, i, gfn, "the page's data are cut short");
    }
    if (in.left)
        return damaged(err, r->offset, r->type, "longer than its pages");
    *pass = p;
    for (uint32_t i = 0; i < n; i++) {
        struct rp_ram_entry e = {.gfn = entry_gfn(table + 8 * (size_t)i), .codec = table[8 * (size_t)i + 5]};
        entry_size(table + 8 * (size_t)i, &e.pages, &e.len);
        e.next_gfn = i + 1 < n ? entry_gfn(table + 8 * (size_t)(i + 1)) : e.gfn;
        e.payload = e.len ? rp_get(&payload, e.len) : NULL;
        int rc = fn(ctx, &e, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* --- DISK records --- */

static int disk_bad(struct rp_error *err, const struct rp_record *r, uint32_t i, const char *why)
{
    return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "stream offset %llu: DISK entry %u: %s",
                         (unsigned long long)r->offset, i, why);
}

static struct rp_disk_entry disk_entry(uint32_t disk, const uint8_t *e)
{
    return (struct rp_disk_entry){.disk = disk, .offset = rp_ld64(e), .len = rp_ld32(e + 8), .kind = rp_ld32(e + 12)};
}

static bool disk_has_data(uint32_t kind)
{
    return kind == RP_DISK_KIND_WRITE || kind == RP_DISK_KIND_SYNC;
}

void rp_disk_put(struct rp_buf *b, const struct rp_disk_entry *e)
{
    uint32_t data = disk_has_data(e->kind) ? e->len : 0;
    rp_buf_u32(b, 8 + 16 + data);
    rp_buf_u32(b, e->disk);
    rp_buf_u32(b, 1);
    rp_buf_u64(b, e->offset);
    rp_buf_u32(b, e->len);
    rp_buf_u32(b, e->kind);
    rp_buf_put(b, e->data, data);
}

void rp_disk_put_sync(struct rp_buf *b, uint32_t disk, uint64_t size_bytes, const struct rp_disk_base *base)
{
    uint8_t data[RP_DISK_SYNC_BYTES];
    memcpy(data, base->sync_id, sizeof(base->sync_id));
    rp_st64(data + sizeof(base->sync_id), base->epoch);
    rp_disk_put(b, &(struct rp_disk_entry){.disk = disk, .kind = RP_DISK_KIND_SYNC, .offset = size_bytes, .len = sizeof(data), .data = data});
}

struct rp_disk_base rp_disk_sync_of(const struct rp_disk_entry *e)
{
    struct rp_disk_base base = {.epoch = rp_ld64(e->data + sizeof(base.sync_id))};
    memcpy(base.sync_id, e->data, sizeof(base.sync_id));
    return base;
}

int rp_disk_walk(const struct rp_record *r, int (*fn)(void *ctx, const struct rp_disk_entry *e, struct rp_error *err), void *ctx,
                 struct rp_error *err)
{
    struct rp_reader in = rp_reader_of(r->payload, r->len);
    uint32_t disk = rp_get_u32(&in), n = rp_get_u32(&in);
    if (in.failed || n == 0 || n > RP_DISK_ENTRIES_MAX)
        return damaged(err, r->offset, r->type, "an impossible number of disk entries");
    const uint8_t *table = rp_get(&in, (size_t)n * 16);
    if (!table)
        return damaged(err, r->offset, r->type, "the disk entries are cut short");
    struct rp_reader data = in;
    for (uint32_t i = 0; i < n; i++) {
        struct rp_disk_entry e = disk_entry(disk, table + 16 * (size_t)i);
        uint64_t end;
        if (e.kind < RP_DISK_KIND_WRITE || e.kind > RP_DISK_KIND_SYNC)
            return disk_bad(err, r, i, "unknown kind");
        if (e.kind == RP_DISK_KIND_SYNC && e.len != RP_DISK_SYNC_BYTES)
            return disk_bad(err, r, i, "a SYNC of another length");
        if (e.len == 0 || !rp_add(e.offset, e.len, &end) || end > INT64_MAX)
            return disk_bad(err, r, i, "impossible range");
        if (disk_has_data(e.kind) && !rp_get(&in, e.len))
            return disk_bad(err, r, i, "its data are cut short");
    }
    if (in.left)
        return damaged(err, r->offset, r->type, "longer than its writes");
    for (uint32_t i = 0; fn && i < n; i++) {
        struct rp_disk_entry e = disk_entry(disk, table + 16 * (size_t)i);
        if (disk_has_data(e.kind))
            e.data = rp_get(&data, e.len);
        int rc = fn(ctx, &e, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* --- reading from a descriptor --- */

struct rp_stream_reader {
    rp_stream_read *read;
    void *ctx;
    int fd;                     /* ctx of read_fd */
    uint8_t *buf;
    size_t cap, start, end;     /* bytes [start, end) are read and not consumed */
    uint64_t offset;            /* stream offset of buf[start] */
    uint64_t seq;
    bool ended;
};

static ssize_t read_fd(void *ctx, void *buf, size_t len)
{
    const int *fd = ctx;
    for (;;) {
        ssize_t n = read(*fd, buf, len);
        if (n >= 0 || errno != EINTR)
            return n < 0 ? -errno : n;
    }
}

int rp_stream_reader_create_fn(rp_stream_read *read, void *ctx, struct rp_stream_reader **out, struct rp_error *err)
{
    struct rp_stream_reader *r = calloc(1, sizeof(*r));
    if (!r || !(r->buf = malloc(READ_AHEAD))) {
        free(r);
        return rp_error_set(err, ENOMEM, "no memory to read a stream");
    }
    r->read = read;
    r->ctx = ctx;
    r->cap = READ_AHEAD;
    *out = r;
    return 0;
}

int rp_stream_reader_create(int fd, struct rp_stream_reader **out, struct rp_error *err)
{
    int rc = rp_stream_reader_create_fn(read_fd, NULL, out, err);
    if (rc == 0) {
        (*out)->fd = fd;
        (*out)->ctx = &(*out)->fd;
    }
    return rc;
}

void rp_stream_reader_destroy(struct rp_stream_reader *r)
{
    if (r)
        free(r->buf);
    free(r);
}

/* At least n bytes in the buffer. 1: there; 0: the descriptor ended first; <0: failed. */
static int fill(struct rp_stream_reader *r, size_t n, struct rp_error *err)
{
    if (r->cap - r->start < n) {
        if (n > r->cap) {
            uint8_t *bigger = realloc(r->buf, n + READ_AHEAD);
            if (!bigger)
                return rp_error_set(err, ENOMEM, "no memory to read a record of %zu bytes", n);
            r->buf = bigger;
            r->cap = n + READ_AHEAD;
        }
        memmove(r->buf, r->buf + r->start, r->end - r->start);
        r->end -= r->start;
        r->start = 0;
    }
    while (r->end - r->start < n) {
        ssize_t got = r->read(r->ctx, r->buf + r->end, r->cap - r->end);
        if (got < 0)
            return rp_error_set(err, (int)got, "reading the stream at offset %llu: %s",
                                (unsigned long long)(r->offset + (r->end - r->start)), strerror((int)-got));
        if (got == 0)
            return 0;
        r->end += (size_t)got;
    }
    return 1;
}

static int cut_short(struct rp_stream_reader *r, struct rp_error *err)
{
    return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "stream offset %llu: the stream is cut short here",
                         (unsigned long long)(r->offset + (r->end - r->start)));
}

int rp_stream_next(struct rp_stream_reader *r, struct rp_record *out, struct rp_error *err)
{
    if (r->ended) {
        int rc = fill(r, 1, err);
        return rc <= 0 ? rc : rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "stream offset %llu: bytes after the end of the stream",
                                            (unsigned long long)r->offset);
    }
    int rc = fill(r, RP_RECORD_HEADER, err);
    if (rc <= 0)
        return rc < 0 ? rc : cut_short(r, err);
    struct rp_record rec;
    rc = rp_record_peek(r->buf + r->start, r->offset, &rec, err);
    if (rc < 0)
        return rc;
    size_t whole = RP_RECORD_HEADER + (size_t)rec.len;
    rc = fill(r, whole, err);
    if (rc <= 0)
        return rc < 0 ? rc : cut_short(r, err);
    const uint8_t *hdr = r->buf + r->start;
    rc = rp_record_check(hdr, hdr + RP_RECORD_HEADER, r->seq, &rec, err);
    if (rc < 0)
        return rc;
    if ((rec.type == RP_REC_BEGIN) != (r->seq == 0))
        return damaged(err, rec.offset, rec.type, r->seq ? "a second beginning" : "the stream does not begin with BEGIN");
    r->start += whole;
    r->offset += whole;
    r->seq++;
    r->ended = rec.type == RP_REC_END;
    *out = rec;
    return 1;
}
