/* The output gate. Invariants and threading are in gate.h. */
#include "vmm/gate.h"
#include "core/clock.h"
#include "core/histogram.h"
#include "vmm/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct frame {
    struct frame *next;
    uint64_t after;             /* the newest cut when it came: it leaves once after + 1 is released */
    uint64_t since_ns;
    size_t len;
    uint8_t bytes[];
};

struct rp_gate_port {
    struct rp_gate *gate;
    const struct rp_gate_ops *ops;
    void *ctx;
    struct rp_gate_port *next;  /* machine lock */
    /* gate lock: */
    struct frame *head, *tail;
    uint64_t waiting_bytes;
    bool blocked;               /* the host cannot take more now */
    bool tell_blocked;          /* ... and the io thread has to be told */
    bool starved;               /* a send was refused: resume is owed */
    bool unflushed;
};

struct rp_gate {
    struct rp_loop *loop;
    int output_fd, wake_fd;
    struct rp_gate_port *ports; /* machine lock for changes; gate lock for walks in other threads */
    pthread_mutex_t lock;       /* guards the rest; leaf */
    uint64_t bound_bytes;
    bool holding, hold_wanted;
    bool waiting_since_cut;     /* an output of the current epoch waits */
    uint64_t cut_epoch;         /* newest cut */
    uint64_t released;
    uint64_t deadline_ns;
    struct rp_gate_stats s;
    struct rp_hist hold_ns;
};

static void wake(struct rp_gate *g)
{
    (void)eventfd_write(g->wake_fd, 1);
}

/* GATE-3, looked at before each write. */
static bool in_time(struct rp_gate *g)
{
    if (g->deadline_ns == 0 || rp_clock_read(CLOCK_BOOTTIME) < g->deadline_ns)
        return true;
    g->s.late++;
    return false;
}

/* GATE-1: may what came after cut `after` leave? */
static bool released(const struct rp_gate *g, uint64_t after)
{
    return !g->holding || after < g->released;
}

/* One write to the host. True: it left (or was lost there); false: the host cannot take it now. */
static bool write_out(struct rp_gate_port *p, const struct iovec *iov, int n, size_t len)
{
    int rc = p->ops->write(p->ctx, iov, n);

    if (rc == -EAGAIN) {
        p->blocked = p->tell_blocked = true;
        wake(p->gate);
        return false;
    }
    p->unflushed = true;
    if (rc) {
        p->gate->s.errors++;
        return true;
    }
    p->gate->s.frames++;
    p->gate->s.bytes += len;
    return true;
}

static void flush(struct rp_gate_port *p)
{
    if (!p->unflushed)
        return;
    p->unflushed = false;
    if (p->ops->flush && p->ops->flush(p->ctx) == -EAGAIN && !p->blocked) {
        p->blocked = p->tell_blocked = p->unflushed = true;
        wake(p->gate);
    }
}

static void forget(struct rp_gate_port *p, struct frame *f)
{
    struct rp_gate *g = p->gate;

    p->head = f->next;
    if (!p->head)
        p->tail = NULL;
    p->waiting_bytes -= sizeof(*f) + f->len;
    g->s.waiting_bytes -= sizeof(*f) + f->len;
    g->s.waiting_frames--;
    free(f);
}

/* GATE-1, GATE-2: sends from the head what may leave. */
static void drain(struct rp_gate_port *p)
{
    struct rp_gate *g = p->gate;
    struct frame *f;

    while ((f = p->head) && !p->blocked && released(g, f->after)) {
        struct iovec iov = {.iov_base = f->bytes, .iov_len = f->len};
        uint64_t held;

        if (!in_time(g) || !write_out(p, &iov, 1, f->len))
            break;
        held = rp_clock_ns() - f->since_ns;
        rp_hist_add(&g->hold_ns, held);
        g->s.held_frames++;
        g->s.held_bytes += f->len;
        forget(p, f);
    }
    flush(p);
    if (p->starved && !p->blocked && p->waiting_bytes <= g->bound_bytes / 4)
        wake(g);
}

static void drain_all(struct rp_gate *g)
{
    for (struct rp_gate_port *p = g->ports; p; p = p->next)
        drain(p);
}

static int enqueue(struct rp_gate_port *p, const struct iovec *iov, int n, size_t len)
{
    struct rp_gate *g = p->gate;
    struct frame *f;
    size_t done = 0;

    if (p->waiting_bytes + sizeof(*f) + len > g->bound_bytes / 2 || !(f = malloc(sizeof(*f) + len))) {
        g->s.full += !p->starved;
        p->starved = true;      /* GATE-4 */
        return -EAGAIN;
    }
    *f = (struct frame){.after = g->cut_epoch, .since_ns = rp_clock_ns(), .len = len};
    for (int i = 0; i < n; i++) {
        memcpy(f->bytes + done, iov[i].iov_base, iov[i].iov_len);
        done += iov[i].iov_len;
    }
    if (p->tail)
        p->tail->next = f;
    else
        p->head = f;
    p->tail = f;
    p->waiting_bytes += sizeof(*f) + len;
    g->s.waiting_bytes += sizeof(*f) + len;
    g->s.waiting_frames++;
    if (!g->waiting_since_cut) {
        g->waiting_since_cut = true;
        (void)eventfd_write(g->output_fd, 1);
    }
    return 0;
}

int rp_gate_send(struct rp_gate_port *p, const struct iovec *iov, int n)
{
    struct rp_gate *g = p->gate;
    size_t len = 0;
    int rc = 0;

    for (int i = 0; i < n; i++)
        len += iov[i].iov_len;
    pthread_mutex_lock(&g->lock);
    if (p->head || !released(g, g->cut_epoch) || !in_time(g)) {
        rc = enqueue(p, iov, n, len);
    } else if (p->blocked || !write_out(p, iov, n, len)) {
        p->starved = true;
        rc = -EAGAIN;
    }
    pthread_mutex_unlock(&g->lock);
    return rc;
}

void rp_gate_flush(struct rp_gate_port *p)
{
    pthread_mutex_lock(&p->gate->lock);
    if (!p->blocked)
        flush(p);
    pthread_mutex_unlock(&p->gate->lock);
}

/* Is a resume owed that can be made good now? Takes it. */
static bool take_resume(struct rp_gate_port *p)
{
    bool due = p->starved && !p->blocked && p->waiting_bytes <= p->gate->bound_bytes / 4;

    if (due)
        p->starved = false;
    return due;
}

bool rp_gate_writable(struct rp_gate_port *p)
{
    bool resume, blocked;

    pthread_mutex_lock(&p->gate->lock);
    p->blocked = false;
    p->unflushed = true;        /* what the backend buffered goes first */
    flush(p);
    if (!p->blocked)
        drain(p);
    blocked = p->blocked;
    p->tell_blocked = false;
    resume = take_resume(p);
    pthread_mutex_unlock(&p->gate->lock);
    if (resume)
        p->ops->resume(p->ctx);
    return !blocked;
}

void rp_gate_poll(struct rp_gate *g)
{
    eventfd_t junk;

    (void)eventfd_read(g->wake_fd, &junk);
    for (struct rp_gate_port *p = g->ports; p; p = p->next) {
        bool blocked, resume;

        pthread_mutex_lock(&g->lock);
        blocked = p->tell_blocked;
        p->tell_blocked = false;
        resume = take_resume(p);
        pthread_mutex_unlock(&g->lock);
        if (blocked && p->ops->blocked)
            p->ops->blocked(p->ctx);
        if (resume && p->ops->resume)
            p->ops->resume(p->ctx);
    }
}

static void on_wake(void *ctx, uint32_t events)
{
    (void)events;
    rp_gate_poll(ctx);
}

void rp_gate_cut(struct rp_gate *g, uint64_t epoch)
{
    pthread_mutex_lock(&g->lock);
    g->cut_epoch = epoch;
    g->holding = g->hold_wanted;
    g->waiting_since_cut = false;
    pthread_mutex_unlock(&g->lock);
}

void rp_gate_hold(struct rp_gate *g, bool hold)
{
    pthread_mutex_lock(&g->lock);
    g->hold_wanted = hold;
    if (!hold) {
        g->holding = false;
        drain_all(g);
    }
    pthread_mutex_unlock(&g->lock);
}

void rp_gate_release(struct rp_gate *g, uint64_t epoch)
{
    pthread_mutex_lock(&g->lock);
    if (epoch == UINT64_MAX)
        g->holding = g->hold_wanted = false;
    else if (epoch > g->released)
        g->released = epoch;
    drain_all(g);
    pthread_mutex_unlock(&g->lock);
}

void rp_gate_set_deadline(struct rp_gate *g, uint64_t deadline_ns)
{
    pthread_mutex_lock(&g->lock);
    g->deadline_ns = deadline_ns;
    drain_all(g);
    pthread_mutex_unlock(&g->lock);
}

static void drop_port(struct rp_gate_port *p)
{
    while (p->head)
        forget(p, p->head);
}

int rp_gate_fd(const struct rp_gate *g)
{
    return g->output_fd;
}

void rp_gate_stats(struct rp_gate *g, struct rp_gate_stats *out)
{
    pthread_mutex_lock(&g->lock);
    *out = g->s;
    pthread_mutex_unlock(&g->lock);
    out->hold_p50_ns = rp_hist_quantile(&g->hold_ns, 0.5);
    out->hold_p99_ns = rp_hist_quantile(&g->hold_ns, 0.99);
    out->hold_max_ns = atomic_load(&g->hold_ns.max);
}

int rp_gate_create(struct rp_loop *loop, uint64_t bound_bytes, struct rp_gate **out, struct rp_error *err)
{
    struct rp_gate *g = calloc(1, sizeof(*g));
    int rc = 0;

    if (!g)
        return rp_error_set(err, ENOMEM, "output gate: no memory");
    pthread_mutex_init(&g->lock, NULL);
    g->loop = loop;
    g->bound_bytes = bound_bytes;
    g->output_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    g->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (g->output_fd < 0 || g->wake_fd < 0)
        rc = rp_error_set(err, errno, "output gate: eventfd: %m");
    else if (loop)
        rc = rp_loop_add(loop, g->wake_fd, EPOLLIN, on_wake, g);
    if (rc) {
        g->loop = NULL;
        rp_gate_destroy(g);
        return rp_error_set(err, rc, "output gate: cannot be watched");
    }
    *out = g;
    return 0;
}

void rp_gate_destroy(struct rp_gate *g)
{
    if (!g)
        return;
    while (g->ports)
        rp_gate_port_remove(g->ports);
    if (g->loop)
        rp_loop_remove(g->loop, g->wake_fd);
    if (g->output_fd >= 0)
        close(g->output_fd);
    if (g->wake_fd >= 0)
        close(g->wake_fd);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

int rp_gate_port_add(struct rp_gate *g, const struct rp_gate_ops *ops, void *ctx, struct rp_gate_port **out)
{
    struct rp_gate_port *p = calloc(1, sizeof(*p));

    if (!p)
        return -ENOMEM;
    p->gate = g;
    p->ops = ops;
    p->ctx = ctx;
    pthread_mutex_lock(&g->lock);
    p->next = g->ports;
    g->ports = p;
    pthread_mutex_unlock(&g->lock);
    *out = p;
    return 0;
}

void rp_gate_port_remove(struct rp_gate_port *p)
{
    struct rp_gate *g;

    if (!p)
        return;
    g = p->gate;
    pthread_mutex_lock(&g->lock);
    for (struct rp_gate_port **at = &g->ports; *at; at = &(*at)->next) {
        if (*at == p) {
            *at = p->next;
            break;
        }
    }
    drop_port(p);
    pthread_mutex_unlock(&g->lock);
    free(p);
}
