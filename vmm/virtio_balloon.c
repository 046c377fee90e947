/*
 * virtio-balloon (virtio 1.2, section 5.5): pages that the guest gives up, or says are free, go back to the host.
 *
 *   BALLOON-1  a page is taken only when the guest has put it into the balloon or reported it as free, and before the
 *              guest is told that the request is done;
 *   BALLOON-2  a page that was taken reads as zeroes, and is dirty if it held something (rp_ram_discard), so that the
 *              digest and the next epoch say the same as RAM.
 *
 * Discarding goes in steps of TURN_BYTES, so that a cut never waits long for the machine lock. A request that is half
 * done at a cut is still the driver's: it is done again from its start, which changes nothing that the guest may use.
 * Statistics: the driver's buffer is kept until somebody asks (rp_virtio_balloon_info) and then given back, which is
 * how the driver is asked for fresh ones.
 */
#include "core/clock.h"
#include "vmm/virtio_pci.h"

#include <errno.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>

#define QUEUE_SIZE 128u
#define NQUEUES 4u
#define PFN_BYTES 4u
#define PFNS_MAX 16384u             /* of one request: Linux sends 256 */
#define TURN_BYTES (16ull << 20)    /* discarded per turn of the io thread */
#define STAT_BYTES 10u
#define STATS_FRESH_NS 1000000000ull
#define BIT(n) (1ull << (n))

enum role { INFLATE, DEFLATE, STATS, REPORTING, NOTHING };

struct rp_virtio_balloon_state {
    struct rp_virtio_state virtio;
    uint32_t num_pages;             /* wanted in the balloon */
    uint32_t actual;                /* as the driver last said */
    uint32_t poison;                /* what the guest's free pages are filled with */
    uint32_t stats_kept;            /* 1 + head of the statistics buffer that is kept; 0: none */
    uint64_t stats[RP_BALLOON_STATS];   /* VIRTIO_BALLOON_S_…; all ones: not known */
};

RP_TABLE(rp_virtio_balloon_table, "virtio-balloon", 1, struct rp_virtio_balloon_state,
    RP_STRUCT(struct rp_virtio_balloon_state, virtio, 1, &rp_virtio_state_table),
    RP_U32(struct rp_virtio_balloon_state, num_pages, 2),
    RP_U32(struct rp_virtio_balloon_state, actual, 3),
    RP_U32(struct rp_virtio_balloon_state, poison, 4),
    RP_U32(struct rp_virtio_balloon_state, stats_kept, 5),
    RP_ARRAY(struct rp_virtio_balloon_state, stats, 6, RP_F_U64));

struct rp_virtio_balloon {
    struct rp_virtio v;             /* first, for rp_virtio_device_stop and the like */
    struct rp_chain chain;
    uint32_t num_pages, actual, poison, stats_kept;
    uint64_t stats[RP_BALLOON_STATS];
    uint64_t stats_ns;              /* when they came, CLOCK_MONOTONIC; 0: never */
    uint64_t progress[NQUEUES];     /* of the first request of a queue: pages or bytes that are done */
    uint64_t said_ns;
    uint64_t turn_bytes;            /* still to be discarded in this turn */
};

/* Linux leaves out the queues of features that it did not take, and moves the rest up. */
static enum role role_of(const struct rp_virtio_balloon *b, unsigned n)
{
    enum role roles[NQUEUES + 1] = {INFLATE, DEFLATE};
    unsigned k = 2;

    if (rp_virtio_has(&b->v, VIRTIO_BALLOON_F_STATS_VQ))
        roles[k++] = STATS;
    if (rp_virtio_has(&b->v, VIRTIO_BALLOON_F_REPORTING))
        roles[k++] = REPORTING;
    return n < k ? roles[n] : NOTHING;
}

/* --- requests: 1 done, 0 to be gone on with in the next turn, -EBADMSG --- */

static int discard(struct rp_virtio_balloon *b, uint64_t gpa, uint64_t len, struct rp_error *err)
{
    if (rp_ram_discard(b->v.env.ram, rp_gpa(gpa), len) < 0)
        return rp_error_set(err, EBADMSG, "page 0x%llx is not RAM", (unsigned long long)(gpa >> VIRTIO_BALLOON_PFN_SHIFT));
    b->turn_bytes -= len < b->turn_bytes ? len : b->turn_bytes;
    return 1;
}

/* A list of page numbers; neighbours are taken together. */
static int inflate(struct rp_virtio_balloon *b, uint64_t *progress, struct rp_error *err)
{
    const struct rp_chain *c = &b->chain;
    uint64_t n = c->out_bytes / PFN_BYTES, run = 0, pages = 0;
    uint8_t pfn[PFN_BYTES];

    if (n > PFNS_MAX || c->out_bytes % PFN_BYTES)
        return rp_error_set(err, EBADMSG, "request %u is no list of at most %u page numbers", c->head, PFNS_MAX);
    for (; *progress < n; ++*progress) {
        uint64_t page;

        rp_chain_read(c, *progress * PFN_BYTES, pfn, sizeof(pfn));
        page = rp_ld32(pfn);
        if (pages && page == run + pages && pages < TURN_BYTES >> VIRTIO_BALLOON_PFN_SHIFT) {
            pages++;
            continue;
        }
        if (pages && discard(b, run << VIRTIO_BALLOON_PFN_SHIFT, pages << VIRTIO_BALLOON_PFN_SHIFT, err) < 0)
            return -EBADMSG;
        pages = 0;
        if (b->turn_bytes == 0)
            return 0;
        run = page;
        pages = 1;
    }
    return pages ? discard(b, run << VIRTIO_BALLOON_PFN_SHIFT, pages << VIRTIO_BALLOON_PFN_SHIFT, err) : 1;
}

/* Buffers that lie in free pages. With a poison that is not zero the guest expects to find it there: they stay. */
static int reported(struct rp_virtio_balloon *b, uint64_t *progress, struct rp_error *err)
{
    const struct rp_chain *c = &b->chain;
    const struct iovec *iov = c->iov + c->nout;
    uint64_t before = 0;

    if (b->poison)
        return 1;
    for (unsigned i = 0; i < c->nin; before += iov[i++].iov_len) {
        uint64_t gpa = (uint64_t)((uint8_t *)iov[i].iov_base - b->v.env.ram->view.base), off, len;

        if (*progress >= before + iov[i].iov_len)
            continue;
        if (b->turn_bytes == 0)
            return 0;
        off = *progress > before ? *progress - before : 0;
        len = iov[i].iov_len - off < TURN_BYTES ? iov[i].iov_len - off : TURN_BYTES;
        if (discard(b, gpa + off, len, err) < 0)
            return -EBADMSG;
        *progress = before + off + len;
        if (off + len < iov[i].iov_len)
            return 0;
    }
    return 1;
}

static void read_stats(struct rp_virtio_balloon *b)
{
    const struct rp_chain *c = &b->chain;
    uint8_t e[STAT_BYTES];

    for (uint64_t off = 0; off + STAT_BYTES <= c->out_bytes && off < 4 * (uint64_t)RP_BALLOON_STATS * STAT_BYTES; off += STAT_BYTES) {
        rp_chain_read(c, off, e, sizeof(e));
        if (rp_ld16(e) < RP_BALLOON_STATS)
            b->stats[rp_ld16(e)] = rp_ld64(e + 2);
    }
    b->stats_ns = rp_clock_ns();
}

/* The newest buffer is kept; one that was kept already goes back. */
static void keep_stats(struct rp_virtio_balloon *b, struct rp_virtq *q)
{
    read_stats(b);
    if (b->stats_kept)
        rp_virtq_push(q, (uint16_t)(b->stats_kept - 1), 0);
    b->stats_kept = 1u + b->chain.head;
}

static int serve_one(struct rp_virtio_balloon *b, enum role role, unsigned n, struct rp_error *err)
{
    struct rp_virtq *q = rp_virtio_queue(&b->v, n);
    int rc = 1;

    switch (role) {
    case INFLATE:
        rc = inflate(b, &b->progress[n], err);
        break;
    case REPORTING:
        rc = reported(b, &b->progress[n], err);
        break;
    case STATS:
        keep_stats(b, q);
        return 1;
    case DEFLATE:       /* they are the guest's again, as zeroes */
    case NOTHING:
    default:
        break;
    }
    if (rc == 0)
        rp_virtq_unpop(q, 1);
    if (rc != 1)
        return rc;
    b->progress[n] = 0;
    rp_virtq_push(q, b->chain.head, 0);
    return 1;
}

static void on_notify(void *dev, unsigned n)
{
    struct rp_virtio_balloon *b = dev;
    struct rp_virtq *q = rp_virtio_queue(&b->v, n);
    enum role role = role_of(b, n);
    struct rp_error err = {0};
    unsigned burst = 0;
    int rc;

    b->turn_bytes = TURN_BYTES;
    do {
        rp_virtq_want_kicks(q, false);
        do {
            rc = rp_virtq_pop(q, &b->chain, &err);
            if (rc == 1) {
                rc = serve_one(b, role, n, &err);
                if (rc == 0)
                    burst = QUEUE_SIZE;     /* half done: go on with it in the next turn */
            }
        } while (rc == 1 && ++burst < QUEUE_SIZE && b->turn_bytes);
        if (rc < 0) {
            rp_virtio_fail(&b->v, n, &err);
            return;
        }
        rp_virtio_publish(&b->v, n);
        if (burst >= QUEUE_SIZE || b->turn_bytes == 0) {
            rp_virtio_again(&b->v, n);
            return;
        }
    } while (rp_virtq_want_kicks(q, true));
}

/* --- transport --- */

static void on_config_read(void *dev, uint32_t off, uint8_t *data, uint32_t len)
{
    const struct rp_virtio_balloon *b = dev;
    uint8_t c[sizeof(struct virtio_balloon_config)] = {0};

    rp_st32(c + offsetof(struct virtio_balloon_config, num_pages), b->num_pages);
    rp_st32(c + offsetof(struct virtio_balloon_config, actual), b->actual);
    rp_st32(c + offsetof(struct virtio_balloon_config, poison_val), b->poison);
    if (off < sizeof(c))
        memcpy(data, c + off, len < sizeof(c) - off ? len : sizeof(c) - off);
}

/* When the guest has done what was wished; not more often than once a second, for the history's sake. */
static void say_change(struct rp_virtio_balloon *b)
{
    if (b->actual != b->num_pages || !rp_event_due(&b->said_ns))
        return;
    rp_events_emit(b->v.env.events, 0, "BALLOON_CHANGE", "{\"actual\": %llu}",
                   (unsigned long long)(b->v.env.ram->size_bytes - ((uint64_t)b->actual << VIRTIO_BALLOON_PFN_SHIFT)));
}

static void on_config_write(void *dev, uint32_t off, const uint8_t *data, uint32_t len)
{
    struct rp_virtio_balloon *b = dev;

    if (len != 4)
        return;
    if (off == offsetof(struct virtio_balloon_config, actual)) {
        b->actual = rp_ld32(data);
        say_change(b);
    } else if (off == offsetof(struct virtio_balloon_config, poison_val) && rp_virtio_has(&b->v, VIRTIO_BALLOON_F_PAGE_POISON)) {
        b->poison = rp_ld32(data);
    }
}

/* The wish (num_pages) is the host's and stays. */
static void on_reset(void *dev)
{
    struct rp_virtio_balloon *b = dev;

    b->actual = b->poison = b->stats_kept = 0;
    b->stats_ns = 0;
    memset(b->stats, 0xff, sizeof(b->stats));
    memset(b->progress, 0, sizeof(b->progress));
}

static const struct rp_virtio_ops virtio_ops = {
    .notify = on_notify, .config_read = on_config_read, .config_write = on_config_write, .reset = on_reset};

/* --- around a cut --- */

static int balloon_save(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err)
{
    struct rp_virtio_balloon *b = dev;
    struct rp_virtio_balloon_state s;

    memset(&s, 0, sizeof(s));
    rp_virtio_save(&b->v, &s.virtio);
    s.num_pages = b->num_pages;
    s.actual = b->actual;
    s.poison = b->poison;
    s.stats_kept = b->stats_kept;
    memcpy(s.stats, b->stats, sizeof(s.stats));
    return rp_sections_add(out, &rp_virtio_balloon_table, instance, &s, err);
}

static int balloon_load(void *dev, const struct rp_section *sec, struct rp_error *err)
{
    struct rp_virtio_balloon *b = dev;
    struct rp_virtio_balloon_state s;
    int rc;

    memset(&s, 0, sizeof(s));
    rp_virtio_save(&b->v, &s.virtio);
    rc = rp_section_decode(&rp_virtio_balloon_table, sec, &s, err);
    if (rc == 0 && s.stats_kept > QUEUE_SIZE)
        rc = rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "virtio-balloon: statistics buffer %u of %u", s.stats_kept - 1, QUEUE_SIZE);
    if (rc == 0 && s.num_pages > b->v.env.ram->size_bytes >> VIRTIO_BALLOON_PFN_SHIFT)
        rc = rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "virtio-balloon: %u pages wanted, more than there are", s.num_pages);
    if (rc == 0)
        rc = rp_virtio_load(&b->v, &s.virtio, err);
    if (rc)
        return rc;
    b->num_pages = s.num_pages;
    b->actual = s.actual;
    b->poison = s.poison;
    b->stats_kept = s.stats_kept;
    memcpy(b->stats, s.stats, sizeof(b->stats));
    return 0;
}

static void balloon_destroy(void *dev)
{
    struct rp_virtio_balloon *b = dev;

    rp_virtio_fini(&b->v);
    free(b);
}

static const struct rp_device_ops device_ops = {.save = balloon_save, .load = balloon_load, .reset = rp_virtio_device_reset,
                                                .start = rp_virtio_device_start, .stop = rp_virtio_device_stop, .destroy = balloon_destroy};

int rp_virtio_balloon_create(const struct rp_device_env *env, unsigned slot, struct rp_device *out, struct rp_error *err)
{
    struct rp_virtio_balloon *b = calloc(1, sizeof(*b));
    struct rp_virtio_config vc = {.name = rp_virtio_balloon_table.name, .type = VIRTIO_ID_BALLOON, .class_code = 0x00ff00,
                                  .features = BIT(VIRTIO_BALLOON_F_STATS_VQ) | BIT(VIRTIO_BALLOON_F_DEFLATE_ON_OOM) |
                                              BIT(VIRTIO_BALLOON_F_PAGE_POISON) | BIT(VIRTIO_BALLOON_F_REPORTING),
                                  .nqueues = NQUEUES, .queue_size = QUEUE_SIZE, .ops = &virtio_ops, .dev = b};
    int rc;

    if (!b)
        return rp_error_set(err, ENOMEM, "virtio-balloon: no memory");
    on_reset(b);
    rc = rp_virtio_init(&b->v, env, slot, &vc, err);
    if (rc) {
        free(b);
        return rc;
    }
    *out = (struct rp_device){.section = rp_virtio_balloon_table.name, .instance = slot, .ops = &device_ops, .dev = b};
    return 0;
}

/* --- what the host asks --- */

void rp_virtio_balloon_target(const struct rp_device *d, uint64_t ram_bytes)
{
    struct rp_virtio_balloon *b = d->dev;
    uint64_t size = b->v.env.ram->size_bytes;

    b->num_pages = (uint32_t)((size - (ram_bytes < size ? ram_bytes : size)) >> VIRTIO_BALLOON_PFN_SHIFT);
    rp_virtio_config_changed(&b->v);
}

uint64_t rp_virtio_balloon_actual(const struct rp_device *d)
{
    const struct rp_virtio_balloon *b = d->dev;
    uint64_t size = b->v.env.ram->size_bytes, in = (uint64_t)b->actual << VIRTIO_BALLOON_PFN_SHIFT;

    return in < size ? size - in : 0;   /* `actual` is the guest's word */
}

/* Gives the kept buffer back, so that the driver sends fresh figures, unless they are fresh. */
static void ask_for_stats(struct rp_virtio_balloon *b)
{
    unsigned n = 2;

    if (!b->stats_kept || role_of(b, n) != STATS || !rp_virtio_ready(&b->v, n) || rp_clock_ns() - b->stats_ns < STATS_FRESH_NS)
        return;
    rp_virtq_push(rp_virtio_queue(&b->v, n), (uint16_t)(b->stats_kept - 1), 0);
    b->stats_kept = 0;
    rp_virtio_publish(&b->v, n);
}

bool rp_virtio_balloon_info(const struct rp_device *d, struct rp_balloon_info *out)
{
    struct rp_virtio_balloon *b = d->dev;

    out->target_bytes = b->v.env.ram->size_bytes - ((uint64_t)b->num_pages << VIRTIO_BALLOON_PFN_SHIFT);
    out->actual_bytes = rp_virtio_balloon_actual(d);
    out->stats_age_ns = b->stats_ns ? rp_clock_ns() - b->stats_ns : UINT64_MAX;
    memcpy(out->stats, b->stats, sizeof(out->stats));
    ask_for_stats(b);
    return b->v.driver_features != 0;
}
