/* A queue drained through the output gate; the contract is in virtio_tx.h. */
#include "vmm/virtio_tx.h"

#include <errno.h>

/* 1: one call of `send` took something; 0: the queue is empty, or the gate said no; -EBADMSG. */
static int send_one(struct rp_virtio_tx *t, struct rp_virtq *q, struct rp_error *err)
{
    int rc = rp_virtq_pop(q, t->chain, err);

    if (rc != 1)
        return rc;
    rc = t->send(t->ctx, err);
    if (rc == RP_TX_DONE) {
        rp_virtq_push(q, t->chain->head, 0);    /* TX-1 */
        return 1;
    }
    if (rc != RP_TX_PART && rc != -EAGAIN)
        return rc;
    rp_virtq_unpop(q, 1);
    t->blocked = rc == -EAGAIN;                 /* TX-2 */
    return rc == RP_TX_PART;
}

void rp_virtio_tx_run(struct rp_virtio_tx *t)
{
    struct rp_virtq *q = rp_virtio_queue(t->v, t->queue);
    struct rp_error err = {0};
    unsigned burst = 0;

    do {
        int rc = 0;

        rp_virtq_want_kicks(q, false);
        while (!t->blocked && burst < t->burst && (rc = send_one(t, q, &err)) == 1)
            burst++;
        rp_gate_flush(t->port);
        if (rc < 0) {
            rp_virtio_fail(t->v, t->queue, &err);
            return;
        }
        rp_virtio_publish(t->v, t->queue);
        if (burst >= t->burst) {
            rp_virtio_again(t->v, t->queue);    /* others have their turn */
            return;
        }
    } while (!t->blocked && rp_virtq_want_kicks(q, true));
}

void rp_virtio_tx_resume(struct rp_virtio_tx *t)
{
    t->blocked = false;
    if (rp_virtio_ready(t->v, t->queue))        /* TX-3 */
        rp_virtio_tx_run(t);
    else
        rp_virtio_again(t->v, t->queue);        /* remembered until start */
}
