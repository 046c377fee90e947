#include "replicator/doors.h"

#include "core/clock.h"
#include "core/log.h"

#include <errno.h>
#include <poll.h>

#define RETRY_NS 1000000000u

void rp_doors_init(struct rp_doors *d, struct rp_listener *l)
{
    struct rp_error why = {0};
    *d = (struct rp_doors){.n = 1, .doors = {{.uri = l->uri, .listener = l}}};
    if (l->uri.scheme != RP_URI_RDMA)
        return;
    struct rp_door *spare = &d->doors[1];
    spare->uri = l->uri;
    spare->uri.scheme = RP_URI_TCP;
    if (rp_listen(&spare->uri, &spare->listener, &why) < 0)
        rp_log(RP_LOG_WARN, "%s: should rdma break, there is no other way here", why.text);
    else
        d->n = 2;
}

void rp_doors_fini(struct rp_doors *d)
{
    for (unsigned i = 0; i < d->n; i++)
        rp_listener_close(d->doors[i].listener);
    *d = (struct rp_doors){0};
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

int rp_doors_accept(struct rp_doors *d, int timeout_ms, struct rp_conn **out)
{
    struct pollfd fds[2];
    for (unsigned i = 0; i < d->n; i++) {
        struct rp_door *door = &d->doors[i];
        reopen(door);
        fds[i] = (struct pollfd){.fd = door->listener ? door->listener->ops->poll_fd(door->listener) : -1, .events = POLLIN};
    }
    if (poll(fds, d->n, timeout_ms) <= 0)
        return -EAGAIN;
    for (unsigned i = 0; i < d->n; i++)
        if (fds[i].revents && try_door(&d->doors[i], out) == 0)
            return 0;
    return -EAGAIN;
}
