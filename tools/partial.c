#include "tools/partial.h"

#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TRIES 16

static int io_error(const char *path, struct rp_error *err)
{
    return rp_error_set(err, errno, "%s: %s", path, strerror(errno));
}

static int busy(const char *path, struct rp_error *err)
{
    return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "%s: another checkpoint is being written there; wait for it or give another path", path);
}

/* Could an interrupted checkpoint have left this? A file with a second name may be somebody's disk. */
static int check_leftover(const char *path, const struct stat *st, struct rp_error *err)
{
    const char *what = !S_ISREG(st->st_mode) ? "is no regular file" : st->st_uid != geteuid() ? "belongs to another user" :
                       st->st_nlink > 1 ? "has other names (hard links)" : NULL;
    return !what ? 0 : rp_error_exit(err, RP_EXIT_USAGE, EEXIST, "%s: is there and %s, so it is not what an interrupted checkpoint left; "
                                     "remove it or give another path", path, what);
}

/* The file may be renamed or removed by its holder between our opening and our locking it. */
static bool still_names(const char *path, int fd)
{
    struct stat a, b;
    return fstat(fd, &a) == 0 && lstat(path, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static int lock(const char *path, int fd, struct rp_error *err)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &fl) == 0)
        return 0;
    if (errno == EAGAIN || errno == EACCES)
        return busy(path, err);
    rp_log(RP_LOG_WARN, "checkpoint: %s: cannot be locked (%m): nothing keeps another VM from writing to it", path);
    return 0;
}

/* A descriptor of what is there, which nothing was done to yet. It is looked at first: to open a device can do something to it. What takes its
 * place meanwhile is not followed or waited for, and found out then. */
static int open_leftover(const char *path, struct rp_error *err)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return io_error(path, err);
    int rc = check_leftover(path, &st, err);
    if (rc < 0)
        return rc;
    int fd = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return io_error(path, err);
    rc = fstat(fd, &st) < 0 ? io_error(path, err) : check_leftover(path, &st, err);
    if (rc == 0)
        return fd;
    close(fd);
    return rc;
}

/* Closed to others before it is emptied. What was made here is so from the start, and on some filesystems has an owner and a mode of their own. */
static int empty(const char *path, int fd, bool made, struct rp_error *err)
{
    if (!made && fchmod(fd, 0600) < 0)
        return io_error(path, err);
    return ftruncate(fd, 0) < 0 ? io_error(path, err) : 0;
}

/* -EAGAIN: it went away meanwhile. */
static int try_open(const char *path, int *fd_out, struct rp_error *err)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    bool made = fd >= 0;
    if (!made && (errno == ENOENT || errno == ENOTDIR))
        return rp_error_exit(err, RP_EXIT_USAGE, errno, "%s: its folder is not there; make it or give another path", path);
    if (!made && errno != EEXIST)
        return io_error(path, err);
    if (!made)
        fd = open_leftover(path, err);
    if (fd < 0)
        return fd == -ENOENT ? -EAGAIN : fd;
    int rc = lock(path, fd, err);
    if (rc == 0 && !still_names(path, fd))
        rc = -EAGAIN;
    if (rc == 0)
        rc = empty(path, fd, made, err);
    if (rc < 0)
        close(fd);
    else
        *fd_out = fd;
    return rc;
}

int rp_partial_open(const char *path, int *fd_out, struct rp_error *err)
{
    for (int i = 0; i < TRIES; i++) {
        int rc = try_open(path, fd_out, err);
        if (rc != -EAGAIN)
            return rc;
        rp_error_clear(err);
    }
    return busy(path, err);
}

int rp_partial_rename(const char *path, int fd, const char *to, struct rp_error *err)
{
    if (!still_names(path, fd))
        return rp_error_set(err, ESTALE, "%s: was removed or replaced while the checkpoint was written to it; try again", path);
    return rename(path, to) < 0 ? io_error(to, err) : 0;
}

void rp_partial_remove(const char *path, int fd)
{
    if (still_names(path, fd) && unlink(path) < 0)
        rp_log(RP_LOG_WARN, "checkpoint: %s: half a checkpoint cannot be removed (%m): remove it", path);
}
