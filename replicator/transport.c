#include "replicator/transport.h"

#include "core/clock.h"

#include <errno.h>
#include <poll.h>
#include <time.h>

int rp_connect(const struct rp_uri *uri, int timeout_ms, struct rp_conn **out, struct rp_error *err)
{
    return uri->scheme == RP_URI_RDMA ? rp_rdma_connect(uri, timeout_ms, out, err) : rp_socket_connect(uri, timeout_ms, out, err);
}

int rp_listen(const struct rp_uri *uri, struct rp_listener **out, struct rp_error *err)
{
    return uri->scheme == RP_URI_RDMA ? rp_rdma_listen(uri, out, err) : rp_socket_listen(uri, out, err);
}

int rp_iov_consume(struct iovec **iov, int n, size_t bytes)
{
    struct iovec *v = *iov;
    while (n > 0 && bytes >= v->iov_len) {
        bytes -= v->iov_len;
        v++;
        n--;
    }
    if (n > 0) {
        v->iov_base = (uint8_t *)v->iov_base + bytes;
        v->iov_len -= bytes;
    }
    *iov = v;
    return n;
}

int rp_conn_send_all(struct rp_conn *c, struct iovec *iov, int n)
{
    n = rp_iov_consume(&iov, n, 0);
    while (n > 0) {
        ssize_t sent = c->ops->send(c, iov, n, true);
        if (sent < 0)
            return (int)sent;
        n = rp_iov_consume(&iov, n, (size_t)sent);
    }
    return 0;
}

int rp_conn_send(struct rp_conn *c, const void *buf, size_t len)
{
    union { const void *in; void *out; } p = {.in = buf};   /* iovec has no const */
    struct iovec iov = {p.out, len};
    return rp_conn_send_all(c, &iov, 1);
}

int rp_conn_send_by(struct rp_conn *c, const void *buf, size_t len, uint64_t deadline_ns)
{
    union { const void *in; void *out; } p = {.in = buf};
    struct iovec one = {p.out, len}, *iov = &one;
    int n = rp_iov_consume(&iov, 1, 0);
    while (n > 0) {
        ssize_t sent = c->ops->send(c, iov, n, false);
        if (sent == -EAGAIN && rp_clock_ns() < deadline_ns)
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
        else if (sent < 0)
            return sent == -EAGAIN ? -ETIMEDOUT : (int)sent;
        else
            n = rp_iov_consume(&iov, n, (size_t)sent);
    }
    return 0;
}

int rp_conn_recv_all(struct rp_conn *c, void *buf, size_t len, uint64_t deadline_ns)
{
    uint8_t *at = buf;
    while (len > 0) {
        int timeout_ms = RP_CONN_FOREVER;
        if (deadline_ns) {
            uint64_t now = rp_clock_ns();
            if (now >= deadline_ns)
                return -ETIMEDOUT;
            timeout_ms = (int)((deadline_ns - now) / 1000000u) + 1;
        }
        ssize_t n = c->ops->recv(c, at, len, timeout_ms);
        if (n <= 0)
            return n < 0 ? (int)n : -ECONNRESET;
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

int rp_listener_accept(struct rp_listener *l, int timeout_ms, struct rp_conn **out, struct rp_error *err)
{
    struct pollfd p = {.fd = l->ops->poll_fd(l), .events = POLLIN};
    int rc = poll(&p, 1, timeout_ms);
    if (rc == 0 || (rc < 0 && errno == EINTR))
        return -EAGAIN;
    return l->ops->accept(l, out, err);
}
