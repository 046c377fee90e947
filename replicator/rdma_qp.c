#include "replicator/rdma_qp.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#define INLINE_BYTES 128u       /* small messages travel in the work request; none do where the device has no room */
#define COMPLETIONS (RP_RDMA_SENDS + RP_RDMA_RECEIVES + 1)
#define ACK_EVENTS 1000u        /* acknowledging takes a lock: in batches */

static int post_receives(struct rp_rdma_qp *q, unsigned n)
{
    struct ibv_recv_wr *bad;
    while (n-- > 0) {
        struct ibv_recv_wr wr = {0};
        int rc = ibv_post_recv(q->qp, &wr, &bad);
        if (rc)
            return -rc;
    }
    return 0;
}

static int fail(struct rp_rdma_qp *q, struct rdma_cm_id *id, int e, const char *what, struct rp_error *err)
{
    rp_rdma_qp_stop(q, id);
    rp_rdma_qp_close(q);
    return rp_error_exit(err, RP_EXIT_HOST, e, "RDMA device %s: cannot make %s: %s%s", ibv_get_device_name(id->verbs->device), what,
                         strerror(e), e == ENOMEM ? "; raise the limit on locked memory (ulimit -l)" : "");
}

static int create_qp(struct rp_rdma_qp *q, struct rdma_cm_id *id)
{
    for (uint32_t in = INLINE_BYTES;; in = 0) {
        struct ibv_qp_init_attr attr = {
            .send_cq = q->cq, .recv_cq = q->cq, .qp_type = IBV_QPT_RC,
            .cap = {.max_send_wr = RP_RDMA_SENDS, .max_recv_wr = RP_RDMA_RECEIVES, .max_send_sge = 1, .max_recv_sge = 1,
                    .max_inline_data = in},
        };
        if (rdma_create_qp(id, q->pd, &attr) == 0) {
            q->qp = id->qp;
            q->max_inline = in;
            return 0;
        }
        if (in == 0)
            return -errno;
    }
}

int rp_rdma_qp_open(struct rp_rdma_qp *q, struct rdma_cm_id *id, struct rp_error *err)
{
    *q = (struct rp_rdma_qp){0};
    if (!(q->pd = ibv_alloc_pd(id->verbs)))
        return fail(q, id, errno, "a protection domain", err);
    if (!(q->comp = ibv_create_comp_channel(id->verbs)))
        return fail(q, id, errno, "a completion channel", err);
    fcntl(q->comp->fd, F_SETFL, fcntl(q->comp->fd, F_GETFL) | O_NONBLOCK);
    if (!(q->cq = ibv_create_cq(id->verbs, (int)COMPLETIONS, NULL, q->comp, 0)))
        return fail(q, id, errno, "a completion queue", err);
    int rc = create_qp(q, id);
    if (rc < 0)
        return fail(q, id, -rc, "a queue pair", err);
    rc = post_receives(q, RP_RDMA_RECEIVES);
    if (rc == 0)
        rc = rp_rdma_qp_arm(q);
    return rc < 0 ? fail(q, id, -rc, "its receives", err) : 0;
}

void rp_rdma_qp_stop(struct rp_rdma_qp *q, struct rdma_cm_id *id)
{
    if (q->qp)
        rdma_destroy_qp(id);
    q->qp = NULL;
}

void rp_rdma_qp_close(struct rp_rdma_qp *q)
{
    if (q->cq) {
        rp_rdma_qp_take_events(q);
        ibv_ack_cq_events(q->cq, q->events);    /* destroying waits for what was not acknowledged */
        ibv_destroy_cq(q->cq);
    }
    if (q->comp)
        ibv_destroy_comp_channel(q->comp);
    if (q->pd)
        ibv_dealloc_pd(q->pd);
    *q = (struct rp_rdma_qp){0};
}

bool rp_rdma_qp_room(const struct rp_rdma_qp *q, unsigned keep)
{
    return q->posted - q->completed + keep < RP_RDMA_SENDS;
}

int rp_rdma_qp_write(struct rp_rdma_qp *q, const struct rp_rdma_write *w)
{
    struct ibv_sge sge = {.addr = (uintptr_t)w->from, .length = w->len, .lkey = w->lkey};
    struct ibv_send_wr *bad, wr = {
        .wr_id = q->posted, .sg_list = &sge, .num_sge = w->len ? 1 : 0,
        .opcode = w->bare ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_WRITE_WITH_IMM,
        .imm_data = htobe32(w->imm), .wr.rdma = {.remote_addr = w->to, .rkey = w->rkey},
    };
    bool signal = w->signal || q->quiet + 1 >= RP_RDMA_SIGNAL_EVERY;
    if (signal)
        wr.send_flags |= IBV_SEND_SIGNALED;
    if (w->len && w->len <= q->max_inline)
        wr.send_flags |= IBV_SEND_INLINE;
    int rc = ibv_post_send(q->qp, &wr, &bad);
    if (rc)
        return -rc;
    q->marks[q->posted % RP_RDMA_SENDS] = w->mark;
    q->posted++;
    q->quiet = signal ? 0 : q->quiet + 1;
    return 0;
}

static int translate(enum ibv_wc_status status)
{
    switch (status) {
    case IBV_WC_WR_FLUSH_ERR:
        return -ECONNRESET;
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RNR_RETRY_EXC_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
        return -ETIMEDOUT;
    case IBV_WC_REM_ACCESS_ERR:
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_OP_ERR:
        return -EPROTO;
    default:
        return -EIO;
    }
}

int rp_rdma_qp_poll(struct rp_rdma_qp *q, void (*arrived)(void *ctx, uint32_t imm), void *ctx, unsigned *n)
{
    struct ibv_wc wc[16];
    int got, rc = 0;
    *n = 0;
    while ((got = ibv_poll_cq(q->cq, 16, wc)) > 0) {
        unsigned receives = 0;
        *n += (unsigned)got;
        for (int i = 0; i < got; i++) {
            if (wc[i].status != IBV_WC_SUCCESS) {
                rc = rc ? rc : translate(wc[i].status);
            } else if (wc[i].opcode & IBV_WC_RECV) {
                receives++;
                arrived(ctx, be32toh(wc[i].imm_data));
            } else {
                q->completed = wc[i].wr_id + 1;
                q->done_mark = q->marks[wc[i].wr_id % RP_RDMA_SENDS];
            }
        }
        int posted = post_receives(q, receives);
        rc = rc ? rc : posted;
    }
    return got < 0 ? -EIO : rc;
}

int rp_rdma_qp_arm(struct rp_rdma_qp *q)
{
    if (q->armed)
        return 0;
    int rc = ibv_req_notify_cq(q->cq, 0);
    q->armed = rc == 0;
    return -rc;
}

void rp_rdma_qp_take_events(struct rp_rdma_qp *q)
{
    struct ibv_cq *cq;
    void *context;
    while (q->comp && ibv_get_cq_event(q->comp, &cq, &context) == 0) {
        q->armed = false;
        if (++q->events >= ACK_EVENTS) {
            ibv_ack_cq_events(q->cq, q->events);
            q->events = 0;
        }
    }
}
