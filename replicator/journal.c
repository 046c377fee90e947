#include "replicator/journal.h"

#include "core/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wcast-qual"
#pragma GCC diagnostic ignored "-Wshadow"
#include <xxhash.h>
#pragma GCC diagnostic pop

#define HEADER_MAGIC 0x4a445052u    /* "RPDJ" */
#define HEADER_BYTES (4u + 5u * 8u + 32u)
#define VERSION 1u
#define RECORD_MAGIC 0x524a5052u    /* "RPJR" */
#define RECORD_HEADER 48u
#define RING_AT (2u * RP_SLOT_BYTES)
#define PAD 101u
#define SYNC_ID_BYTES 16u

struct rp_journal {
    const struct rp_durable *io;
    char path[512];
    int fd;
    uint64_t life, ring;
    uint64_t seq;                       /* of the header; applying thread, like the next */
    uint64_t tail_chain;
    struct rp_journal_identity id;      /* base: at the tail */
    uint8_t *buf;                       /* a record being read */
    size_t buf_cap;
    _Atomic uint64_t tail, committed;   /* positions */
    uint64_t head, chain;               /* receiving thread, like the rest */
    uint64_t committed_chain;
    struct rp_disk_base base;           /* of the newest COMMIT, or of the tail */
    bool broken;
};

/* --- records --- */

static uint64_t padded(uint64_t data)
{
    return RECORD_HEADER + ((data + 7) & ~7ull);
}

static uint64_t chain_of(const uint8_t *header, const uint8_t *data, uint32_t len, uint64_t chain)
{
    return XXH3_64bits_withSeed(header, RECORD_HEADER - 8, XXH3_64bits_withSeed(data, len, chain));
}

static void put_header(const struct rp_journal *j, uint8_t h[RECORD_HEADER], uint64_t at, uint32_t kind, uint32_t disk,
                       uint32_t data, uint64_t offset, uint64_t len)
{
    rp_st32(h, RECORD_MAGIC);
    rp_st32(h + 4, kind);
    rp_st64(h + 8, j->life ^ at);
    rp_st32(h + 16, disk);
    rp_st32(h + 20, data);
    rp_st64(h + 24, offset);
    rp_st64(h + 32, len);
}

static int write_ring(struct rp_journal *j, uint64_t at, const void *p, size_t len)
{
    if (rp_fault(RP_FAULT_JOURNAL_WRITE))
        return -EIO;
    return j->io->write(j->io->ctx, j->fd, p, len, RING_AT + at % j->ring);
}

static int sync_ring(struct rp_journal *j)
{
    return rp_fault(RP_FAULT_JOURNAL_SYNC) ? -EIO : j->io->sync(j->io->ctx, j->fd);
}

static int put_record(struct rp_journal *j, uint32_t kind, uint32_t disk, uint64_t offset, uint64_t len, const uint8_t *data,
                      uint32_t data_len)
{
    uint8_t h[RECORD_HEADER];
    put_header(j, h, j->head, kind, disk, data_len, offset, len);
    uint64_t chain = chain_of(h, data, data_len, j->chain);
    rp_st64(h + RECORD_HEADER - 8, chain);
    int rc = write_ring(j, j->head, h, sizeof(h));
    if (rc == 0 && data_len)
        rc = write_ring(j, j->head + RECORD_HEADER, data, data_len);
    if (rc < 0)
        return rc;
    j->head += padded(data_len);
    j->chain = chain;
    return 0;
}

/* Bytes up to the ring's end that a record of `size` would not fit into, and that are skipped therefore. */
static uint64_t gap_before(const struct rp_journal *j, uint64_t at, uint64_t size)
{
    uint64_t left = j->ring - at % j->ring;
    return size > left ? left : 0;
}

static int broken(struct rp_journal *j, int rc, const char *what, struct rp_error *err)
{
    j->broken = true;
    return rp_error_set(err, rc, "%s: %s: %s", j->path, what, strerror(-rc));
}

/* Room for a record of data_len, and for a COMMIT behind it: a full ring of uncommitted records could never be emptied. */
static int make_room(struct rp_journal *j, uint32_t data_len, bool commit, struct rp_error *err)
{
    uint64_t size = padded(data_len), reserve = commit ? 0 : 2 * padded(SYNC_ID_BYTES);
    if (j->broken)
        return rp_error_set(err, EIO, "%s: takes nothing more after its failure", j->path);
    uint64_t gap = gap_before(j, j->head, size);
    if (j->head + gap + size + reserve - atomic_load(&j->committed) > j->ring)
        return rp_error_set(err, EFBIG, "%s: the disk writes of one epoch are more than its %llu MiB", j->path,
                            (unsigned long long)(j->ring >> 20));
    if (j->head + gap + size + reserve - atomic_load(&j->tail) > j->ring)
        return -ENOSPC;
    if (gap == 0)
        return 0;
    /* A PAD's data are not written; less than a header's room is skipped by readers anyway. */
    uint64_t end = j->head + gap;
    int rc = gap >= RECORD_HEADER ? put_record(j, PAD, 0, 0, gap, NULL, 0) : 0;
    j->head = end;
    return rc < 0 ? broken(j, rc, "cannot be written", err) : 0;
}

int rp_journal_append(struct rp_journal *j, const struct rp_disk_entry *e, struct rp_error *err)
{
    uint32_t data = e->kind == RP_DISK_KIND_WRITE ? e->len : 0;
    int rc = make_room(j, data, false, err);
    if (rc < 0)
        return rc;
    rc = put_record(j, e->kind, e->disk, e->offset, e->len, e->data, data);
    return rc < 0 ? broken(j, rc, "cannot be written", err) : 0;
}

int rp_journal_commit(struct rp_journal *j, uint64_t epoch, const uint8_t *sync_id, struct rp_error *err)
{
    uint32_t data = sync_id ? SYNC_ID_BYTES : 0;
    int rc = make_room(j, data, true, err);
    if (rc < 0)
        return rc;
    rc = put_record(j, RP_JOURNAL_COMMIT, 0, epoch, 0, sync_id, data);
    if (rc == 0)
        rc = sync_ring(j);
    if (rc < 0)
        return broken(j, rc, "an epoch's disk writes cannot be made durable", err);
    j->base.epoch = epoch;
    if (sync_id)
        memcpy(j->base.sync_id, sync_id, SYNC_ID_BYTES);
    j->committed_chain = j->chain;
    atomic_store(&j->committed, j->head);
    return 0;
}

void rp_journal_rollback(struct rp_journal *j)
{
    j->head = atomic_load(&j->committed);
    j->chain = j->committed_chain;
}

bool rp_journal_dirty(const struct rp_journal *j)
{
    return j->head != atomic_load(&j->committed);
}

bool rp_journal_broken(const struct rp_journal *j)
{
    return j->broken;
}

/* --- reading --- */

static int grow(struct rp_journal *j, size_t need)
{
    if (need <= j->buf_cap)
        return 0;
    void *p = realloc(j->buf, need);
    if (!p)
        return -ENOMEM;
    j->buf = p;
    j->buf_cap = need;
    return 0;
}

/* What append and commit could have written. `data`: the bytes behind the header. */
static bool makes_sense(const struct rp_journal_record *r, uint32_t data)
{
    switch (r->kind) {
    case RP_DISK_KIND_WRITE: return r->len == data;
    case RP_DISK_KIND_ZERO:
    case RP_DISK_KIND_DISCARD: return data == 0 && r->len <= UINT32_MAX;
    case RP_JOURNAL_COMMIT: return data == 0 || data == SYNC_ID_BYTES;
    case PAD: return data == 0;
    default: return false;
    }
}

/* One record, PADs too. -ENODATA: none that continues the chain; -EBADMSG: it does, and nobody of us wrote it. */
static int read_any(struct rp_journal *j, struct rp_journal_pos *pos, struct rp_journal_record *out)
{
    uint64_t left = j->ring - pos->at % j->ring;
    if (left < RECORD_HEADER) {
        pos->at += left;
        left = j->ring;
    }
    uint64_t where = RING_AT + pos->at % j->ring;
    uint8_t h[RECORD_HEADER];
    int rc = rp_read_all(j->fd, h, sizeof(h), where);
    if (rc < 0)
        return rc;
    uint32_t data = rp_ld32(h + 20);
    if (rp_ld32(h) != RECORD_MAGIC || rp_ld64(h + 8) != (j->life ^ pos->at) || data > RP_RECORD_MAX || padded(data) > left)
        return -ENODATA;
    if ((rc = grow(j, data + 1)) < 0 || (rc = rp_read_all(j->fd, j->buf, data, where + RECORD_HEADER)) < 0)
        return rc;
    uint64_t chain = chain_of(h, j->buf, data, pos->chain);
    if (chain != rp_ld64(h + RECORD_HEADER - 8))
        return -ENODATA;
    *out = (struct rp_journal_record){.kind = rp_ld32(h + 4), .disk = rp_ld32(h + 16), .offset = rp_ld64(h + 24),
                                      .len = rp_ld64(h + 32), .data = j->buf};
    if (!makes_sense(out, data))
        return -EBADMSG;
    pos->chain = chain;
    pos->at += out->kind == PAD ? left : padded(data);
    if (out->kind == RP_JOURNAL_COMMIT)
        pos->base.epoch = out->offset;
    if (out->kind == RP_JOURNAL_COMMIT && data)
        memcpy(pos->base.sync_id, out->data, SYNC_ID_BYTES);
    return 0;
}

int rp_journal_read(struct rp_journal *j, struct rp_journal_pos *pos, struct rp_journal_record *out, struct rp_error *err)
{
    uint64_t at = pos->at;
    int rc;
    do
        rc = read_any(j, pos, out);
    while (rc == 0 && out->kind == PAD);
    return rc < 0 ? rp_error_set(err, rc == -ENODATA ? EBADMSG : rc, "%s: a committed record at %llu cannot be read: %s", j->path,
                                 (unsigned long long)at, rc == -ENODATA ? "it has changed" : strerror(-rc)) : 0;
}

/* J2: where the last COMMIT of the unbroken chain ends. */
static int find_end(struct rp_journal *j, struct rp_error *err)
{
    struct rp_journal_pos pos, end;
    struct rp_journal_record r;
    int rc = 0;
    rp_journal_tail_pos(j, &pos);
    end = pos;
    while (pos.at - atomic_load(&j->tail) < j->ring && (rc = read_any(j, &pos, &r)) == 0)
        if (r.kind == RP_JOURNAL_COMMIT)
            end = pos;
    if (rc == -EBADMSG)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "%s: the record at %llu makes no sense: another program wrote it", j->path,
                             (unsigned long long)pos.at);
    if (rc < 0 && rc != -ENODATA)
        return rp_error_set(err, rc, "%s: cannot be read: %s", j->path, strerror(-rc));
    j->head = end.at;
    j->chain = j->committed_chain = end.chain;
    j->base = end.base;
    atomic_store(&j->committed, end.at);
    return 0;
}

uint64_t rp_journal_tail(const struct rp_journal *j)
{
    return atomic_load(&j->tail);
}

void rp_journal_tail_pos(const struct rp_journal *j, struct rp_journal_pos *out)
{
    *out = (struct rp_journal_pos){.at = atomic_load(&j->tail), .chain = j->tail_chain, .base = j->id.base};
}

uint64_t rp_journal_uncommitted(const struct rp_journal *j, struct rp_journal_pos *out)
{
    *out = (struct rp_journal_pos){.at = atomic_load(&j->committed), .chain = j->committed_chain, .base = j->base};
    return j->head;
}

/* --- the header --- */

static int put_slot(struct rp_journal *j, const struct rp_journal_pos *tail)
{
    uint8_t h[HEADER_BYTES];
    rp_st32(h, VERSION);
    rp_st64(h + 4, j->life);
    rp_st64(h + 12, tail->at);
    rp_st64(h + 20, tail->chain);
    rp_st64(h + 28, tail->base.epoch);
    rp_st64(h + 36, j->ring);
    memcpy(h + 44, tail->base.sync_id, 16);
    memcpy(h + 60, j->id.vm_id, 16);
    if (rp_fault(RP_FAULT_JOURNAL_SYNC))
        return -EIO;
    return rp_slot_write(j->io, j->fd, HEADER_MAGIC, h, sizeof(h), &j->seq);
}

int rp_journal_trim(struct rp_journal *j, const struct rp_journal_pos *pos, struct rp_error *err)
{
    int rc = put_slot(j, pos);
    if (rc < 0)
        return rp_error_set(err, rc, "%s: its header cannot be written: %s", j->path, strerror(-rc));
    j->tail_chain = pos->chain;
    j->id.base = pos->base;
    atomic_store(&j->tail, pos->at);
    return 0;
}

static int get_slot(struct rp_journal *j, struct rp_error *err)
{
    uint8_t h[RP_SLOT_PAYLOAD_MAX];
    size_t len;
    int rc = rp_slot_read(j->fd, HEADER_MAGIC, h, &len, &j->seq);
    if (rc < 0 && rc != -ENODATA)
        return rp_error_set(err, rc, "%s: %s", j->path, strerror(-rc));
    if (rc < 0 || len < 4)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "%s: is no journal of a standby's disks", j->path);
    if (rp_ld32(h) != VERSION || len != HEADER_BYTES)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "%s: a journal of version %u, this program knows %u", j->path, rp_ld32(h), VERSION);
    j->life = rp_ld64(h + 4);
    atomic_store(&j->tail, rp_ld64(h + 12));
    j->tail_chain = rp_ld64(h + 20);
    j->id.base.epoch = rp_ld64(h + 28);
    j->ring = rp_ld64(h + 36);
    memcpy(j->id.base.sync_id, h + 44, 16);
    memcpy(j->id.vm_id, h + 60, 16);
    if (j->ring < RP_JOURNAL_RING_MIN || j->ring > 1ull << 40 || j->ring % 8 || atomic_load(&j->tail) > INT64_MAX)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "%s: an impossible header", j->path);
    return 0;
}

static struct rp_journal *make(const struct rp_durable *io, const char *path, struct rp_error *err)
{
    struct rp_journal *j = calloc(1, sizeof(*j));
    if (!j) {
        rp_error_set(err, ENOMEM, "%s: no memory", path);
        return NULL;
    }
    j->io = io;
    j->fd = -1;
    snprintf(j->path, sizeof(j->path), "%s", path);
    return j;
}

int rp_journal_create(const struct rp_durable *io, const char *path, uint64_t ring_bytes, const struct rp_journal_identity *id,
                      struct rp_journal **out, struct rp_error *err)
{
    struct rp_journal *j = make(io, path, err);
    struct rp_journal_pos start = {.base = id->base};
    if (!j)
        return -ENOMEM;
    j->ring = ring_bytes & ~4095ull;
    j->id = *id;
    j->base = id->base;
    while (j->life == 0)
        (void)!getrandom(&j->life, sizeof(j->life), 0);
    int rc = rp_durable_create(path, &j->fd, err);
    if (rc < 0)
        goto fail;
    rc = posix_fallocate(j->fd, 0, (off_t)(RING_AT + j->ring));
    if (rc) {
        rc = rp_error_set(err, rc, "%s: %llu MiB cannot be reserved: %s", path, (unsigned long long)(j->ring >> 20), strerror(rc));
        goto fail;
    }
    rc = put_slot(j, &start);
    if (rc < 0)
        rp_error_set(err, rc, "%s: cannot be written: %s", path, strerror(-rc));
    else
        rc = rp_durable_place(path, err);
    if (rc < 0)
        goto fail;
    *out = j;
    return 0;
fail:
    rp_journal_close(j);
    return rc;
}

int rp_journal_open(const struct rp_durable *io, const char *path, struct rp_journal **out, struct rp_error *err)
{
    struct rp_journal *j = make(io, path, err);
    if (!j)
        return -ENOMEM;
    j->fd = open(path, O_RDWR | O_CLOEXEC);
    int rc = j->fd < 0 ? rp_error_set(err, errno, "%s: %s", path, strerror(errno)) : get_slot(j, err);
    if (rc == 0)
        rc = find_end(j, err);
    if (rc < 0) {
        rp_journal_close(j);
        return rc;
    }
    *out = j;
    return 0;
}

void rp_journal_close(struct rp_journal *j)
{
    if (!j)
        return;
    if (j->fd >= 0)
        close(j->fd);
    free(j->buf);
    free(j);
}

const struct rp_journal_identity *rp_journal_identity(const struct rp_journal *j)
{
    return &j->id;
}

uint64_t rp_journal_committed(const struct rp_journal *j)
{
    return atomic_load(&j->committed);
}

uint64_t rp_journal_epoch(const struct rp_journal *j)
{
    return j->base.epoch;
}

uint64_t rp_journal_ring_bytes(const struct rp_journal *j)
{
    return j->ring;
}
