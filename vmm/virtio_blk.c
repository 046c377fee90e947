/*
 * virtio-blk (virtio 1.2, section 5.2) in front of a disk (disk.h).
 *
 * A request lives from the pop of its chain until its used entry is pushed; the list `live` holds it in the order of
 * submission, and a cut writes that list (queue, head) into the state: whoever enters the epoch reads those chains
 * again from guest RAM and issues them again. A write may thus reach a disk twice with the same data; the guest sees
 * one completion.
 *
 *   BLK-1  a completion is written to guest RAM only between start and stop, under the machine lock;
 *   BLK-2  every chain taken from a queue is in `live` or in `reissue` until its used entry is there;
 *          A descriptor that is in flight already is not taken: the state could not name it twice;
 *   BLK-3  after a reset no request of before touches guest RAM, and none of after is issued before those are done.
 */
#include "core/log.h"
#include "vmm/bounce.h"
#include "vmm/disks.h"
#include "vmm/virtio_pci.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>

#define SECTOR 512u
#define QUEUES_MAX 16u
#define QUEUE_SIZE 256u
#define SEG_MAX (QUEUE_SIZE - 2)
#define SIZE_MAX_BYTES (64u << 10)          /* per segment: a well-behaved request has at most 16 MiB */
#define REQUEST_MAX ((uint64_t)SEG_MAX * SIZE_MAX_BYTES)
#define IN_FLIGHT_MAX (32u << 20)           /* bytes of bounce buffers; then no request is taken */
#define IDLE_MAX (2u << 20)
#define DISCARD_SECTORS_MAX (1u << 22)      /* 2 GiB */
#define BIT(n) (1ull << (n))

struct rp_blk_inflight { uint16_t queue, head; };

struct rp_virtio_blk_state {
    struct rp_virtio_state virtio;
    uint64_t size_bytes;
    uint32_t ninflight;
    uint32_t pad;
    struct rp_blk_inflight inflight[QUEUES_MAX * QUEUE_SIZE];   /* in the order of submission */
};

static const struct rp_field inflight_fields[] = {
    RP_U16(struct rp_blk_inflight, queue, 1),
    RP_U16(struct rp_blk_inflight, head, 2),
};
static const struct rp_state_table inflight_table = {
    .name = "blk-inflight", .version = 1, .size = sizeof(struct rp_blk_inflight), .fields = inflight_fields, .nfields = 2};

RP_TABLE(rp_virtio_blk_table, "virtio-blk", 1, struct rp_virtio_blk_state,
    RP_STRUCT(struct rp_virtio_blk_state, virtio, 1, &rp_virtio_state_table),
    RP_U64(struct rp_virtio_blk_state, size_bytes, 2),
    RP_U32(struct rp_virtio_blk_state, ninflight, 3),
    {.kind = RP_F_U32, .flags = RP_F_PAD, .name = "pad", .offset = offsetof(struct rp_virtio_blk_state, pad), .count = 1},
    RP_STRUCTS(struct rp_virtio_blk_state, inflight, 4, &inflight_table, ninflight));

struct request {
    struct rp_disk_req d;
    struct rp_virtio_blk *blk;
    struct request *prev, *next;    /* live */
    uint16_t queue, head;
    bool orphan;                    /* its device was reset */
    bool finished;                  /* at the disk, while the machine stands still */
    int rc;
    uint64_t in_bytes;              /* data and status */
    unsigned nin;
    struct iovec in[];              /* the guest's buffers, status byte last */
};

struct rp_virtio_blk {
    struct rp_virtio v;             /* first, for rp_virtio_device_stop and the like */
    struct rp_disk *disk;           /* NULL: not opened yet; then the machine does not run */
    struct rp_bounce bounce;
    struct rp_chain chain;
    char serial[VIRTIO_BLK_ID_BYTES];
    char path[256];
    unsigned nqueues;
    struct request *first, *last;   /* live */
    unsigned orphans;
    uint8_t busy[QUEUES_MAX][QUEUE_SIZE / 8];   /* bit per descriptor: heads of `live` */
    bool starved;                   /* requests may wait in a queue because of a bound */
    uint32_t nreissue;
    struct rp_blk_inflight reissue[QUEUES_MAX * QUEUE_SIZE];    /* from an epoch, not issued yet */
    uint64_t rd_ops, wr_ops, rd_bytes, wr_bytes, flush_ops;
};

/* --- the life of a request --- */

static uint8_t busy_bit(uint16_t head) { return (uint8_t)(1u << head % 8); }

static void unlink_request(struct request *r)
{
    struct rp_virtio_blk *b = r->blk;

    b->busy[r->queue][r->head / 8] &= (uint8_t)~busy_bit(r->head);
    *(r->prev ? &r->prev->next : &b->first) = r->next;
    *(r->next ? &r->next->prev : &b->last) = r->prev;
}

static void free_request(struct request *r)
{
    if (r->d.buf)
        rp_bounce_put(&r->blk->bounce, r->d.buf, r->d.len_bytes);
    free(r);
}

static void push_status(struct rp_virtio_blk *b, unsigned queue, uint16_t head, const struct iovec *in, unsigned nin,
                        uint64_t in_bytes, uint8_t status)
{
    const struct iovec *last = &in[nin - 1];

    *((uint8_t *)last->iov_base + last->iov_len - 1) = status;
    rp_ram_dirty_iov(b->v.env.ram, in, (int)nin, in_bytes);
    rp_virtq_push(rp_virtio_queue(&b->v, queue), head, (uint32_t)(status == VIRTIO_BLK_S_OK ? in_bytes : 1));
}

/* BLK-1: the one place where a completion enters guest RAM. */
static void complete(struct request *r)
{
    struct rp_virtio_blk *b = r->blk;

    if (r->rc == 0 && r->d.op == RP_DISK_READ)
        rp_iov_write(r->in, r->nin, 0, r->d.buf, r->d.len_bytes);
    if (r->rc)
        rp_log(RP_LOG_WARN, "disk %s: request at %llu, %llu bytes: %s", b->path, (unsigned long long)r->d.offset_bytes,
               (unsigned long long)r->d.len_bytes, strerror(-r->rc));
    push_status(b, r->queue, r->head, r->in, r->nin, r->in_bytes, r->rc ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
    unlink_request(r);
    free_request(r);
}

static void on_done(struct rp_disk_req *d, int rc)
{
    struct request *r = (struct request *)(void *)d;

    r->rc = rc;
    if (r->orphan) {
        r->blk->orphans--;
        free_request(r);
    } else if (!r->blk->v.running || (r->blk->v.status & VIRTIO_CONFIG_S_NEEDS_RESET)) {
        r->finished = true;     /* reported on start; in the state until then */
    } else {
        complete(r);
    }
}

/* --- parsing --- */

struct parsed {
    uint32_t type;
    uint64_t sector;
    enum rp_disk_op op;
    uint64_t offset, len;
    bool unmap;
};

static bool in_range(const struct rp_virtio_blk *b, uint64_t sector, uint64_t bytes)
{
    uint64_t sectors = b->disk->size_bytes / SECTOR;

    return bytes % SECTOR == 0 && sector <= sectors && bytes / SECTOR <= sectors - sector;
}

/* One segment { sector, sectors, flags } of a discard or write-zeroes. */
static uint8_t parse_range(const struct rp_virtio_blk *b, struct parsed *p)
{
    uint8_t seg[16];
    uint32_t sectors, flags;
    bool zero = p->type == VIRTIO_BLK_T_WRITE_ZEROES;

    if (b->disk->readonly)
        return VIRTIO_BLK_S_IOERR;
    if (b->chain.out_bytes != 16 + sizeof(seg))
        return VIRTIO_BLK_S_UNSUPP;
    rp_chain_read(&b->chain, 16, seg, sizeof(seg));
    p->sector = rp_ld64(seg);
    sectors = rp_ld32(seg + 8);
    flags = rp_ld32(seg + 12);
    if ((flags & ~(uint32_t)VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) || (!zero && flags))
        return VIRTIO_BLK_S_UNSUPP;
    if (sectors > DISCARD_SECTORS_MAX || !in_range(b, p->sector, (uint64_t)sectors * SECTOR))
        return VIRTIO_BLK_S_IOERR;
    p->op = zero ? RP_DISK_ZERO : RP_DISK_DISCARD;
    p->unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    p->len = (uint64_t)sectors * SECTOR;
    return VIRTIO_BLK_S_OK;
}

/* What is asked, checked against the disk. Any other status than OK is the answer at once. */
static uint8_t parse(const struct rp_virtio_blk *b, struct parsed *p)
{
    uint8_t header[16], status = VIRTIO_BLK_S_OK;

    rp_chain_read(&b->chain, 0, header, sizeof(header));
    p->type = rp_ld32(header);
    p->sector = rp_ld64(header + 8);
    p->unmap = false;
    p->len = 0;
    switch (p->type) {
    case VIRTIO_BLK_T_IN:
        p->op = RP_DISK_READ;
        p->len = b->chain.in_bytes - 1;
        break;
    case VIRTIO_BLK_T_OUT:
        p->op = RP_DISK_WRITE;
        p->len = b->chain.out_bytes - sizeof(header);
        if (b->disk->readonly)
            return VIRTIO_BLK_S_IOERR;
        break;
    case VIRTIO_BLK_T_FLUSH:
        p->op = RP_DISK_FLUSH;
        p->offset = 0;
        return VIRTIO_BLK_S_OK;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
        status = parse_range(b, p);
        break;
    default:
        return VIRTIO_BLK_S_UNSUPP;
    }
    if (status != VIRTIO_BLK_S_OK)
        return status;
    if (((p->op == RP_DISK_READ || p->op == RP_DISK_WRITE) && p->len > REQUEST_MAX) || !in_range(b, p->sector, p->len))
        return VIRTIO_BLK_S_IOERR;
    p->offset = p->sector * SECTOR;
    return VIRTIO_BLK_S_OK;
}

static void count(struct rp_virtio_blk *b, const struct parsed *p)
{
    b->rd_ops += p->op == RP_DISK_READ;
    b->rd_bytes += p->op == RP_DISK_READ ? p->len : 0;
    b->wr_ops += p->op == RP_DISK_WRITE;
    b->wr_bytes += p->op == RP_DISK_WRITE ? p->len : 0;
    b->flush_ops += p->op == RP_DISK_FLUSH;
}

/* Hands the parsed request to the disk. -ENOMEM: nothing happened. */
static int issue(struct rp_virtio_blk *b, unsigned queue, const struct parsed *p)
{
    const struct rp_chain *c = &b->chain;
    struct request *r = calloc(1, sizeof(*r) + c->nin * sizeof(r->in[0]));

    if (!r)
        return -ENOMEM;
    r->d = (struct rp_disk_req){.op = p->op, .unmap = p->unmap, .offset_bytes = p->offset, .len_bytes = p->len, .done = on_done};
    r->blk = b;
    r->queue = (uint16_t)queue;
    r->head = c->head;
    r->nin = c->nin;
    r->in_bytes = c->in_bytes;
    memcpy(r->in, c->iov + c->nout, c->nin * sizeof(r->in[0]));
    if (p->op == RP_DISK_READ || p->op == RP_DISK_WRITE) {
        r->d.buf = rp_bounce_get(&b->bounce, p->len);
        if (!r->d.buf) {
            free(r);
            return -ENOMEM;
        }
        if (p->op == RP_DISK_WRITE)
            rp_chain_read(c, 16, r->d.buf, p->len);
    }
    r->prev = b->last;
    *(b->last ? &b->last->next : &b->first) = r;
    b->last = r;
    b->busy[queue][c->head / 8] |= busy_bit(c->head);
    count(b, p);
    rp_disk_submit(b->disk, &r->d);
    return 0;
}

/* The chain in b->chain: answered, or given to the disk. -EBADMSG: not even an answer is possible. */
static int handle(struct rp_virtio_blk *b, unsigned queue, struct rp_error *err)
{
    const struct rp_chain *c = &b->chain;
    const struct iovec *in = c->iov + c->nout;
    struct parsed p = {0};
    uint8_t status;

    if (c->out_bytes < 16 || c->in_bytes < 1)
        return rp_error_set(err, EBADMSG, "request %u has %s", c->head, c->out_bytes < 16 ? "no header" : "no status byte");
    if (b->busy[queue][c->head / 8] & busy_bit(c->head))
        return rp_error_set(err, EBADMSG, "request %u is offered again before it is done", c->head);
    status = parse(b, &p);
    if (p.type == VIRTIO_BLK_T_GET_ID) {
        status = c->in_bytes > VIRTIO_BLK_ID_BYTES ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
        if (status == VIRTIO_BLK_S_OK)
            rp_iov_write(in, c->nin, 0, b->serial, sizeof(b->serial));
    } else if (status == VIRTIO_BLK_S_OK && (p.len || p.op == RP_DISK_FLUSH)) {
        if (issue(b, queue, &p) == 0)
            return 0;
        status = VIRTIO_BLK_S_IOERR;
    }
    push_status(b, queue, c->head, in, c->nin, c->in_bytes, status);
    return 0;
}

/* --- queues --- */

static bool full(struct rp_virtio_blk *b)
{
    b->starved = b->orphans || b->bounce.used_bytes >= IN_FLIGHT_MAX;
    return b->starved;
}

static void on_notify(void *dev, unsigned n)
{
    struct rp_virtio_blk *b = dev;
    struct rp_virtq *q = rp_virtio_queue(&b->v, n);
    struct rp_error err = {0};
    unsigned burst = 0;
    int rc = 0;

    do {
        rp_virtq_want_kicks(q, false);
        while (rp_virtio_ready(&b->v, n) && !full(b) && burst++ < QUEUE_SIZE && (rc = rp_virtq_pop(q, &b->chain, &err)) == 1) {
            rc = handle(b, n, &err);
            if (rc)
                break;
        }
        rp_disk_kick(b->disk);
        if (rc < 0) {
            rp_virtio_fail(&b->v, n, &err);
            return;
        }
        rp_virtio_publish(&b->v, n);
        if (burst > QUEUE_SIZE) {
            rp_virtio_again(&b->v, n);      /* others want the machine lock, too */
            return;
        }
    } while (rp_virtio_ready(&b->v, n) && !b->starved && rp_virtq_want_kicks(q, true));
}

/* After a batch of completions. */
static void on_batch_end(void *ctx)
{
    struct rp_virtio_blk *b = ctx;

    for (unsigned n = 0; n < b->nqueues; n++) {
        if (!rp_virtio_ready(&b->v, n))
            continue;
        rp_virtio_publish(&b->v, n);
        if (b->starved)
            rp_virtio_again(&b->v, n);
    }
}

static void on_reset(void *dev)
{
    struct rp_virtio_blk *b = dev;
    struct request *next;

    for (struct request *r = b->first; r; r = next) {   /* BLK-3 */
        next = r->next;
        if (r->finished) {
            free_request(r);
        } else {
            r->orphan = true;
            b->orphans++;
        }
    }
    b->first = b->last = NULL;
    memset(b->busy, 0, sizeof(b->busy));
    b->nreissue = 0;
}

static void on_config_read(void *dev, uint32_t off, uint8_t *data, uint32_t len)
{
    const struct rp_virtio_blk *b = dev;
    uint8_t c[60] = {0};

    rp_st64(c + offsetof(struct virtio_blk_config, capacity), b->disk->size_bytes / SECTOR);
    rp_st32(c + offsetof(struct virtio_blk_config, size_max), SIZE_MAX_BYTES);
    rp_st32(c + offsetof(struct virtio_blk_config, seg_max), SEG_MAX);
    rp_st32(c + offsetof(struct virtio_blk_config, blk_size), SECTOR);
    rp_st16(c + offsetof(struct virtio_blk_config, num_queues), (uint16_t)b->nqueues);
    rp_st32(c + offsetof(struct virtio_blk_config, max_discard_sectors), DISCARD_SECTORS_MAX);
    rp_st32(c + offsetof(struct virtio_blk_config, max_discard_seg), 1);
    rp_st32(c + offsetof(struct virtio_blk_config, discard_sector_alignment), 1);
    rp_st32(c + offsetof(struct virtio_blk_config, max_write_zeroes_sectors), DISCARD_SECTORS_MAX);
    rp_st32(c + offsetof(struct virtio_blk_config, max_write_zeroes_seg), 1);
    c[offsetof(struct virtio_blk_config, write_zeroes_may_unmap)] = 1;
    if (off < sizeof(c))
        memcpy(data, c + off, len < sizeof(c) - off ? len : sizeof(c) - off);
}

static const struct rp_virtio_ops virtio_ops = {.notify = on_notify, .config_read = on_config_read, .reset = on_reset};

/* --- around a cut --- */

static int blk_save(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err)
{
    struct rp_virtio_blk *b = dev;
    struct rp_virtio_blk_state *s = calloc(1, sizeof(*s));
    int rc;

    if (!s)
        return rp_error_set(err, ENOMEM, "disk %s: no memory for its state", b->path);
    rp_virtio_save(&b->v, &s->virtio);
    s->size_bytes = b->disk->size_bytes;
    for (uint32_t i = 0; i < b->nreissue; i++)
        s->inflight[s->ninflight++] = b->reissue[i];
    /* live chains are distinct entries of the rings (BLK-2), so they fit */
    for (const struct request *r = b->first; r && s->ninflight < QUEUES_MAX * QUEUE_SIZE; r = r->next)
        s->inflight[s->ninflight++] = (struct rp_blk_inflight){.queue = r->queue, .head = r->head};
    rc = rp_sections_add(out, &rp_virtio_blk_table, instance, s, err);
    free(s);
    return rc;
}

static int check_inflight(const struct rp_virtio_blk *b, const struct rp_virtio_blk_state *s, struct rp_error *err)
{
    uint8_t seen[QUEUES_MAX][QUEUE_SIZE / 8] = {{0}};

    for (uint32_t i = 0; i < s->ninflight; i++) {
        unsigned queue = s->inflight[i].queue, head = s->inflight[i].head;

        if (queue >= b->nqueues || head >= QUEUE_SIZE || head >= s->virtio.queues[queue].size || !s->virtio.queues[queue].enabled)
            return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "disk %s: request in flight %u names queue %u, descriptor %u",
                                 b->path, i, queue, head);
        if (seen[queue][head / 8] >> head % 8 & 1)
            return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "disk %s: queue %u, descriptor %u is in flight twice", b->path,
                                 queue, head);
        seen[queue][head / 8] |= (uint8_t)(1u << head % 8);
    }
    return 0;
}

static int blk_load(void *dev, const struct rp_section *sec, struct rp_error *err)
{
    struct rp_virtio_blk *b = dev;
    struct rp_virtio_blk_state *s = calloc(1, sizeof(*s));
    int rc;

    if (!s)
        return rp_error_set(err, ENOMEM, "disk %s: no memory for its state", b->path);
    rp_virtio_save(&b->v, &s->virtio);
    rc = rp_section_decode(&rp_virtio_blk_table, sec, s, err);
    if (rc == 0 && b->disk && s->size_bytes > b->disk->size_bytes)
        rc = rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "disk %s: has %llu bytes, the epoch's has %llu: give the disk it had, or one as large",
                           b->path, (unsigned long long)b->disk->size_bytes, (unsigned long long)s->size_bytes);
    if (rc == 0)
        rc = check_inflight(b, s, err);
    if (rc == 0)
        rc = rp_virtio_load(&b->v, &s->virtio, err);
    if (rc == 0) {
        memcpy(b->reissue, s->inflight, s->ninflight * sizeof(s->inflight[0]));
        b->nreissue = s->ninflight;
        if (b->disk && s->size_bytes != b->disk->size_bytes)
            rp_virtio_config_changed(&b->v);
    }
    free(s);
    return rc;
}

/* What was in flight when the epoch was cut is issued again. */
static void reissue(struct rp_virtio_blk *b)
{
    uint32_t n = b->nreissue;
    struct rp_error err = {0};

    b->nreissue = 0;
    for (uint32_t i = 0; i < n; i++) {
        unsigned queue = b->reissue[i].queue;
        struct rp_virtq *q = rp_virtio_queue(&b->v, queue);

        if (!rp_virtio_ready(&b->v, queue))
            continue;
        if (rp_virtq_fetch(q, b->reissue[i].head, &b->chain, &err) || handle(b, queue, &err))
            rp_virtio_fail(&b->v, queue, &err);
    }
    if (n)
        rp_disk_kick(b->disk);
}

static void blk_start(void *dev)
{
    struct rp_virtio_blk *b = dev;
    struct request *next;

    rp_virtio_start(&b->v);
    for (struct request *r = b->first; r; r = next) {
        next = r->next;
        if (r->finished && !(b->v.status & VIRTIO_CONFIG_S_NEEDS_RESET))
            complete(r);
    }
    reissue(b);
    on_batch_end(b);
}

static int blk_drain(void *dev, struct rp_error *err)
{
    struct rp_virtio_blk *b = dev;

    (void)err;
    if (b->disk)
        rp_disk_drain(b->disk);
    return 0;
}

static void blk_destroy(void *dev)
{
    struct rp_virtio_blk *b = dev;

    rp_virtio_stop(&b->v);
    if (b->disk)
        rp_disk_drain(b->disk);
    on_reset(b);                    /* frees what had finished */
    rp_virtio_fini(&b->v);
    if (b->disk)
        rp_disk_close(b->disk);
    rp_bounce_fini(&b->bounce);
    free(b);
}

static const struct rp_device_ops device_ops = {.save = blk_save, .load = blk_load, .drain = blk_drain, .reset = rp_virtio_device_reset,
                                                .start = blk_start, .stop = rp_virtio_device_stop, .destroy = blk_destroy};

/* What the disk can do; as long as it is not open, all that one could. */
static uint64_t features(bool readonly, bool can_zero, bool can_discard)
{
    return BIT(VIRTIO_BLK_F_SIZE_MAX) | BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_BLK_SIZE) | BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_MQ) |
           (readonly ? BIT(VIRTIO_BLK_F_RO) : 0) | (can_zero && !readonly ? BIT(VIRTIO_BLK_F_WRITE_ZEROES) : 0) |
           (can_discard && !readonly ? BIT(VIRTIO_BLK_F_DISCARD) : 0);
}

int rp_virtio_blk_open(const struct rp_device *d, const struct rp_disk_config *cfg, struct rp_error *err)
{
    struct rp_virtio_blk *b = d->dev;
    struct rp_disk *disk;
    int rc = b->disk ? 0 : rp_disk_open(cfg, b->v.env.loop, &disk, err);

    if (rc < 0 || b->disk)
        return rc;
    rc = b->v.env.disks ? rp_disks_guard(b->v.env.disks, cfg, &disk, err) : 0;
    if (rc < 0) {
        rp_disk_close(disk);
        return rc;
    }
    disk->batch_end = on_batch_end;
    disk->ctx = b;
    b->disk = disk;
    rp_virtio_offer(&b->v, features(disk->readonly, disk->can_zero, disk->can_discard));
    if (disk->size_bytes % SECTOR)
        rp_log(RP_LOG_WARN, "disk %s: its size is not a multiple of %u bytes: the guest cannot reach the last %u", b->path, SECTOR,
               (unsigned)(disk->size_bytes % SECTOR));
    return 0;
}

int rp_virtio_blk_create(const struct rp_device_env *env, unsigned slot, const struct rp_disk_config *cfg,
                         struct rp_device *out, struct rp_error *err)
{
    struct rp_virtio_blk *b = calloc(1, sizeof(*b));
    struct rp_virtio_config vc = {.name = rp_virtio_blk_table.name, .type = VIRTIO_ID_BLOCK, .class_code = 0x018000,
                                  .features = features(cfg->readonly, true, true), .queue_size = QUEUE_SIZE, .ops = &virtio_ops, .dev = b};
    int rc;

    if (!b)
        return rp_error_set(err, ENOMEM, "disk: no memory");
    memcpy(b->serial, cfg->serial, sizeof(b->serial));
    snprintf(b->path, sizeof(b->path), "%s", cfg->path ? cfg->path : "(descriptor)");
    b->nqueues = cfg->queues ? cfg->queues : env->vcpus < 4 ? env->vcpus : 4;
    if (b->nqueues == 0 || b->nqueues > QUEUES_MAX)
        b->nqueues = b->nqueues ? QUEUES_MAX : 1;
    rp_bounce_init(&b->bounce, IDLE_MAX);
    vc.nqueues = b->nqueues;
    rc = rp_virtio_init(&b->v, env, slot, &vc, err);
    if (rc < 0) {
        free(b);
        return rc;
    }
    *out = (struct rp_device){.section = rp_virtio_blk_table.name, .instance = slot, .ops = &device_ops, .dev = b};
    rc = env->disks_later ? 0 : rp_virtio_blk_open(out, cfg, err);
    if (rc < 0)
        blk_destroy(b);
    return rc;
}

void rp_virtio_blk_info(const struct rp_device *d, struct rp_disk_info *out)
{
    const struct rp_virtio_blk *b = d->dev;

    *out = (struct rp_disk_info){.path = b->path, .readonly = b->disk->readonly, .size_bytes = b->disk->size_bytes,
                                 .rd_ops = b->rd_ops, .wr_ops = b->wr_ops, .rd_bytes = b->rd_bytes,
                                 .wr_bytes = b->wr_bytes, .flush_ops = b->flush_ops};
}
