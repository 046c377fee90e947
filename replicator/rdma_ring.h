/*
 * rdma_ring.h - the arithmetic of a ring of slots that one side writes and the other reads: positions, credits, messages.
 *
 * Positions count slots since the ring began; slot = position % RP_RDMA_SLOTS. No memory and no device in here.
 *
 *   sender:    credited ≤ posted ≤ credited + RP_RDMA_SLOTS        completed ≤ posted
 *   receiver:  freed ≤ read ≤ arrived ≤ freed + RP_RDMA_SLOTS
 *
 * What the peer says is checked against these: a peer that breaks them is refused (-EPROTO).
 */
#ifndef RP_REPLICATOR_RDMA_RING_H
#define RP_REPLICATOR_RDMA_RING_H

#include "core/error.h"

#include <stdbool.h>
#include <stdint.h>

#define RP_RDMA_SLOTS 64u
#define RP_RDMA_MESSAGE_SLOTS 16u       /* of one message, at most */
#define RP_RDMA_CREDIT_SLOTS (RP_RDMA_SLOTS / 4)    /* given back so many at a time */
#define RP_RDMA_NARROW 64u              /* bytes of a slot before authentication */
#define RP_RDMA_WIDE (64u << 10)        /* … after it */

struct rp_rdma_out {
    uint32_t slot_bytes;
    uint64_t posted, completed, credited;
};
/* Bytes that one message may have now; 0: none. */
uint32_t rp_rdma_out_room(const struct rp_rdma_out *o);
/* Where the next message goes, in bytes from the ring's beginning. */
uint32_t rp_rdma_out_offset(const struct rp_rdma_out *o);
/* A message of `len` bytes (1 … room) was posted. */
void rp_rdma_out_take(struct rp_rdma_out *o, uint32_t len);
int rp_rdma_out_credit(struct rp_rdma_out *o, uint32_t slots) RP_MUST_CHECK;

struct rp_rdma_in {
    uint32_t slot_bytes;
    uint64_t arrived, read, freed;
    struct { uint32_t len, skip; } messages[RP_RDMA_SLOTS];     /* by position of their first slot; skip: read already */
};
/* A message of `len` bytes has come. *offset: where it lies. `hidden`: it is not for the reader. -EPROTO. */
int rp_rdma_in_arrived(struct rp_rdma_in *i, uint32_t len, bool hidden, uint32_t *offset) RP_MUST_CHECK;
/* The bytes to read next; 0: none. */
uint32_t rp_rdma_in_ready(struct rp_rdma_in *i, uint32_t *offset);
void rp_rdma_in_consume(struct rp_rdma_in *i, uint32_t bytes);
/* Slots to give back now, 0: not yet. They are then regarded as given back. */
uint32_t rp_rdma_in_credit(struct rp_rdma_in *i);

#endif
