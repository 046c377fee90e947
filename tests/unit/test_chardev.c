/* A console's host end on a unix socket: what comes is offered and waits, and a client that is gone costs nothing. */
#include "vmm/chardev.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct rp_loop *loop;
static struct rp_chardev *chr;
static struct sockaddr_un at = {.sun_family = AF_UNIX};
static size_t appetite, taken;      /* bytes that the device takes next; took */

static size_t input(void *ctx, const uint8_t *bytes, size_t len)
{
    size_t n = len < appetite ? len : appetite;
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        cr_assert_eq(bytes[i], (uint8_t)((taken + i) * 7), "byte %zu", taken + i);
    appetite -= n;
    taken += n;
    return n;
}

static void make(void)
{
    struct rp_error err = {0};
    struct rp_chardev_config cfg = {.kind = RP_SERIAL_UNIX, .path = at.sun_path};
    snprintf(at.sun_path, sizeof(at.sun_path), "/tmp/reprise-chardev-%d", getpid());
    cr_assert_eq(rp_loop_create(&lock, &loop, &err), 0);
    cr_assert_eq(rp_chardev_create(&cfg, "console", loop, input, NULL, &chr, &err), 0, "%s", err.text);
}

static void gone(void)
{
    pthread_mutex_lock(&lock);
    rp_chardev_destroy(chr);
    pthread_mutex_unlock(&lock);
    rp_loop_destroy(loop);
}

TestSuite(chardev, .init = make, .fini = gone, .timeout = 60);

static int come(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    return fd;
}

static void type(int fd, size_t from, size_t n)
{
    static uint8_t bytes[16384];
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)((from + i) * 7);
    cr_assert_eq(send(fd, bytes, n, MSG_NOSIGNAL), (ssize_t)n);
}

/* Turns of the loop until nothing is to be done, or `most`. */
static unsigned turns(unsigned most)
{
    unsigned n = 0;
    while (n < most && rp_loop_turn(loop))
        n++;
    return n;
}

static void more(size_t n)
{
    appetite = n;
    pthread_mutex_lock(&lock);
    rp_chardev_more(chr);
    pthread_mutex_unlock(&lock);
}

Test(chardev, what_the_device_does_not_take_waits)
{
    int fd = come();
    type(fd, 0, 10000);
    turns(100);
    cr_assert_eq(taken, 0u);
    for (unsigned i = 1; i <= 10; i++) {
        more(1000);
        turns(100);
        cr_assert_eq(taken, 1000u * i);
    }
    close(fd);
}

/* It typed more than is kept here and has hung up, and the guest does not read yet: the io thread has nothing to do. */
Test(chardev, INV5_a_client_that_is_gone_does_not_keep_the_loop_busy)
{
    int fd = come();
    type(fd, 0, 10000);
    turns(100);
    close(fd);
    cr_assert_lt(turns(100), 5u, "the loop is told of the hang-up again and again");
    more(10000);
    turns(100);
    cr_assert_eq(taken, 10000u, "and nothing of what it typed is lost");
    fd = come();                /* the next one is served */
    type(fd, taken, 100);
    appetite = 100;
    turns(100);
    cr_assert_eq(taken, 10100u);
    close(fd);
}

Test(chardev, the_newest_client_has_the_console)
{
    char got[8] = "";
    int first = come();
    turns(10);
    int second = come();
    turns(10);
    cr_assert_leq(read(first, got, sizeof(got)), 0, "the first is hung up on");
    pthread_mutex_lock(&lock);
    rp_chardev_write(chr, "hello", 5);
    pthread_mutex_unlock(&lock);
    turns(10);
    cr_assert_eq(read(second, got, sizeof(got)), 5);
    cr_assert_str_eq(got, "hello");
    close(first);
    close(second);
}

/* Another VM on the same path is refused, and whoever is at this one's console notices nothing. */
Test(chardev, one_that_is_in_use_is_refused_and_stays_as_it_is)
{
    struct rp_error err = {0};
    struct rp_chardev_config cfg = {.kind = RP_SERIAL_UNIX, .path = at.sun_path};
    struct rp_chardev *second = NULL;
    char byte;
    int fd = come();
    turns(50);
    cr_assert_eq(rp_chardev_create(&cfg, "console", loop, input, NULL, &second, &err), -EADDRINUSE);
    cr_assert(err.exit == RP_EXIT_REFUSED && strstr(err.text, "--console is in use"), "%s", err.text);
    turns(50);
    cr_assert(recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN, "its client was hung up on");
    cr_assert_eq(access(at.sun_path, F_OK), 0);
    close(fd);
}

/* Nobody reads: what does not fit is dropped and counted, and the writer never waits (INV-5). */
Test(chardev, INV5_output_that_nobody_takes_is_dropped)
{
    static const char text[4096] = {1};
    int fd = come();
    turns(10);
    for (unsigned i = 0; i < 500; i++) {
        pthread_mutex_lock(&lock);
        rp_chardev_write(chr, text, sizeof(text));
        pthread_mutex_unlock(&lock);
    }
    cr_assert_gt(rp_chardev_dropped(chr), 0u);
    close(fd);
    cr_assert_lt(turns(100), 5u);
}
