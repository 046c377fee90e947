/* Tap interfaces, with offloads and several queues. The contract is in net.h; the kernel's in its networking/tuntap. */
#include "core/log.h"
#include "vmm/loop.h"
#include "vmm/net.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define BIT(n) (1ull << (n))

struct tap_pair {
    struct tap *tap;
    unsigned n;
    int fd;
    uint32_t events;        /* watched for; 0: not in the loop */
    bool attached;
    bool gone;              /* with its interface */
};
struct tap {
    struct rp_net net;
    struct rp_loop *loop;
    char name[IFNAMSIZ];
    struct tap_pair pairs[RP_NET_PAIRS_MAX];
};

static struct tap *tap_of(struct rp_net *n) { return (struct tap *)(void *)n; }

static int tap_send(struct rp_net *n, unsigned pair, const struct iovec *iov, int cnt)
{
    while (writev(tap_of(n)->pairs[pair].fd, iov, cnt) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

static ssize_t tap_recv(struct rp_net *n, unsigned pair, const struct iovec *iov, int cnt)
{
    for (;;) {
        ssize_t got = readv(tap_of(n)->pairs[pair].fd, iov, cnt);

        if (got >= 0)
            return got;
        if (errno != EINTR)
            return -EAGAIN;     /* an interface that is down gives EIO: nothing to read either */
    }
}

static void on_event(void *ctx, uint32_t events);

static void watch(struct tap_pair *p, uint32_t events)
{
    int rc = 0;

    if (events == p->events || (events && p->gone))
        return;
    if (!events)
        rp_loop_remove(p->tap->loop, p->fd);
    else if (!p->events)
        rc = rp_loop_add(p->tap->loop, p->fd, events, on_event, p);
    else
        rc = rp_loop_modify(p->tap->loop, p->fd, events);
    if (rc == 0)
        p->events = events;
}

/* The interface was deleted: the descriptor says so for ever, and nobody waits for it. */
static void unplugged(struct tap_pair *p)
{
    struct rp_net *net = &p->tap->net;
    bool waits = p->events & EPOLLOUT;

    rp_log(RP_LOG_WARN, "tap %s: the interface is gone: the card has no network any more", p->tap->name);
    p->gone = true;
    watch(p, 0);
    if (waits)
        net->writable(net->ctx, p->n);
}

static void on_event(void *ctx, uint32_t events)
{
    struct tap_pair *p = ctx;
    struct rp_net *net = &p->tap->net;

    /* A queue that is detached says EPOLLERR too, and what is said may be older than its being attached again. */
    if ((events & EPOLLERR) && p->attached && ioctl(p->fd, TUNGETIFF, &(struct ifreq){0})) {
        unplugged(p);
        return;
    }
    if (events & EPOLLOUT)
        net->writable(net->ctx, p->n);
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        net->readable(net->ctx, p->n);
}

static void tap_want_read(struct rp_net *n, unsigned pair, bool on)
{
    struct tap_pair *p = &tap_of(n)->pairs[pair];

    watch(p, (p->events & ~(uint32_t)EPOLLIN) | (on ? EPOLLIN : 0));
}

static void tap_want_write(struct rp_net *n, unsigned pair, bool on)
{
    struct tap_pair *p = &tap_of(n)->pairs[pair];

    watch(p, (p->events & ~(uint32_t)EPOLLOUT) | (on ? EPOLLOUT : 0));
}

static int tap_offloads(struct rp_net *n, uint64_t f)
{
    unsigned flags = 0;

    if (f & BIT(VIRTIO_NET_F_GUEST_CSUM)) {
        flags |= TUN_F_CSUM;
        flags |= f & BIT(VIRTIO_NET_F_GUEST_TSO4) ? TUN_F_TSO4 : 0;
        flags |= f & BIT(VIRTIO_NET_F_GUEST_TSO6) ? TUN_F_TSO6 : 0;
        flags |= f & BIT(VIRTIO_NET_F_GUEST_UFO) ? TUN_F_UFO : 0;
    }
    return ioctl(tap_of(n)->pairs[0].fd, TUNSETOFFLOAD, flags) ? -errno : 0;
}

static int tap_pairs(struct rp_net *n, unsigned active)
{
    struct tap *t = tap_of(n);

    for (unsigned i = 0; i < t->net.pairs && t->net.pairs > 1; i++) {
        struct tap_pair *p = &t->pairs[i];
        struct ifreq ifr = {.ifr_flags = (short)(i < active ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE)};

        if (p->attached == (i < active))
            continue;
        if (ioctl(p->fd, TUNSETQUEUE, &ifr))
            return -errno;
        p->attached = i < active;
    }
    return 0;
}

static void tap_destroy(struct rp_net *n)
{
    struct tap *t = tap_of(n);

    for (unsigned i = 0; i < t->net.pairs; i++) {
        if (t->pairs[i].fd < 0)
            continue;
        watch(&t->pairs[i], 0);
        close(t->pairs[i].fd);
    }
    free(t);
}

static const struct rp_net_ops tap_ops = {
    .kind = "tap", .send = tap_send, .recv = tap_recv, .want_read = tap_want_read, .want_write = tap_want_write,
    .offloads = tap_offloads, .pairs = tap_pairs, .destroy = tap_destroy};

static int open_queue(struct tap *t, unsigned i, struct rp_error *err)
{
    struct ifreq ifr = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (t->net.pairs > 1 ? IFF_MULTI_QUEUE : 0))};
    int fd, rc, e;

    /* The kernel would make one up for root: a card on no network, and nobody would know why. */
    if (if_nametoindex(t->name) == 0)
        return rp_error_exit(err, RP_EXIT_HOST, ENODEV, "tap %s: there is no such interface (ip tuntap add %s mode tap user USER)", t->name, t->name);
    fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return rp_error_exit(err, RP_EXIT_HOST, errno, "tap %s: /dev/net/tun: %m", t->name);
    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", t->name);
    rc = ioctl(fd, TUNSETIFF, &ifr);
    if (rc && errno == EINVAL && t->net.pairs == 1) {       /* one that was made for several queues is opened as such */
        ifr.ifr_flags = (short)(ifr.ifr_flags | IFF_MULTI_QUEUE);
        rc = ioctl(fd, TUNSETIFF, &ifr);
    }
    if (rc) {
        e = errno;
        close(fd);
        return rp_error_exit(err, RP_EXIT_HOST, e, "tap %s: %s%s", t->name, strerror(e),
                             e == EBUSY ? " (another program has it open)" :
                             e == EPERM ? " (make it yours: ip tuntap add NAME mode tap user USER)" :
                             e != EINVAL ? "" : t->net.pairs > 1 ? " (several queues need: ip tuntap add NAME mode tap multi_queue)" :
                             ": it is no tap (ip tuntap add NAME mode tap user USER makes one)");
    }
    t->pairs[i].fd = fd;
    return 0;
}

/* The header's size and what the kernel can do with frames. */
static int set_up(struct tap *t, struct rp_error *err)
{
    int size = (int)RP_VNET_HEADER;
    const unsigned base = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;

    for (unsigned i = 0; i < t->net.pairs; i++)
        if (ioctl(t->pairs[i].fd, TUNSETVNETHDRSZ, &size))
            return rp_error_set(err, errno, "tap %s: the kernel does not take the virtio header: %m", t->name);
    t->net.features = BIT(VIRTIO_NET_F_CSUM);
    if (ioctl(t->pairs[0].fd, TUNSETOFFLOAD, base) == 0)
        t->net.features |= BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_GUEST_TSO4) | BIT(VIRTIO_NET_F_GUEST_TSO6) |
                           BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_HOST_TSO6);
    if (ioctl(t->pairs[0].fd, TUNSETOFFLOAD, base | TUN_F_UFO) == 0)
        t->net.features |= BIT(VIRTIO_NET_F_GUEST_UFO) | BIT(VIRTIO_NET_F_HOST_UFO);
    if (ioctl(t->pairs[0].fd, TUNSETOFFLOAD, 0))
        return rp_error_set(err, errno, "tap %s: offloads: %m", t->name);
    return 0;
}

static int adopt(struct tap *t, int fd, struct rp_error *err)
{
    struct ifreq ifr = {0};

    if (ioctl(fd, TUNGETIFF, &ifr))
        return rp_error_set(err, errno, "network descriptor %d: %m", fd);
    snprintf(t->name, sizeof(t->name), "%s", ifr.ifr_name);
    if (!(ifr.ifr_flags & IFF_TAP) || !(ifr.ifr_flags & IFF_VNET_HDR))
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "tap %s: was opened %s; whoever passes it on has to open it with IFF_TAP, IFF_NO_PI and "
                             "IFF_VNET_HDR", t->name, ifr.ifr_flags & IFF_TAP ? "without IFF_VNET_HDR" : "as a tun, not as a tap");
    if (fcntl(fd, F_SETFL, O_NONBLOCK | O_RDWR))
        return rp_error_set(err, errno, "tap %s: %m", t->name);
    t->pairs[0].fd = fd;
    return 0;
}

int rp_net_tap_open(const char *name, int fd, unsigned pairs, struct rp_loop *loop, struct rp_net **out, struct rp_error *err)
{
    struct tap *t = calloc(1, sizeof(*t));
    int rc = 0;

    if (!t)
        return rp_error_set(err, ENOMEM, "tap: no memory");
    t->net = (struct rp_net){.ops = &tap_ops, .vnet_header = true, .pairs = fd < 0 ? pairs : 1};
    t->loop = loop;
    for (unsigned i = 0; i < RP_NET_PAIRS_MAX; i++)
        t->pairs[i] = (struct tap_pair){.tap = t, .n = i, .fd = -1, .attached = true};
    if (fd >= 0) {
        rc = adopt(t, fd, err);
    } else if (strlen(name) >= IFNAMSIZ) {
        rc = rp_error_exit(err, RP_EXIT_USAGE, ENAMETOOLONG, "tap %s: an interface's name has at most %d bytes", name, IFNAMSIZ - 1);
    } else if (pairs > RP_NET_PAIRS_MAX) {
        rc = rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "tap %s: %u queues, at most %u are possible", name, pairs, RP_NET_PAIRS_MAX);
    } else {
        snprintf(t->name, sizeof(t->name), "%.*s", IFNAMSIZ - 1, name);
        for (unsigned i = 0; rc == 0 && i < pairs; i++)
            rc = open_queue(t, i, err);
    }
    if (rc == 0)
        rc = set_up(t, err);
    if (rc) {
        if (fd >= 0)
            t->pairs[0].fd = -1;    /* stays the caller's */
        tap_destroy(&t->net);
        return rc;
    }
    *out = &t->net;
    return 0;
}
