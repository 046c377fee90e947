/*
 * A unix stream socket as QEMU's `-netdev stream` and passt speak it: each frame follows its length, 4 bytes, big-endian.
 *
 * Both directions are buffered, so that a burst of frames costs one system call each way. A frame that was partly sent
 * is finished first, whatever comes: the stream never loses its framing. When the peer goes away, what was half sent or
 * half received is forgotten, frames are lost as on an unplugged wire, and a path is connected to again after 100 ms,
 * then every second.
 */
#include "vmm/net.h"
#include "core/bytes.h"
#include "core/clock.h"
#include "core/log.h"
#include "vmm/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BUFFER_BYTES (256u << 10)
#define PREFIX 4u
#define RETRY_FIRST_NS 100000000ull
#define RETRY_NS 1000000000ull

struct stream {
    struct rp_net net;
    struct rp_loop *loop;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];     /* empty: a descriptor, no second connection */
    struct rp_timer *retry;
    uint32_t events;            /* machine lock, with the next two */
    bool watched;
    bool read_wanted, write_wanted;
    uint8_t *in;                /* machine lock: [in_start, in_end) is received and not handed on */
    size_t in_start, in_end;
    pthread_mutex_t lock;       /* guards fd's change and what is below; leaf */
    int fd;                     /* -1: not connected */
    uint8_t *out;
    size_t out_start, out_end;
};

static struct stream *stream_of(struct rp_net *n) { return (struct stream *)(void *)n; }

/* --- sending (gate's lock, then ours) --- */

/* 0: all buffered bytes are out; -EAGAIN; -EPIPE: no peer (the buffer is empty then). */
static int push_out(struct stream *s)
{
    while (s->out_start < s->out_end) {
        ssize_t n = s->fd < 0 ? -1 : send(s->fd, s->out + s->out_start, s->out_end - s->out_start, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n >= 0) {
            s->out_start += (size_t)n;
        } else if (s->fd >= 0 && (errno == EAGAIN || errno == ENOBUFS)) {
            return -EAGAIN;
        } else if (s->fd < 0 || errno != EINTR) {
            s->out_start = s->out_end = 0;
            return -EPIPE;
        }
    }
    s->out_start = s->out_end = 0;
    return 0;
}

static int stream_send(struct rp_net *n, unsigned pair, const struct iovec *iov, int cnt)
{
    struct stream *s = stream_of(n);
    size_t len = 0;
    int rc = 0;

    (void)pair;
    for (int i = 0; i < cnt; i++)
        len += iov[i].iov_len;
    pthread_mutex_lock(&s->lock);
    if (s->fd < 0)
        rc = -ENOTCONN;
    else if (s->out_end + PREFIX + len > BUFFER_BYTES)
        rc = push_out(s);
    if (rc == 0 && s->out_end + PREFIX + len > BUFFER_BYTES)
        rc = -EMSGSIZE;
    if (rc == 0) {
        uint32_t be = htobe32((uint32_t)len);

        memcpy(s->out + s->out_end, &be, PREFIX);
        s->out_end += PREFIX;
        for (int i = 0; i < cnt; i++) {
            memcpy(s->out + s->out_end, iov[i].iov_base, iov[i].iov_len);
            s->out_end += iov[i].iov_len;
        }
    }
    pthread_mutex_unlock(&s->lock);
    return rc;
}

static int stream_flush(struct rp_net *n, unsigned pair)
{
    struct stream *s = stream_of(n);
    int rc;

    (void)pair;
    pthread_mutex_lock(&s->lock);
    rc = push_out(s);
    pthread_mutex_unlock(&s->lock);
    return rc;
}

/* --- the connection --- */

static void on_event(void *ctx, uint32_t events);

static void watch(struct stream *s)
{
    uint32_t events = (s->read_wanted ? (uint32_t)EPOLLIN : 0) | (s->write_wanted ? (uint32_t)EPOLLOUT : 0);
    int rc = 0;

    if (s->fd < 0 || (s->watched && events == s->events))
        return;
    if (!s->watched)        /* with no events too: that the peer closed is always told */
        rc = rp_loop_add(s->loop, s->fd, events, on_event, s);
    else
        rc = rp_loop_modify(s->loop, s->fd, events);
    if (rc == 0) {
        s->watched = true;
        s->events = events;
    }
}

static void stream_want_read(struct rp_net *n, unsigned pair, bool on)
{
    (void)pair;
    stream_of(n)->read_wanted = on;
    watch(stream_of(n));
}

static void stream_want_write(struct rp_net *n, unsigned pair, bool on)
{
    (void)pair;
    stream_of(n)->write_wanted = on;
    watch(stream_of(n));
}

static void disconnect(struct stream *s, const char *why)
{
    rp_log(RP_LOG_WARN, "network %s: %s%s", s->path[0] ? s->path : "socket", why, s->path[0] ? "; connecting again" : "");
    if (s->watched)
        rp_loop_remove(s->loop, s->fd);
    s->watched = false;
    pthread_mutex_lock(&s->lock);
    close(s->fd);
    s->fd = -1;
    s->out_start = s->out_end = 0;
    pthread_mutex_unlock(&s->lock);
    s->in_start = s->in_end = 0;
    if (s->retry)
        rp_timer_arm(s->retry, rp_clock_ns() + RETRY_FIRST_NS);
    if (s->write_wanted)
        s->net.writable(s->net.ctx, 0);     /* what waits is lost: nobody waits for the peer */
}

static int connect_path(struct stream *s)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), e;

    if (fd < 0)
        return -errno;
    memcpy(a.sun_path, s->path, sizeof(a.sun_path));
    if (connect(fd, (const struct sockaddr *)&a, sizeof(a))) {
        e = errno;
        close(fd);
        return -e;
    }
    pthread_mutex_lock(&s->lock);
    s->fd = fd;
    pthread_mutex_unlock(&s->lock);
    return 0;
}

static void on_retry(void *ctx)
{
    struct stream *s = ctx;

    if (connect_path(s)) {
        rp_timer_arm(s->retry, rp_clock_ns() + RETRY_NS);
        return;
    }
    rp_log(RP_LOG_WARN, "network %s: connected again", s->path);
    watch(s);
}

/* --- receiving --- */

/* The next whole frame in the buffer: its length, 0 when there is none, -EBADMSG. */
static ssize_t next_frame(const struct stream *s)
{
    size_t have = s->in_end - s->in_start;
    uint32_t be, len;

    if (have < PREFIX)
        return 0;
    memcpy(&be, s->in + s->in_start, PREFIX);
    len = be32toh(be);
    if (len == 0 || len > RP_FRAME_MAX)
        return -EBADMSG;
    return have < PREFIX + len ? 0 : (ssize_t)len;
}

/* Receives what is there. False: nothing new, or no peer. */
static bool pull_in(struct stream *s)
{
    ssize_t n;

    if (s->fd < 0)
        return false;
    memmove(s->in, s->in + s->in_start, s->in_end - s->in_start);
    s->in_end -= s->in_start;
    s->in_start = 0;
    do
        n = recv(s->fd, s->in + s->in_end, BUFFER_BYTES - s->in_end, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n > 0) {
        s->in_end += (size_t)n;
        return true;
    }
    if (n == 0 || errno != EAGAIN)
        disconnect(s, n == 0 ? "the other side closed" : strerror(errno));
    return false;
}

static ssize_t stream_recv(struct rp_net *n, unsigned pair, const struct iovec *iov, int cnt)
{
    struct stream *s = stream_of(n);
    ssize_t len = next_frame(s);
    size_t done = 0;

    (void)pair;
    if (len == 0 && pull_in(s))
        len = next_frame(s);
    if (len < 0)
        disconnect(s, "a frame's length makes no sense");
    if (len <= 0)
        return -EAGAIN;
    for (int i = 0; i < cnt && done < (size_t)len; i++) {
        size_t k = iov[i].iov_len < (size_t)len - done ? iov[i].iov_len : (size_t)len - done;

        memcpy(iov[i].iov_base, s->in + s->in_start + PREFIX + done, k);
        done += k;
    }
    s->in_start += PREFIX + (size_t)len;
    return len;
}

static void on_event(void *ctx, uint32_t events)
{
    struct stream *s = ctx;

    if (events & EPOLLOUT)
        s->net.writable(s->net.ctx, 0);
    if (s->fd >= 0 && (events & EPOLLIN))
        s->net.readable(s->net.ctx, 0);
    else if (s->fd >= 0 && (events & (EPOLLHUP | EPOLLERR)))
        disconnect(s, "the other side closed");
}

static void stream_destroy(struct rp_net *n)
{
    struct stream *s = stream_of(n);

    if (s->retry)
        rp_timer_destroy(s->retry);
    if (s->fd >= 0 && s->watched)
        rp_loop_remove(s->loop, s->fd);
    if (s->fd >= 0) {
        (void)push_out(s);
        close(s->fd);
    }
    pthread_mutex_destroy(&s->lock);
    free(s->in);
    free(s->out);
    free(s);
}

static const struct rp_net_ops stream_ops = {.kind = "unix", .send = stream_send, .flush = stream_flush, .recv = stream_recv,
    .want_read = stream_want_read, .want_write = stream_want_write, .destroy = stream_destroy};

static int attach(struct stream *s, const char *path, int fd, struct rp_error *err)
{
    int rc;

    if (!path) {
        s->fd = fd;
        return 0;
    }
    if (strlen(path) >= sizeof(s->path))
        return rp_error_exit(err, RP_EXIT_USAGE, ENAMETOOLONG, "network %s: the path is longer than %zu bytes", path, sizeof(s->path) - 1);
    memcpy(s->path, path, strlen(path));
    rc = connect_path(s);
    if (rc)
        return rp_error_exit(err, RP_EXIT_HOST, -rc, "network %s: %s%s", path, strerror(-rc),
                             rc == -ENOENT || rc == -ECONNREFUSED ? " (start passt, or what listens there, first)" : "");
    rc = rp_timer_create(s->loop, on_retry, s, &s->retry);
    return rc ? rp_error_set(err, rc, "network %s: no timer", path) : 0;
}

int rp_net_stream_open(const char *path, int fd, struct rp_loop *loop, struct rp_net **out, struct rp_error *err)
{
    struct stream *s = calloc(1, sizeof(*s));
    int rc;

    if (!s)
        return rp_error_set(err, ENOMEM, "network: no memory");
    s->net = (struct rp_net){.ops = &stream_ops, .pairs = 1};
    s->loop = loop;
    s->fd = -1;
    pthread_mutex_init(&s->lock, NULL);
    s->in = malloc(BUFFER_BYTES);
    s->out = malloc(BUFFER_BYTES);
    rc = s->in && s->out ? attach(s, path, fd, err) : rp_error_set(err, ENOMEM, "network: no memory");
    if (rc) {
        if (!path)
            s->fd = -1;         /* stays the caller's */
        stream_destroy(&s->net);
        return rc;
    }
    *out = &s->net;
    return 0;
}
