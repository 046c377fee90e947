/*
 * virtio_net_rx.h - one receive queue of a network card: frames from a backend (net.h) into the buffers that the guest posted.
 *
 * The next posted buffer and an overflow buffer are read into together, so that a small frame costs one system call and no
 * copy, and a large one is spread over more buffers (mergeable). Taken in bursts, kicks suppressed, one interrupt at the end.
 *
 *   RX-1  a frame is read from the backend only while the queue is ready (NET-1); between, the backend is not watched;
 *   RX-2  a frame that came and found too few buffers is kept, and is the next one that the guest gets; one that can never
 *         fit into the driver's buffers is dropped and counted.
 *
 * Embedded in the card. Thread: machine lock, io thread.
 */
#ifndef RP_VMM_VIRTIO_NET_RX_H
#define RP_VMM_VIRTIO_NET_RX_H

#include "vmm/net.h"
#include "vmm/virtio_pci.h"

struct rp_net_rx {
    struct rp_virtio *v;
    struct rp_net *backend;
    struct rp_chain *chain;         /* scratch */
    unsigned queue, pair;           /* of the device; of the backend */
    bool dry;                       /* the backend is not watched: no buffers, or the queue was not ready */
    size_t held;                    /* length of a frame in `overflow` that had no room; 0: none */
    uint8_t *overflow;              /* owned */
    uint64_t frames, bytes, dropped;
};

/* -ENOMEM. Everything it points to is borrowed and must outlive it. */
int rp_net_rx_init(struct rp_net_rx *rx, struct rp_virtio *v, unsigned queue, struct rp_net *backend, unsigned pair,
                   struct rp_chain *chain) RP_MUST_CHECK;
void rp_net_rx_fini(struct rp_net_rx *rx);  /* safe on a zeroed one */
/* One turn, on a queue that is ready: a kick, or frames that came. */
void rp_net_rx_run(struct rp_net_rx *rx);
/* RX-1: frames came and the queue is not ready; rp_net_rx_run once it is. */
void rp_net_rx_wait(struct rp_net_rx *rx);
/* The driver is gone: the frame that waits for it too. */
void rp_net_rx_reset(struct rp_net_rx *rx);
/* Throws away what waits in the backend, a bounded number of frames. */
void rp_net_rx_drain(struct rp_net_rx *rx);

#endif
