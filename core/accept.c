#include "core/accept.h"

#include "core/log.h"

#include <errno.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int reserve = -1;        /* lock */

static int take(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

static void turn_away(int listener, int rc)
{
    int fd;
    close(reserve);
    fd = take(listener);
    if (fd >= 0)
        close(fd);
    reserve = eventfd(0, EFD_CLOEXEC);
    rp_log(RP_LOG_WARN, "a connection was turned away: %s", rc == -EMFILE ? "this process has all the descriptors it may have (ulimit -n)"
                                                                           : "the host has no more descriptors (fs.file-max)");
}

int rp_accept(int listener)
{
    int rc;
    pthread_mutex_lock(&lock);
    if (reserve < 0)
        reserve = eventfd(0, EFD_CLOEXEC);
    rc = take(listener);
    if ((rc == -EMFILE || rc == -ENFILE) && reserve >= 0)
        turn_away(listener, rc);
    pthread_mutex_unlock(&lock);
    return rc;
}

int rp_unlink_socket(const char *path)
{
    struct stat st;
    if (lstat(path, &st) != 0)
        return -1;
    if (!S_ISSOCK(st.st_mode)) {
        errno = EEXIST;
        return -1;
    }
    return unlink(path);
}
