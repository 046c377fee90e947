/*
 * virtio_tx.h - a transmit queue: what the guest hands out leaves through the output gate, in order, each request once.
 *
 *     guest ─► queue ─pop─► send() ─► output gate (gate.h) ─► backend
 *                 ▲            │
 *                 └── unpop ◄──┘ the gate is full: the request waits in the queue, which is the backpressure
 *
 * A turn takes at most `burst` calls of `send`, kicks suppressed, one flush of the port and one interrupt at its end;
 * what is left has its next turn after others had theirs (rp_virtio_again).
 *
 *   TX-1  a request is returned to the guest only after `send` said that all of it is through (or no output at all);
 *   TX-2  after -EAGAIN nothing is sent until the port's resume; requests keep their order;
 *   TX-3  the queue is looked at only while it is ready (VIRTIO-1, VIRTIO-2).
 *
 * Embedded in its device, which fills in all fields but `blocked` before the machine runs. Thread: machine lock, io thread.
 */
#ifndef RP_VMM_VIRTIO_TX_H
#define RP_VMM_VIRTIO_TX_H

#include "vmm/gate.h"
#include "vmm/virtio_pci.h"

enum { RP_TX_DONE, RP_TX_PART };

struct rp_virtio_tx {
    struct rp_virtio *v;
    unsigned queue, burst;
    struct rp_gate_port *port;
    struct rp_chain *chain;     /* the request in work, for `send`; the device may use it between turns */
    /* The request in `chain`. RP_TX_DONE: through, or to be thrown away; RP_TX_PART: some of it is through, and the device knows how
     * much: it is handed in again; -EAGAIN: rp_gate_send said so; -EBADMSG: it makes no sense, the device has to be reset. */
    int (*send)(void *ctx, struct rp_error *err);
    void *ctx;
    bool blocked;               /* the gate said no, and will resume */
};

/* One turn: the device's answer to a kick of this queue. */
void rp_virtio_tx_run(struct rp_virtio_tx *t);
/* The device's answer to struct rp_gate_ops.resume: goes on at once, or when the machine runs again. */
void rp_virtio_tx_resume(struct rp_virtio_tx *t);

#endif
