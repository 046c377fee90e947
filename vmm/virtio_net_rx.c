/* Receiving frames; the contract is in virtio_net_rx.h. */
#include "vmm/virtio_net_rx.h"

#include <errno.h>
#include <linux/virtio_net.h>
#include <stdlib.h>

#define BURST 128u                  /* frames per turn of the io thread */
#define OVERFLOW_BYTES (RP_VNET_HEADER + RP_FRAME_MAX)
#define SPREAD_MAX 256u             /* posted buffers that one frame may take: what the queue has at most */
#define DRAIN_FRAMES 4096u

/* Says how many buffers the frame took, in the header at the start of `first`. */
static void set_buffers(const struct iovec *first, unsigned n, uint16_t buffers)
{
    uint8_t le[2];

    rp_st16(le, buffers);
    rp_iov_write(first, n, offsetof(struct virtio_net_hdr_v1, num_buffers), le, sizeof(le));
}

/* Spreads the `len` bytes at `from` over posted buffers. 1: done; 0: too few buffers (nothing taken); -EBADMSG. */
static int deliver(struct rp_net_rx *rx, const uint8_t *from, size_t len, struct rp_error *err)
{
    struct rp_virtq *q = rp_virtio_queue(rx->v, rx->queue);
    struct { uint16_t head; uint32_t len; } used[SPREAD_MAX];
    struct iovec first[RP_VNET_HEADER];     /* as finely as a driver may cut it */
    unsigned n = 0, nfirst = 0;
    size_t done = 0;

    while (done < len) {
        bool all = n == (rp_virtio_has(rx->v, VIRTIO_NET_F_MRG_RXBUF) ? q->s.size : 1);    /* that it may take */
        int rc = all ? 0 : rp_virtq_pop(q, rx->chain, err);

        if (rc <= 0) {
            rp_virtq_unpop(q, (uint16_t)n);
            rx->dropped += all;     /* longer than the driver's buffers: it never fits */
            return all ? 1 : rc;
        }
        used[n].head = rx->chain->head;
        used[n].len = (uint32_t)rp_chain_write(rx->v->env.ram, rx->chain, 0, from + done, len - done);
        if (n == 0)
            nfirst = rp_iov_slice(rx->chain->iov + rx->chain->nout, rx->chain->nin, 0, RP_VNET_HEADER, first);
        done += used[n++].len;
        if (used[n - 1].len == 0)
            return rp_error_set(err, EBADMSG, "receive buffer %u has no room", used[n - 1].head);
    }
    if (nfirst) {
        set_buffers(first, nfirst, (uint16_t)n);
        rp_ram_dirty_iov(rx->v->env.ram, first, (int)nfirst, RP_VNET_HEADER);
    }
    for (unsigned i = 0; i < n; i++)
        rp_virtq_push(q, used[i].head, used[i].len);
    rx->frames++;
    rx->bytes += len - RP_VNET_HEADER;
    return 1;
}

/* One frame from the backend. 1: one more may come; 0: none, or no buffers; -EBADMSG. */
static int receive(struct rp_net_rx *rx, struct rp_error *err)
{
    struct rp_virtq *q = rp_virtio_queue(rx->v, rx->queue);
    struct rp_chain *c = rx->chain;
    struct iovec iov[8];
    unsigned skip = rx->backend->vnet_header ? 0 : RP_VNET_HEADER, k;
    size_t direct, len;
    ssize_t got;
    int rc;

    if (rx->held) {
        rc = deliver(rx, rx->overflow, rx->held, err);
        if (rc == 1)
            rx->held = 0;
        return rc;
    }
    rc = rp_virtq_pop(q, c, err);
    if (rc != 1)
        return rc;
    if (c->in_bytes < RP_VNET_HEADER)
        return rp_error_set(err, EBADMSG, "receive buffer %u of %llu bytes has no room for a header", c->head,
                            (unsigned long long)c->in_bytes);
    if (c->nin > 7) {       /* scattered: over the overflow buffer */
        rp_virtq_unpop(q, 1);
        direct = 0;
        k = 0;
    } else {
        direct = c->in_bytes < OVERFLOW_BYTES ? c->in_bytes : OVERFLOW_BYTES;
        k = rp_iov_slice(c->iov + c->nout, c->nin, skip, direct - skip, iov);
    }
    /* what the guest's buffer has no room for; all of it is never more than OVERFLOW_BYTES */
    iov[k++] = (struct iovec){.iov_base = rx->overflow + (direct ? 0 : skip), .iov_len = OVERFLOW_BYTES - (direct ? direct : skip)};
    got = rx->backend->ops->recv(rx->backend, rx->pair, iov, (int)k);
    if (got <= 0) {
        if (direct)
            rp_virtq_unpop(q, 1);
        return 0;
    }
    len = (size_t)got + skip;
    if (direct) {
        uint8_t zero[RP_VNET_HEADER] = {0};

        if (skip)
            rp_iov_write(c->iov + c->nout, c->nin, 0, zero, sizeof(zero));
        if (len <= direct)
            set_buffers(c->iov + c->nout, c->nin, 1);
        rp_ram_dirty_iov(rx->v->env.ram, c->iov + c->nout, (int)c->nin, len < direct ? len : direct);
    } else {
        memset(rx->overflow, 0, skip);
    }
    if (direct && len <= direct) {
        rp_virtq_push(q, c->head, (uint32_t)len);
        rx->frames++;
        rx->bytes += len - RP_VNET_HEADER;
        return 1;
    }
    if (direct) {           /* the start of it is in the guest's buffer: put the whole together, and spread it */
        memmove(rx->overflow + direct, rx->overflow, len - direct);
        rp_iov_read(c->iov + c->nout, c->nin, 0, rx->overflow, direct);
        rp_virtq_unpop(q, 1);
    }
    rx->held = len;
    rc = deliver(rx, rx->overflow, len, err);
    if (rc == 1)
        rx->held = 0;
    return rc;
}

void rp_net_rx_run(struct rp_net_rx *rx)
{
    unsigned n = rx->queue, burst = 0;
    struct rp_virtq *q = rp_virtio_queue(rx->v, n);
    struct rp_error err = {0};
    bool dry = false;
    int rc;

    rp_virtq_want_kicks(q, false);
    while (burst < BURST && (rc = receive(rx, &err)) != 0) {
        if (rc < 0) {
            rp_virtio_fail(rx->v, n, &err);
            return;
        }
        burst++;
    }
    rp_virtio_publish(rx->v, n);
    if (burst >= BURST) {
        rp_virtio_again(rx->v, n);        /* the backend may have more in its own buffer */
    } else {
        int waiting = rp_virtq_waiting(q, &err);

        /* buffers ran out: wait for the guest to post some (more) */
        if (waiting >= 0 && (rx->held || waiting == 0)) {
            dry = true;
            if (rp_virtq_want_kick_beyond(q, (uint16_t)waiting))
                rp_virtio_again(rx->v, n);
        }
    }
    if (dry != rx->dry) {
        rx->dry = dry;
        rx->backend->ops->want_read(rx->backend, rx->pair, !dry);
    }
}

void rp_net_rx_wait(struct rp_net_rx *rx)
{
    rx->dry = true;
    rx->backend->ops->want_read(rx->backend, rx->pair, false);
}

void rp_net_rx_reset(struct rp_net_rx *rx)
{
    rx->held = 0;
}

void rp_net_rx_drain(struct rp_net_rx *rx)
{
    uint8_t *frame = malloc(OVERFLOW_BYTES);
    struct iovec iov = {.iov_base = frame, .iov_len = OVERFLOW_BYTES};

    for (unsigned n = 0; frame && n < DRAIN_FRAMES && rx->backend->ops->recv(rx->backend, rx->pair, &iov, 1) >= 0; n++)
        ;
    free(frame);
}

int rp_net_rx_init(struct rp_net_rx *rx, struct rp_virtio *v, unsigned queue, struct rp_net *backend, unsigned pair,
                   struct rp_chain *chain)
{
    uint8_t *overflow = malloc(OVERFLOW_BYTES);

    if (!overflow)
        return -ENOMEM;
    *rx = (struct rp_net_rx){.v = v, .queue = queue, .backend = backend, .pair = pair, .chain = chain, .overflow = overflow};
    return 0;
}

void rp_net_rx_fini(struct rp_net_rx *rx)
{
    free(rx->overflow);
}
