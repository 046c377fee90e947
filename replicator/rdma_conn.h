/*
 * rdma_conn.h - an RDMA connection as a byte stream (transport.h): rings, credits, and who waits for what. docs/link.md.
 *
 *   our memory                              the peer's memory
 *   staging: as large as the peer's ring ── RDMA WRITE with immediate ──►  ring of RP_RDMA_SLOTS slots
 *   ring of RP_RDMA_SLOTS slots          ◄── … ──                          staging
 *
 * A message takes whole slots of the receiver's ring, in order and contiguous; it lies at the same offset of the sender's
 * staging. A slot is used again when the peer has given it back (CREDIT) and the send's completion was polled. As many
 * receives are posted as messages can be under way, so that none ever finds the receiver not ready.
 *
 * Before authentication a ring has slots of 64 bytes (4 KiB in all); `widen` makes one with slots of 64 KiB (4 MiB) and
 * tells the peer, which registers staging of that size before its next send.
 *
 * Locks: `lock` of each connection, held for no wait; one thread at a time (the leader) polls the descriptors, the others
 * wait for it on the condition, so that an event taken by a sender is never one that a receiver misses. While it does, nobody
 * else takes an event off them.
 */
#ifndef RP_REPLICATOR_RDMA_CONN_H
#define RP_REPLICATOR_RDMA_CONN_H

#include "replicator/rdma_cm.h"
#include "replicator/transport.h"

struct rp_rdma_conn;
/* A connection whose identifier knows its device: queue pair, first ring, receives posted. Takes over cm, also on error. */
int rp_rdma_conn_create(struct rp_rdma_cm *cm, struct rp_rdma_conn **out, struct rp_error *err) RP_MUST_CHECK;
/* What the other side has to know of ours: RP_RDMA_PRIVATE_BYTES. */
void rp_rdma_conn_describe(const struct rp_rdma_conn *c, uint8_t *private_data);
/* What the other side said of its own. -EPROTO: not ours, or another version. */
int rp_rdma_conn_peer(struct rp_rdma_conn *c, const uint8_t *private_data) RP_MUST_CHECK;
struct rp_rdma_cm *rp_rdma_conn_cm(struct rp_rdma_conn *c);
/* The connecting side has seen ESTABLISHED. */
void rp_rdma_conn_established(struct rp_rdma_conn *c);
struct rp_conn *rp_rdma_conn_base(struct rp_rdma_conn *c);

#endif
