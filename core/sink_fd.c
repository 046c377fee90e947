/*
 * A sink that writes the stream to a file or a pipe. Small records are gathered, large ones written behind them at once.
 *
 * A file's room is reserved some way ahead of what is written: the filesystem then finds it once for many megabytes instead of at every page
 * (ext4: a write costs 0.12 s per GiB instead of 0.19). If it is to be synced, what has been written is sent on its way to the disk at once, so
 * that the sync at the end finds little left. Both are hints: a filesystem that has neither is written as it is.
 */
#include "core/fault.h"
#include "core/sink.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#define GATHER (256u << 10)
#define AHEAD (32u << 20)
#define ON_ITS_WAY (8u << 20)

struct sink_fd {
    struct rp_sink base;
    int fd;
    int flags_before;           /* of fd, to be put back; -1: untouched */
    bool sync;
    struct rp_sink_events events;
    struct rp_buf small;        /* emitting thread: sealed records not yet written */
    uint64_t seq, epochs;       /* emitting thread */
    bool new_file;              /* constant: a file that was empty, whose room can be reserved */
    uint64_t reserved, sent;    /* emitting thread: its room is there up to here; it is on its way to the disk up to here */
    bool broken;                /* emitting thread: a write failed, so nothing may follow: the stream ends torn and reads so */
    _Atomic uint64_t bytes;
    _Atomic bool cancelled;
};

static struct sink_fd *of(struct rp_sink *s)
{
    return (struct sink_fd *)s;
}

static int wait_writable(struct sink_fd *s)
{
    struct pollfd p = {.fd = s->fd, .events = POLLOUT};
    while (poll(&p, 1, 100) == 0)
        if (atomic_load(&s->cancelled))
            return -EPIPE;
    return atomic_load(&s->cancelled) ? -EPIPE : 0;
}

static const char *write_error(int code)
{
    switch (code) {
    case EPIPE: return "the reader has gone";
    case ENOSPC: return "no space left: free some, or write elsewhere";
    case EFBIG: return "larger than a file may be here (ulimit -f, filesystem limit)";
    case EDQUOT: return "the disk quota is used up";
    default: return strerror(code);
    }
}

/* Before `more` bytes are written. */
static void reserve(struct sink_fd *s, uint64_t more)
{
    uint64_t need = atomic_load(&s->bytes) + more;
    if (!s->new_file || s->reserved >= need)
        return;
    uint64_t to = (need + AHEAD) / AHEAD * AHEAD;
    /* What fails here fails in the write, and is told there. */
    s->reserved = fallocate(s->fd, FALLOC_FL_KEEP_SIZE, (off_t)s->reserved, (off_t)(to - s->reserved)) == 0 ? to : UINT64_MAX;
}

static void send_on_its_way(struct sink_fd *s)
{
    uint64_t bytes = atomic_load(&s->bytes);
    if (!s->new_file || !s->sync || bytes - s->sent < ON_ITS_WAY)
        return;
    if (sync_file_range(s->fd, (off_t)s->sent, (off_t)(bytes - s->sent), SYNC_FILE_RANGE_WRITE) < 0) {
        /* the sync at the end does it, and says what is wrong */
    }
    s->sent = bytes;
}

static int write_iov(struct sink_fd *s, struct iovec *iov, int n, struct rp_error *err)
{
    while (n > 0) {
        if (iov->iov_len == 0) {
            iov++;
            n--;
            continue;
        }
        if (rp_fault(RP_FAULT_SINK_WRITE))
            return rp_error_set(err, EIO, "writing the stream at byte %llu: fault point", (unsigned long long)atomic_load(&s->bytes));
        if (wait_writable(s) < 0)
            return rp_error_set(err, EPIPE, "writing the stream was cancelled");
        ssize_t w = writev(s->fd, iov, n);
        if (w < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (w < 0)
            return rp_error_set(err, errno, "writing the stream at byte %llu: %s", (unsigned long long)atomic_load(&s->bytes),
                                write_error(errno));
        atomic_fetch_add(&s->bytes, (uint64_t)w);
        for (size_t left = (size_t)w; left > 0;) {
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

static int write_all(struct sink_fd *s, struct iovec *iov, int n, struct rp_error *err)
{
    if (s->broken)
        return rp_error_set(err, EPIPE, "the stream broke at byte %llu", (unsigned long long)atomic_load(&s->bytes));
    uint64_t more = 0;
    for (int i = 0; i < n; i++)
        more += iov[i].iov_len;
    reserve(s, more);
    int rc = write_iov(s, iov, n, err);
    s->broken = rc < 0;
    send_on_its_way(s);
    return rc;
}

static int write_small(struct sink_fd *s, struct rp_error *err)
{
    struct iovec iov = {s->small.data, s->small.len};
    int rc = write_all(s, &iov, 1, err);
    rp_buf_reset(&s->small);
    return rc;
}

static int put_small(struct sink_fd *s, int rc, struct rp_error *err)
{
    s->seq++;
    return rc < 0 ? rp_error_set(err, rc, "no memory for a record") : 0;
}

static int fd_start(struct rp_sink *base, const struct rp_sink_events *events, struct rp_error *err)
{
    struct sink_fd *s = of(base);
    s->events = *events;
    return put_small(s, rp_put_begin(&s->small, s->seq), err);
}

static int fd_emit(struct rp_sink *base, struct rp_buf *record, struct rp_error *err)
{
    struct sink_fd *s = of(base);
    int rc = rp_record_seal(record, 0, s->seq++);
    if (rc < 0)
        return rp_error_set(err, rc, "a record could not be made");
    if (record->len < GATHER / 4) {
        rp_buf_put(&s->small, record->data, record->len);
        if (s->small.failed)
            return rp_error_set(err, ENOMEM, "no memory for a record");
        return s->small.len >= GATHER ? write_small(s, err) : 0;
    }
    struct iovec iov[2] = {{s->small.data, s->small.len}, {record->data, record->len}};
    rc = write_all(s, iov, 2, err);
    rp_buf_reset(&s->small);
    return rc;
}

static int sync_fd(struct sink_fd *s, struct rp_error *err)
{
    if (!s->sync)
        return 0;
    if (rp_fault(RP_FAULT_SINK_SYNC))
        return rp_error_set(err, EIO, "syncing the stream: fault point");
    if (fdatasync(s->fd) < 0 && errno != EINVAL && errno != EROFS)     /* EINVAL: a pipe */
        return rp_error_set(err, errno, "syncing the stream: %s", strerror(errno));
    return 0;
}

static int fd_flush(struct rp_sink *base, uint64_t epoch, struct rp_error *err)
{
    struct sink_fd *s = of(base);
    int rc = write_small(s, err);
    if (rc == 0)
        rc = sync_fd(s, err);
    if (rc < 0)
        return rc;
    s->epochs++;
    s->events.committed(s->events.ctx, base, epoch);
    return 0;
}

static void fd_cancel(struct rp_sink *base)
{
    atomic_store(&of(base)->cancelled, true);
}

static void fd_destroy(struct rp_sink *base)
{
    struct sink_fd *s = of(base);
    rp_buf_fini(&s->small);
    if (s->flags_before >= 0)
        (void)fcntl(s->fd, F_SETFL, s->flags_before);
    close(s->fd);
    free(s);
}

static const struct rp_sink_ops fd_ops = {
    .name = "file", .start = fd_start, .emit = fd_emit, .flush = fd_flush, .cancel = fd_cancel, .destroy = fd_destroy,
};

/* A blocking write to a pipe could not be cancelled while its reader sleeps. Returns the flags to put back, or -1. */
static int make_nonblocking(int fd)
{
    struct stat st;
    if (fstat(fd, &st) < 0 || !(S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode)))
        return -1;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || (flags & O_NONBLOCK) || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -1;
    return flags;
}

/* tmpfs gains nothing: there reserving is the work. */
static bool is_new_file(int fd)
{
    struct stat st;
    struct statfs fs;
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == 0 && fstatfs(fd, &fs) == 0 && fs.f_type != TMPFS_MAGIC;
}

int rp_sink_fd_create(int fd, bool sync, struct rp_sink **out, struct rp_error *err)
{
    struct sink_fd *s = calloc(1, sizeof(*s));
    if (!s)
        return rp_error_set(err, ENOMEM, "no memory for a file sink");
    s->base.ops = &fd_ops;
    s->fd = fd;
    s->flags_before = make_nonblocking(fd);
    s->sync = sync;
    s->new_file = is_new_file(fd);
    *out = &s->base;
    return 0;
}

int rp_sink_fd_finish(struct rp_sink *base, struct rp_error *err)
{
    struct sink_fd *s = of(base);
    int rc = put_small(s, rp_put_end(&s->small, s->seq, s->epochs), err);
    if (rc == 0)
        rc = write_small(s, err);
    if (rc == 0 && s->new_file && ftruncate(s->fd, (off_t)atomic_load(&s->bytes)) < 0) {
        /* room that nobody needs stays reserved */
    }
    return rc == 0 ? sync_fd(s, err) : rc;
}

uint64_t rp_sink_fd_bytes(const struct rp_sink *base)
{
    return atomic_load(&((const struct sink_fd *)base)->bytes);
}
