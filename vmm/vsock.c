/* Connections between guest ports and unix sockets; see vsock.h. */
#include "vmm/vsock.h"

#include "core/accept.h"
#include "vmm/loop.h"

#include <errno.h>
#include <linux/virtio_vsock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define HOST_PORT_FIRST (1u << 30)      /* of connections that the host begins */
#define GREETING_MAX 32u                /* "CONNECT 4294967295\n" is 19 bytes */
#define RESETS_MAX 64u                  /* answers to packets of no connection; beyond, the oldest are not given */
#define UPDATE_AT (RP_VSOCK_CREDIT / 4) /* bytes delivered before the guest is told without asking */

enum conn_state { CONN_FREE, CONN_GREETING, CONN_ASKED, CONN_OPEN };

/* What the guest is still to be told about a connection, one packet each. */
enum { SAY_REQUEST = 1, SAY_RESPONSE = 2, SAY_CREDIT = 4, SAY_SHUTDOWN = 8, SAY_RESET = 16 };

struct conn {
    struct rp_vsock *v;
    enum conn_state state;
    int fd;                         /* -1 once closed: then only SAY_RESET is left */
    uint32_t events;                /* watched for; 0: not in the loop */
    uint32_t host_port, guest_port;
    unsigned say;                   /* SAY_* */
    bool readable;                  /* the socket may have bytes (or its end), and is not watched for them */
    bool guest_sends, guest_takes;  /* neither was shut by the guest */
    bool ended;                     /* the host sends no more */
    uint32_t guest_alloc, guest_fwd, sent;  /* the guest's credit, and what it was sent; modulo 2^32 */
    uint32_t fwd, told;             /* bytes of the guest's delivered; as last told */
    uint32_t out_start, out_len;    /* ring of RP_VSOCK_CREDIT bytes: not delivered yet */
    uint8_t *out;
    char greeting[GREETING_MAX];
    unsigned greeted;
};

struct rp_vsock {
    struct rp_loop *loop;
    void (*wake)(void *ctx);
    void *ctx;
    struct sockaddr_un at;          /* empty path: none */
    int listen_fd;
    uint32_t next_port;
    unsigned turn;                  /* whose packet is next */
    struct rp_vsock_hdr resets[RESETS_MAX];
    unsigned reset_first, reset_count;
    struct conn conns[RP_VSOCK_CONNS_MAX];
    uint8_t scratch[RP_VSOCK_PAYLOAD_MAX];
};

static void on_socket(void *ctx, uint32_t events);

static void watch(struct conn *c)
{
    uint32_t events = (!c->readable && !c->ended ? (uint32_t)EPOLLIN : 0) | (c->out_len ? (uint32_t)EPOLLOUT : 0);
    struct rp_loop *loop = c->v->loop;

    if (c->fd < 0 || events == c->events)
        return;
    if (!events) {              /* not merely without events: a hang-up would be told for ever */
        rp_loop_remove(loop, c->fd);
        c->events = 0;
        return;
    }
    if ((c->events ? rp_loop_modify(loop, c->fd, events) : rp_loop_add(loop, c->fd, events, on_socket, c)) == 0)
        c->events = events;
}

static void close_socket(struct conn *c)
{
    if (c->fd < 0)
        return;
    if (c->events)
        rp_loop_remove(c->v->loop, c->fd);
    close(c->fd);
    c->fd = -1;
    c->events = 0;
}

static void forget(struct conn *c)
{
    close_socket(c);
    free(c->out);
    *c = (struct conn){.v = c->v, .fd = -1};
}

/* The connection is over; `tell` the guest, which then forgets it too. */
static void end(struct conn *c, bool tell)
{
    close_socket(c);
    if (!tell) {
        forget(c);
        return;
    }
    c->say = SAY_RESET;
    c->v->wake(c->v->ctx);
}

static void say(struct conn *c, unsigned what)
{
    c->say |= what;
    c->v->wake(c->v->ctx);
}

static struct conn *find(struct rp_vsock *v, uint32_t host_port, uint32_t guest_port)
{
    for (unsigned i = 0; i < RP_VSOCK_CONNS_MAX; i++) {
        struct conn *c = &v->conns[i];
        if (c->state > CONN_GREETING && c->fd >= 0 && c->host_port == host_port && c->guest_port == guest_port)
            return c;
    }
    return NULL;
}

static struct conn *make(struct rp_vsock *v, enum conn_state state, int fd)
{
    for (unsigned i = 0; i < RP_VSOCK_CONNS_MAX; i++) {
        struct conn *c = &v->conns[i];
        if (c->state != CONN_FREE)
            continue;
        *c = (struct conn){.v = v, .state = state, .fd = fd, .guest_sends = true, .guest_takes = true, .out = malloc(RP_VSOCK_CREDIT)};
        if (!c->out) {
            *c = (struct conn){.v = v, .fd = -1};
            return NULL;
        }
        return c;
    }
    return NULL;
}

/* --- towards the host --- */

/* Delivers what the socket takes. False: the connection has ended. */
static bool deliver(struct conn *c)
{
    while (c->out_len) {
        uint32_t n = RP_VSOCK_CREDIT - c->out_start < c->out_len ? RP_VSOCK_CREDIT - c->out_start : c->out_len;
        ssize_t done = send(c->fd, c->out + c->out_start, n, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && errno == EAGAIN)
            break;
        if (done < 0) {
            end(c, true);
            return false;
        }
        c->out_start = (c->out_start + (uint32_t)done) % RP_VSOCK_CREDIT;
        c->out_len -= (uint32_t)done;
        c->fwd += (uint32_t)done;
    }
    if (c->fwd - c->told >= UPDATE_AT)
        say(c, SAY_CREDIT);
    if (c->out_len == 0 && !c->guest_sends) {
        if (!c->guest_takes || c->ended) {      /* both directions are shut and all is delivered */
            end(c, true);
            return false;
        }
        shutdown(c->fd, SHUT_WR);
    }
    return true;
}

static void keep(struct conn *c, const uint8_t *p, uint32_t len)
{
    uint32_t at = (c->out_start + c->out_len) % RP_VSOCK_CREDIT, n = RP_VSOCK_CREDIT - at < len ? RP_VSOCK_CREDIT - at : len;

    memcpy(c->out + at, p, n);
    memcpy(c->out, p + n, len - n);
    c->out_len += len;
}

static void take_data(struct conn *c, const struct rp_vsock_hdr *h, const uint8_t *payload)
{
    if (c->state != CONN_OPEN || !c->guest_sends || h->len > RP_VSOCK_CREDIT - c->out_len) {    /* VSOCK-1 */
        end(c, true);
        return;
    }
    keep(c, payload, h->len);
    if (deliver(c))
        watch(c);
}

static void take_shutdown(struct conn *c, uint32_t flags)
{
    if (flags & VIRTIO_VSOCK_SHUTDOWN_SEND)
        c->guest_sends = false;
    if (flags & VIRTIO_VSOCK_SHUTDOWN_RCV) {
        c->guest_takes = false;
        c->ended = true;            /* nobody reads it: it is not read */
    }
    if (deliver(c))
        watch(c);
}

static void take_response(struct conn *c)
{
    char line[24];
    int n = snprintf(line, sizeof(line), "OK %u\n", c->host_port);

    if (c->state != CONN_ASKED) {
        end(c, true);
        return;
    }
    c->state = CONN_OPEN;
    keep(c, (const uint8_t *)line, (uint32_t)n);
    c->fwd -= (uint32_t)n;          /* these are not the guest's bytes */
    c->told = c->fwd;
    c->readable = true;             /* what came behind the greeting waits in the socket */
    if (deliver(c)) {
        watch(c);
        c->v->wake(c->v->ctx);
    }
}

/* A non-blocking connection to the unix socket "path_port"; -1. */
static int reach(const struct rp_vsock *v, uint32_t port)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd, n;

    if (!v->at.sun_path[0])
        return -1;
    n = snprintf(a.sun_path, sizeof(a.sun_path), "%s_%u", v->at.sun_path, port);
    if (n < 0 || (size_t)n >= sizeof(a.sun_path))
        return -1;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&a, sizeof(a)) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

static void refuse(struct rp_vsock *v, const struct rp_vsock_hdr *h)
{
    if (h->op == VIRTIO_VSOCK_OP_RST)
        return;
    if (v->reset_count == RESETS_MAX) {
        v->reset_first = (v->reset_first + 1) % RESETS_MAX;
        v->reset_count--;
    }
    v->resets[(v->reset_first + v->reset_count++) % RESETS_MAX] = (struct rp_vsock_hdr){
        .src_port = h->dst_port, .dst_port = h->src_port, .type = VIRTIO_VSOCK_TYPE_STREAM, .op = VIRTIO_VSOCK_OP_RST};
    v->wake(v->ctx);
}

static void take_request(struct rp_vsock *v, const struct rp_vsock_hdr *h)
{
    int fd = reach(v, h->dst_port);
    struct conn *c = fd < 0 ? NULL : make(v, CONN_OPEN, fd);

    if (!c) {
        if (fd >= 0)
            close(fd);
        refuse(v, h);
        return;
    }
    c->host_port = h->dst_port;
    c->guest_port = h->src_port;
    c->guest_alloc = h->buf_alloc;
    c->guest_fwd = h->fwd_cnt;
    say(c, SAY_RESPONSE);
    watch(c);
}

void rp_vsock_from_guest(struct rp_vsock *v, const struct rp_vsock_hdr *h, const uint8_t *payload)
{
    struct conn *c = find(v, h->dst_port, h->src_port);

    if (h->type != VIRTIO_VSOCK_TYPE_STREAM || (!c && h->op != VIRTIO_VSOCK_OP_REQUEST)) {
        refuse(v, h);
        return;
    }
    if (c) {
        c->guest_alloc = h->buf_alloc;
        c->guest_fwd = h->fwd_cnt;
        if (c->readable)        /* every packet says how much room there is: bytes may wait for this one */
            v->wake(v->ctx);
    }
    switch (h->op) {
    case VIRTIO_VSOCK_OP_REQUEST:
        if (c)
            end(c, true);
        else
            take_request(v, h);
        break;
    case VIRTIO_VSOCK_OP_RESPONSE: take_response(c); break;
    case VIRTIO_VSOCK_OP_RST: end(c, false); break;
    case VIRTIO_VSOCK_OP_SHUTDOWN: take_shutdown(c, h->flags); break;
    case VIRTIO_VSOCK_OP_RW: take_data(c, h, payload); break;
    case VIRTIO_VSOCK_OP_CREDIT_REQUEST: say(c, SAY_CREDIT); break;
    case VIRTIO_VSOCK_OP_CREDIT_UPDATE: break;  /* taken above */
    default: end(c, true); break;
    }
}

/* --- towards the guest --- */

static void head(const struct conn *c, uint16_t op, struct rp_vsock_hdr *h)
{
    *h = (struct rp_vsock_hdr){.src_port = c->host_port, .dst_port = c->guest_port, .type = VIRTIO_VSOCK_TYPE_STREAM, .op = op,
                               .buf_alloc = RP_VSOCK_CREDIT, .fwd_cnt = c->fwd};
}

/* The next thing to say of this connection without data. */
static bool control(struct conn *c, struct rp_vsock_hdr *h)
{
    static const struct { unsigned what; uint16_t op; } order[] = {
        {SAY_REQUEST, VIRTIO_VSOCK_OP_REQUEST}, {SAY_RESPONSE, VIRTIO_VSOCK_OP_RESPONSE},
        {SAY_CREDIT, VIRTIO_VSOCK_OP_CREDIT_UPDATE}, {SAY_SHUTDOWN, VIRTIO_VSOCK_OP_SHUTDOWN}, {SAY_RESET, VIRTIO_VSOCK_OP_RST}};

    for (unsigned i = 0; i < sizeof(order) / sizeof(order[0]); i++) {
        if (!(c->say & order[i].what))
            continue;
        head(c, order[i].op, h);
        if (order[i].what == SAY_SHUTDOWN)
            h->flags = VIRTIO_VSOCK_SHUTDOWN_SEND;
        c->say &= ~order[i].what;
        c->told = c->fwd;
        if (order[i].what == SAY_RESET)
            forget(c);
        return true;
    }
    return false;
}

/* Bytes out of the socket, as many as the guest has room for. */
static bool data(struct conn *c, uint32_t max, struct rp_vsock_hdr *h)
{
    uint32_t used = c->sent - c->guest_fwd, room = used < c->guest_alloc ? c->guest_alloc - used : 0;
    ssize_t n;

    if (c->state != CONN_OPEN || c->fd < 0 || !c->readable || c->ended || room == 0)
        return false;
    room = room < max ? room : max;
    room = room < RP_VSOCK_PAYLOAD_MAX ? room : RP_VSOCK_PAYLOAD_MAX;
    do
        n = recv(c->fd, c->v->scratch, room, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n > 0) {
        c->sent += (uint32_t)n;
        head(c, VIRTIO_VSOCK_OP_RW, h);
        h->len = (uint32_t)n;
        c->told = c->fwd;
        return true;
    }
    c->readable = false;
    if (n == 0) {
        c->ended = true;
        c->say |= c->guest_sends ? SAY_SHUTDOWN : 0;
        if (!deliver(c))
            return control(c, h);
    } else if (errno != EAGAIN) {
        end(c, true);
    }
    watch(c);
    return control(c, h);
}

bool rp_vsock_to_guest(struct rp_vsock *v, uint32_t max, struct rp_vsock_hdr *h, const uint8_t **payload)
{
    *payload = v->scratch;
    if (v->reset_count) {
        *h = v->resets[v->reset_first];
        v->reset_first = (v->reset_first + 1) % RESETS_MAX;
        v->reset_count--;
        return true;
    }
    for (unsigned i = 0; i < RP_VSOCK_CONNS_MAX; i++) {
        struct conn *c = &v->conns[(v->turn + i) % RP_VSOCK_CONNS_MAX];

        if (c->state != CONN_FREE && (control(c, h) || data(c, max, h))) {
            v->turn = (v->turn + i + 1) % RP_VSOCK_CONNS_MAX;
            return true;
        }
    }
    return false;
}

/* --- connections that the host begins --- */

static bool port_taken(const struct rp_vsock *v, uint32_t port)
{
    for (unsigned i = 0; i < RP_VSOCK_CONNS_MAX; i++)
        if (v->conns[i].state != CONN_FREE && v->conns[i].host_port == port)
            return true;
    return false;
}

/* Reads the greeting byte by byte: what follows belongs to the guest. True once it is whole; ends the connection if it is none. */
static bool read_greeting(struct conn *c)
{
    for (;;) {
        char ch;
        ssize_t n = recv(c->fd, &ch, 1, MSG_DONTWAIT);

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return false;
        if (n <= 0 || c->greeted == GREETING_MAX - 1) {
            end(c, false);
            return false;
        }
        if (ch != '\n') {
            c->greeting[c->greeted++] = ch;
            continue;
        }
        c->greeting[c->greeted] = 0;
        return true;
    }
}

static void greet(struct conn *c)
{
    struct rp_vsock *v = c->v;
    unsigned long port;
    char *rest = NULL;

    if (!read_greeting(c))
        return;
    port = strncmp(c->greeting, "CONNECT ", 8) == 0 && c->greeting[8] >= '0' && c->greeting[8] <= '9' ? strtoul(c->greeting + 8, &rest, 10) : 0;
    if (!rest || *rest || port > UINT32_MAX) {
        end(c, false);
        return;
    }
    do
        v->next_port = v->next_port < HOST_PORT_FIRST || v->next_port == UINT32_MAX ? HOST_PORT_FIRST : v->next_port + 1;
    while (port_taken(v, v->next_port));
    c->host_port = v->next_port;
    c->guest_port = (uint32_t)port;
    c->state = CONN_ASKED;
    c->readable = true;             /* not before the guest has answered */
    watch(c);
    say(c, SAY_REQUEST);
}

static void on_socket(void *ctx, uint32_t events)
{
    struct conn *c = ctx;

    if (c->state == CONN_GREETING) {
        greet(c);
        return;
    }
    if ((events & EPOLLOUT) && !deliver(c))
        return;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        c->readable = true;
        c->v->wake(c->v->ctx);
    }
    watch(c);
}

static void on_listen(void *ctx, uint32_t events)
{
    struct rp_vsock *v = ctx;
    int fd = rp_accept(v->listen_fd);
    struct conn *c = fd < 0 ? NULL : make(v, CONN_GREETING, fd);

    (void)events;
    if (c)
        watch(c);
    else if (fd >= 0)
        close(fd);
}

/* --- making and ending --- */

static int listen_at(struct rp_vsock *v, const char *path, struct rp_error *err)
{
    int rc;

    if (strlen(path) + sizeof("_4294967295") > sizeof(v->at.sun_path))
        return rp_error_exit(err, RP_EXIT_USAGE, ENAMETOOLONG, "--vsock %s: the path is longer than %zu bytes", path,
                             sizeof(v->at.sun_path) - sizeof("_4294967295"));
    v->at.sun_family = AF_UNIX;
    memcpy(v->at.sun_path, path, strlen(path));
    rc = rp_clear_socket(&v->at, "--vsock", err);
    if (rc < 0) {
        v->at.sun_path[0] = 0;      /* not ours to remove */
        return rc;
    }
    v->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (v->listen_fd < 0 || bind(v->listen_fd, (const struct sockaddr *)&v->at, sizeof(v->at)) < 0 || listen(v->listen_fd, 16) < 0) {
        rc = rp_error_exit(err, RP_EXIT_HOST, errno, "--vsock %s: %s", path, strerror(errno));
        v->at.sun_path[0] = 0;
        return rc;
    }
    rc = rp_loop_add(v->loop, v->listen_fd, EPOLLIN, on_listen, v);
    return rc ? rp_error_set(err, rc, "--vsock %s: %s", path, strerror(-rc)) : 0;
}

int rp_vsock_create(struct rp_loop *loop, const char *path, void (*wake)(void *ctx), void *ctx, struct rp_vsock **out, struct rp_error *err)
{
    struct rp_vsock *v = calloc(1, sizeof(*v));
    int rc;

    if (!v)
        return rp_error_set(err, ENOMEM, "vsock: no memory");
    v->loop = loop;
    v->wake = wake;
    v->ctx = ctx;
    v->listen_fd = -1;
    for (unsigned i = 0; i < RP_VSOCK_CONNS_MAX; i++)
        v->conns[i] = (struct conn){.v = v, .fd = -1};
    rc = path ? listen_at(v, path, err) : 0;
    if (rc < 0) {
        rp_vsock_destroy(v);
        return rc;
    }
    *out = v;
    return 0;
}

void rp_vsock_reset(struct rp_vsock *v)
{
    for (unsigned i = 0; i < RP_VSOCK_CONNS_MAX; i++)
        if (v->conns[i].state != CONN_FREE)
            forget(&v->conns[i]);
    v->reset_count = 0;
}

void rp_vsock_destroy(struct rp_vsock *v)
{
    if (!v)
        return;
    rp_vsock_reset(v);
    if (v->listen_fd >= 0) {
        rp_loop_remove(v->loop, v->listen_fd);
        close(v->listen_fd);
    }
    if (v->at.sun_path[0])
        unlink(v->at.sun_path);
    free(v);
}

unsigned rp_vsock_connections(const struct rp_vsock *v)
{
    unsigned n = 0;

    for (unsigned i = 0; i < RP_VSOCK_CONNS_MAX; i++)
        n += v->conns[i].state != CONN_FREE;
    return n;
}
