/* Where running VMs are found. */
#include "tools/runtime.h"

#include "core/accept.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define NAME_MAX_CHARS 63u
#define SUFFIX ".sock"

int rp_runtime_name_check(const char *name, struct rp_error *err)
{
    size_t n = strlen(name);
    bool good = n > 0 && n <= NAME_MAX_CHARS && name[0] != '.' && name[0] != '-';
    for (size_t i = 0; good && i < n; i++)
        good = isalnum((unsigned char)name[i]) || strchr("-_.", name[i]);
    if (good)
        return 0;
    return rp_error_exit(err, RP_EXIT_USAGE, EINVAL,
                         "\"%.80s\" cannot be a VM's name; use 1 to %u letters, digits, '-', '_' and '.', beginning with a letter or digit",
                         name, NAME_MAX_CHARS);
}

struct dirs { unsigned n; char path[2][4096]; };

/* The first one is where sockets are made; VMs are looked for in all. */
static void runtime_dirs(struct dirs *d)
{
    const char *own = getenv("REPRISE_RUNTIME_DIR"), *xdg = getenv("XDG_RUNTIME_DIR");
    bool given = own && *own, login = !given && xdg && *xdg;
    snprintf(d->path[0], sizeof(d->path[0]), "%s%s", given ? own : login ? xdg : "/run", given ? "" : "/reprise");
    if (login)
        snprintf(d->path[1], sizeof(d->path[1]), "/run/reprise");
    else
        snprintf(d->path[1], sizeof(d->path[1]), "/run/user/%u/reprise", (unsigned)getuid());
    d->n = given || strcmp(d->path[0], d->path[1]) == 0 ? 1 : 2;
}

static int socket_path(const char *dir, const char *name, char path[RP_RUNTIME_PATH_MAX], struct rp_error *err)
{
    if (snprintf(path, RP_RUNTIME_PATH_MAX, "%s/%s" SUFFIX, dir, name) >= RP_RUNTIME_PATH_MAX)
        return rp_error_exit(err, RP_EXIT_USAGE, ENAMETOOLONG, "%s/%s" SUFFIX ": longer than the %d bytes a socket's path may have", dir,
                             name, RP_RUNTIME_PATH_MAX - 1);
    return 0;
}

int rp_runtime_socket(const char *name, bool create, char path[RP_RUNTIME_PATH_MAX], struct rp_error *err)
{
    int rc = rp_runtime_name_check(name, err);
    if (rc < 0)
        return rc;
    struct dirs d;
    runtime_dirs(&d);
    const char *dir = d.path[0];
    if (create && mkdir(dir, 0700) < 0 && errno != EEXIST) {
        rc = errno;
        return rp_error_exit(err, RP_EXIT_HOST, rc, "runtime directory %s: %s; set REPRISE_RUNTIME_DIR to one that you can write to", dir,
                             strerror(rc));
    }
    return socket_path(dir, name, path, err);
}

static int address(const char *path, struct sockaddr_un *sa, struct rp_error *err)
{
    *sa = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(sa->sun_path))
        return rp_error_exit(err, RP_EXIT_USAGE, ENAMETOOLONG, "%s: longer than the %zu bytes a socket's path may have", path,
                             sizeof(sa->sun_path) - 1);
    memcpy(sa->sun_path, path, strlen(path) + 1);
    return 0;
}

/* 0: somebody listens there. -ECONNREFUSED, -ENOENT: nobody. */
static int try_connect(const struct sockaddr_un *sa, int *out)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) < 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    *out = fd;
    return 0;
}

/* The directory's lock is held: nobody else is between looking and binding. */
static int bind_locked(const struct sockaddr_un *sa, const char *what, int *out, struct rp_error *err)
{
    int rc = rp_clear_socket(sa, what, err);
    if (rc < 0)
        return rc;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return rp_error_set(err, errno, "%s: socket: %s", sa->sun_path, strerror(errno));
    if (bind(fd, (const struct sockaddr *)sa, sizeof(*sa)) < 0 || chmod(sa->sun_path, 0600) < 0 || listen(fd, 16) < 0) {
        rc = rp_error_set(err, errno, "%s: %s", sa->sun_path, strerror(errno));
        close(fd);
        return rc;
    }
    *out = fd;
    return 0;
}

int rp_runtime_listen(const char *path, const char *what, int *fd, struct rp_error *err)
{
    struct sockaddr_un sa;
    int rc = address(path, &sa, err);
    if (rc < 0)
        return rc;
    char copy[RP_RUNTIME_PATH_MAX];
    snprintf(copy, sizeof(copy), "%s", path);
    const char *dir = dirname(copy);
    int lock = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock < 0)
        return rp_error_exit(err, RP_EXIT_USAGE, errno, "%s: %s: %s", path, dir, strerror(errno));
    if (flock(lock, LOCK_EX) < 0)
        rc = rp_error_set(err, errno, "%s: lock: %s", dir, strerror(errno));
    else
        rc = bind_locked(&sa, what, fd, err);
    close(lock);
    return rc;
}

static int connect_path(const char *path, int *fd, struct rp_error *err)
{
    struct sockaddr_un sa;
    int rc = address(path, &sa, err);
    if (rc < 0 || (rc = try_connect(&sa, fd)) == 0)
        return rc;
    enum rp_exit exit = rc == -ENOENT || rc == -ECONNREFUSED ? RP_EXIT_NO_VM : rc == -EACCES ? RP_EXIT_HOST : RP_EXIT_FAILED;
    return exit == RP_EXIT_NO_VM ? rp_error_exit(err, exit, -rc, "no VM answers on %s; `reprise status` lists those that run", path)
                                 : rp_error_exit(err, exit, -rc, "%s: %s", path, strerror(-rc));
}

int rp_runtime_connect(const char *name, int *fd, struct rp_error *err)
{
    struct dirs d;
    char path[RP_RUNTIME_PATH_MAX];
    bool denied = false;
    if (strchr(name, '/'))
        return connect_path(name, fd, err);
    int rc = rp_runtime_name_check(name, err);
    if (rc < 0)
        return rc;
    runtime_dirs(&d);
    for (unsigned i = 0; i < d.n; i++) {
        struct rp_error why = {0};
        rc = socket_path(d.path[i], name, path, &why);
        if (rc == 0 && (rc = connect_path(path, fd, &why)) == 0)
            return 0;
        if (i == 0 && why.exit != RP_EXIT_NO_VM && (d.n == 1 || why.exit != RP_EXIT_HOST)) {
            if (err)
                *err = why;
            return rc;
        }
        denied |= why.exit == RP_EXIT_HOST;
    }
    return rp_error_exit(err, RP_EXIT_NO_VM, ENOENT, "no VM \"%s\" is running (looked in %s%s%s%s); `reprise status` lists those that are", name,
                         d.path[0], d.n > 1 ? " and " : "", d.n > 1 ? d.path[1] : "", denied ? ", not all of which may be looked at" : "");
}

const char *rp_runtime_name(const char *path, size_t *len)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    *len = strlen(name) - strlen(SUFFIX);
    return name;
}

static int by_name(const void *a, const void *b)
{
    const char *one = *(char *const *)a, *other = *(char *const *)b;
    int order = strcmp(strrchr(one, '/'), strrchr(other, '/'));
    return order ? order : strcmp(one, other);
}

/* Appends the sockets of one directory. */
static int list_dir(const char *dir, char ***paths, unsigned *n, struct rp_error *err)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    int rc = 0;
    if (!d)
        return errno == ENOENT ? 0 : rp_error_exit(err, RP_EXIT_HOST, errno, "runtime directory %s: %s", dir, strerror(errno));
    while (rc == 0 && (e = readdir(d))) {
        size_t len = strlen(e->d_name);
        if (len <= strlen(SUFFIX) || strcmp(e->d_name + len - strlen(SUFFIX), SUFFIX) != 0)
            continue;
        char *path = NULL, **more = reallocarray(*paths, *n + 1, sizeof(char *));
        if (more)
            *paths = more;
        if (!more || asprintf(&path, "%s/%s", dir, e->d_name) < 0)
            rc = rp_error_set(err, ENOMEM, "out of memory");
        else
            (*paths)[(*n)++] = path;
    }
    closedir(d);
    return rc;
}

int rp_runtime_list(char ***paths, unsigned *n, struct rp_error *err)
{
    struct dirs d;
    int rc = 0;
    runtime_dirs(&d);
    *paths = NULL;
    *n = 0;
    for (unsigned i = 0; i < d.n && rc == 0; i++) {
        struct rp_error why = {0};
        rc = list_dir(d.path[i], paths, n, &why);
        if (rc == -EACCES && d.n > 1)
            rc = 0;             /* the other one is ours, this one somebody else's */
        else if (rc < 0 && err)
            *err = why;
    }
    if (rc < 0) {
        rp_runtime_list_free(*paths, *n);
        return rc;
    }
    if (*n)
        qsort(*paths, *n, sizeof(char *), by_name);
    return 0;
}

void rp_runtime_list_free(char **paths, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        free(paths[i]);
    free(paths);
}
