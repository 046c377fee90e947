/*
 * A standby's disk journal: what a life of appends, commits, rollbacks, trims and crashes left in the file, flipped, zeroed, cut or
 * shifted; and files whose seals are right and whose fields are not. What is read back is what was committed, in order, or nothing.
 */
#include "replicator/journal.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wcast-qual"
#pragma GCC diagnostic ignored "-Wshadow"
#include <xxhash.h>
#pragma GCC diagnostic pop

#define RING RP_JOURNAL_RING_MIN
#define ENTRIES 400u
#define DATA_MAX (300u << 10)
#define ACTIONS_MAX 120u

/* Syncing is not what is looked for here. */
static int no_sync(void *ctx, int fd) { (void)ctx, (void)fd; return 0; }
static struct rp_durable io;

/* What was appended since the beginning, with its number in it as the offset (a COMMIT's epoch). */
struct entry { uint32_t kind, disk, len; };
static struct {
    struct entry e[ENTRIES];
    unsigned n, committed, applied, trimmed;    /* counts of entries */
    struct rp_journal *j;
    struct rp_journal_pos pos;                  /* behind `applied` */
    char path[96];
} m;
static uint8_t data[DATA_MAX];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static char folder[64];
    (void)argc, (void)argv;
    fz_folder(folder);
    snprintf(m.path, sizeof(m.path), "%s/journal", folder);
    io = rp_durable_host;
    io.sync = no_sync;
    return 0;
}

static uint8_t pattern(unsigned entry) { return (uint8_t)(entry * 37 + 1); }

static void append(struct fz *f)
{
    static const uint32_t scale[] = {1, 8, 64, DATA_MAX / 256};
    struct rp_error err = {0};
    if (m.n + 2 >= ENTRIES)
        return;
    unsigned what = fz_u8(f);
    struct rp_disk_entry e = {.kind = RP_DISK_KIND_WRITE + what % 3, .disk = what / 4 % 4, .offset = m.n, .len = fz_u8(f) * scale[what / 64]};
    if (e.kind == RP_DISK_KIND_WRITE) {
        memset(data, pattern(m.n), e.len);
        e.data = data;
    }
    int rc = rp_journal_append(m.j, &e, &err);
    FZ_HOLDS(rc == 0 || rc == -ENOSPC || (rc == -EFBIG && err.text[0]));
    if (rc == 0)
        m.e[m.n++] = (struct entry){e.kind, e.disk, e.len};
}

/* The sync id that begins with every third COMMIT. */
static const uint8_t *sync_id_of(unsigned entry)
{
    static uint8_t id[16];
    memset(id, pattern(entry), sizeof(id));
    return id;
}

static void commit(void)
{
    struct rp_error err = {0};
    if (m.n + 1 >= ENTRIES)
        return;
    int rc = rp_journal_commit(m.j, m.n, m.n % 3 ? NULL : sync_id_of(m.n), &err);
    FZ_HOLDS(rc == 0 || rc == -ENOSPC);
    if (rc < 0)
        return;
    m.e[m.n++] = (struct entry){.kind = RP_JOURNAL_COMMIT};
    m.committed = m.n;
    FZ_HOLDS(rp_journal_epoch(m.j) == m.n - 1 && !rp_journal_dirty(m.j));
}

/* The record is entry `i`. */
static void is_entry(const struct rp_journal_record *r, unsigned i)
{
    const struct entry *e = &m.e[i];
    FZ_HOLDS(i < m.committed && r->offset == i && r->kind == e->kind && r->disk == e->disk && r->len == e->len);
    for (uint32_t k = 0; e->kind == RP_DISK_KIND_WRITE && k < e->len; k++)
        FZ_HOLDS(r->data[k] == pattern(i));
}

/* Behind entry n - 1: of which sync that is. */
static void is_sync(unsigned n, const struct rp_disk_base *base)
{
    while (n > 0 && (m.e[n - 1].kind != RP_JOURNAL_COMMIT || (n - 1) % 3))
        n--;
    FZ_HOLDS(base->sync_id[5] == (n ? pattern(n - 1) : 0));
}

static void apply(unsigned n)
{
    for (; n > 0 && m.pos.at < rp_journal_committed(m.j); n--) {
        struct rp_journal_record r;
        struct rp_error err = {0};
        FZ_HOLDS(rp_journal_read(m.j, &m.pos, &r, &err) == 0);
        is_entry(&r, m.applied++);
        is_sync(m.applied, &m.pos.base);
    }
}

/* A process that begins after a crash that lost nothing that was written. */
static void reopen(void)
{
    struct rp_error err = {0};
    rp_journal_close(m.j);
    FZ_HOLDS(rp_journal_open(&io, m.path, &m.j, &err) == 0);
    m.n = m.committed;
    m.applied = m.trimmed;
    rp_journal_tail_pos(m.j, &m.pos);
    FZ_HOLDS(!rp_journal_dirty(m.j) && (rp_journal_committed(m.j) == m.pos.at) == (m.committed == m.trimmed));
}

static void act(struct fz *f)
{
    struct rp_error err = {0};
    unsigned what = fz_u8(f);
    switch (what % 8) {
    case 4: commit(); break;
    case 5: apply(what / 8); break;
    case 6:
        if (what & 8) {
            rp_journal_rollback(m.j);
            m.n = m.committed;
        } else if (m.applied && m.e[m.applied - 1].kind == RP_JOURNAL_COMMIT) {
            FZ_HOLDS(rp_journal_trim(m.j, &m.pos, &err) == 0);
            m.trimmed = m.applied;
        }
        break;
    case 7: reopen(); break;
    default: append(f); break;
    }
}

static void damage(struct fz *f, int fd)
{
    static uint8_t piece[65536];
    uint8_t what = fz_u8(f), byte;
    uint64_t at = what & 8 ? fz_u16(f) % (2 * RP_SLOT_BYTES) : 2 * RP_SLOT_BYTES + (what & 16 ? fz_u32(f) % RING : fz_u16(f) % 4096u);
    uint16_t len = fz_u16(f);
    ssize_t n;
    switch (what & 7) {
    case 0: FZ_HOLDS(ftruncate(fd, (off_t)at) == 0); break;
    case 1:
        memset(piece, 0, len);
        FZ_HOLDS(pwrite(fd, piece, len, (off_t)at) == len);
        break;
    case 2:     /* old blocks at a new place */
        n = pread(fd, piece, len, (off_t)(fz_u32(f) % RING));
        FZ_HOLDS(n >= 0 && pwrite(fd, piece, (size_t)n, (off_t)at) == n);
        break;
    default:
        byte = 0;
        n = pread(fd, &byte, 1, (off_t)at);
        byte ^= (uint8_t)(1u << (len & 7));
        FZ_HOLDS(n >= 0 && pwrite(fd, &byte, 1, (off_t)at) == 1);
        break;
    }
}

/* What is in a damaged file: refused, or whole epochs that were committed, each entry behind the one before. */
static void open_damaged(void)
{
    struct rp_journal_record r = {0};
    struct rp_journal_pos pos;
    struct rp_error err = {0};
    bool any = false;
    unsigned next = 0;
    int rc = rp_journal_open(&io, m.path, &m.j, &err);
    if (rc < 0) {
        m.j = NULL;
        FZ_HOLDS(err.text[0]);
        return;
    }
    rp_journal_tail_pos(m.j, &pos);
    while (pos.at < rp_journal_committed(m.j)) {
        FZ_HOLDS(rp_journal_read(m.j, &pos, &r, &err) == 0);    /* it was read a moment ago */
        FZ_HOLDS(!any || r.offset == next);
        FZ_HOLDS(r.offset < m.committed);
        is_entry(&r, (unsigned)r.offset);
        next = (unsigned)r.offset + 1;
        any = true;
    }
    FZ_HOLDS(!any || (r.kind == RP_JOURNAL_COMMIT && rp_journal_epoch(m.j) == r.offset));
}

static void life(struct fz *f)
{
    struct rp_journal_identity id = {.base.epoch = ENTRIES};
    struct rp_error err = {0};
    m.n = m.committed = m.applied = m.trimmed = 0;
    FZ_HOLDS(rp_journal_create(&io, m.path, RING, &id, &m.j, &err) == 0);
    rp_journal_tail_pos(m.j, &m.pos);
    unsigned damages = fz_u8(f) % 4;
    size_t keep = damages * 10u < f->left ? damages * 10u : f->left;
    struct fz actions = {f->p, f->left - keep}, rest = {f->p + (f->left - keep), keep};
    for (unsigned i = 0; i < ACTIONS_MAX && actions.left > 0; i++)
        act(&actions);
    reopen();
    apply(ENTRIES);
    FZ_HOLDS(m.applied == m.committed);
    rp_journal_close(m.j);
    int fd = open(m.path, O_RDWR | O_CLOEXEC);
    while (damages--)
        damage(&rest, fd);
    close(fd);
    open_damaged();
}

/* --- right seals, wrong fields --- */

static uint64_t put_record(struct fz *f, int fd, uint64_t life_xor, uint64_t *chain, uint64_t at)
{
    uint8_t h[48];
    unsigned what = fz_u8(f);
    uint32_t len = fz_u8(f) * (what & 128 ? 64u : 1u), said = what & 64 ? fz_u32(f) : len;
    rp_st32(h, 0x524a5052u);
    rp_st32(h + 4, what & 8 ? fz_u32(f) : what & 4 ? 100 + (what & 1) : what & 3);
    rp_st64(h + 8, life_xor ^ at);
    rp_st32(h + 16, fz_u8(f));
    rp_st32(h + 20, what & 32 ? said : len);
    rp_st64(h + 24, fz_u64(f));
    rp_st64(h + 32, what & 16 ? fz_u64(f) : said);
    memset(data, 0xa5, len);
    *chain = XXH3_64bits_withSeed(h, 40, XXH3_64bits_withSeed(data, len, *chain));
    rp_st64(h + 40, *chain);
    uint64_t where = 2 * RP_SLOT_BYTES + at % RING;
    FZ_HOLDS(pwrite(fd, h, sizeof(h), (off_t)where) == (ssize_t)sizeof(h) && pwrite(fd, data, len, (off_t)where + 48) == (ssize_t)len);
    return at + 48 + ((len + 7) & ~7u);
}

static void forged(struct fz *f)
{
    uint8_t h[76], slot[RP_SLOT_PAYLOAD_MAX] = {0};
    uint64_t seq = fz_u8(f), at = fz_u8(f) & 1 ? fz_u64(f) : 0, chain = 5;
    unsigned odd = fz_u8(f);
    int fd = memfd_create("journal", MFD_CLOEXEC);
    FZ_HOLDS(fd >= 0 && ftruncate(fd, 2 * RP_SLOT_BYTES) == 0);
    rp_st32(h, odd & 1 ? fz_u32(f) : 1);
    rp_st64(h + 4, 77);
    rp_st64(h + 12, at);
    rp_st64(h + 20, chain);
    rp_st64(h + 28, 3);
    rp_st64(h + 36, odd & 2 ? fz_u64(f) : RING);
    memset(h + 44, 7, 32);
    memcpy(slot, h, sizeof(h));
    FZ_HOLDS(rp_slot_write(&io, fd, 0x4a445052u, slot, odd & 4 ? fz_u16(f) % sizeof(slot) : sizeof(h), &seq) == 0);
    if (!(odd & 2))
        for (unsigned i = 0; i < 40 && f->left > 0; i++)
            at = put_record(f, fd, 77, &chain, at);
    struct rp_journal *j;
    struct rp_error err = {0};
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (rp_journal_open(&io, path, &j, &err) < 0) {
        FZ_HOLDS(err.text[0]);
    } else {
        struct rp_journal_pos pos;
        struct rp_journal_record r;
        volatile uint8_t sum = 0;
        rp_journal_tail_pos(j, &pos);
        while (pos.at < rp_journal_committed(j) && rp_journal_read(j, &pos, &r, &err) == 0) {
            FZ_HOLDS(r.kind == RP_JOURNAL_COMMIT || (r.kind >= RP_DISK_KIND_WRITE && r.kind <= RP_DISK_KIND_DISCARD));
            FZ_HOLDS(r.kind != RP_DISK_KIND_WRITE || r.len <= RP_RECORD_MAX);
            for (uint64_t i = 0; r.kind == RP_DISK_KIND_WRITE && i < r.len; i++)
                sum = (uint8_t)(sum + r.data[i]);       /* what its owner would write to a disk */
        }
        rp_journal_close(j);
    }
    close(fd);
}

static void raw(struct fz *f)
{
    int fd = memfd_create("journal", MFD_CLOEXEC);
    struct rp_journal *j;
    struct rp_error err = {0};
    char path[64];
    FZ_HOLDS(fd >= 0 && write(fd, f->p, f->left) == (ssize_t)f->left);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (rp_journal_open(&io, path, &j, &err) == 0)
        rp_journal_close(j);
    else
        FZ_HOLDS(err.text[0]);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct fz f = {bytes, size};
    uint8_t what = fz_u8(&f);
    if (what < 160) {
        life(&f);
        rp_journal_close(m.j);
    } else if (what < 250) {
        forged(&f);
    } else {
        raw(&f);
    }
    return 0;
}
