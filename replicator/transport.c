#include "replicator/transport.h"

#include <errno.h>

int rp_connect(const struct rp_uri *uri, int timeout_ms, struct rp_conn **out, struct rp_error *err)
{
    return uri->scheme == RP_URI_RDMA ? rp_rdma_connect(uri, timeout_ms, out, err) : rp_socket_connect(uri, timeout_ms, out, err);
}

int rp_listen(const struct rp_uri *uri, struct rp_listener **out, struct rp_error *err)
{
    return uri->scheme == RP_URI_RDMA ? rp_rdma_listen(uri, out, err) : rp_socket_listen(uri, out, err);
}

int rp_conn_send(struct rp_conn *c, const void *buf, size_t len)
{
    union { const void *in; void *out; } p = {.in = buf};   /* iovec has no const */
    struct iovec iov = {p.out, len};
    return c->ops->send(c, &iov, 1);
}

int rp_conn_recv_all(struct rp_conn *c, void *buf, size_t len, int timeout_ms)
{
    uint8_t *at = buf;
    while (len > 0) {
        ssize_t n = c->ops->recv(c, at, len, timeout_ms);
        if (n <= 0)
            return n < 0 ? (int)n : -ECONNRESET;
        at += n;
        len -= (size_t)n;
    }
    return 0;
}
