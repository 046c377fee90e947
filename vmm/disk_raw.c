/* Raw files and block devices through io_uring: one ring per disk. The contract is in disk.h. */
#include "core/disk_mark.h"
#include "core/log.h"
#include "vmm/disk.h"
#include "vmm/loop.h"
#include "vmm/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define RING_ENTRIES 256u
#define COMPLETIONS 4096u           /* as many as requests can be in flight (virtio_blk.c) */
#define ZERO_CHUNK (1u << 20)       /* where the filesystem cannot zero a range: written, this much at a time */

struct raw {
    struct rp_disk d;
    int fd;
    struct io_uring ring;
    struct rp_loop *loop;
    bool reaping;
    bool through;           /* shared: a write is done when another host would see it after our death */
    uint8_t *zeroes;        /* ZERO_CHUNK of them, NULL: not needed yet; what a request's scratch points to */
    char name[256];
};

/* --- requests --- */

static void prepare(struct raw *r, struct io_uring_sqe *sqe, struct rp_disk_req *q)
{
    uint64_t off = q->offset_bytes + q->progress, left = q->len_bytes - q->progress;
    unsigned n = left > (1u << 30) ? 1u << 30 : (unsigned)left;

    switch (q->op) {
    case RP_DISK_READ: io_uring_prep_read(sqe, r->fd, q->buf + q->progress, n, off); break;
    case RP_DISK_WRITE: io_uring_prep_write(sqe, r->fd, q->buf + q->progress, n, off); break;
    case RP_DISK_FLUSH: io_uring_prep_fsync(sqe, r->fd, IORING_FSYNC_DATASYNC); break;
    case RP_DISK_DISCARD:
        io_uring_prep_fallocate(sqe, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)left);
        break;
    case RP_DISK_ZERO:
        if (q->scratch)
            io_uring_prep_write(sqe, r->fd, q->scratch, left < ZERO_CHUNK ? (unsigned)left : ZERO_CHUNK, off);
        else
            io_uring_prep_fallocate(sqe, r->fd, FALLOC_FL_KEEP_SIZE | (q->unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE),
                                    (off_t)off, (off_t)left);
        break;
    }
    if (r->through && (q->op == RP_DISK_WRITE || q->op == RP_DISK_ZERO))
        sqe->rw_flags = RWF_DSYNC;
    io_uring_sqe_set_data(sqe, q);
}

static void queue_sqe(struct raw *r, struct rp_disk_req *q)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);

    while (!sqe) {          /* full: hand over what is there; the kernel then has consumed the entries */
        int rc = io_uring_submit(&r->ring);

        if (rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY)
            rp_log(RP_LOG_ERROR, "disk %s: io_uring: %s", r->name, strerror(-rc));
        sqe = io_uring_get_sqe(&r->ring);
    }
    prepare(r, sqe, q);
}

/* One buffer for all requests: a guest may have thousands of them in flight. */
static uint8_t *zeroes(struct raw *r)
{
    if (!r->zeroes)
        r->zeroes = calloc(1, ZERO_CHUNK);
    return r->zeroes;
}

static void raw_submit(struct rp_disk *d, struct rp_disk_req *q)
{
    struct raw *r = (struct raw *)(void *)d;

    q->progress = 0;
    q->scratch = NULL;
    if (r->through && q->op == RP_DISK_ZERO)    /* there is no fallocate that waits for the storage */
        q->scratch = zeroes(r);
    if (r->through && q->op == RP_DISK_ZERO && !q->scratch) {
        q->next = d->failed;
        d->failed = q;
        return;
    }
    queue_sqe(r, q);
}

/* The file, or the filesystem, cannot do that; or the range is not of whole blocks of a device whose blocks are larger than a sector. */
static bool cannot(int res)
{
    return res == -EOPNOTSUPP || res == -ENOSYS || res == -EINVAL;
}

/* True when the request is finished with *rc; false when it goes on. */
static bool advance(struct raw *r, struct rp_disk_req *q, int *rc)
{
    int res = *rc;

    if (res == -EINTR || res == -EAGAIN) {
        queue_sqe(r, q);
        return false;
    }
    if (q->op == RP_DISK_DISCARD) {
        if (cannot(res))
            *rc = 0;        /* a hint only */
        return true;
    }
    if (q->op == RP_DISK_ZERO && !q->scratch) {
        if (!cannot(res))
            return true;
        q->scratch = zeroes(r);
        if (!q->scratch) {
            *rc = -ENOMEM;
            return true;
        }
        queue_sqe(r, q);
        return false;
    }
    if (res < 0 || q->op == RP_DISK_FLUSH)
        return true;
    if (res == 0) {
        *rc = -EIO;         /* the file is shorter than it was */
        return true;
    }
    q->progress += (uint64_t)res;
    if (q->progress < q->len_bytes) {
        queue_sqe(r, q);    /* short: the rest */
        return false;
    }
    *rc = 0;
    return true;
}

static void reap(struct raw *r)
{
    struct io_uring_cqe *cqe;
    bool any = false;

    if (r->reaping)
        return;             /* a `done` kicked: the outer call goes on */
    r->reaping = true;
    for (;;) {
        while (io_uring_peek_cqe(&r->ring, &cqe) == 0) {
            struct rp_disk_req *q = io_uring_cqe_get_data(cqe);
            int rc = cqe->res;

            io_uring_cqe_seen(&r->ring, cqe);
            if (!advance(r, q, &rc))
                continue;
            q->scratch = NULL;
            r->d.in_flight--;
            any = true;
            q->done(q, rc > 0 ? 0 : rc);
        }
        if (io_uring_sq_ready(&r->ring) == 0)
            break;
        if (io_uring_submit(&r->ring) < 0)
            break;          /* busy: the loop comes back when the completions are there */
    }
    r->reaping = false;
    if (any && r->d.batch_end)
        r->d.batch_end(r->d.ctx);
}

/* What could not even be submitted. */
static void tell_failed(struct rp_disk *d)
{
    while (d->failed) {
        struct rp_disk_req *q = d->failed;

        d->failed = q->next;
        d->in_flight--;
        q->done(q, -ENOMEM);
    }
}

static void raw_kick(struct rp_disk *d)
{
    struct raw *r = (struct raw *)(void *)d;

    tell_failed(d);
    if (io_uring_sq_ready(&r->ring))
        (void)io_uring_submit(&r->ring);
    reap(r);                /* what the page cache served is done already */
}

static void on_ring(void *ctx, uint32_t events)
{
    (void)events;
    reap(ctx);
}

static void raw_drain(struct rp_disk *d)
{
    struct raw *r = (struct raw *)(void *)d;
    struct io_uring_cqe *cqe;

    tell_failed(d);
    while (d->in_flight) {
        (void)io_uring_submit(&r->ring);
        if (io_uring_wait_cqe(&r->ring, &cqe) == 0)
            reap(r);
    }
}

/* --- opening --- */

static int raw_lock(struct rp_disk *d, bool on, struct rp_error *err)
{
    struct raw *r = (struct raw *)(void *)d;
    struct flock fl = {.l_type = (short)(!on ? F_UNLCK : d->readonly ? F_RDLCK : F_WRLCK), .l_whence = SEEK_SET};

    if (fcntl(r->fd, F_OFD_SETLK, &fl) == 0)
        return 0;
    if (errno == EAGAIN || errno == EACCES)
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "disk %s: locked by another VM, or given twice", r->name);
    rp_log(RP_LOG_WARN, "disk %s: cannot be locked (%m): nothing keeps another VM from using it", r->name);
    return 0;
}

/* Somebody's copy, or a disk that may be stale, is not used by accident. */
static int check_mark(const struct raw *r, const struct rp_disk_config *cfg, struct rp_error *err)
{
    char mark[RP_DISK_PATH_MAX];

    if (cfg->take || rp_disk_mark_path(cfg->path, cfg->state, ".reprise", mark, NULL) < 0)
        return 0;           /* without a place for a mark there is none, and it is never protected as a private disk */
    return rp_disk_mark_check(r->name, mark, err);
}

static int open_file(struct raw *r, const struct rp_disk_config *cfg, struct rp_error *err)
{
    if (cfg->path) {
        r->fd = open(cfg->path, (cfg->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);
        if (r->fd < 0)
            return rp_error_exit(err, RP_EXIT_USAGE, errno, "disk %s: %m%s", cfg->path,
                                errno == EACCES && !cfg->readonly ? " (for writing; ro attaches it read-only)" : "");
        return 0;
    }
    int flags = fcntl(cfg->fd, F_GETFL);

    if (flags < 0)
        return rp_error_set(err, errno, "disk descriptor %d: %m", cfg->fd);
    if (!cfg->readonly && (flags & O_ACCMODE) != O_RDWR)
        return rp_error_exit(err, RP_EXIT_USAGE, EACCES, "disk descriptor %d: is not open for reading and writing; whoever starts reprise has to open "
                             "it so%s", cfg->fd, (flags & O_ACCMODE) == O_RDONLY ? " (ro attaches it read-only)" : "");
    r->fd = cfg->fd;
    return 0;
}

static int measure(struct raw *r, struct rp_error *err)
{
    struct stat st;

    if (fstat(r->fd, &st))
        return rp_error_set(err, errno, "disk %s: %m", r->name);
    if (S_ISBLK(st.st_mode)) {
        if (ioctl(r->fd, BLKGETSIZE64, &r->d.size_bytes))
            return rp_error_set(err, errno, "disk %s: its size: %m", r->name);
    } else if (S_ISREG(st.st_mode)) {
        r->d.size_bytes = (uint64_t)st.st_size;
    } else {
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "disk %s: neither a file nor a block device; give one of these", r->name);
    }
    if (r->d.size_bytes < 512)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "disk %s: %s (make one with: truncate -s 10G FILE)", r->name,
                             r->d.size_bytes ? "is shorter than a sector of 512 bytes" : "is empty");
    return 0;
}

static void raw_destroy(struct rp_disk *d)
{
    struct raw *r = (struct raw *)(void *)d;

    (void)raw_lock(d, false, NULL);     /* the ring lets go of the file only some time after its exit */
    rp_loop_remove(r->loop, r->ring.ring_fd);
    io_uring_queue_exit(&r->ring);
    close(r->fd);
    free(r->zeroes);
    free(r);
}

static int raw_read_now(struct rp_disk *d, void *buf, uint64_t len, uint64_t offset)
{
    return rp_read_all(((struct raw *)(void *)d)->fd, buf, len, offset);
}

static int raw_extent(struct rp_disk *d, uint64_t offset, bool *hole, uint64_t *len)
{
    int fd = ((struct raw *)(void *)d)->fd;
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA), end;

    if (data < 0 && errno != ENXIO)
        return -errno;
    *hole = data != (off_t)offset;
    if (data < 0)
        end = (off_t)d->size_bytes;     /* a hole up to the end */
    else
        end = *hole ? data : lseek(fd, (off_t)offset, SEEK_HOLE);
    if (end < (off_t)offset)
        return -EIO;
    *len = (uint64_t)end - offset;
    return 0;
}

static const struct rp_disk_ops raw_ops = {
    .name = "raw", .submit = raw_submit, .kick = raw_kick, .drain = raw_drain, .lock = raw_lock, .destroy = raw_destroy,
    .read_now = raw_read_now, .extent = raw_extent};

int rp_disk_raw_open(const struct rp_disk_config *cfg, struct rp_loop *loop, struct rp_disk **out, struct rp_error *err)
{
    struct io_uring_params params = {.flags = IORING_SETUP_CQSIZE, .cq_entries = COMPLETIONS};
    struct raw *r = calloc(1, sizeof(*r));
    int rc;

    if (!r)
        return rp_error_set(err, ENOMEM, "disk: no memory");
    r->d = (struct rp_disk){.ops = &raw_ops, .readonly = cfg->readonly, .can_discard = true, .can_zero = true};
    r->loop = loop;
    r->through = cfg->shared;
    if (cfg->path)
        snprintf(r->name, sizeof(r->name), "%s", cfg->path);
    else
        snprintf(r->name, sizeof(r->name), "descriptor %d", cfg->fd);
    rc = open_file(r, cfg, err);
    if (rc)
        goto free_raw;
    rc = measure(r, err);
    if (rc == 0)
        rc = raw_lock(&r->d, true, err);
    if (rc == 0)
        rc = check_mark(r, cfg, err);
    if (rc == 0 && cfg->shared)
        (void)ioctl(r->fd, BLKFLSBUF, 0);       /* a device: what this host has cached of it may be old */
    if (rc)
        goto close_fd;
    rc = io_uring_queue_init_params(RING_ENTRIES, &r->ring, &params);
    if (rc) {
        rp_error_exit(err, RP_EXIT_HOST, -rc, "disk %s: io_uring is not available here: %s (kernel.io_uring_disabled, or a limit on locked memory)",
                      r->name, strerror(-rc));
        goto close_fd;
    }
    rc = rp_loop_add(loop, r->ring.ring_fd, EPOLLIN, on_ring, r);
    if (rc) {
        rp_error_set(err, rc, "disk %s: cannot be watched", r->name);
        goto exit_ring;
    }
    *out = &r->d;
    return 0;
exit_ring:
    io_uring_queue_exit(&r->ring);
close_fd:
    if (cfg->path)
        close(r->fd);
free_raw:
    free(r);
    return rc;
}

static bool is_nbd(const struct rp_disk_config *cfg)
{
    return cfg->path && (strncmp(cfg->path, "nbd://", 6) == 0 || strncmp(cfg->path, "nbd+unix://", 11) == 0 ||
                         strncmp(cfg->path, "nbds://", 7) == 0);
}

bool rp_disk_is_private(const struct rp_disk_config *cfg)
{
    return !cfg->shared && !cfg->readonly && !is_nbd(cfg);
}

int rp_disk_open(const struct rp_disk_config *cfg, struct rp_loop *loop, struct rp_disk **out, struct rp_error *err)
{
    return is_nbd(cfg) ? rp_disk_nbd_open(cfg, loop, out, err) : rp_disk_raw_open(cfg, loop, out, err);
}
