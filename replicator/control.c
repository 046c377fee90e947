#include "replicator/control.h"

#include "core/bytes.h"
#include "core/clock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RP_REASON_PIECE 16u
#define TAKE_NS 1000000000u     /* a path that takes nothing for so long has ended: who sends on it keeps the other senders waiting */

int rp_control_init(struct rp_control *c, struct rp_error *err)
{
    *c = (struct rp_control){.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (c->wake_fd < 0)
        return rp_error_set(err, errno, "no descriptor for the control connection: %s", strerror(errno));
    pthread_mutex_init(&c->send_lock, NULL);
    pthread_mutex_init(&c->lock, NULL);
    return 0;
}

void rp_control_fini(struct rp_control *c)
{
    rp_control_close(c);
    close(c->wake_fd);
    pthread_mutex_destroy(&c->send_lock);
    pthread_mutex_destroy(&c->lock);
}

static struct rp_conn *path_conn(struct rp_control *c, unsigned i)
{
    pthread_mutex_lock(&c->lock);
    struct rp_conn *conn = c->paths[i].conn;
    pthread_mutex_unlock(&c->lock);
    return conn;
}

static void wake(struct rp_control *c)
{
    uint64_t one = 1;
    if (write(c->wake_fd, &one, sizeof(one)) < 0) {
        /* the counter is full: whoever polls it is awake */
    }
}

int rp_control_add(struct rp_control *c, struct rp_conn *conn, int path)
{
    int rc = -ENOSPC;
    pthread_mutex_lock(&c->lock);
    for (unsigned i = 0; i < RP_CONTROL_PATHS && rc < 0; i++)
        if (!c->paths[i].conn && (path < 0 || (unsigned)path == i)) {
            c->paths[i].conn = conn;
            c->paths[i].have = 0;
            rc = 0;
        }
    pthread_mutex_unlock(&c->lock);
    if (rc == 0)
        wake(c);
    return rc;
}

void rp_control_interrupt(struct rp_control *c)
{
    pthread_mutex_lock(&c->lock);
    c->interrupted = true;
    pthread_mutex_unlock(&c->lock);
    wake(c);
}

static bool interrupted(struct rp_control *c)
{
    pthread_mutex_lock(&c->lock);
    bool was = c->interrupted;
    c->interrupted = false;
    pthread_mutex_unlock(&c->lock);
    return was;
}

/* Senders have left the path, and none comes: its connection can be closed. */
static void close_path(struct rp_control *c, unsigned i)
{
    pthread_mutex_lock(&c->send_lock);
    pthread_mutex_lock(&c->lock);
    struct rp_conn *conn = c->paths[i].conn;
    c->paths[i].conn = NULL;
    pthread_mutex_unlock(&c->lock);
    pthread_mutex_unlock(&c->send_lock);
    rp_conn_close(conn);
}

void rp_control_close(struct rp_control *c)
{
    for (unsigned i = 0; i < RP_CONTROL_PATHS; i++)
        close_path(c, i);
    if (interrupted(c)) {
        /* nobody is left to be interrupted */
    }
}

void rp_control_shutdown(struct rp_control *c)
{
    pthread_mutex_lock(&c->lock);
    for (unsigned i = 0; i < RP_CONTROL_PATHS; i++)
        if (c->paths[i].conn)
            rp_conn_shutdown(c->paths[i].conn);
    pthread_mutex_unlock(&c->lock);
}

void rp_control_break(struct rp_control *c, unsigned path)
{
    pthread_mutex_lock(&c->lock);
    if (c->paths[path].conn)
        rp_conn_shutdown(c->paths[path].conn);
    pthread_mutex_unlock(&c->lock);
}

unsigned rp_control_living(struct rp_control *c)
{
    unsigned n = 0;
    pthread_mutex_lock(&c->lock);
    for (unsigned i = 0; i < RP_CONTROL_PATHS; i++)
        n += c->paths[i].conn != NULL;
    pthread_mutex_unlock(&c->lock);
    return n;
}

const char *rp_control_transport(struct rp_control *c)
{
    const char *name = "";
    pthread_mutex_lock(&c->lock);
    for (unsigned i = RP_CONTROL_PATHS; i-- > 0;)
        if (c->paths[i].conn)
            name = c->paths[i].conn->ops->name;
    pthread_mutex_unlock(&c->lock);
    return name;
}

/* Whole, or the path has ended. */
static int send_whole(struct rp_conn *conn, const uint8_t msg[RP_CONTROL_BYTES])
{
    int rc = rp_conn_send_by(conn, msg, RP_CONTROL_BYTES, rp_clock_ns() + TAKE_NS);
    if (rc == -ETIMEDOUT)
        rp_conn_shutdown(conn);
    return rc;
}

static int send_paths(struct rp_control *c, const struct rp_control_msg *m, bool all)
{
    uint8_t msg[RP_CONTROL_BYTES] = {0};
    rp_st32(msg, m->type);
    rp_st64(msg + 8, m->a);
    rp_st64(msg + 16, m->b);
    rp_st64(msg + 24, m->c);
    int rc = -ENOTCONN, taken = 0;
    pthread_mutex_lock(&c->send_lock);
    for (unsigned i = 0; i < RP_CONTROL_PATHS && (all || !taken); i++) {
        struct rp_conn *conn = path_conn(c, i);
        int sent = conn ? send_whole(conn, msg) : -ENOTCONN;
        if (sent == 0)
            taken++;
        else if (conn)
            rc = sent;          /* the receiving thread sees its end, too, and closes it */
    }
    pthread_mutex_unlock(&c->send_lock);
    return taken ? 0 : rc;
}

int rp_control_send(struct rp_control *c, const struct rp_control_msg *m)
{
    return send_paths(c, m, true);
}

int rp_control_send_one(struct rp_control *c, const struct rp_control_msg *m)
{
    return send_paths(c, m, false);
}

int rp_control_send_reason(struct rp_control *c, uint32_t type, const struct rp_error *why)
{
    char text[RP_CONTROL_REASON] = {0};
    int rc = 0;
    snprintf(text, sizeof(text), "%.*s", (int)sizeof(text) - 1, why->text);
    for (uint64_t at = 0; at < strlen(text) && rc == 0; at += RP_REASON_PIECE) {
        const uint8_t *p = (const uint8_t *)text + at;
        struct rp_control_msg m = {.type = RP_CTL_REASON, .a = at, .b = rp_ld64(p), .c = rp_ld64(p + 8)};
        rc = rp_control_send(c, &m);
    }
    struct rp_control_msg last = {.type = type, .a = (uint64_t)-why->code};
    return rc == 0 ? rp_control_send(c, &last) : rc;
}

void rp_control_reason(const struct rp_control_msg *m, char text[RP_CONTROL_REASON])
{
    uint8_t piece[RP_REASON_PIECE];
    if (m->a % RP_REASON_PIECE || m->a > RP_CONTROL_REASON - RP_REASON_PIECE)
        return;
    rp_st64(piece, m->b);
    rp_st64(piece + 8, m->c);
    for (unsigned i = 0; i < RP_REASON_PIECE; i++)
        text[m->a + i] = (char)(piece[i] && (piece[i] < ' ' || piece[i] == 127) ? '?' : piece[i]);
    text[RP_CONTROL_REASON - 1] = '\0';
}

/* 1: *out is there; 0: nothing has come; < 0: the path has ended. */
static int look(struct rp_control_path *p, struct rp_conn *conn, struct rp_control_msg *out)
{
    while (p->have < RP_CONTROL_BYTES) {
        ssize_t n = conn->ops->recv(conn, p->in + p->have, RP_CONTROL_BYTES - p->have, RP_CONN_NOW);
        if (n == -EAGAIN)
            return 0;
        if (n <= 0)
            return n < 0 ? (int)n : -ECONNRESET;
        p->have += (unsigned)n;
    }
    p->have = 0;
    *out = (struct rp_control_msg){.type = rp_ld32(p->in), .a = rp_ld64(p->in + 8), .b = rp_ld64(p->in + 16), .c = rp_ld64(p->in + 24)};
    return 1;
}

/* A path has something: 1: *out holds a message, or the news of its end; 0: not a whole one yet; < 0: the last one has ended. */
static int take(struct rp_control *c, unsigned i, struct rp_control_msg *out)
{
    struct rp_conn *conn = path_conn(c, i);
    int rc = conn ? look(&c->paths[i], conn, out) : 0;
    if (rc > 0 && out->type == RP_CTL_PATH_LOST)
        rc = -EPROTO;       /* nobody can say that */
    if (rc >= 0)
        return rc;
    close_path(c, i);
    if (rp_control_living(c) == 0)
        return rc;
    *out = (struct rp_control_msg){.type = RP_CTL_PATH_LOST, .a = i, .b = (uint64_t)-rc};
    return 1;
}

int rp_control_recv(struct rp_control *c, struct rp_control_msg *out, int timeout_ms)
{
    uint64_t until = timeout_ms < 0 ? UINT64_MAX : rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    for (uint64_t now = 0; now < until;) {
        struct pollfd fds[RP_CONTROL_PATHS + 1] = {{.fd = c->wake_fd, .events = POLLIN}};
        uint64_t v;
        now = rp_clock_ns();
        if (interrupted(c))
            return -EINTR;
        for (unsigned i = 0; i < RP_CONTROL_PATHS; i++) {
            struct rp_conn *conn = path_conn(c, i);
            fds[i + 1] = (struct pollfd){.fd = conn ? conn->ops->poll_fd(conn) : -1, .events = POLLIN};
        }
        if (fds[1].fd < 0 && fds[2].fd < 0)
            return -ENOTCONN;
        poll(fds, RP_CONTROL_PATHS + 1, until == UINT64_MAX ? -1 : now < until ? (int)((until - now) / 1000000u) + 1 : 0);
        if (fds[0].revents && read(c->wake_fd, &v, sizeof(v)) < 0) {
            /* somebody else took it */
        }
        for (unsigned i = 0; i < RP_CONTROL_PATHS; i++) {
            int rc = fds[i + 1].revents ? take(c, i, out) : 0;
            if (rc != 0)
                return rc < 0 ? rc : 0;
        }
    }
    return -ETIMEDOUT;
}
