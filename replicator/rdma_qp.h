/*
 * rdma_qp.h - a reliable queue pair on which everything is an RDMA WRITE with immediate data (a bare one only asks whether the
 * other side's device answers).
 *
 * Receives carry no memory: they only let the peer's immediate value through, and each is posted again as soon as its
 * completion was polled. Sends are completed in batches: every RP_RDMA_SIGNAL_EVERY-th asks for a completion, which stands
 * for those before it. What a send read from may be written again once its completion was polled (`done_mark`).
 *
 * Not locked: the owner's lock guards every call but arm's and take_events' file descriptor, which anybody may poll.
 */
#ifndef RP_REPLICATOR_RDMA_QP_H
#define RP_REPLICATOR_RDMA_QP_H

#include "core/error.h"

#include <rdma/rdma_cma.h>
#include <stdbool.h>
#include <stdint.h>

#define RP_RDMA_SENDS 96u           /* in the send queue at most */
#define RP_RDMA_RECEIVES 80u        /* posted at any time */
#define RP_RDMA_SIGNAL_EVERY 16u

struct rp_rdma_qp {
    struct ibv_pd *pd;              /* of its own: a stranger's queue pair cannot guess its way into another's memory */
    struct ibv_comp_channel *comp;  /* its fd does not block */
    struct ibv_cq *cq;
    struct ibv_qp *qp;
    uint32_t max_inline;
    uint64_t posted, completed;     /* sends since the beginning */
    unsigned quiet;                 /* sends since the last that asked for a completion */
    uint64_t marks[RP_RDMA_SENDS];
    uint64_t done_mark;             /* mark of the newest send known to be complete */
    bool armed;                     /* an event will come for the next completion, or has come and was not taken */
    unsigned events;                /* taken and not yet acknowledged */
};

struct rp_rdma_write {
    const void *from;               /* len 0: not looked at */
    uint32_t len, lkey;
    uint64_t to;                    /* the peer's address and key */
    uint32_t rkey;
    uint32_t imm;
    uint64_t mark;
    bool signal;                    /* ask for a completion, whatever the turn */
    bool bare;                      /* without the immediate value: takes no receive, and nobody there hears of it */
};

/* The queue pair of an identifier that knows its device; all receives are posted. */
int rp_rdma_qp_open(struct rp_rdma_qp *q, struct rdma_cm_id *id, struct rp_error *err) RP_MUST_CHECK;
/* The queue pair goes: nothing reads or writes registered memory any more, which may now be given back … */
void rp_rdma_qp_stop(struct rp_rdma_qp *q, struct rdma_cm_id *id);
/* … before the protection domain goes. */
void rp_rdma_qp_close(struct rp_rdma_qp *q);

/* Further sends that fit, `keep` of them left free. */
bool rp_rdma_qp_room(const struct rp_rdma_qp *q, unsigned keep);
int rp_rdma_qp_write(struct rp_rdma_qp *q, const struct rp_rdma_write *w) RP_MUST_CHECK;
/* Takes all completions; `arrived` is called for each immediate value that came, in order. *n: how many completions. The
 * first failure is returned: -ECONNRESET (flushed: the connection is gone), -ETIMEDOUT (no answer to all retries),
 * -EPROTO (refused by the peer's device), -EIO. */
int rp_rdma_qp_poll(struct rp_rdma_qp *q, void (*arrived)(void *ctx, uint32_t imm), void *ctx, unsigned *n) RP_MUST_CHECK;
/* The completion channel's fd becomes readable with the next completion. Poll once more after arming: what came before is
 * not announced. */
int rp_rdma_qp_arm(struct rp_rdma_qp *q) RP_MUST_CHECK;
/* Takes what the completion channel holds, without waiting. */
void rp_rdma_qp_take_events(struct rp_rdma_qp *q);

#endif
