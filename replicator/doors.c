#include "replicator/doors.h"

#include "core/clock.h"
#include "core/log.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RETRY_NS 1000000000u

int rp_doors_init(struct rp_doors *d, struct rp_listener *l, const struct rp_secret *key, struct rp_error *err)
{
    struct rp_error why = {0};
    int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_fd < 0)
        return rp_error_set(err, errno, "no descriptor to wake whoever listens: %s", strerror(errno));
    *d = (struct rp_doors){.n = 1, .doors = {{.uri = l->uri, .listener = l}}, .wake_fd = wake_fd, .key = key};
    if (l->uri.scheme != RP_URI_RDMA)
        return 0;
    struct rp_door *spare = &d->doors[1];
    spare->uri = l->uri;
    spare->uri.scheme = RP_URI_TCP;
    if (rp_listen(&spare->uri, &spare->listener, &why) < 0)
        rp_log(RP_LOG_WARN, "%s: should rdma break, there is no other way here", why.text);
    else
        d->n = 2;
    return 0;
}

void rp_doors_fini(struct rp_doors *d)
{
    for (unsigned i = 0; i < d->n; i++)
        rp_listener_close(d->doors[i].listener);
    while (d->waiting)
        rp_conn_close(d->hall[--d->waiting].conn);
    close(d->wake_fd);
    *d = (struct rp_doors){.wake_fd = -1};
}

static void reopen(struct rp_door *door)
{
    struct rp_error why = {0};
    if (door->listener || rp_clock_ns() < door->retry_ns)
        return;
    if (rp_listen(&door->uri, &door->listener, &why) == 0)
        rp_log(RP_LOG_INFO, "listening again on port %s", door->uri.port);
    else
        door->retry_ns = rp_clock_ns() + RETRY_NS;
}

static int try_door(struct rp_door *door, struct rp_conn **out)
{
    struct rp_error why = {0};
    int rc = door->listener->ops->accept(door->listener, out, &why);
    if (rc == 0 || rc == -EAGAIN)
        return rc;
    rp_log(RP_LOG_WARN, "%s; trying to listen again", why.text);
    rp_listener_close(door->listener);
    door->listener = NULL;
    door->retry_ns = rp_clock_ns() + RETRY_NS;
    return -EAGAIN;
}

static void leave(struct rp_doors *d, unsigned i)
{
    memmove(&d->hall[i], &d->hall[i + 1], (--d->waiting - i) * sizeof(d->hall[0]));
}

static void enter(struct rp_doors *d, struct rp_conn *c)
{
    if (d->waiting == RP_HALL_MAX) {
        rp_conn_close(d->hall[0].conn);
        leave(d, 0);
    }
    d->hall[d->waiting].conn = c;
    d->hall[d->waiting].greeting = (struct rp_greeting){.have = 0};
    d->hall[d->waiting++].since_ns = rp_clock_ns();
}

static void show_out(struct rp_doors *d)
{
    uint64_t now = rp_clock_ns();
    while (d->waiting && now - d->hall[0].since_ns > RP_HALL_NS) {
        rp_log(RP_LOG_WARN, "%s: connected and %s", d->hall[0].conn->peer, d->hall[0].greeting.have ? "did not end its greeting" : "said nothing");
        rp_conn_close(d->hall[0].conn);
        leave(d, 0);
    }
}

void rp_doors_wake(struct rp_doors *d)
{
    if (eventfd_write(d->wake_fd, 1) < 0) {
        /* it counts to 2^64: whoever polls is awake */
    }
}

/* Hears guest i, who may have said something. True: his greeting is whole, or he has left the hall. */
static bool hear(struct rp_doors *d, unsigned i, int *rc)
{
    struct rp_error why = {0};
    *rc = rp_handshake_hear(&d->hall[i].greeting, d->hall[i].conn, d->key, &why);
    if (*rc < 0) {
        rp_log(RP_LOG_WARN, "%s: %s", d->hall[i].conn->peer, why.text);
        rp_conn_close(d->hall[i].conn);
        leave(d, i);
    }
    return *rc != 0;
}

int rp_doors_accept(struct rp_doors *d, int timeout_ms, struct rp_conn **out, struct rp_greeting *greeting)
{
    struct pollfd fds[2 + RP_HALL_MAX + 1];
    unsigned n = d->n;
    eventfd_t woken;
    int rc;
    show_out(d);
    for (unsigned i = 0; i < d->n; i++) {
        struct rp_door *door = &d->doors[i];
        reopen(door);
        fds[i] = (struct pollfd){.fd = door->listener ? door->listener->ops->poll_fd(door->listener) : -1, .events = POLLIN};
    }
    for (unsigned i = 0; i < d->waiting; i++)
        fds[n++] = (struct pollfd){.fd = d->hall[i].conn->ops->poll_fd(d->hall[i].conn), .events = POLLIN};
    fds[n] = (struct pollfd){.fd = d->wake_fd, .events = POLLIN};
    if (poll(fds, n + 1, timeout_ms) <= 0 || (fds[n].revents && eventfd_read(d->wake_fd, &woken) == 0))
        return -EAGAIN;
    for (unsigned i = 0; i < d->waiting; i++)
        if (fds[d->n + i].revents && hear(d, i, &rc)) {
            if (rc < 0)
                return -EAGAIN;     /* the others have moved up: they are heard at the next call */
            *out = d->hall[i].conn;
            *greeting = d->hall[i].greeting;
            leave(d, i);
            return 0;
        }
    struct rp_conn *c;
    for (unsigned i = 0; i < d->n; i++)
        if (fds[i].revents && try_door(&d->doors[i], &c) == 0)
            enter(d, c);
    return -EAGAIN;
}
