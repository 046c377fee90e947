/*
 * The device I/O thread: one epoll set, one timerfd for all timers; see loop.h.
 *
 * A removed descriptor's entry may still be in the batch that epoll_wait has just returned. So it is only marked
 * dead, and freed by the thread at the end of a batch: by then epoll can no longer name it.
 */
#include "vmm/loop.h"

#include "core/clock.h"
#include "core/thread.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define BATCH 64
#define OTHERS_NS 1000000u  /* that others have at most, to take the lock between two batches */

struct watch {
    int fd;             /* -1: dead */
    rp_loop_fn *fn;
    void *ctx;
    struct watch *next;
};

struct rp_timer {
    struct rp_loop *loop;
    void (*fn)(void *ctx);
    void *ctx;
    uint64_t at_ns;
    bool armed;
    struct rp_timer *next;
};

struct rp_loop {
    pthread_mutex_t *lock;      /* the machine lock: guards everything below */
    int epfd, timerfd, stopfd;
    struct watch *watches, *dead;
    struct rp_timer *timers;
    pthread_t thread;
    bool started;               /* control thread */
    _Atomic unsigned asked, had;    /* rp_loop_lock: how often the lock was waited for; how often it was had then */
    _Atomic bool stop;          /* set by rp_loop_stop, then stopfd; read by the thread */
};

static void watch_internal(struct rp_loop *l, int fd, int *rc)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL};

    if (*rc == 0 && (fd < 0 || epoll_ctl(l->epfd, EPOLL_CTL_ADD, fd, &ev) != 0))
        *rc = -errno;
}

int rp_loop_create(pthread_mutex_t *lock, struct rp_loop **out, struct rp_error *err)
{
    struct rp_loop *l = calloc(1, sizeof *l);
    int rc = 0;

    if (!l)
        return rp_error_set(err, ENOMEM, "event loop: out of memory");
    l->lock = lock;
    l->epfd = epoll_create1(EPOLL_CLOEXEC);
    l->timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    l->stopfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (l->epfd < 0)
        rc = -errno;
    watch_internal(l, l->timerfd, &rc);
    watch_internal(l, l->stopfd, &rc);
    if (rc < 0) {
        rp_loop_destroy(l);
        return rp_error_set(err, rc, "event loop: no descriptors left");
    }
    *out = l;
    return 0;
}

static void free_watches(struct watch *w)
{
    while (w) {
        struct watch *next = w->next;
        free(w);
        w = next;
    }
}

void rp_loop_destroy(struct rp_loop *l)
{
    if (!l)
        return;
    free_watches(l->watches);
    free_watches(l->dead);
    if (l->epfd >= 0)
        close(l->epfd);
    if (l->timerfd >= 0)
        close(l->timerfd);
    if (l->stopfd >= 0)
        close(l->stopfd);
    free(l);
}

/* Sets the timerfd to the earliest timer. */
static void retime(struct rp_loop *l)
{
    uint64_t at = UINT64_MAX;
    struct itimerspec its = {0};

    for (struct rp_timer *t = l->timers; t; t = t->next)
        if (t->armed && t->at_ns < at)
            at = t->at_ns;
    if (at != UINT64_MAX) {
        at = at ? at : 1;   /* zero would disarm */
        its.it_value.tv_sec = (time_t)(at / 1000000000u);
        its.it_value.tv_nsec = (long)(at % 1000000000u);
    }
    (void)timerfd_settime(l->timerfd, TFD_TIMER_ABSTIME, &its, NULL);
}

static struct rp_timer *due(struct rp_loop *l, uint64_t now)
{
    struct rp_timer *best = NULL;

    for (struct rp_timer *t = l->timers; t; t = t->next)
        if (t->armed && t->at_ns <= now && (!best || t->at_ns < best->at_ns))
            best = t;
    return best;
}

/* Runs what is due. A callback may arm, disarm and destroy timers, so the list is searched anew after each. */
static void run_timers(struct rp_loop *l)
{
    uint64_t now = rp_clock_ns(), junk;
    struct rp_timer *t;

    (void)!read(l->timerfd, &junk, sizeof junk);
    while ((t = due(l, now))) {
        t->armed = false;
        t->fn(t->ctx);
    }
    retime(l);
}

static void run_batch(struct rp_loop *l, const struct epoll_event *ev, int n)
{
    pthread_mutex_lock(l->lock);
    for (int i = 0; i < n; i++) {
        struct watch *w = ev[i].data.ptr;
        if (w && w->fd >= 0)
            w->fn(w->ctx, ev[i].events);
    }
    run_timers(l);
    free_watches(l->dead);
    l->dead = NULL;
    pthread_mutex_unlock(l->lock);
}

void rp_loop_lock(struct rp_loop *l)
{
    if (pthread_mutex_trylock(l->lock) == 0)
        return;
    atomic_fetch_add(&l->asked, 1);
    pthread_mutex_lock(l->lock);
    atomic_fetch_add(&l->had, 1);
}

void rp_loop_unlock(struct rp_loop *l)
{
    pthread_mutex_unlock(l->lock);
}

/* Who has asked until now comes first; who asks meanwhile waits for the next time. */
static void let_others(struct rp_loop *l)
{
    unsigned asked = atomic_load(&l->asked);
    uint64_t until;

    if (atomic_load(&l->had) == asked)
        return;
    until = rp_clock_ns() + OTHERS_NS;
    while ((int)(asked - atomic_load(&l->had)) > 0 && rp_clock_ns() < until)
        sched_yield();
}

static void *loop_main(void *arg)
{
    struct rp_loop *l = arg;
    struct epoll_event ev[BATCH];

    while (!atomic_load(&l->stop)) {
        int n = epoll_wait(l->epfd, ev, BATCH, -1);
        if (n > 0 && !atomic_load(&l->stop)) {
            let_others(l);
            run_batch(l, ev, n);
        }
    }
    return NULL;
}

bool rp_loop_turn(struct rp_loop *l)
{
    struct epoll_event ev[BATCH];
    int n = epoll_wait(l->epfd, ev, BATCH, 0);

    if (n > 0)
        run_batch(l, ev, n);
    return n > 0;
}

int rp_loop_start(struct rp_loop *l, struct rp_error *err)
{
    int rc = rp_thread_start(&l->thread, "io", loop_main, l, err);

    l->started = rc == 0;
    return rc;
}

void rp_loop_stop(struct rp_loop *l)
{
    uint64_t one = 1;

    if (!l->started)
        return;
    atomic_store(&l->stop, true);
    (void)!write(l->stopfd, &one, sizeof one);
    pthread_join(l->thread, NULL);
    l->started = false;
    (void)!read(l->stopfd, &one, sizeof one);
    atomic_store(&l->stop, false);
}

static struct watch **find(struct rp_loop *l, int fd)
{
    struct watch **p = &l->watches;

    while (*p && (*p)->fd != fd)
        p = &(*p)->next;
    return p;
}

int rp_loop_add(struct rp_loop *l, int fd, uint32_t epoll_events, rp_loop_fn *fn, void *ctx)
{
    struct watch *w = calloc(1, sizeof *w);
    struct epoll_event ev = {.events = epoll_events, .data.ptr = w};
    int rc;

    if (!w)
        return -ENOMEM;
    *w = (struct watch){.fd = fd, .fn = fn, .ctx = ctx, .next = l->watches};
    if (epoll_ctl(l->epfd, EPOLL_CTL_ADD, fd, &ev) != 0) {
        rc = -errno;
        free(w);
        return rc;
    }
    l->watches = w;
    return 0;
}

int rp_loop_modify(struct rp_loop *l, int fd, uint32_t epoll_events)
{
    struct watch *w = *find(l, fd);
    struct epoll_event ev = {.events = epoll_events, .data.ptr = w};

    if (!w)
        return -ENOENT;
    return epoll_ctl(l->epfd, EPOLL_CTL_MOD, fd, &ev) == 0 ? 0 : -errno;
}

void rp_loop_remove(struct rp_loop *l, int fd)
{
    struct watch **p = find(l, fd), *w = *p;

    if (!w)
        return;
    (void)epoll_ctl(l->epfd, EPOLL_CTL_DEL, fd, NULL);
    *p = w->next;
    w->fd = -1;
    w->next = l->dead;
    l->dead = w;
}

int rp_timer_create(struct rp_loop *l, void (*fn)(void *ctx), void *ctx, struct rp_timer **out)
{
    struct rp_timer *t = calloc(1, sizeof *t);

    if (!t)
        return -ENOMEM;
    *t = (struct rp_timer){.loop = l, .fn = fn, .ctx = ctx, .next = l->timers};
    l->timers = t;
    *out = t;
    return 0;
}

void rp_timer_destroy(struct rp_timer *t)
{
    struct rp_timer **p;

    if (!t)
        return;
    for (p = &t->loop->timers; *p != t; p = &(*p)->next)
        ;
    *p = t->next;
    free(t);
}

void rp_timer_arm(struct rp_timer *t, uint64_t at_ns)
{
    t->at_ns = at_ns;
    t->armed = true;
    retime(t->loop);
}

void rp_timer_disarm(struct rp_timer *t)
{
    if (!t->armed)
        return;
    t->armed = false;
    retime(t->loop);
}
