/*
 * transport.h - byte streams between the two sides, one small ops table over tcp, unix and rdma.
 *
 * A connection is a reliable ordered stream in both directions. One thread may send while another receives; each
 * direction is used by one thread at a time. close wakes nobody: shut it down first (rp_conn_shutdown), join, close.
 * Errors are -errno: -EPIPE / -ECONNRESET the other side has gone, -ETIMEDOUT, -ECANCELED after shutdown.
 */
#ifndef RP_REPLICATOR_TRANSPORT_H
#define RP_REPLICATOR_TRANSPORT_H

#include "core/error.h"
#include "replicator/uri.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct rp_conn;
struct rp_conn_ops {
    const char *name;
    /* Sends all of it (iov is consumed). Blocks. */
    int (*send)(struct rp_conn *c, struct iovec *iov, int n);
    /* Receives 1 … len bytes; 0: the other side has closed. timeout_ms < 0: none; -ETIMEDOUT. */
    ssize_t (*recv)(struct rp_conn *c, void *buf, size_t len, int timeout_ms);
    /* Wakes sender and receiver for good. Any thread. */
    void (*shutdown)(struct rp_conn *c);
    void (*close)(struct rp_conn *c);
};
struct rp_conn {
    const struct rp_conn_ops *ops;
};

struct rp_listener;
struct rp_listener_ops {
    /* The next connection; -EAGAIN when timeout_ms ran out, -ECANCELED after shutdown. */
    int (*accept)(struct rp_listener *l, int timeout_ms, struct rp_conn **out, struct rp_error *err);
    void (*close)(struct rp_listener *l);
};
struct rp_listener {
    const struct rp_listener_ops *ops;
};

int rp_connect(const struct rp_uri *uri, int timeout_ms, struct rp_conn **out, struct rp_error *err) RP_MUST_CHECK;
int rp_listen(const struct rp_uri *uri, struct rp_listener **out, struct rp_error *err) RP_MUST_CHECK;

/* Sends one buffer; receives exactly len bytes (0 or -errno; -ECONNRESET when it ends early). */
int rp_conn_send(struct rp_conn *c, const void *buf, size_t len) RP_MUST_CHECK;
int rp_conn_recv_all(struct rp_conn *c, void *buf, size_t len, int timeout_ms) RP_MUST_CHECK;

/* transport_socket.c: tcp and unix. transport_rdma.c: rdma. */
int rp_socket_connect(const struct rp_uri *uri, int timeout_ms, struct rp_conn **out, struct rp_error *err) RP_MUST_CHECK;
int rp_socket_listen(const struct rp_uri *uri, struct rp_listener **out, struct rp_error *err) RP_MUST_CHECK;
int rp_rdma_connect(const struct rp_uri *uri, int timeout_ms, struct rp_conn **out, struct rp_error *err) RP_MUST_CHECK;
int rp_rdma_listen(const struct rp_uri *uri, struct rp_listener **out, struct rp_error *err) RP_MUST_CHECK;

#endif
