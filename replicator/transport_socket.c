/* tcp and unix sockets as connections. No Nagle, and a peer that stopped acknowledging is noticed in seconds. */
#include "core/accept.h"
#include "core/clock.h"
#include "replicator/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define SOCKET_BUFFER (2 << 20)
#define USER_TIMEOUT_MS 5000        /* unacknowledged data for so long: the connection is dead */
#define KEEPALIVE_S 2               /* an idle connection whose peer's host has gone: dead after 2 + 3 × 1 s */
#define BACKLOG 16

struct socket_conn {
    struct rp_conn base;
    int fd;
    int timeout_ms;         /* receiving thread: what SO_RCVTIMEO says now; RP_CONN_FOREVER at first */
    _Atomic bool down;      /* we shut it down: errors are -ECANCELED from here on */
};

static struct socket_conn *of(struct rp_conn *c)
{
    return (struct socket_conn *)c;
}

static ssize_t failure(struct socket_conn *s, int e)
{
    return atomic_load(&s->down) ? -ECANCELED : -e;
}

static ssize_t socket_send(struct rp_conn *c, const struct iovec *iov, int n, bool wait)
{
    struct socket_conn *s = of(c);
    struct iovec copy[8];
    memcpy(copy, iov, (size_t)n * sizeof(*iov));
    struct msghdr msg = {.msg_iov = copy, .msg_iovlen = (size_t)n};
    for (;;) {
        ssize_t sent = sendmsg(s->fd, &msg, MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT));
        if (sent >= 0)
            return sent;
        if (errno != EINTR)
            return errno == EAGAIN ? -EAGAIN : failure(s, errno);
    }
}

/* One system call per receive: the timeout lives in the socket and is changed only when it differs. */
static void set_timeout(struct socket_conn *s, int timeout_ms)
{
    if (timeout_ms == s->timeout_ms)
        return;
    struct timeval tv = {0};
    if (timeout_ms > 0)
        tv = (struct timeval){.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
    setsockopt(s->fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    s->timeout_ms = timeout_ms;
}

static ssize_t socket_recv(struct rp_conn *c, void *buf, size_t len, int timeout_ms)
{
    struct socket_conn *s = of(c);
    int flags = timeout_ms == RP_CONN_NOW ? MSG_DONTWAIT : 0;
    if (!flags)
        set_timeout(s, timeout_ms);
    for (;;) {
        ssize_t n = recv(s->fd, buf, len, flags);
        if (n >= 0)
            return n == 0 && atomic_load(&s->down) ? -ECANCELED : n;
        if (errno == EAGAIN)
            return flags ? -EAGAIN : failure(s, ETIMEDOUT);
        if (errno != EINTR)
            return failure(s, errno);
    }
}

static int socket_poll_fd(const struct rp_conn *c)
{
    return ((const struct socket_conn *)c)->fd;
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

static const struct rp_conn_ops tcp_ops = {
    .name = "tcp", .send = socket_send, .recv = socket_recv, .poll_fd = socket_poll_fd, .shutdown = socket_shutdown,
    .close = socket_close,
};
static const struct rp_conn_ops unix_ops = {
    .name = "unix", .send = socket_send, .recv = socket_recv, .poll_fd = socket_poll_fd, .shutdown = socket_shutdown,
    .close = socket_close,
};

static void name_address(const struct sockaddr_storage *a, socklen_t len, char *out, size_t size)
{
    char host[64], port[8];
    if (a->ss_family == AF_UNIX)
        snprintf(out, size, "unix socket");
    else if (getnameinfo((const struct sockaddr *)a, len, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        snprintf(out, size, a->ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
    else
        snprintf(out, size, "unknown");
}

/* A TCP socket sizes its own buffers well unless the administrator's limit can be passed; a unix socket does not. */
static void tune(int fd, bool tcp)
{
    int one = 1, size = SOCKET_BUFFER, timeout = USER_TIMEOUT_MS, idle = KEEPALIVE_S, count = 3;
    if (!tcp) {
        if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
            setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof(timeout));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
}

static int conn_of_fd(int fd, struct rp_conn **out, struct rp_error *err)
{
    struct sockaddr_storage a = {0};
    socklen_t len = sizeof(a);
    struct socket_conn *s = calloc(1, sizeof(*s));
    if (!s) {
        close(fd);
        return rp_error_set(err, ENOMEM, "no memory for a connection");
    }
    getpeername(fd, (struct sockaddr *)&a, &len);
    tune(fd, a.ss_family != AF_UNIX);
    s->base.ops = a.ss_family == AF_UNIX ? &unix_ops : &tcp_ops;
    name_address(&a, len, s->base.peer, sizeof(s->base.peer));
    s->fd = fd;
    s->timeout_ms = RP_CONN_FOREVER;
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

/* Every address of the name in turn, within the time that is left. */
static int connect_tcp(const struct rp_uri *uri, int timeout_ms, struct rp_error *err)
{
    struct addrinfo *list;
    int rc = resolve(uri, false, &list, err);
    if (rc < 0)
        return rc;
    uint64_t end = rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    int fd = -EHOSTUNREACH;
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        uint64_t now = rp_clock_ns();
        fd = try_connect(a->ai_family, a->ai_addr, a->ai_addrlen, now < end ? (int)((end - now) / 1000000u) + 1 : 0);
    }
    freeaddrinfo(list);
    return fd;
}

int rp_socket_connect(const struct rp_uri *uri, int timeout_ms, struct rp_conn **out, struct rp_error *err)
{
    char text[400];
    struct rp_error resolving = {0};
    int fd;
    rp_uri_format(uri, text, sizeof(text));
    if (uri->scheme == RP_URI_UNIX) {
        struct sockaddr_un a;
        unix_address(uri, &a);
        fd = try_connect(AF_UNIX, (struct sockaddr *)&a, sizeof(a), timeout_ms);
    } else {
        fd = connect_tcp(uri, timeout_ms, &resolving);
    }
    if (fd < 0)
        return rp_error_set(err, fd, "cannot connect to %s: %s", text, resolving.code ? resolving.text : strerror(-fd));
    return conn_of_fd(fd, out, err);
}

/* --- listening --- */

struct socket_listener {
    struct rp_listener base;
    int fd;
    struct stat made;   /* unix: the socket file we made; only that one is removed at close */
};

static int socket_accept(struct rp_listener *base, struct rp_conn **out, struct rp_error *err)
{
    struct socket_listener *l = (struct socket_listener *)base;
    int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return errno == EAGAIN || errno == ECONNABORTED || errno == EINTR
                   ? -EAGAIN : rp_error_set(err, errno, "accept: %s", strerror(errno));
    return conn_of_fd(fd, out, err);
}

static int socket_listener_fd(const struct rp_listener *base)
{
    return ((const struct socket_listener *)base)->fd;
}

static void socket_listener_close(struct rp_listener *base)
{
    struct socket_listener *l = (struct socket_listener *)base;
    struct stat st;
    if (base->uri.scheme == RP_URI_UNIX && stat(base->uri.path, &st) == 0 && st.st_ino == l->made.st_ino && st.st_dev == l->made.st_dev)
        unlink(base->uri.path);
    close(l->fd);
    free(l);
}

static const struct rp_listener_ops socket_listener_ops = {
    .accept = socket_accept, .poll_fd = socket_listener_fd, .close = socket_listener_close,
};

static int bind_unix(const struct rp_uri *uri)
{
    struct sockaddr_un a;
    unix_address(uri, &a);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
        return fd;
    int e = errno;      /* perhaps of what a process left behind that died */
    if (e == EADDRINUSE && rp_clear_socket(&a, uri->path, NULL) == 0 && bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
        return fd;
    close(fd);
    return -e;
}

static int bind_address(const struct addrinfo *a)
{
    int one = 1, zero = 0;
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (a->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0)
        return fd;
    int e = errno;
    close(fd);
    return -e;
}

/* Without a host the IPv6 wildcard comes first: it takes IPv4 as well. */
static int bind_tcp(const struct rp_uri *uri, struct rp_error *err)
{
    struct addrinfo *list;
    int rc = resolve(uri, true, &list, err);
    if (rc < 0)
        return rc;
    int fd = -EADDRNOTAVAIL;
    for (struct addrinfo *a = list; a && fd < 0 && !*uri->host; a = a->ai_next)
        if (a->ai_family == AF_INET6)
            fd = bind_address(a);
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next)
        fd = bind_address(a);
    freeaddrinfo(list);
    return fd;
}

static void note_port(int fd, struct rp_uri *uri)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof(a);
    if (uri->scheme == RP_URI_UNIX || getsockname(fd, (struct sockaddr *)&a, &len) < 0)
        return;
    uint16_t port = a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port : ((struct sockaddr_in *)&a)->sin_port;
    snprintf(uri->port, sizeof(uri->port), "%u", ntohs(port));
}

int rp_socket_listen(const struct rp_uri *uri, struct rp_listener **out, struct rp_error *err)
{
    char text[400];
    struct rp_error resolving = {0};
    rp_uri_format(uri, text, sizeof(text));
    int fd = uri->scheme == RP_URI_UNIX ? bind_unix(uri) : bind_tcp(uri, &resolving);
    if (fd >= 0 && listen(fd, BACKLOG) < 0) {
        int e = errno;
        close(fd);
        fd = -e;
    }
    if (fd < 0)
        return rp_error_set(err, fd, "cannot listen on %s: %s", text, resolving.code ? resolving.text : strerror(-fd));
    struct socket_listener *l = calloc(1, sizeof(*l));
    if (!l) {
        close(fd);
        return rp_error_set(err, ENOMEM, "no memory to listen");
    }
    l->base.ops = &socket_listener_ops;
    l->base.uri = *uri;
    note_port(fd, &l->base.uri);
    l->fd = fd;
    if (uri->scheme == RP_URI_UNIX && stat(uri->path, &l->made) < 0)
        l->made = (struct stat){0};
    *out = &l->base;
    return 0;
}
