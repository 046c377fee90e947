/* Split virtqueues. The contract is in virtq.h. */
#include "vmm/virtq.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdatomic.h>

#define DESC_BYTES 16u      /* u64 address, u32 length, u16 flags, u16 next */
#define USED_BYTES 8u       /* u32 head, u32 length */

RP_TABLE(rp_virtq_state_table, "virtq", 1, struct rp_virtq_state,
    RP_U64(struct rp_virtq_state, desc_gpa, 1),
    RP_U64(struct rp_virtq_state, avail_gpa, 2),
    RP_U64(struct rp_virtq_state, used_gpa, 3),
    RP_U16(struct rp_virtq_state, size, 4),
    RP_U16(struct rp_virtq_state, vector, 5),
    RP_U16(struct rp_virtq_state, avail_idx, 6),
    RP_U16(struct rp_virtq_state, used_idx, 7),
    RP_U16(struct rp_virtq_state, signalled, 8),
    RP_U16(struct rp_virtq_state, enabled, 9),
    {.kind = RP_F_U32, .flags = RP_F_PAD, .name = "pad", .offset = offsetof(struct rp_virtq_state, pad), .count = 1});

/* Single accesses to memory that the guest writes at the same time; guest and host are little-endian (x86-64). */
static uint16_t guest_ld16(const uint8_t *p)
{
    return __atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_RELAXED);
}

static void guest_st16(uint8_t *p, uint16_t v)
{
    __atomic_store_n((uint16_t *)(void *)p, v, __ATOMIC_RELAXED);
}

static uint64_t avail_bytes(uint16_t size) { return 4 + 2ull * size + 2; }
static uint64_t used_bytes(uint16_t size) { return 4 + (uint64_t)USED_BYTES * size + 2; }
static uint8_t *used_event(const struct rp_virtq *q) { return q->avail + 4 + 2u * q->s.size; }
static uint8_t *avail_event(const struct rp_virtq *q) { return q->used + 4 + USED_BYTES * q->s.size; }

/* The device's part of the ring was written. */
static void mark(struct rp_virtq *q, const uint8_t *at, uint64_t len)
{
    rp_ram_dirty(q->ram, rp_gpa(q->s.used_gpa + (uint64_t)(at - q->used)), len);
}

void rp_virtq_reset(struct rp_virtq *q)
{
    q->s = (struct rp_virtq_state){.size = q->size_max, .vector = RP_VIRTQ_NO_VECTOR};
    q->event_idx = q->indirect = false;
    q->desc = q->avail = q->used = NULL;
    q->published = 0;
}

int rp_virtq_enable(struct rp_virtq *q, uint64_t features, struct rp_error *err)
{
    uint16_t n = q->s.size;
    uint8_t *desc, *avail, *used;

    if (n == 0 || n > q->size_max || (n & (n - 1)))
        return rp_error_set(err, EBADMSG, "size %u, at most %u and a power of two", n, q->size_max);
    if (q->s.desc_gpa % 16 || q->s.avail_gpa % 2 || q->s.used_gpa % 4)
        return rp_error_set(err, EBADMSG, "rings at 0x%llx, 0x%llx, 0x%llx are not aligned",
                            (unsigned long long)q->s.desc_gpa, (unsigned long long)q->s.avail_gpa,
                            (unsigned long long)q->s.used_gpa);
    desc = rp_ram_at(q->ram, rp_gpa(q->s.desc_gpa), (uint64_t)DESC_BYTES * n);
    avail = rp_ram_at(q->ram, rp_gpa(q->s.avail_gpa), avail_bytes(n));
    used = rp_ram_at(q->ram, rp_gpa(q->s.used_gpa), used_bytes(n));
    if (!desc || !avail || !used)
        return rp_error_set(err, EBADMSG, "%s of %u entries at 0x%llx is not in RAM",
                            !desc ? "descriptor table" : !avail ? "available ring" : "used ring", n,
                            (unsigned long long)(!desc ? q->s.desc_gpa : !avail ? q->s.avail_gpa : q->s.used_gpa));
    q->desc = desc;
    q->avail = avail;
    q->used = used;
    q->event_idx = features & (1ull << VIRTIO_RING_F_EVENT_IDX);
    q->indirect = features & (1ull << VIRTIO_RING_F_INDIRECT_DESC);
    q->published = q->s.used_idx;
    q->s.enabled = 1;
    return 0;
}

/* --- chains --- */

struct walk {
    const uint8_t *table;       /* descriptors: the queue's own or an indirect table */
    uint32_t count;             /* entries of the table */
    uint32_t i;                 /* the next one */
    uint32_t steps;             /* descriptors seen in this table: more than it has is a loop */
    bool indirect;
};

static int chain_add(struct rp_virtq *q, struct rp_chain *c, uint64_t addr, uint32_t len, bool in, struct rp_error *err)
{
    uint64_t total = c->out_bytes + c->in_bytes + len;
    void *host;

    if (!in && c->nin)
        return rp_error_set(err, EBADMSG, "chain %u: a buffer to read after one to write", c->head);
    if (len == 0)
        return 0;
    if (c->nout + c->nin == RP_CHAIN_SEGS_MAX || total > RP_CHAIN_BYTES_MAX)
        return rp_error_set(err, EBADMSG, "chain %u: longer than %u buffers or 4 GiB", c->head, RP_CHAIN_SEGS_MAX);
    host = rp_ram_at(q->ram, rp_gpa(addr), len);
    if (!host)
        return rp_error_set(err, EBADMSG, "chain %u: buffer of %u bytes at 0x%llx is not in RAM", c->head, len,
                            (unsigned long long)addr);
    c->iov[c->nout + c->nin] = (struct iovec){.iov_base = host, .iov_len = len};
    if (in) {
        c->nin++;
        c->in_bytes += len;
    } else {
        c->nout++;
        c->out_bytes += len;
    }
    return 0;
}

static int enter_indirect(struct rp_virtq *q, struct walk *w, const struct rp_chain *c, uint64_t addr, uint32_t len,
                          uint16_t flags, struct rp_error *err)
{
    const uint8_t *table;

    if (w->indirect || !q->indirect || (flags & VRING_DESC_F_NEXT))
        return rp_error_set(err, EBADMSG, "chain %u: indirect descriptor %s", c->head,
                            w->indirect ? "inside an indirect table" : q->indirect ? "with NEXT" : "was not negotiated");
    if (len == 0 || len % DESC_BYTES || len / DESC_BYTES > RP_CHAIN_SEGS_MAX)
        return rp_error_set(err, EBADMSG, "chain %u: indirect table of %u bytes", c->head, len);
    table = rp_ram_at(q->ram, rp_gpa(addr), len);
    if (!table)
        return rp_error_set(err, EBADMSG, "chain %u: indirect table at 0x%llx is not in RAM", c->head,
                            (unsigned long long)addr);
    *w = (struct walk){.table = table, .count = len / DESC_BYTES, .indirect = true};
    return 0;
}

int rp_virtq_fetch(struct rp_virtq *q, uint16_t head, struct rp_chain *c, struct rp_error *err)
{
    struct walk w = {.table = q->desc, .count = q->s.size, .i = head};

    c->head = head;
    c->nout = c->nin = 0;
    c->out_bytes = c->in_bytes = 0;
    for (;;) {
        uint8_t d[DESC_BYTES];
        uint16_t flags;
        int rc;

        if (w.i >= w.count || w.steps++ >= w.count)
            return rp_error_set(err, EBADMSG, "chain %u: %s", head, w.i >= w.count ? "next is beyond the table" : "loops");
        memcpy(d, w.table + (size_t)w.i * DESC_BYTES, sizeof(d));   /* the one read */
        flags = rp_ld16(d + 12);
        if (flags & VRING_DESC_F_INDIRECT) {
            rc = enter_indirect(q, &w, c, rp_ld64(d), rp_ld32(d + 8), flags, err);
            if (rc)
                return rc;
            continue;
        }
        rc = chain_add(q, c, rp_ld64(d), rp_ld32(d + 8), flags & VRING_DESC_F_WRITE, err);
        if (rc)
            return rc;
        if (!(flags & VRING_DESC_F_NEXT))
            return 0;
        w.i = rp_ld16(d + 14);
    }
}

int rp_virtq_waiting(struct rp_virtq *q, struct rp_error *err)
{
    uint16_t n = (uint16_t)(guest_ld16(q->avail + 2) - q->s.avail_idx);

    if (n > q->s.size)
        return rp_error_set(err, EBADMSG, "available index is %u ahead of %u, the ring has %u entries", n, q->s.avail_idx,
                            q->s.size);
    atomic_thread_fence(memory_order_acquire);  /* pairs with the driver's barrier between entry and index */
    return n;
}

int rp_virtq_pop(struct rp_virtq *q, struct rp_chain *c, struct rp_error *err)
{
    int n = rp_virtq_waiting(q, err);
    uint16_t head;
    int rc;

    if (n <= 0)
        return n;
    head = guest_ld16(q->avail + 4 + 2u * (q->s.avail_idx % q->s.size));
    if (head >= q->s.size)
        return rp_error_set(err, EBADMSG, "available entry %u names descriptor %u of %u", q->s.avail_idx, head, q->s.size);
    rc = rp_virtq_fetch(q, head, c, err);
    if (rc)
        return rc;
    q->s.avail_idx++;
    return 1;
}

void rp_virtq_unpop(struct rp_virtq *q, uint16_t n)
{
    q->s.avail_idx = (uint16_t)(q->s.avail_idx - n);
}

void rp_virtq_push(struct rp_virtq *q, uint16_t head, uint32_t len)
{
    uint8_t *e = q->used + 4 + USED_BYTES * (q->s.used_idx % q->s.size);

    rp_st32(e, head);
    rp_st32(e + 4, len);
    mark(q, e, USED_BYTES);     /* now: what is broken before it publishes was written to all the same */
    q->s.used_idx++;
}

bool rp_virtq_publish(struct rp_virtq *q)
{
    uint16_t now = q->s.used_idx, before = q->s.signalled;

    if (now == q->published)
        return false;
    atomic_thread_fence(memory_order_release);  /* entries before the index; pairs with the driver's read barrier */
    guest_st16(q->used + 2, now);
    q->published = now;
    mark(q, q->used + 2, 2);
    atomic_thread_fence(memory_order_seq_cst);  /* index before used_event / flags are read: the driver does the reverse */
    q->s.signalled = now;
    if (q->event_idx)
        return vring_need_event(guest_ld16(used_event(q)), now, before);
    return !(guest_ld16(q->avail) & VRING_AVAIL_F_NO_INTERRUPT);
}

bool rp_virtq_want_kick_beyond(struct rp_virtq *q, uint16_t n)
{
    uint16_t at = (uint16_t)(q->s.avail_idx + n);
    uint8_t *wish = q->event_idx ? avail_event(q) : q->used;

    guest_st16(wish, q->event_idx ? at : 0);
    mark(q, wish, 2);
    atomic_thread_fence(memory_order_seq_cst);  /* the wish before the look; the driver does the reverse */
    return guest_ld16(q->avail + 2) != at;
}

bool rp_virtq_want_kicks(struct rp_virtq *q, bool want)
{
    if (want)
        return rp_virtq_want_kick_beyond(q, 0);
    if (!q->event_idx) {    /* with event indexes the old avail_event is behind us: no kick until it is moved */
        guest_st16(q->used, VRING_USED_F_NO_NOTIFY);
        mark(q, q->used, 2);
    }
    return false;
}

/* --- buffers as bytes --- */

unsigned rp_iov_slice(const struct iovec *iov, unsigned n, uint64_t off, uint64_t len, struct iovec *out)
{
    unsigned k = 0;

    for (unsigned i = 0; i < n && len; i++) {
        size_t have = iov[i].iov_len;

        if (off >= have) {
            off -= have;
            continue;
        }
        have -= off;
        if (have > len)
            have = len;
        out[k++] = (struct iovec){.iov_base = (uint8_t *)iov[i].iov_base + off, .iov_len = have};
        len -= have;
        off = 0;
    }
    return k;
}

static size_t iov_copy(const struct iovec *iov, unsigned n, uint64_t off, uint8_t *flat, size_t len, bool to_iov)
{
    size_t done = 0;

    for (unsigned i = 0; i < n && done < len; i++) {
        size_t have = iov[i].iov_len;
        uint8_t *p;

        if (off >= have) {
            off -= have;
            continue;
        }
        p = (uint8_t *)iov[i].iov_base + off;
        have -= off;
        off = 0;
        if (have > len - done)
            have = len - done;
        if (to_iov)
            memcpy(p, flat + done, have);
        else
            memcpy(flat + done, p, have);
        done += have;
    }
    return done;
}

size_t rp_iov_read(const struct iovec *iov, unsigned n, uint64_t off, void *out, size_t len)
{
    return iov_copy(iov, n, off, out, len, false);
}

size_t rp_iov_write(const struct iovec *iov, unsigned n, uint64_t off, const void *in, size_t len)
{
    union { const void *in; void *out; } p = {.in = in};   /* only read: to_iov */

    return iov_copy(iov, n, off, p.out, len, true);
}

size_t rp_chain_read(const struct rp_chain *c, uint64_t off, void *out, size_t len)
{
    return rp_iov_read(c->iov, c->nout, off, out, len);
}

size_t rp_chain_write(struct rp_guest_ram *ram, const struct rp_chain *c, uint64_t off, const void *in, size_t len)
{
    const struct iovec *iov = c->iov + c->nout;
    size_t done = rp_iov_write(iov, c->nin, off, in, len);

    for (unsigned i = 0; i < c->nin && done; i++) {     /* mark what was touched, no more */
        uint64_t have = iov[i].iov_len, n;

        if (off >= have) {
            off -= have;
            continue;
        }
        n = have - off < len ? have - off : len;
        rp_ram_dirty(ram, rp_gpa((uint64_t)((uint8_t *)iov[i].iov_base - ram->view.base) + off), n);
        len -= n;
        off = 0;
        if (len == 0)
            break;
    }
    return done;
}
