/*
 * disks_fixture.h - a machine's private disk (vmm/disks.h) behind virtio-blk, on a real file, without KVM: a guest writes blocks that say
 * what they are, an engine's calls are made by the test, and what a standby would hold is kept in `copy`.
 */
#ifndef RP_TESTS_DISKS_FIXTURE_H
#define RP_TESTS_DISKS_FIXTURE_H

#include "core/disk_mark.h"
#include "core/fault.h"
#include "tests/unit/guest_driver.h"
#include "vmm/disks.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#define SLOT 2
#define BLOCK 4096u
#define BLOCKS 2048u
#define DISK_BYTES (BLOCK * BLOCKS)
#define SLOTS 48u                   /* requests in flight */
#define SPAN 4u                     /* blocks of the longest one */
#define ZERO 0x80000000u
#define WAIT_MS 20000

static struct board board;
static struct rp_disks *disks;
static struct rp_device blk;
static struct drv drv;
static int output_fd;
static char dir[64], image[96], mark[112];
static uint8_t *copy;
static uint64_t copy_bytes, entries, data_bytes, syncs, sync_base;
static struct rp_disk_base last_sync;
static unsigned seed;
static struct rp_disk_sums sums;            /* what the standby says that the copy holds, at the next start of a run */
static bool keep_copy;                      /* … and it does: it is not wiped when it is synced */
static uint32_t reach = BLOCKS - SPAN;      /* blocks that the guest writes */

/* The guest: what it was told of each block, and what it asked for. */
static uint32_t told[BLOCKS], asked[BLOCKS];
static struct slot { bool busy; uint32_t block, n; uint64_t at; } slots[SLOTS];

/* --- the guest --- */

static inline void pattern(uint64_t *p, uint32_t block, uint32_t entry)
{
    for (unsigned i = 0; i < BLOCK / 8; i++)
        p[i] = entry == 0 || (entry & ZERO) ? 0 : ((uint64_t)block << 32 | entry) * 0x9E3779B97F4A7C15ull + i;
}

static inline bool is(const uint8_t *p, uint32_t block, uint32_t entry)
{
    uint64_t want[BLOCK / 8];

    pattern(want, block, entry);
    return memcmp(p, want, BLOCK) == 0;
}

static inline void reap(void)
{
    struct drv_queue *q = &drv.q[0];

    while (drv_used_idx(&drv, 0) != q->seen) {
        uint8_t *e = (uint8_t *)drv_at(&drv, q->used) + 4 + 8u * (q->seen % q->size);
        struct slot *s = &slots[rp_ld32(e) / 3];

        cr_assert(s->busy, "head %u completed twice", rp_ld32(e));
        cr_assert_eq(*(uint8_t *)drv_at(&drv, s->at + 64), VIRTIO_BLK_S_OK);
        for (uint32_t b = s->block; b < s->block + s->n; b++)
            told[b] = asked[b];
        s->busy = false;
        q->seen++;
    }
}

static inline void post(struct slot *s, uint32_t type, uint64_t sector, uint32_t len)
{
    uint16_t head = (uint16_t)(3 * (s - slots));
    uint8_t *h = drv_at(&drv, s->at);

    rp_st32(h, type);
    rp_st64(h + 8, sector);
    *(uint8_t *)drv_at(&drv, s->at + 64) = 0xee;
    drv_desc(&drv, 0, head, s->at, 16, VRING_DESC_F_NEXT, (uint16_t)(head + 1));
    drv_desc(&drv, 0, (uint16_t)(head + 1), s->at + 4096, len, VRING_DESC_F_NEXT | (type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0),
             (uint16_t)(head + 2));
    drv_desc(&drv, 0, (uint16_t)(head + 2), s->at + 64, 1, VRING_DESC_F_WRITE, 0);
    s->busy = true;
    drv_offer(&drv, 0, head);
}

static inline bool idle(uint32_t block, uint32_t n)
{
    for (uint32_t b = block; b < block + n; b++)
        if (told[b] != asked[b])
            return false;
    return true;
}

/* Starts up to n requests on blocks that nobody writes; half of them among the first 64. */
static inline void guest_writes(unsigned n)
{
    for (unsigned i = 0; i < SLOTS && n; i++) {
        struct slot *s = &slots[i];
        uint32_t kind = (uint32_t)rand_r(&seed) % 10;

        if (s->busy)
            continue;
        s->n = 1 + (uint32_t)rand_r(&seed) % SPAN;
        s->block = (uint32_t)rand_r(&seed) % (rand_r(&seed) % 2 ? 64 : reach);
        if (!idle(s->block, s->n))
            continue;
        n--;
        for (uint32_t b = s->block; b < s->block + s->n; b++) {
            asked[b] = ((asked[b] & ~ZERO) + 1) | (kind < 2 ? ZERO : 0);
            pattern((uint64_t *)drv_at(&drv, s->at + 4096 + (b - s->block) * BLOCK), b, asked[b]);
        }
        if (kind < 2) {
            uint8_t *d = drv_at(&drv, s->at + 4096);

            rp_st64(d, s->block * (BLOCK / 512));
            rp_st32(d + 8, s->n * (BLOCK / 512));
            rp_st32(d + 12, 0);
            post(s, kind ? VIRTIO_BLK_T_WRITE_ZEROES : VIRTIO_BLK_T_DISCARD, 0, 16);
        } else {
            post(s, VIRTIO_BLK_T_OUT, s->block * (BLOCK / 512), s->n * BLOCK);
        }
    }
    drv_kick(&drv, 0);
}

/* Reads a run of blocks by a free slot; where it is in memory, NULL: every slot is taken. */
static inline const uint8_t *guest_reads(uint32_t block, uint32_t n)
{
    struct slot *s = slots;
    uint64_t end = rp_clock_ns() + WAIT_MS * 1000000ull;

    while (s < slots + SLOTS && s->busy)
        s++;
    if (s == slots + SLOTS)
        return NULL;
    s->n = 0;       /* nothing is told by its completion */
    post(s, VIRTIO_BLK_T_IN, block * (BLOCK / 512), n * BLOCK);
    drv_kick(&drv, 0);
    while (s->busy) {
        cr_assert(rp_clock_ns() < end, "a read waits for a commit");
        usleep(200);
        reap();
    }
    return drv_at(&drv, s->at + 4096);
}

static inline bool guest_rests(int ms)
{
    uint64_t end = rp_clock_ns() + (uint64_t)ms * 1000000;

    for (;;) {
        bool busy = false;

        reap();
        for (unsigned i = 0; i < SLOTS; i++)
            busy |= slots[i].busy;
        if (!busy)
            return true;
        if (rp_clock_ns() > end)
            return false;
        usleep(200);
    }
}

/* --- the standby --- */

static inline int apply(void *ctx, const struct rp_disk_entry *e, struct rp_error *err)
{
    (void)ctx, (void)err;
    cr_assert_eq(e->disk, 0);
    if (e->kind == RP_DISK_KIND_SYNC) {
        syncs++;
        last_sync = rp_disk_sync_of(e);
        sync_base = last_sync.epoch;
        cr_assert_eq(e->offset, copy_bytes);
        if (sync_base == 0 && !keep_copy)
            memset(copy, 0xa5, copy_bytes);     /* whatever was there must be covered */
        return 0;
    }
    cr_assert_leq(e->offset + e->len, copy_bytes);
    entries++;
    if (e->kind == RP_DISK_KIND_WRITE) {
        memcpy(copy + e->offset, e->data, e->len);
        data_bytes += e->len;
    } else {
        memset(copy + e->offset, 0, e->len);
    }
    return 0;
}

static inline void apply_all(struct rp_buf *b)
{
    struct rp_reader in = rp_reader_of(b->data, b->len);
    struct rp_error err = {0};

    cr_assert_not(b->failed);
    while (in.left) {
        struct rp_record r = {.type = RP_REC_DISK, .len = rp_get_u32(&in)};

        r.payload = rp_get(&in, r.len);
        cr_assert_leq(r.len, RP_RECORD_MAX);
        cr_assert_eq(rp_disk_walk(&r, apply, NULL, &err), 0, "%s", err.text);
    }
    rp_buf_fini(b);
}

/* --- the engine --- */

static inline void start_run(const struct rp_disk_base *have)
{
    struct rp_disk_run run = {.term = 3, .sums = &sums};
    struct rp_error err = {0};
    uint8_t id[16] = {7};

    if (have)
        run.have = *have;
    cr_assert_eq(rp_disks_start(disks, &run, id, "pump", &err), 0, "%s", err.text);
}

static inline int pull(size_t max)
{
    struct rp_buf out = {0};
    struct rp_error err = {0};
    int more = rp_disks_pull(disks, &out, max, &err);

    cr_assert_geq(more, 0, "%s", err.text);
    apply_all(&out);
    return more;
}

static inline void check_agreement(uint64_t epoch)
{
    for (uint32_t b = 0; b < BLOCKS; b++) {
        const uint8_t *p = copy + (uint64_t)b * BLOCK;

        cr_assert(is(p, b, told[b]) || (told[b] != asked[b] && is(p, b, asked[b])),
                  "epoch %lu, block %u: the guest was told %x, asked %x; the copy has 0x%lx", epoch, b, told[b], asked[b], rp_ld64(p));
    }
}

/* A cut: the copy gets the epoch. `state`: the device's, may be NULL. */
static inline void cut(uint64_t epoch, struct rp_sections *state)
{
    struct rp_buf out = {0};
    struct rp_error err = {0};

    pthread_mutex_lock(&board.lock);
    blk.ops->stop(blk.dev);
    pthread_mutex_unlock(&board.lock);
    if (rand_r(&seed) % 2)
        usleep(300);        /* completions while it stands */
    pthread_mutex_lock(&board.lock);
    if (state)
        cr_assert_eq(blk.ops->save(blk.dev, state, SLOT, &err), 0);
    cr_assert_eq(rp_disks_cut(disks, epoch, &out, &err), 0, "%s", err.text);
    reap();
    apply_all(&out);
    if (!state) {
        rp_disks_resume(disks);
        blk.ops->start(blk.dev);
    }
    pthread_mutex_unlock(&board.lock);
}

static inline void expect_equal_file(void)
{
    uint8_t *have = malloc(copy_bytes);
    int fd = open(image, O_RDONLY);

    cr_assert_eq(rp_read_all(fd, have, copy_bytes, 0), 0);
    for (uint64_t at = 0; at < copy_bytes; at += BLOCK)
        cr_assert_eq(memcmp(have + at, copy + at, BLOCK), 0, "the copy differs in block %lu: disk 0x%lx, copy 0x%lx", at / BLOCK,
                     rp_ld64(have + at), rp_ld64(copy + at));
    close(fd);
    free(have);
}

/* --- setting up --- */

static bool shared;

static inline int create(const char *path, bool take, struct rp_error *err)
{
    struct rp_disk_config cfg = {.path = path, .fd = -1, .queues = 1, .take = take, .shared = shared};

    return rp_virtio_blk_create(&board.env, SLOT, &cfg, &blk, err);
}

static inline void make(uint64_t bytes)
{
    struct rp_error err = {0};
    int fd;

    snprintf(dir, sizeof(dir), "/tmp/reprise-disks-XXXXXX");
    cr_assert(mkdtemp(dir));
    snprintf(image, sizeof(image), "%s/disk", dir);
    snprintf(mark, sizeof(mark), "%s.reprise", image);
    fd = open(image, O_CREAT | O_RDWR, 0600);
    cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
    close(fd);
    copy_bytes = bytes;
    copy = malloc(bytes);
    seed = (unsigned)getpid();
    printf("seed %u\n", seed);
    output_fd = eventfd(0, EFD_NONBLOCK);
    board_make(&board, 16u << 20);
    cr_assert_eq(rp_disks_create(board.loop, output_fd, &disks, &err), 0, "%s", err.text);
    board.env.disks = disks;
    cr_assert_eq(create(image, false, &err), 0, "%s", err.text);
    cr_assert_eq(rp_loop_start(board.loop, &err), 0);
    pthread_mutex_lock(&board.lock);
    drv_up(&drv, &board, SLOT, 1ull << VIRTIO_RING_F_EVENT_IDX);
    blk.ops->start(blk.dev);
    pthread_mutex_unlock(&board.lock);
    for (unsigned i = 0; i < SLOTS; i++)
        slots[i].at = drv_alloc(&drv, 4096 + SPAN * BLOCK);
}

static inline void setup(void) { make(DISK_BYTES); }

static inline void teardown(void)
{
    char command[128];

    pthread_mutex_lock(&board.lock);
    blk.ops->destroy(blk.dev);
    rp_disks_destroy(disks);
    pthread_mutex_unlock(&board.lock);
    board_free(&board);
    close(output_fd);
    free(copy);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

static inline void write_for(unsigned rounds)
{
    for (unsigned i = 0; i < rounds; i++) {
        guest_writes(12);
        usleep((useconds_t)rand_r(&seed) % 300);
        reap();
    }
}

#endif
