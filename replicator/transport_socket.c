/* tcp and unix sockets as connections. No Nagle, and a peer that stopped acknowledging is noticed in seconds. */
#include "replicator/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SOCKET_BUFFER (4 << 20)
#define USER_TIMEOUT_MS 5000        /* unacknowledged data for so long: the connection is dead */

struct socket_conn {
    struct rp_conn base;
    int fd;
    _Atomic bool down;
};

static struct socket_conn *of(struct rp_conn *c)
{
    return (struct socket_conn *)c;
}

static int failure(struct socket_conn *s, int e)
{
    return atomic_load(&s->down) ? -ECANCELED : -e;
}

static int socket_send(struct rp_conn *c, struct iovec *iov, int n)
{
    struct socket_conn *s = of(c);
    while (n > 0) {
        if (iov->iov_len == 0) {
            iov++;
            n--;
            continue;
        }
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)n};
        ssize_t sent = sendmsg(s->fd, &msg, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return failure(s, errno);
        for (size_t left = (size_t)sent; left > 0;) {
            size_t take = left < iov->iov_len ? left : iov->iov_len;
            iov->iov_base = (uint8_t *)iov->iov_base + take;
            iov->iov_len -= take;
            left -= take;
            if (iov->iov_len == 0) {
                iov++;
                n--;
            }
        }
    }
    return 0;
}

static ssize_t socket_recv(struct rp_conn *c, void *buf, size_t len, int timeout_ms)
{
    struct socket_conn *s = of(c);
    for (;;) {
        if (timeout_ms >= 0) {
            struct pollfd p = {.fd = s->fd, .events = POLLIN};
            int rc = poll(&p, 1, timeout_ms);
            if (rc == 0)
                return -ETIMEDOUT;
            if (rc < 0 && errno != EINTR)
                return failure(s, errno);
        }
        ssize_t n = recv(s->fd, buf, len, 0);
        if (n >= 0)
            return n == 0 && atomic_load(&s->down) ? -ECANCELED : n;
        if (errno != EINTR)
            return failure(s, errno);
    }
}

static void socket_shutdown(struct rp_conn *c)
{
    atomic_store(&of(c)->down, true);
    shutdown(of(c)->fd, SHUT_RDWR);
}

static void socket_close(struct rp_conn *c)
{
    close(of(c)->fd);
    free(c);
}

static const struct rp_conn_ops socket_ops = {
    .name = "socket", .send = socket_send, .recv = socket_recv, .shutdown = socket_shutdown, .close = socket_close,
};

static int conn_of_fd(int fd, struct rp_conn **out, struct rp_error *err)
{
    struct socket_conn *s = calloc(1, sizeof(*s));
    if (!s) {
        close(fd);
        return rp_error_set(err, ENOMEM, "no memory for a connection");
    }
    int one = 1, size = SOCKET_BUFFER, timeout = USER_TIMEOUT_MS;
    /* On a unix socket the TCP options fail, which is as it should be. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof(timeout));
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    s->base.ops = &socket_ops;
    s->fd = fd;
    *out = &s->base;
    return 0;
}

static void unix_address(const struct rp_uri *uri, struct sockaddr_un *a)
{
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(a->sun_path, sizeof(a->sun_path), "%s", uri->path);
}

static int wait_connected(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    int rc;
    while ((rc = poll(&p, 1, timeout_ms)) < 0 && errno == EINTR)
        ;
    if (rc <= 0)
        return rc == 0 ? -ETIMEDOUT : -errno;
    int e = 0;
    socklen_t n = sizeof(e);
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n);
    return -e;
}

/* A connected blocking socket, or -errno. */
static int try_connect(int family, const struct sockaddr *addr, socklen_t len, int timeout_ms)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    int rc = connect(fd, addr, len) < 0 ? -errno : 0;
    if (rc == -EINPROGRESS)
        rc = wait_connected(fd, timeout_ms);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    return fd;
}

static int resolve(const struct rp_uri *uri, bool passive, struct addrinfo **out, struct rp_error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = passive ? AI_PASSIVE : 0};
    int rc = getaddrinfo(*uri->host ? uri->host : NULL, uri->port, &hints, out);
    return rc == 0 ? 0 : rp_error_set(err, EHOSTUNREACH, "tcp://%s:%s: %s", uri->host, uri->port, gai_strerror(rc));
}

int rp_socket_connect(const struct rp_uri *uri, int timeout_ms, struct rp_conn **out, struct rp_error *err)
{
    char text[400];
    int fd = -EHOSTUNREACH;
    rp_uri_format(uri, text, sizeof(text));
    if (uri->scheme == RP_URI_UNIX) {
        struct sockaddr_un a;
        unix_address(uri, &a);
        fd = try_connect(AF_UNIX, (struct sockaddr *)&a, sizeof(a), timeout_ms);
    } else {
        struct addrinfo *list, *a;
        int rc = resolve(uri, false, &list, err);
        if (rc < 0)
            return rc;
        for (a = list; a && fd < 0; a = a->ai_next)
            fd = try_connect(a->ai_family, a->ai_addr, a->ai_addrlen, timeout_ms);
        freeaddrinfo(list);
    }
    if (fd < 0)
        return rp_error_set(err, fd, "cannot connect to %s: %s", text, strerror(-fd));
    return conn_of_fd(fd, out, err);
}

/* --- listening --- */

struct socket_listener {
    struct rp_listener base;
    int fd;
    char path[108];     /* unix: removed at close */
};

static int socket_accept(struct rp_listener *base, int timeout_ms, struct rp_conn **out, struct rp_error *err)
{
    struct socket_listener *l = (struct socket_listener *)base;
    struct pollfd p = {.fd = l->fd, .events = POLLIN};
    int rc = poll(&p, 1, timeout_ms);
    if (rc == 0 || (rc < 0 && errno == EINTR))
        return -EAGAIN;
    int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return errno == EAGAIN || errno == ECONNABORTED || errno == EINTR
                   ? -EAGAIN : rp_error_set(err, errno, "accept: %s", strerror(errno));
    return conn_of_fd(fd, out, err);
}

static void socket_listener_close(struct rp_listener *base)
{
    struct socket_listener *l = (struct socket_listener *)base;
    close(l->fd);
    if (*l->path)
        unlink(l->path);
    free(l);
}

static const struct rp_listener_ops socket_listener_ops = {.accept = socket_accept, .close = socket_listener_close};

static int bind_unix(const struct rp_uri *uri)
{
    struct sockaddr_un a;
    unix_address(uri, &a);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
        int e = errno, probe = e == EADDRINUSE ? try_connect(AF_UNIX, (struct sockaddr *)&a, sizeof(a), 1000) : -e;
        bool stale = probe == -ECONNREFUSED;    /* left behind by a process that died */
        if (probe >= 0)
            close(probe);
        if (!stale || unlink(uri->path) < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
            close(fd);
            return -e;
        }
    }
    return fd;
}

static int bind_tcp(const struct rp_uri *uri, struct rp_error *err)
{
    struct addrinfo *list;
    int rc = resolve(uri, true, &list, err);
    if (rc < 0)
        return rc;
    int fd = -EADDRNOTAVAIL, one = 1;
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) {
            fd = -errno;
            continue;
        }
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        if (bind(fd, a->ai_addr, a->ai_addrlen) < 0) {
            int e = errno;
            close(fd);
            fd = -e;
        }
    }
    freeaddrinfo(list);
    return fd;
}

int rp_socket_listen(const struct rp_uri *uri, struct rp_listener **out, struct rp_error *err)
{
    char text[400];
    rp_uri_format(uri, text, sizeof(text));
    int fd = uri->scheme == RP_URI_UNIX ? bind_unix(uri) : bind_tcp(uri, err);
    if (fd >= 0 && listen(fd, 16) < 0) {
        int e = errno;
        close(fd);
        fd = -e;
    }
    if (fd < 0)
        return rp_error_set(err, fd, "cannot listen on %s: %s", text, strerror(-fd));
    struct socket_listener *l = calloc(1, sizeof(*l));
    if (!l) {
        close(fd);
        return rp_error_set(err, ENOMEM, "no memory to listen");
    }
    l->base.ops = &socket_listener_ops;
    l->fd = fd;
    if (uri->scheme == RP_URI_UNIX)
        snprintf(l->path, sizeof(l->path), "%s", uri->path);
    *out = &l->base;
    return 0;
}
