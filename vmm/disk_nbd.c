/* An NBD export through libnbd's asynchronous calls. The contract is in disk.h; the URI is libnbd's (nbd_aio_connect(3)). */
#include "core/clock.h"
#include "core/log.h"
#include "core/thread.h"
#include "vmm/disk.h"
#include "vmm/loop.h"
#include "vmm/machine.h"

#include <errno.h>
#include <libnbd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#define CONNECT_NS 5000000000ull         /* at a takeover nobody is answered meanwhile: less than they wait for that (tools/client.c) */
#define CONNECT_LOOK_MS 100             /* between two looks at whether to go on */

struct nbd {
    struct rp_disk d;
    struct nbd_handle *h;
    struct rp_loop *loop;
    struct rp_disk_req *failed;     /* could not even be sent: reported at the next kick */
    struct rp_disk_req *over, **over_end;   /* completed, their errno in `progress`: reported once libnbd's call has returned */
    bool any;                       /* something completed since batch_end */
    uint32_t events;                /* what the loop watches for */
    int fd;
    char uri[256];
};

/* libnbd's errors are global strings; this is where they become ours. */
static int nbd_error(const struct nbd *n, struct rp_error *err, const char *what)
{
    int e = nbd_get_errno();

    return rp_error_set(err, e ? e : EIO, "disk %s: %s: %s", n->uri, what, nbd_get_error());
}

/* libnbd holds its handle's lock: whoever is told submits what waited for this one, and would wait for that lock for ever. */
static int on_complete(void *ctx, int *error)
{
    struct rp_disk_req *q = ctx;
    struct nbd *n = (struct nbd *)(void *)q->scratch;

    q->progress = (uint64_t)*error;
    q->next = NULL;
    *n->over_end = q;
    n->over_end = &q->next;
    return 1;           /* libnbd forgets the command */
}

static void tell(struct nbd *n, struct rp_disk_req *q, int rc)
{
    q->scratch = NULL;
    n->d.in_flight--;
    n->any = true;
    q->done(q, rc);
}

static void nbd_submit(struct rp_disk *d, struct rp_disk_req *q)
{
    struct nbd *n = (struct nbd *)(void *)d;
    nbd_completion_callback cb = {.callback = on_complete, .user_data = q};
    int64_t cookie = 0;

    q->scratch = (uint8_t *)(void *)n;      /* so that the completion finds its disk */
    switch (q->op) {
    case RP_DISK_READ: cookie = nbd_aio_pread(n->h, q->buf, q->len_bytes, q->offset_bytes, cb, 0); break;
    case RP_DISK_WRITE: cookie = nbd_aio_pwrite(n->h, q->buf, q->len_bytes, q->offset_bytes, cb, 0); break;
    case RP_DISK_FLUSH: cookie = nbd_aio_flush(n->h, cb, 0); break;
    case RP_DISK_DISCARD: cookie = nbd_aio_trim(n->h, q->len_bytes, q->offset_bytes, cb, 0); break;
    case RP_DISK_ZERO:
        cookie = nbd_aio_zero(n->h, q->len_bytes, q->offset_bytes, cb, q->unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE);
        break;
    }
    if (cookie < 0) {
        rp_log(RP_LOG_WARN, "disk %s: %s", n->uri, nbd_get_error());
        q->next = n->failed;
        n->failed = q;
    }
}

/* The loop watches for what libnbd waits for. */
static void watch(struct nbd *n)
{
    unsigned dir = nbd_aio_get_direction(n->h);
    uint32_t events = (dir & LIBNBD_AIO_DIRECTION_READ ? (uint32_t)EPOLLIN : 0) |
                      (dir & LIBNBD_AIO_DIRECTION_WRITE ? (uint32_t)EPOLLOUT : 0);

    if (n->fd < 0)
        return;
    if (nbd_aio_is_dead(n->h) || nbd_aio_is_closed(n->h)) {
        rp_log(RP_LOG_ERROR, "disk %s: the connection was lost: its requests fail from now on", n->uri);
        rp_loop_remove(n->loop, n->fd);
        n->fd = -1;
    } else if (events != n->events && rp_loop_modify(n->loop, n->fd, events) == 0) {
        n->events = events;
    }
}

static void finish(struct nbd *n)
{
    while (n->failed || n->over) {
        struct rp_disk_req *q = n->over ? n->over : n->failed;

        if (q == n->over) {
            n->over = q->next;
            n->over_end = n->over ? n->over_end : &n->over;
            tell(n, q, -(int)q->progress);
        } else {
            n->failed = q->next;
            tell(n, q, -EIO);
        }
    }
    watch(n);
    if (n->any && n->d.batch_end) {
        n->any = false;
        n->d.batch_end(n->d.ctx);
    }
}

static void on_socket(void *ctx, uint32_t events)
{
    struct nbd *n = ctx;
    unsigned dir = nbd_aio_get_direction(n->h);

    /* one of the two per round: each may change the direction */
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && (dir & LIBNBD_AIO_DIRECTION_READ))
        (void)nbd_aio_notify_read(n->h);
    else if ((events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) && (dir & LIBNBD_AIO_DIRECTION_WRITE))
        (void)nbd_aio_notify_write(n->h);
    finish(n);
}

static void nbd_kick(struct rp_disk *d)
{
    finish((struct nbd *)(void *)d);    /* libnbd sends when it is asked to */
}

static void nbd_drain(struct rp_disk *d)
{
    struct nbd *n = (struct nbd *)(void *)d;

    while (d->in_flight) {
        if (!n->failed && !n->over && nbd_poll(n->h, -1) < 0 && !n->failed && !n->over && nbd_aio_in_flight(n->h) <= 0)
            break;      /* dead: libnbd has failed what it had */
        finish(n);
    }
}

/* The server decides who may use an export. */
static int nbd_lock(struct rp_disk *d, bool on, struct rp_error *err)
{
    (void)d;
    (void)on;
    (void)err;
    return 0;
}

static void nbd_destroy(struct rp_disk *d)
{
    struct nbd *n = (struct nbd *)(void *)d;

    if (n->fd >= 0) {
        rp_loop_remove(n->loop, n->fd);
        (void)nbd_shutdown(n->h, 0);
    }
    nbd_close(n->h);
    free(n);
}

static const struct rp_disk_ops nbd_ops = {
    .name = "nbd", .submit = nbd_submit, .kick = nbd_kick, .drain = nbd_drain, .lock = nbd_lock, .destroy = nbd_destroy};

static int negotiate(struct nbd *n, struct rp_error *err)
{
    int64_t size = nbd_get_size(n->h);

    if (size < 512)
        return rp_error_set(err, EINVAL, "disk %s: the export is empty", n->uri);
    if (!n->d.readonly && nbd_is_read_only(n->h) == 1)
        return rp_error_set(err, EROFS, "disk %s: the export is read-only (ro attaches it so)", n->uri);
    if (nbd_can_flush(n->h) != 1 && !n->d.readonly)
        return rp_error_set(err, ENOTSUP, "disk %s: the server cannot flush: a crash there would lose what the guest was told is safe", n->uri);
    n->d.size_bytes = (uint64_t)size;
    n->d.can_discard = nbd_can_trim(n->h) == 1;
    n->d.can_zero = nbd_can_zero(n->h) == 1;
    return 0;
}

static int unreachable(const struct nbd *n, struct rp_error *err)
{
    int rc = nbd_error(n, err, "cannot connect");

    if (err)
        err->exit = rc == -EINVAL ? RP_EXIT_USAGE : RP_EXIT_HOST;
    return rc;
}

/* A server that takes the connection and says nothing holds up a start, or a takeover, which tries again. */
static int connect_to(struct nbd *n, const char *uri, struct rp_error *err)
{
    uint64_t end = rp_clock_ns() + CONNECT_NS;

    if (nbd_aio_connect_uri(n->h, uri) < 0)
        return unreachable(n, err);
    while (nbd_aio_is_connecting(n->h) == 1) {
        if (rp_end_is_asked())
            return rp_error_set(err, ECANCELED, "disk %s: interrupted", n->uri);
        if (rp_clock_ns() >= end)
            return rp_error_exit(err, RP_EXIT_HOST, ETIMEDOUT, "disk %s: the server does not answer within %u s; see that it runs", n->uri,
                                 (unsigned)(CONNECT_NS / 1000000000u));
        if (nbd_poll(n->h, CONNECT_LOOK_MS) < 0)
            return unreachable(n, err);
    }
    return nbd_aio_is_ready(n->h) == 1 ? 0 : unreachable(n, err);
}

int rp_disk_nbd_open(const struct rp_disk_config *cfg, struct rp_loop *loop, struct rp_disk **out, struct rp_error *err)
{
    struct nbd *n = calloc(1, sizeof(*n));
    int rc;

    if (!n)
        return rp_error_set(err, ENOMEM, "disk: no memory");
    n->d = (struct rp_disk){.ops = &nbd_ops, .readonly = cfg->readonly};
    n->loop = loop;
    n->over_end = &n->over;
    n->fd = -1;
    snprintf(n->uri, sizeof(n->uri), "%s", cfg->path);
    n->h = nbd_create();
    if (!n->h) {
        rc = nbd_error(n, err, "libnbd");
        goto free_nbd;
    }
    rc = connect_to(n, cfg->path, err);
    if (rc == 0)
        rc = negotiate(n, err);
    if (rc)
        goto close_nbd;
    n->fd = nbd_aio_get_fd(n->h);
    n->events = EPOLLIN;
    rc = rp_loop_add(loop, n->fd, n->events, on_socket, n);
    if (rc) {
        rp_error_set(err, rc, "disk %s: cannot be watched", n->uri);
        goto close_nbd;
    }
    *out = &n->d;
    return 0;
close_nbd:
    nbd_close(n->h);
free_nbd:
    free(n);
    return rc;
}
