/*
 * net.h - where a network card's frames go and come from: a tap (net_tap.c), a unix stream as QEMU's `-netdev stream`
 * and passt speak it (net_stream.c), a datagram socket (net_dgram.c).
 *
 * Threads: send and flush are called under the output gate's lock, from the io thread or from a committer; everything
 * else under the machine lock. Nothing blocks.
 */
#ifndef RP_VMM_NET_H
#define RP_VMM_NET_H

#include "core/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct rp_loop;
struct rp_nic_config;

#define RP_NET_PAIRS_MAX 16
#define RP_VNET_HEADER 12u                  /* virtio_net_hdr_v1: flags, gso type, header length, gso size, csum start, offset, buffers */
#define RP_FRAME_MAX (65550u + 18u)         /* the longest GSO frame with its ethernet and VLAN headers */

struct rp_net;
struct rp_net_ops {
    const char *kind;
    /* One frame, with the 12-byte header in front when vnet_header. 0; -EAGAIN; else lost. */
    int (*send)(struct rp_net *n, unsigned pair, const struct iovec *iov, int cnt);
    int (*flush)(struct rp_net *n, unsigned pair);     /* 0 or -EAGAIN; may be NULL */
    /* The next frame (same layout) into iov, at least 12 + RP_FRAME_MAX bytes long: its length, or -EAGAIN. */
    ssize_t (*recv)(struct rp_net *n, unsigned pair, const struct iovec *iov, int cnt);
    void (*want_read)(struct rp_net *n, unsigned pair, bool on);
    void (*want_write)(struct rp_net *n, unsigned pair, bool on);
    /* What the guest takes (VIRTIO_NET_F_GUEST_… bits): the host may hand in such frames. May be NULL. */
    int (*offloads)(struct rp_net *n, uint64_t guest_features);
    int (*pairs)(struct rp_net *n, unsigned active);   /* may be NULL */
    void (*destroy)(struct rp_net *n);
};
struct rp_net {
    const struct rp_net_ops *ops;
    bool vnet_header;
    uint64_t features;                      /* virtio-net offload features that this backend carries */
    unsigned pairs;
    void (*readable)(void *ctx, unsigned pair);
    void (*writable)(void *ctx, unsigned pair);
    void *ctx;                              /* set by the device, with the two callbacks, before want_read */
};

/* Opens what cfg names. A passed descriptor's kind is found out. Errors say what is missing. */
int rp_net_open(const struct rp_nic_config *cfg, unsigned pairs, struct rp_loop *loop, struct rp_net **out,
                struct rp_error *err) RP_MUST_CHECK;
/* fd -1: opens the interface `name`. */
int rp_net_tap_open(const char *name, int fd, unsigned pairs, struct rp_loop *loop, struct rp_net **out, struct rp_error *err) RP_MUST_CHECK;
/* Path: connects, and again whenever the other side went away; fd: until it ends. */
int rp_net_stream_open(const char *path, int fd, struct rp_loop *loop, struct rp_net **out, struct rp_error *err) RP_MUST_CHECK;
int rp_net_dgram_open(int fd, struct rp_loop *loop, struct rp_net **out, struct rp_error *err) RP_MUST_CHECK;

#endif
