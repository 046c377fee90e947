/*
 * Split virtqueues over hostile memory: the input is the queue's state and what RAM holds. Whatever the rings say, every buffer
 * of a chain lies in RAM, sums agree, a walk ends, and no byte outside of the used ring is written by the queue itself.
 */
#include "tests/fuzz/fuzz.h"
#include "vmm/virtq.h"

#include <errno.h>

#define RAM_BYTES (1u << 20)
#define USED_BYTES_MAX (6u + 8u * RP_VIRTQ_SIZE_MAX)

static struct rp_guest_ram ram;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    struct rp_ram_config cfg = {.size_bytes = RAM_BYTES};
    if (rp_guest_ram_init(&ram, &cfg, NULL) < 0)
        return -1;
    rp_ram_track(&ram, true);
    return 0;
}

static void check_chain(const struct rp_chain *c)
{
    uint64_t out = 0, in = 0;
    FZ_HOLDS(c->nout + c->nin <= RP_CHAIN_SEGS_MAX);
    for (unsigned i = 0; i < c->nout + c->nin; i++) {
        const uint8_t *p = c->iov[i].iov_base;
        FZ_HOLDS(c->iov[i].iov_len > 0 && p >= ram.view.base && p + c->iov[i].iov_len <= ram.view.base + RAM_BYTES);
        *(i < c->nout ? &out : &in) += c->iov[i].iov_len;
    }
    FZ_HOLDS(out == c->out_bytes && in == c->in_bytes);
}

/* What a device does with a chain: reads, writes, cuts in pieces. */
static void use_chain(struct fz *f, struct rp_chain *c)
{
    static struct iovec slice[RP_CHAIN_SEGS_MAX];
    uint8_t buf[512];
    uint64_t off = fz_u16(f), len = fz_u16(f);
    size_t n = rp_chain_read(c, off, buf, sizeof(buf));
    FZ_HOLDS(n <= sizeof(buf) && (off >= c->out_bytes ? n == 0 : n <= c->out_bytes - off));
    n = rp_chain_write(&ram, c, off, buf, n);
    FZ_HOLDS(off >= c->in_bytes ? n == 0 : n <= c->in_bytes - off);
    unsigned k = rp_iov_slice(c->iov, c->nout + c->nin, off, len, slice);
    uint64_t sum = 0;
    for (unsigned i = 0; i < k; i++)
        sum += slice[i].iov_len;
    FZ_HOLDS(k <= c->nout + c->nin && sum <= len);
}

static void run(struct fz *f, struct rp_virtq *q)
{
    static struct rp_chain c;
    struct rp_error err = {0};
    for (unsigned steps = 0; steps < 64; steps++) {
        int rc = rp_virtq_waiting(q, &err);
        FZ_HOLDS(rc == -EBADMSG || (rc >= 0 && rc <= q->s.size));
        switch (fz_u8(f) % 6) {
        case 0:
            (void)rp_virtq_publish(q);
            break;
        case 1:
            (void)rp_virtq_want_kicks(q, fz_u8(f) & 1);
            break;
        case 2:
            (void)rp_virtq_want_kick_beyond(q, fz_u16(f));
            break;
        case 3:     /* a request that was in flight at a cut: its head comes from an epoch, checked by the device */
            rc = rp_virtq_fetch(q, (uint16_t)(fz_u16(f) % q->s.size), &c, &err);
            FZ_HOLDS(rc == 0 || rc == -EBADMSG);
            if (rc == 0)
                check_chain(&c);
            break;
        default:
            rc = rp_virtq_pop(q, &c, &err);
            FZ_HOLDS(rc == 1 || rc == 0 || (rc == -EBADMSG && err.text[0]));
            if (rc < 0)
                return;
            if (rc == 1) {
                check_chain(&c);
                use_chain(f, &c);
                rp_virtq_push(q, c.head, (uint32_t)c.in_bytes);
                if (fz_u8(f) % 8 == 0)
                    rp_virtq_unpop(q, 1);
            }
        }
    }
    (void)rp_virtq_publish(q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fz f = {data, size};
    struct rp_virtq q = {.ram = &ram, .size_max = (uint16_t)(1u << fz_u8(&f) % 11)};
    struct rp_error err = {0};
    uint64_t features = fz_u64(&f);
    rp_virtq_reset(&q);
    q.s.size = fz_u8(&f) & 1 ? q.size_max : fz_u16(&f);
    q.s.desc_gpa = fz_u32(&f);
    q.s.avail_gpa = fz_u32(&f);
    q.s.used_gpa = fz_u32(&f);
    if (fz_u8(&f) & 1) {    /* where a driver would put them */
        q.s.desc_gpa &= 0xFFFF0u;
        q.s.avail_gpa &= 0xFFFFEu;
        q.s.used_gpa &= 0xFFFFCu;
    }
    q.s.avail_idx = fz_u16(&f);
    q.s.used_idx = fz_u16(&f);
    size_t control = fz_u8(&f), n;
    struct fz choices = {fz_bytes(&f, control, &n), 0};
    choices.left = n;
    memset(ram.view.base, 0, RAM_BYTES / 4);
    while (f.left > 0) {    /* pieces of memory */
        size_t at = fz_u32(&f) % RAM_BYTES, len = fz_u8(&f);
        const uint8_t *p = fz_bytes(&f, len, &n);
        if (at + n <= RAM_BYTES)
            memcpy(ram.view.base + at, p, n);
    }
    int rc = rp_virtq_enable(&q, features, &err);
    FZ_HOLDS(rc == 0 || (rc == -EBADMSG && err.text[0] && !q.desc));
    if (rc == 0)
        run(&choices, &q);
    return 0;
}
