#include "core/accept.h"

#include "core/log.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
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

/* 0: a living process has a socket bound there. -ECONNREFUSED, -ENOENT: none. It is asked for with the wrong type (EPROTOTYPE): a connection
 * would be taken for a client, and waits where many do. */
static int is_bound(const struct sockaddr_un *at)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int rc = fd < 0 || connect(fd, (const struct sockaddr *)at, sizeof(*at)) < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return rc == -EPROTOTYPE ? 0 : rc;
}

int rp_clear_socket(const struct sockaddr_un *at, const char *what, struct rp_error *err)
{
    int rc = is_bound(at);
    if (rc == 0)
        return rp_error_exit(err, RP_EXIT_REFUSED, EADDRINUSE, "%s is in use: something answers on %s; take another or end that one first",
                             what, at->sun_path);
    struct stat st;
    if (lstat(at->sun_path, &st) != 0)
        return 0;       /* what else is wrong, bind says */
    if (!S_ISSOCK(st.st_mode))
        return rp_error_exit(err, RP_EXIT_USAGE, EEXIST, "%s: %s is there and is no socket; it is left alone, give another path", what,
                             at->sun_path);
    if (rc != -ECONNREFUSED)
        return rp_error_set(err, -rc, "%s: %s: %s", what, at->sun_path, strerror(-rc));
    unlink(at->sun_path);
    return 0;
}
