/* Console back ends; see chardev.h. */
#include "vmm/chardev.h"

#include "core/accept.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#define OUT_BYTES (256u << 10)
#define IN_BYTES 4096u
#define ESCAPE 0x01     /* Ctrl-A */

struct rp_chardev {
    enum rp_serial_kind kind;
    struct rp_loop *loop;
    rp_chardev_input_fn *input;
    void *ctx;
    int in, out, listener;      /* -1: none; in == out for a socket */
    bool pollable;              /* out can be watched (not a regular file) */
    uint32_t in_events, out_events;     /* watched for; a socket that is both is watched as `in` */
    bool tty, escaped;
    struct termios old;
    int resize_fd;              /* signalfd of SIGWINCH, -1: none */
    void (*resized)(void *ctx);
    int old_flags_in, old_flags_out;
    char path[sizeof ((struct sockaddr_un *)0)->sun_path];
    uint64_t dropped;
    size_t head, len;           /* of out_buf */
    size_t in_len;
    uint8_t in_buf[IN_BYTES];
    uint8_t out_buf[OUT_BYTES];
};

static void ready(void *ctx, uint32_t events);

/* Not merely without events when none is wanted: a hang-up would be told for ever. */
static void watch_for(struct rp_chardev *c, int fd, uint32_t *watched, uint32_t events)
{
    int rc = 0;

    if (events == *watched)
        return;
    if (!events)
        rp_loop_remove(c->loop, fd);
    else
        rc = *watched ? rp_loop_modify(c->loop, fd, events) : rp_loop_add(c->loop, fd, events, ready, c);
    if (rc == 0)
        *watched = events;
}

/* One descriptor may be watched once: events for in and out are combined when they are the same. */
static void watch(struct rp_chardev *c)
{
    uint32_t in = c->in >= 0 && c->in_len < IN_BYTES ? EPOLLIN : 0, out = c->out >= 0 && c->len > 0 && c->pollable ? EPOLLOUT : 0;

    if (c->in >= 0 && c->in == c->out) {
        watch_for(c, c->in, &c->in_events, in | out);
        return;
    }
    if (c->in >= 0)
        watch_for(c, c->in, &c->in_events, in);
    if (c->out >= 0)
        watch_for(c, c->out, &c->out_events, out);
}

static void hang_up(struct rp_chardev *c)
{
    if (c->in >= 0)
        watch_for(c, c->in, &c->in_events, 0);
    if (c->out >= 0)
        watch_for(c, c->out, &c->out_events, 0);
    if (c->kind == RP_SERIAL_UNIX && c->in >= 0)
        close(c->in);
    c->in = -1;
    if (c->kind == RP_SERIAL_UNIX)
        c->out = -1;
}

static void flush(struct rp_chardev *c)
{
    while (c->len > 0 && c->out >= 0) {
        size_t run = OUT_BYTES - c->head < c->len ? OUT_BYTES - c->head : c->len;
        ssize_t n = c->kind == RP_SERIAL_UNIX ? send(c->out, c->out_buf + c->head, run, MSG_NOSIGNAL | MSG_DONTWAIT)
                                              : write(c->out, c->out_buf + c->head, run);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n <= 0) {       /* disk full, pipe closed: the text is lost, the VM goes on */
            c->dropped += c->len;
            c->len = 0;
            break;
        }
        c->head = (c->head + (size_t)n) % OUT_BYTES;
        c->len -= (size_t)n;
    }
    watch(c);
}

static void offer(struct rp_chardev *c)
{
    size_t n = c->in_len ? c->input(c->ctx, c->in_buf, c->in_len) : 0;

    memmove(c->in_buf, c->in_buf + n, c->in_len - n);
    c->in_len -= n;
}

/* Ctrl-A x ends the process, Ctrl-A Ctrl-A is one Ctrl-A. Returns how many bytes are the guest's. */
static size_t escape(struct rp_chardev *c, uint8_t *p, size_t n)
{
    size_t kept = 0;

    for (size_t i = 0; i < n; i++) {
        if (c->escaped) {
            c->escaped = false;
            if (p[i] == 'x')
                kill(getpid(), SIGTERM);
            else if (p[i] == ESCAPE)
                p[kept++] = p[i];
        } else if (p[i] == ESCAPE) {
            c->escaped = true;
        } else {
            p[kept++] = p[i];
        }
    }
    return kept;
}

static void receive(struct rp_chardev *c)
{
    ssize_t n = read(c->in, c->in_buf + c->in_len, IN_BYTES - c->in_len);

    if (n > 0) {
        if (c->tty)
            n = (ssize_t)escape(c, c->in_buf + c->in_len, (size_t)n);
        c->in_len += (size_t)n;
        offer(c);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        hang_up(c);
    }
}

static void ready(void *ctx, uint32_t events)
{
    struct rp_chardev *c = ctx;

    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && c->in >= 0 && c->in_len < IN_BYTES)
        receive(c);
    flush(c);
}

static void client(void *ctx, uint32_t events)
{
    struct rp_chardev *c = ctx;
    int fd = rp_accept(c->listener);

    (void)events;
    if (fd < 0)
        return;
    hang_up(c);     /* the newest client has the console */
    c->in = c->out = fd;
    flush(c);
}

static int fail(const char *what, const char *path, int e, struct rp_error *err)
{
    return rp_error_exit(err, RP_EXIT_USAGE, e, "%s %s: %s", what, path, strerror(e));
}

static int open_unix(struct rp_chardev *c, const char *path, const char *what, struct rp_error *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    char option[32];
    int rc;

    if (strlen(path) >= sizeof a.sun_path)
        return fail(what, path, ENAMETOOLONG, err);
    memcpy(a.sun_path, path, strlen(path) + 1);
    snprintf(option, sizeof option, "--%s", what);
    rc = rp_clear_socket(&a, option, err);
    if (rc < 0)
        return rc;
    c->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->listener < 0)
        return fail(what, path, errno, err);
    if (bind(c->listener, (const struct sockaddr *)&a, sizeof a) != 0)
        return fail(what, path, errno, err);
    memcpy(c->path, a.sun_path, sizeof c->path);
    if (listen(c->listener, 1) != 0)
        return fail(what, path, errno, err);
    return rp_loop_add(c->loop, c->listener, EPOLLIN, client, c);
}

static void open_stdio(struct rp_chardev *c)
{
    struct termios raw;
    struct stat st;

    c->in = STDIN_FILENO;
    c->out = STDOUT_FILENO;
    c->old_flags_in = fcntl(c->in, F_GETFL);
    c->old_flags_out = fcntl(c->out, F_GETFL);
    c->pollable = fstat(c->out, &st) == 0 && !S_ISREG(st.st_mode);
    if (isatty(c->in) && tcgetattr(c->in, &c->old) == 0) {
        c->tty = true;
        raw = c->old;
        cfmakeraw(&raw);
        raw.c_oflag |= OPOST;
        (void)tcsetattr(c->in, TCSANOW, &raw);
    }
    if (fstat(c->in, &st) != 0 || S_ISREG(st.st_mode) || (S_ISCHR(st.st_mode) && !c->tty))
        c->in = -1;         /* epoll cannot watch files; /dev/null has nothing to say */
    (void)fcntl(c->out, F_SETFL, c->old_flags_out | O_NONBLOCK);
}

int rp_chardev_create(const struct rp_chardev_config *cfg, const char *what, struct rp_loop *loop, rp_chardev_input_fn *input,
                      void *ctx, struct rp_chardev **out, struct rp_error *err)
{
    struct rp_chardev *c = calloc(1, sizeof *c);
    int rc = 0;

    if (!c)
        return rp_error_set(err, ENOMEM, "%s: out of memory", what);
    c->kind = cfg->kind;
    c->loop = loop;
    c->input = input;
    c->ctx = ctx;
    c->in = c->out = c->listener = c->resize_fd = -1;
    switch (cfg->kind) {
    case RP_SERIAL_STDIO:
        open_stdio(c);
        break;
    case RP_SERIAL_FILE:
        c->out = open(cfg->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0644);
        rc = c->out < 0 ? fail(what, cfg->path, errno, err) : 0;
        break;
    case RP_SERIAL_UNIX:
        c->pollable = true;
        rc = open_unix(c, cfg->path, what, err);
        break;
    case RP_SERIAL_NULL:
    default:
        break;
    }
    if (rc < 0) {
        rp_chardev_destroy(c);
        return rc;
    }
    watch(c);
    *out = c;
    return 0;
}

void rp_chardev_destroy(struct rp_chardev *c)
{
    if (!c)
        return;
    flush(c);
    if (c->kind == RP_SERIAL_STDIO && c->out >= 0)
        (void)fcntl(c->out, F_SETFL, c->old_flags_out);
    if (c->tty)
        (void)tcsetattr(STDIN_FILENO, TCSANOW, &c->old);
    hang_up(c);
    if (c->resize_fd >= 0) {
        rp_loop_remove(c->loop, c->resize_fd);
        close(c->resize_fd);
    }
    if (c->listener >= 0) {
        rp_loop_remove(c->loop, c->listener);
        close(c->listener);
        if (c->path[0])
            unlink(c->path);
    }
    if (c->kind == RP_SERIAL_FILE && c->out >= 0)
        close(c->out);
    free(c);
}

void rp_chardev_write(struct rp_chardev *c, const void *bytes, size_t len)
{
    const uint8_t *p = bytes;

    if (c->kind == RP_SERIAL_NULL)
        return;
    for (; len > 0 && c->len < OUT_BYTES; len--, c->len++)
        c->out_buf[(c->head + c->len) % OUT_BYTES] = *p++;
    c->dropped += len;
    if (c->out >= 0)
        flush(c);
}

void rp_chardev_more(struct rp_chardev *c)
{
    bool was_full = c->in_len == IN_BYTES;

    offer(c);
    if (was_full)
        watch(c);
}

uint64_t rp_chardev_dropped(const struct rp_chardev *c)
{
    return c->dropped;
}

/* --- the terminal's size --- */

bool rp_chardev_size(const struct rp_chardev *c, uint16_t *cols, uint16_t *rows)
{
    struct winsize w;

    if (!c->tty || ioctl(STDIN_FILENO, TIOCGWINSZ, &w) != 0)
        return false;
    *cols = w.ws_col;
    *rows = w.ws_row;
    return true;
}

static void on_winch(void *ctx, uint32_t events)
{
    struct rp_chardev *c = ctx;
    struct signalfd_siginfo si;

    (void)events;
    while (read(c->resize_fd, &si, sizeof si) == (ssize_t)sizeof si)
        ;
    c->resized(c->ctx);
}

int rp_chardev_watch_size(struct rp_chardev *c, void (*fn)(void *ctx), struct rp_error *err)
{
    sigset_t set;
    int rc;

    if (!c->tty)
        return 0;
    sigemptyset(&set);
    sigaddset(&set, SIGWINCH);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    c->resized = fn;
    c->resize_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    rc = c->resize_fd < 0 ? -errno : rp_loop_add(c->loop, c->resize_fd, EPOLLIN, on_winch, c);
    return rc < 0 ? rp_error_set(err, rc, "console: cannot watch the size of its terminal") : 0;
}
