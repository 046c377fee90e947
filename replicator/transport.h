/*
 * transport.h - byte streams between the two sides: one small ops table over tcp, unix and rdma.
 *
 * A connection is a reliable ordered stream in both directions. One thread may send while another receives; each
 * direction is used by one thread at a time. rp_conn_shutdown wakes both for good and may come from any thread;
 * close wakes nobody: shut down first, join, close.
 * Errors are -errno: -EPIPE, -ECONNRESET: the other side has gone; -ETIMEDOUT; -ECANCELED after our own shutdown.
 */
#ifndef RP_REPLICATOR_TRANSPORT_H
#define RP_REPLICATOR_TRANSPORT_H

#include "core/error.h"
#include "replicator/uri.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#define RP_CONN_NOW 0       /* timeout_ms: do not wait */
#define RP_CONN_FOREVER (-1)

struct rp_conn;
struct rp_conn_ops {
    const char *name;       /* "tcp", "unix", "rdma" */
    /* Sends some of iov (1 … all bytes); n <= 8. Without `wait`: -EAGAIN when nothing can go now. */
    ssize_t (*send)(struct rp_conn *c, const struct iovec *iov, int n, bool wait);
    /* Receives 1 … len bytes; 0: the other side has closed. -EAGAIN (RP_CONN_NOW) or -ETIMEDOUT when nothing came. With len 0
     * it only asks: 0 when there is something, or the end. */
    ssize_t (*recv)(struct rp_conn *c, void *buf, size_t len, int timeout_ms);
    /* Readable (POLLIN) whenever recv(RP_CONN_NOW) may give something. */
    int (*poll_fd)(const struct rp_conn *c);
    /* The other side was authenticated and has sent nothing since: memory may be spent on receiving. NULL: nothing to do. */
    int (*widen)(struct rp_conn *c, struct rp_error *err);
    void (*shutdown)(struct rp_conn *c);
    void (*close)(struct rp_conn *c);
};
struct rp_conn {
    const struct rp_conn_ops *ops;
    char peer[80];          /* for messages: "10.0.0.2:7000" */
};

struct rp_listener;
struct rp_listener_ops {
    /* The next connection, without waiting: -EAGAIN when there is none. */
    int (*accept)(struct rp_listener *l, struct rp_conn **out, struct rp_error *err);
    int (*poll_fd)(const struct rp_listener *l);
    void (*close)(struct rp_listener *l);
};
struct rp_listener {
    const struct rp_listener_ops *ops;
    struct rp_uri uri;      /* where it listens; port 0 is replaced by the one it was given */
};

/* timeout_ms bounds all of it, name resolution excepted. -ECONNREFUSED, -ETIMEDOUT, -EHOSTUNREACH … with a sentence. */
int rp_connect(const struct rp_uri *uri, int timeout_ms, struct rp_conn **out, struct rp_error *err) RP_MUST_CHECK;
/* A unix path left behind by a process that died is replaced; one in use is not (-EADDRINUSE). */
int rp_listen(const struct rp_uri *uri, struct rp_listener **out, struct rp_error *err) RP_MUST_CHECK;

/* All of iov (which is consumed), waiting as needed; exactly len bytes before `deadline_ns` (CLOCK_MONOTONIC; 0: no
 * deadline). A stream that ends early is -ECONNRESET. */
int rp_conn_send_all(struct rp_conn *c, struct iovec *iov, int n) RP_MUST_CHECK;
int rp_conn_send(struct rp_conn *c, const void *buf, size_t len) RP_MUST_CHECK;
/* The same before `deadline_ns`: a peer that takes nothing is -ETIMEDOUT. For bulk, not for latency: it looks every 0.1 ms. */
int rp_conn_send_by(struct rp_conn *c, const void *buf, size_t len, uint64_t deadline_ns) RP_MUST_CHECK;
int rp_conn_recv_all(struct rp_conn *c, void *buf, size_t len, uint64_t deadline_ns) RP_MUST_CHECK;
/* Drops the first `bytes` bytes from iov; returns how many entries are left, moving *iov on. */
int rp_iov_consume(struct iovec **iov, int n, size_t bytes);

/* Waits for a connection: -EAGAIN when timeout_ms ran out. */
int rp_listener_accept(struct rp_listener *l, int timeout_ms, struct rp_conn **out, struct rp_error *err) RP_MUST_CHECK;

static inline void rp_conn_shutdown(struct rp_conn *c) { c->ops->shutdown(c); }
static inline void rp_conn_close(struct rp_conn *c) { if (c) c->ops->close(c); }
static inline void rp_listener_close(struct rp_listener *l) { if (l) l->ops->close(l); }

/* transport_socket.c: tcp and unix. transport_rdma.c: rdma. */
int rp_socket_connect(const struct rp_uri *uri, int timeout_ms, struct rp_conn **out, struct rp_error *err) RP_MUST_CHECK;
int rp_socket_listen(const struct rp_uri *uri, struct rp_listener **out, struct rp_error *err) RP_MUST_CHECK;
int rp_rdma_connect(const struct rp_uri *uri, int timeout_ms, struct rp_conn **out, struct rp_error *err) RP_MUST_CHECK;
int rp_rdma_listen(const struct rp_uri *uri, struct rp_listener **out, struct rp_error *err) RP_MUST_CHECK;

#endif
