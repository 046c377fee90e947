#include "replicator/rdma_conn.h"

#include "core/bytes.h"
#include "core/clock.h"
#include "core/thread.h"
#include "replicator/rdma_mem.h"
#include "replicator/rdma_qp.h"
#include "replicator/rdma_ring.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define PRIVATE_MAGIC 0x414D4452u       /* "RDMA" */
#define PRIVATE_VERSION 1u
#define CLOSE_MS 2000u                  /* what was sent may take so long to arrive when the connection is closed */
#define PROBE_NS 1000000000u            /* who has waited so long in silence makes sure that the other side is still there */
#define FIN_ROOM 1u                     /* of the send queue, kept for the last message */

/* The immediate value: kind in the top 4 bits, a number below. */
enum kind {
    KIND_DATA = 1,      /* bytes of the stream */
    KIND_CREDIT = 2,    /* slots given back */
    KIND_RING = 3,      /* bytes of a ring's description: the sender's new ring, to be used from now on */
    KIND_FIN = 4,       /* nothing more comes, and nothing more is taken */
};
#define VALUE_MASK 0x0FFFFFFFu

struct remote_ring {
    uint64_t addr;
    uint32_t rkey, slot_bytes;
};

struct rp_rdma_conn {
    struct rp_conn base;
    struct rp_rdma_cm cm;
    int epoll_fd, wake_fd, ready_fd;    /* wake: for good, at the end; ready: data that the reader has not taken */
    pthread_mutex_t lock;               /* everything below */
    pthread_cond_t turn;                /* something changed, or the leader left */
    bool leader;                        /* a thread polls the descriptors */
    struct rp_rdma_qp qp;
    bool established, down, fin_sent, fin_came;
    bool connected;                     /* by us, and not accepted */
    bool reading, ready;                /* a thread is inside recv; ready_fd is up */
    int dead;                           /* -errno: why the connection works no more */
    struct rp_rdma_out out;
    uint64_t signalled;                 /* out.posted of the newest send that asked for a completion */
    uint64_t probed;                    /* qp.posted after the newest probe */
    struct remote_ring peer, next;      /* in use; announced (slot_bytes 0: none) */
    struct rp_rdma_mem staging;
    struct rp_rdma_in in;
    struct rp_rdma_mem ring, old_ring;  /* receiving; the narrow one that it replaced */
};

static struct rp_rdma_conn *of(struct rp_conn *c)
{
    return (struct rp_rdma_conn *)c;
}

static void raise_fd(int fd)
{
    uint64_t one = 1;
    if (write(fd, &one, sizeof(one)) < 0) {
        /* the counter is full: it is raised */
    }
}

static void lower_fd(int fd)
{
    uint64_t v;
    if (read(fd, &v, sizeof(v)) < 0) {
        /* it was not raised */
    }
}

/* --- all of this with the lock held --- */

static void end(struct rp_rdma_conn *c, int rc)
{
    if (!c->dead)
        c->dead = rc;
    raise_fd(c->wake_fd);
    pthread_cond_broadcast(&c->turn);
}

static int post(struct rp_rdma_conn *c, enum kind kind, uint32_t value, const void *from, uint32_t len, uint32_t offset)
{
    struct rp_rdma_write w = {
        .from = from, .len = len, .lkey = len ? c->staging.mr->lkey : 0, .to = c->peer.addr + offset, .rkey = c->peer.rkey,
        .imm = (uint32_t)kind << 28 | value, .mark = c->out.posted,
        /* A narrow ring may be about to be replaced: each of its sends is seen to its end. */
        .signal = kind == KIND_FIN || c->out.slot_bytes == RP_RDMA_NARROW || c->out.posted - c->signalled >= RP_RDMA_SLOTS / 4,
    };
    if (w.signal)
        c->signalled = c->out.posted;
    int rc = rp_rdma_qp_write(&c->qp, &w);
    if (rc < 0)
        end(c, rc);
    return rc;
}

/* Posts what lies in staging at the ring's next place. */
static int post_message(struct rp_rdma_conn *c, enum kind kind, uint32_t len)
{
    uint32_t offset = rp_rdma_out_offset(&c->out);
    rp_rdma_out_take(&c->out, len);
    return post(c, kind, len, c->staging.base + offset, len, offset);
}

static void give_credit(struct rp_rdma_conn *c)
{
    uint32_t slots;
    if (!c->dead && rp_rdma_qp_room(&c->qp, FIN_ROOM) && (slots = rp_rdma_in_credit(&c->in)) > 0 &&
        post(c, KIND_CREDIT, slots, NULL, 0, 0) < 0) {
        /* end() was called */
    }
}

static void get_ring(const uint8_t *p, struct remote_ring *r)
{
    r->addr = rp_ld64(p);
    r->rkey = rp_ld32(p + 8);
    r->slot_bytes = rp_ld32(p + 12);
}

static void put_ring(uint8_t *p, const struct rp_rdma_mem *m, uint32_t slot_bytes)
{
    rp_st64(p, (uintptr_t)m->base);
    rp_st32(p + 8, m->mr->rkey);
    rp_st32(p + 12, slot_bytes);
}
#define RING_BYTES 16u

/* A message lies in our ring. */
static int take_message(struct rp_rdma_conn *c, enum kind kind, uint32_t len)
{
    uint32_t offset;
    int rc = rp_rdma_in_arrived(&c->in, len, kind == KIND_RING, &offset);
    if (rc < 0 || kind == KIND_DATA)
        return rc;
    if (!c->connected || len != RING_BYTES || c->next.slot_bytes || c->out.slot_bytes != RP_RDMA_NARROW)
        return -EPROTO;
    get_ring(c->ring.base + offset, &c->next);
    return c->next.slot_bytes == RP_RDMA_WIDE ? 0 : -EPROTO;
}

static void on_arrived(void *ctx, uint32_t imm)
{
    struct rp_rdma_conn *c = ctx;
    uint32_t value = imm & VALUE_MASK;
    int rc = 0;
    c->established = true;      /* the peer's connection manager has confirmed, even if ours has not said so yet */
    switch (imm >> 28) {
    case KIND_DATA:
    case KIND_RING:
        rc = c->fin_came ? -EPROTO : take_message(c, (enum kind)(imm >> 28), value);
        break;
    case KIND_CREDIT:
        rc = rp_rdma_out_credit(&c->out, value);
        break;
    case KIND_FIN:
        c->fin_came = true;
        raise_fd(c->wake_fd);
        break;
    default:
        rc = -EPROTO;
    }
    if (rc < 0)
        end(c, rc);
}

/* ready_fd is up exactly while there is data that no other descriptor announces any more: the reader has left it behind, or
 * a sender has taken its completion. A reader that is inside recv looks for itself. */
static void note_rest(struct rp_rdma_conn *c)
{
    uint32_t offset;
    if (c->reading)
        return;
    bool rest = rp_rdma_in_ready(&c->in, &offset) > 0;
    if (rest == c->ready)
        return;
    c->ready = rest;
    if (rest)
        raise_fd(c->ready_fd);
    else
        lower_fd(c->ready_fd);
}

/* Takes completions. Returns how many there were. */
static unsigned poll_queue(struct rp_rdma_conn *c)
{
    unsigned n;
    int rc = rp_rdma_qp_poll(&c->qp, on_arrived, c, &n);
    if (c->qp.done_mark > c->out.completed)
        c->out.completed = c->qp.done_mark;
    if (rc < 0)
        end(c, rc);
    if (n) {
        give_credit(c);
        note_rest(c);
        pthread_cond_broadcast(&c->turn);
    }
    return n;
}

/* What the peer sent before it went is in the completion queue by the time its going is heard of. */
static void on_cm_event(struct rp_rdma_conn *c, const struct rp_rdma_cm_event *ev)
{
    if (ev->type == RDMA_CM_EVENT_ESTABLISHED) {
        c->established = true;
        pthread_cond_broadcast(&c->turn);
        return;
    }
    if (ev->type == RDMA_CM_EVENT_ADDR_CHANGE || ev->type == RDMA_CM_EVENT_TIMEWAIT_EXIT)
        return;
    poll_queue(c);
    end(c, ev->type == RDMA_CM_EVENT_DEVICE_REMOVAL ? -ENODEV : ev->status < 0 ? ev->status : -ECONNRESET);
}

/* Everything that the descriptors announce. True when something was there. The queue is armed afterwards. What they announce to a leader
 * who waits is left there: he would go on waiting. */
static bool look(struct rp_rdma_conn *c)
{
    struct rp_rdma_cm_event ev;
    bool something = false;
    if (c->leader)
        return poll_queue(c) > 0;
    while (!c->dead && rp_rdma_cm_next(&c->cm, &ev) == 0) {
        on_cm_event(c, &ev);
        something = true;
    }
    rp_rdma_qp_take_events(&c->qp);
    if (!c->qp.armed) {
        something |= poll_queue(c) > 0;
        if (rp_rdma_qp_arm(&c->qp) < 0)
            end(c, -EIO);
    }
    return (poll_queue(c) > 0) | something;
}

static void follow(struct rp_rdma_conn *c, uint64_t deadline_ns)
{
    if (!deadline_ns) {
        pthread_cond_wait(&c->turn, &c->lock);
        return;
    }
    rp_cond_wait_until(&c->turn, &c->lock, deadline_ns);
}

/* A queue pair whose other end has gone without a word fails when something is sent, and only then: an empty write. */
static void probe(struct rp_rdma_conn *c)
{
    if (c->dead || !c->established || c->qp.completed < c->probed || !rp_rdma_qp_room(&c->qp, FIN_ROOM))
        return;
    int rc = rp_rdma_qp_write(&c->qp, &(struct rp_rdma_write){.to = c->peer.addr, .rkey = c->peer.rkey, .mark = c->out.posted,
                                                              .signal = true, .bare = true});
    c->probed = c->qp.posted;
    if (rc < 0)
        end(c, rc);
}

/* Waits until something has changed or until the deadline (0: none). The lock is given up meanwhile. */
static void wait_change(struct rp_rdma_conn *c, uint64_t deadline_ns)
{
    if (c->leader) {
        follow(c, deadline_ns);
        return;
    }
    if (look(c))
        return;
    struct pollfd fds[] = {{.fd = c->qp.comp->fd, .events = POLLIN}, {.fd = c->cm.channel->fd, .events = POLLIN},
                           {.fd = c->wake_fd, .events = POLLIN}};
    uint64_t now = rp_clock_ns(), left = deadline_ns > now ? deadline_ns - now : 0;
    bool probes = !deadline_ns || left > PROBE_NS;
    struct timespec ts = rp_timespec(probes ? PROBE_NS : left);
    c->leader = true;
    pthread_mutex_unlock(&c->lock);
    int n = ppoll(fds, 3, &ts, NULL);
    pthread_mutex_lock(&c->lock);
    c->leader = false;
    if (!look(c) && n == 0 && probes)
        probe(c);
    pthread_cond_broadcast(&c->turn);       /* whoever waits next leads */
}

/* The peer has announced a larger ring: staging of its size, once nothing reads from the old one. */
static int change_rings(struct rp_rdma_conn *c)
{
    struct rp_rdma_mem m;
    struct rp_error why = {0};
    int rc = rp_rdma_mem_alloc(&m, c->qp.pd, (size_t)c->next.slot_bytes * RP_RDMA_SLOTS, false, &why);
    if (rc < 0)
        return rc;
    rp_rdma_mem_free(&c->staging);
    c->staging = m;
    c->peer = c->next;
    c->next = (struct remote_ring){0};
    c->out = (struct rp_rdma_out){.slot_bytes = c->peer.slot_bytes};
    c->qp.done_mark = c->signalled = 0;
    return 0;
}

static int sending_ended(const struct rp_rdma_conn *c)
{
    return c->down ? -ECANCELED : c->fin_came ? -EPIPE : c->dead;
}

/* Bytes that may be sent now; 0: none; < 0: never again. */
static int64_t room_to_send(struct rp_rdma_conn *c)
{
    int rc = sending_ended(c);
    if (rc == 0 && c->next.slot_bytes && c->qp.completed == c->qp.posted)
        rc = change_rings(c);
    if (rc < 0)
        return rc;
    return c->established && !c->next.slot_bytes && rp_rdma_qp_room(&c->qp, FIN_ROOM + 1) ? rp_rdma_out_room(&c->out) : 0;
}

/* --- the transport's calls --- */

static uint32_t gather(uint8_t *to, uint32_t room, const struct iovec *iov, int n)
{
    uint32_t len = 0;
    for (int i = 0; i < n && len < room; i++) {
        uint32_t part = iov[i].iov_len < room - len ? (uint32_t)iov[i].iov_len : room - len;
        memcpy(to + len, iov[i].iov_base, part);
        len += part;
    }
    return len;
}

static ssize_t rdma_send(struct rp_conn *base, const struct iovec *iov, int n, bool wait)
{
    struct rp_rdma_conn *c = of(base);
    int64_t room;
    pthread_mutex_lock(&c->lock);
    if ((room = room_to_send(c)) == 0 && poll_queue(c))
        room = room_to_send(c);
    while (room == 0) {
        if (wait)
            wait_change(c, 0);
        else if (!look(c))
            break;
        room = room_to_send(c);
    }
    if (room <= 0) {
        pthread_mutex_unlock(&c->lock);
        return room < 0 ? room : -EAGAIN;
    }
    uint8_t *to = c->staging.base + rp_rdma_out_offset(&c->out);
    pthread_mutex_unlock(&c->lock);         /* the place is ours: one thread sends at a time */
    uint32_t len = gather(to, (uint32_t)room, iov, n);
    pthread_mutex_lock(&c->lock);
    int rc = sending_ended(c);
    if (rc == 0 && len > 0)
        rc = post_message(c, KIND_DATA, len);
    pthread_mutex_unlock(&c->lock);
    return rc < 0 ? rc : (ssize_t)len;
}

/* Lock held. Waits for data: its length, 0 at the end, or -errno. */
static int64_t await_data(struct rp_rdma_conn *c, int timeout_ms, uint32_t *offset)
{
    uint64_t deadline = timeout_ms > 0 ? rp_clock_ns() + (uint64_t)timeout_ms * 1000000u : 0;
    for (;;) {
        uint32_t n;
        if (c->down)
            return -ECANCELED;
        if ((n = rp_rdma_in_ready(&c->in, offset)) > 0 || (poll_queue(c) && (n = rp_rdma_in_ready(&c->in, offset)) > 0))
            return n;
        if (c->fin_came)
            return 0;
        if (c->dead)
            return c->dead;
        if (timeout_ms == RP_CONN_NOW) {
            if (!look(c))
                return -EAGAIN;
        } else {
            if (deadline && rp_clock_ns() >= deadline)
                return -ETIMEDOUT;
            wait_change(c, deadline);
        }
    }
}

static ssize_t rdma_recv(struct rp_conn *base, void *buf, size_t len, int timeout_ms)
{
    struct rp_rdma_conn *c = of(base);
    uint32_t offset = 0;
    pthread_mutex_lock(&c->lock);
    c->reading = true;
    int64_t n = await_data(c, timeout_ms, &offset);
    if (n > 0) {
        if ((size_t)n > len)
            n = (int64_t)len;
        /* Copied before it is looked at: the peer's device can write into the ring at any time. */
        pthread_mutex_unlock(&c->lock);
        memcpy(buf, c->ring.base + offset, (size_t)n);
        pthread_mutex_lock(&c->lock);
        rp_rdma_in_consume(&c->in, (uint32_t)n);
        give_credit(c);
    }
    c->reading = false;
    note_rest(c);
    pthread_mutex_unlock(&c->lock);
    return (ssize_t)n;
}

static int rdma_poll_fd(const struct rp_conn *base)
{
    return ((const struct rp_rdma_conn *)base)->epoll_fd;
}

static int rdma_widen(struct rp_conn *base, struct rp_error *err)
{
    struct rp_rdma_conn *c = of(base);
    struct rp_rdma_mem m;
    if (c->old_ring.base)
        return 0;
    int rc = rp_rdma_mem_alloc(&m, c->qp.pd, (size_t)RP_RDMA_WIDE * RP_RDMA_SLOTS, true, err);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&c->lock);
    uint32_t offset;
    while ((rc = (int)room_to_send(c)) == 0)
        wait_change(c, 0);
    if (rc > 0 && rp_rdma_in_ready(&c->in, &offset) > 0)
        rc = -EPROTO;       /* it has sent what nobody asked for */
    if (rc > 0) {
        c->old_ring = c->ring;
        c->ring = m;
        c->in = (struct rp_rdma_in){.slot_bytes = RP_RDMA_WIDE};
        put_ring(c->staging.base + rp_rdma_out_offset(&c->out), &c->ring, RP_RDMA_WIDE);
        rc = post_message(c, KIND_RING, RING_BYTES);
    } else {
        rp_rdma_mem_free(&m);
    }
    pthread_mutex_unlock(&c->lock);
    return rc < 0 ? rp_error_set(err, rc, "%s: the RDMA ring could not be announced: %s", c->base.peer, strerror(-rc)) : 0;
}

static void rdma_shutdown(struct rp_conn *base)
{
    struct rp_rdma_conn *c = of(base);
    pthread_mutex_lock(&c->lock);
    c->down = true;
    if (c->established && !c->dead && !c->fin_sent && rp_rdma_qp_room(&c->qp, 0)) {
        c->fin_sent = true;
        if (post(c, KIND_FIN, 0, NULL, 0, 0) < 0) {
            /* then the connection's end says the same */
        }
    }
    raise_fd(c->wake_fd);
    pthread_cond_broadcast(&c->turn);
    pthread_mutex_unlock(&c->lock);
}

/* What was sent last arrives, if the peer is there: a refusal is read before the end is. */
static void settle(struct rp_rdma_conn *c)
{
    uint64_t until = rp_clock_ns() + CLOSE_MS * 1000000u;
    pthread_mutex_lock(&c->lock);
    while (c->fin_sent && !c->dead && c->qp.completed < c->qp.posted && rp_clock_ns() < until) {
        if (look(c))
            continue;
        struct pollfd fds[] = {{.fd = c->qp.comp->fd, .events = POLLIN}, {.fd = c->cm.channel->fd, .events = POLLIN}};
        pthread_mutex_unlock(&c->lock);
        poll(fds, 2, 100);
        pthread_mutex_lock(&c->lock);
    }
    pthread_mutex_unlock(&c->lock);
}

static void rdma_close(struct rp_conn *base)
{
    struct rp_rdma_conn *c = of(base);
    if (c->qp.qp) {
        rdma_shutdown(base);
        settle(c);
        rdma_disconnect(c->cm.id);
        rp_rdma_qp_stop(&c->qp, c->cm.id);
    }
    rp_rdma_mem_free(&c->staging);
    rp_rdma_mem_free(&c->ring);
    rp_rdma_mem_free(&c->old_ring);
    rp_rdma_qp_close(&c->qp);
    rp_rdma_cm_close(&c->cm);
    if (c->epoll_fd >= 0)
        close(c->epoll_fd);
    if (c->wake_fd >= 0)
        close(c->wake_fd);
    if (c->ready_fd >= 0)
        close(c->ready_fd);
    pthread_cond_destroy(&c->turn);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static const struct rp_conn_ops rdma_ops = {
    .name = "rdma", .send = rdma_send, .recv = rdma_recv, .poll_fd = rdma_poll_fd, .widen = rdma_widen,
    .shutdown = rdma_shutdown, .close = rdma_close,
};

/* --- making one --- */

static int watch(struct rp_rdma_conn *c, int fd)
{
    struct epoll_event ev = {.events = EPOLLIN};
    return epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

static int make_fds(struct rp_rdma_conn *c, struct rp_error *err)
{
    c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    c->ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = c->epoll_fd < 0 || c->wake_fd < 0 || c->ready_fd < 0 ? -errno : 0;
    if (rc < 0 || (rc = watch(c, c->wake_fd)) < 0 || (rc = watch(c, c->ready_fd)) < 0 ||
        (rc = watch(c, c->qp.comp->fd)) < 0 || (rc = watch(c, c->cm.channel->fd)) < 0)
        return rp_error_set(err, rc, "no descriptors for an RDMA connection: %s", strerror(-rc));
    return 0;
}

int rp_rdma_conn_create(struct rp_rdma_cm *cm, struct rp_rdma_conn **out, struct rp_error *err)
{
    struct rp_rdma_conn *c = calloc(1, sizeof(*c));
    if (!c) {
        rp_rdma_cm_close(cm);
        return rp_error_set(err, ENOMEM, "no memory for a connection");
    }
    c->base.ops = &rdma_ops;
    c->cm = *cm;
    c->epoll_fd = c->wake_fd = c->ready_fd = -1;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->turn, NULL);
    rp_rdma_cm_name(rdma_get_peer_addr(c->cm.id), c->base.peer, sizeof(c->base.peer));
    const size_t narrow = RP_RDMA_NARROW * RP_RDMA_SLOTS;
    int rc = rp_rdma_qp_open(&c->qp, c->cm.id, err);
    if (rc < 0 || (rc = make_fds(c, err)) < 0 || (rc = rp_rdma_mem_alloc(&c->ring, c->qp.pd, narrow, true, err)) < 0 ||
        (rc = rp_rdma_mem_alloc(&c->staging, c->qp.pd, narrow, false, err)) < 0) {
        rdma_close(&c->base);
        return rc;
    }
    c->in.slot_bytes = c->out.slot_bytes = RP_RDMA_NARROW;
    *out = c;
    return 0;
}

void rp_rdma_conn_describe(const struct rp_rdma_conn *c, uint8_t *p)
{
    memset(p, 0, RP_RDMA_PRIVATE_BYTES);
    rp_st32(p, PRIVATE_MAGIC);
    rp_st32(p + 4, PRIVATE_VERSION);
    put_ring(p + 8, &c->ring, RP_RDMA_NARROW);
}

int rp_rdma_conn_peer(struct rp_rdma_conn *c, const uint8_t *p)
{
    if (rp_ld32(p) != PRIVATE_MAGIC || rp_ld32(p + 4) != PRIVATE_VERSION)
        return -EPROTO;
    get_ring(p + 8, &c->peer);
    return c->peer.slot_bytes == RP_RDMA_NARROW ? 0 : -EPROTO;
}

struct rp_rdma_cm *rp_rdma_conn_cm(struct rp_rdma_conn *c)
{
    return &c->cm;
}

void rp_rdma_conn_established(struct rp_rdma_conn *c)
{
    c->established = c->connected = true;
}

struct rp_conn *rp_rdma_conn_base(struct rp_rdma_conn *c)
{
    return &c->base;
}
