/*
 * vsock.h - the host's side of virtio-vsock: connections between the guest's stream sockets and unix sockets of the host.
 *
 * At a path P:  the host connects to P, says "CONNECT port\n", hears "OK port\n", and has reached the guest's port;
 *               the guest connects to CID 2, port N, and reaches whoever listens at the unix socket "P_N".
 * (The convention of Firecracker and cloud-hypervisor, so that their clients work.)
 *
 *              REQUEST from the guest, P_N answers                      both directions shut and everything delivered, or RST
 *    (none) ───────────────────────────────────► OPEN ──────────────────────────────────────────────────────► (none)
 *      │ accept at P        "CONNECT n"       RESPONSE  ▲
 *      └──────────► GREETING ──────────► ASKED ─────────┘
 *
 *   VSOCK-1  a connection never holds more of the guest's bytes than RP_VSOCK_CREDIT; a guest that sends more is reset;
 *   VSOCK-2  a connection is this host's alone: whoever enters an epoch elsewhere tells the guest that all are gone.
 *
 * Thread: machine lock, everywhere; callbacks on the io thread.
 * Source: virtio 1.2, section 5.10.
 */
#ifndef RP_VMM_VSOCK_H
#define RP_VMM_VSOCK_H

#include "core/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RP_VSOCK_CREDIT (256u << 10)    /* bytes of the guest's that one connection may hold */
#define RP_VSOCK_PAYLOAD_MAX (64u << 10)
#define RP_VSOCK_CONNS_MAX 128u

struct rp_loop;

/* A packet without its payload; ports and lengths in host order. The CIDs are the device's business. */
struct rp_vsock_hdr {
    uint32_t src_port, dst_port;
    uint32_t len;               /* payload bytes */
    uint16_t type, op;          /* VIRTIO_VSOCK_TYPE_…, VIRTIO_VSOCK_OP_… */
    uint32_t flags, buf_alloc, fwd_cnt;
};

struct rp_vsock;
/* Listens at `path` (NULL: nobody is there, every request is refused). `wake`: there may be packets for the guest.
 * -EADDRINUSE: somebody listens there; a socket that nobody listens at any more is replaced. */
int rp_vsock_create(struct rp_loop *loop, const char *path, void (*wake)(void *ctx), void *ctx, struct rp_vsock **out,
                    struct rp_error *err) RP_MUST_CHECK;
void rp_vsock_destroy(struct rp_vsock *v);  /* closes all, removes the socket */
void rp_vsock_reset(struct rp_vsock *v);    /* closes all connections without a word to the guest */

/* One packet of the guest's; `payload`: h->len bytes. What makes no sense is answered with RST, as the specification has it. */
void rp_vsock_from_guest(struct rp_vsock *v, const struct rp_vsock_hdr *h, const uint8_t *payload);
/* The next packet for the guest, with at most `max` bytes of payload (borrowed until the next call). False: none. */
bool rp_vsock_to_guest(struct rp_vsock *v, uint32_t max, struct rp_vsock_hdr *h, const uint8_t **payload);
unsigned rp_vsock_connections(const struct rp_vsock *v);

#endif
