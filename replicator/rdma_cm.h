/*
 * rdma_cm.h - the RDMA connection manager (librdmacm) as this project uses it: one event channel per connection, events
 * taken without waiting or until a deadline and acknowledged at once, everything translated to -errno.
 *
 * Every identifier gets a finite acknowledgement timeout and finite retries, so that a dead peer's host is an error of
 * the queue pair within about a quarter of a second and not within a quarter of a minute (docs/link.md).
 */
#ifndef RP_REPLICATOR_RDMA_CM_H
#define RP_REPLICATOR_RDMA_CM_H

#include "core/error.h"
#include "replicator/uri.h"

#include <rdma/rdma_cma.h>
#include <stdbool.h>
#include <stdint.h>

#define RP_RDMA_PRIVATE_BYTES 32u

struct rp_rdma_cm {
    struct rdma_event_channel *channel;     /* its fd does not block */
    struct rdma_cm_id *id;
};

struct rp_rdma_cm_event {
    enum rdma_cm_event_type type;
    int status;                             /* 0 or -errno */
    struct rdma_cm_id *id;                  /* CONNECT_REQUEST: the new one, now the caller's */
    bool has_private;
    uint8_t private_data[RP_RDMA_PRIVATE_BYTES];
};

/* A channel and an identifier. -ENODEV (RP_EXIT_HOST) where the host has no RDMA. */
int rp_rdma_cm_open(struct rp_rdma_cm *cm, struct rp_error *err) RP_MUST_CHECK;
/* Gives an identifier that came with CONNECT_REQUEST a channel of its own. On error the identifier is gone. */
int rp_rdma_cm_adopt(struct rp_rdma_cm *cm, struct rdma_cm_id *id, struct rp_error *err) RP_MUST_CHECK;
void rp_rdma_cm_close(struct rp_rdma_cm *cm);   /* its queue pair was destroyed before */

/* The next event: 0; -EAGAIN when there is none; -errno. It is acknowledged already: *out is a copy. */
int rp_rdma_cm_next(struct rp_rdma_cm *cm, struct rp_rdma_cm_event *out) RP_MUST_CHECK;
/* Waits until `deadline_ns` (CLOCK_MONOTONIC) for the event `want`. Another one is the failure it means. -ETIMEDOUT. */
int rp_rdma_cm_await(struct rp_rdma_cm *cm, enum rdma_cm_event_type want, uint64_t deadline_ns, struct rp_rdma_cm_event *out) RP_MUST_CHECK;

/* Finds the device and the route to an address. */
int rp_rdma_cm_resolve(struct rp_rdma_cm *cm, const struct sockaddr *to, uint64_t deadline_ns) RP_MUST_CHECK;
/* The queue pair exists. `private_data`: RP_RDMA_PRIVATE_BYTES for the other side. Returns at once: ESTABLISHED follows. */
int rp_rdma_cm_connect(struct rp_rdma_cm *cm, const uint8_t *private_data) RP_MUST_CHECK;
int rp_rdma_cm_accept(struct rp_rdma_cm *cm, const uint8_t *private_data) RP_MUST_CHECK;

/* "10.0.0.2:7000" of an address. */
void rp_rdma_cm_name(const struct sockaddr *a, char *out, size_t size);

#endif
