/* A datagram or seqpacket socket, one frame each, without a header: QEMU's `-netdev dgram`. The contract is in net.h. */
#include "vmm/net.h"
#include "vmm/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct dgram {
    struct rp_net net;
    struct rp_loop *loop;
    int fd;
    uint32_t events;
};

static struct dgram *dgram_of(struct rp_net *n) { return (struct dgram *)(void *)n; }

static int dgram_send(struct rp_net *n, unsigned pair, const struct iovec *iov, int cnt)
{
    union { const struct iovec *in; struct iovec *out; } u = {.in = iov};
    struct msghdr m = {.msg_iov = u.out, .msg_iovlen = (size_t)cnt};

    (void)pair;
    while (sendmsg(dgram_of(n)->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        if (errno != EINTR)
            return errno == ENOBUFS ? -EAGAIN : -errno;
    return 0;
}

static ssize_t dgram_recv(struct rp_net *n, unsigned pair, const struct iovec *iov, int cnt)
{
    union { const struct iovec *in; struct iovec *out; } u = {.in = iov};
    struct msghdr m = {.msg_iov = u.out, .msg_iovlen = (size_t)cnt};

    (void)pair;
    for (;;) {
        ssize_t got = recvmsg(dgram_of(n)->fd, &m, MSG_DONTWAIT);

        if (got > 0)
            return got;
        if (got == 0 || errno != EINTR)
            return -EAGAIN;
    }
}

static void on_event(void *ctx, uint32_t events)
{
    struct dgram *d = ctx;

    if (events & EPOLLHUP) {        /* a seqpacket peer is gone: nothing comes any more, and nobody waits for it */
        bool waits = d->events & EPOLLOUT;

        rp_loop_remove(d->loop, d->fd);
        d->events = 0;
        if (waits)
            d->net.writable(d->net.ctx, 0);
        return;
    }
    if (events & EPOLLOUT)
        d->net.writable(d->net.ctx, 0);
    if (events & (EPOLLIN | EPOLLERR))
        d->net.readable(d->net.ctx, 0);
}

static void watch(struct dgram *d, uint32_t events)
{
    int rc = 0;

    if (events == d->events)
        return;
    if (!events)
        rp_loop_remove(d->loop, d->fd);
    else if (!d->events)
        rc = rp_loop_add(d->loop, d->fd, events, on_event, d);
    else
        rc = rp_loop_modify(d->loop, d->fd, events);
    if (rc == 0)
        d->events = events;
}

static void dgram_want_read(struct rp_net *n, unsigned pair, bool on)
{
    struct dgram *d = dgram_of(n);

    (void)pair;
    watch(d, (d->events & ~(uint32_t)EPOLLIN) | (on ? EPOLLIN : 0));
}

static void dgram_want_write(struct rp_net *n, unsigned pair, bool on)
{
    struct dgram *d = dgram_of(n);

    (void)pair;
    watch(d, (d->events & ~(uint32_t)EPOLLOUT) | (on ? EPOLLOUT : 0));
}

static void dgram_destroy(struct rp_net *n)
{
    struct dgram *d = dgram_of(n);

    watch(d, 0);
    close(d->fd);
    free(d);
}

static const struct rp_net_ops dgram_ops = {.kind = "dgram", .send = dgram_send, .recv = dgram_recv,
    .want_read = dgram_want_read, .want_write = dgram_want_write, .destroy = dgram_destroy};

int rp_net_dgram_open(int fd, struct rp_loop *loop, struct rp_net **out, struct rp_error *err)
{
    struct dgram *d = calloc(1, sizeof(*d));

    if (!d)
        return rp_error_set(err, ENOMEM, "network: no memory");
    d->net = (struct rp_net){.ops = &dgram_ops, .pairs = 1};
    d->loop = loop;
    d->fd = fd;
    *out = &d->net;
    return 0;
}
