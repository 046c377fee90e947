/*
 * rdma_mem.h - memory that a verbs device may reach: mapped, registered, and given back in the right order.
 *
 * A region belongs to one protection domain. Nothing of it may be in flight when it is freed: its completions were
 * polled, or the queue pair that used it is gone. It is deregistered before it is unmapped.
 */
#ifndef RP_REPLICATOR_RDMA_MEM_H
#define RP_REPLICATOR_RDMA_MEM_H

#include "core/error.h"

#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stdint.h>

struct rp_rdma_mem {
    uint8_t *base;          /* NULL: nothing is there */
    size_t bytes;
    struct ibv_mr *mr;
};

/* `remote`: the peer may write into it. -ENOMEM, which also stands for the limit on locked memory (the sentence says so). */
int rp_rdma_mem_alloc(struct rp_rdma_mem *m, struct ibv_pd *pd, size_t bytes, bool remote, struct rp_error *err) RP_MUST_CHECK;
void rp_rdma_mem_free(struct rp_rdma_mem *m);   /* of an empty one: nothing happens */

#endif
