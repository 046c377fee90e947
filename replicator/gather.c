#include "replicator/gather.h"

#include "core/fault.h"
#include "core/thread.h"
#include "replicator/bundle.h"
#include "replicator/frame.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

struct parked {
    struct parked *next;        /* by number */
    uint64_t number;
    uint32_t len, cap;
    uint8_t *payload;
};

#define READ_AHEAD (64u << 10)  /* small frames cost one receive, not two */
#define SPARE_FRAMES 8u         /* kept for the next ones: a frame's memory is not mapped and unmapped again and again */

struct lane {
    struct rp_gather *g;
    unsigned index;
    bool used, ended;
    struct rp_conn *conn;
    pthread_t thread;
    uint8_t *ahead;             /* lane's thread: received and not yet used: [from, to) */
    uint32_t from, to;
};

struct rp_gather {
    struct rp_gather_events events;
    pthread_mutex_t lock;       /* everything below */
    struct lane lanes[RP_LANES_MAX];
    struct parked *parked, *spare;
    unsigned spares;
    uint64_t parked_bytes;
    uint64_t taken, bytes;      /* bytes: of payload, fed */
    bool feeding;               /* a thread feeds: it also feeds what is parked meanwhile */
    bool stopped;
};

/* lock held */
static void shutdown_all(struct rp_gather *g)
{
    g->stopped = true;
    for (unsigned i = 0; i < RP_LANES_MAX; i++)
        if (g->lanes[i].used && g->lanes[i].conn)
            g->lanes[i].conn->ops->shutdown(g->lanes[i].conn);
}

/* lock held */
static void give_back(struct rp_gather *g, struct parked *p)
{
    if (g->spares < SPARE_FRAMES) {
        p->next = g->spare;
        g->spare = p;
        g->spares++;
        return;
    }
    free(p->payload);
    free(p);
}

/* Memory for a frame of `len` bytes, or NULL. */
static struct parked *get_memory(struct rp_gather *g, uint32_t len)
{
    pthread_mutex_lock(&g->lock);
    struct parked *p = g->spare;
    if (p) {
        g->spare = p->next;
        g->spares--;
    }
    pthread_mutex_unlock(&g->lock);
    if (!p && !(p = calloc(1, sizeof(*p))))
        return NULL;
    if (p->cap < len) {
        free(p->payload);
        p->cap = len < RP_FRAME_FULL ? RP_FRAME_FULL : len;
        if (!(p->payload = malloc(p->cap))) {
            free(p);
            return NULL;
        }
    }
    return p;
}

/* --- the order --- */

/* lock held. Takes over the payload. */
static int park(struct rp_gather *g, struct parked *p, struct rp_error *err)
{
    struct parked **at = &g->parked;
    while (*at && (*at)->number < p->number)
        at = &(*at)->next;
    if (*at && (*at)->number == p->number) {
        give_back(g, p);
        return 0;
    }
    if (g->parked_bytes + p->len > RP_FRAME_WINDOW + RP_FRAME_MAX) {
        give_back(g, p);
        return rp_error_set(err, ENOBUFS, "frame %llu is waited for, and more came after it than may wait", (unsigned long long)g->taken + 1);
    }
    p->next = *at;
    *at = p;
    g->parked_bytes += p->len;
    return 0;
}

/* lock held. The frame whose turn it is, taken out; NULL when it has not come. One that came again while it was fed is dropped. */
static struct parked *next_frame(struct rp_gather *g)
{
    while (g->parked && g->parked->number <= g->taken + 1) {
        struct parked *p = g->parked;
        g->parked = p->next;
        g->parked_bytes -= p->len;
        if (p->number == g->taken + 1)
            return p;
        give_back(g, p);
    }
    return NULL;
}

static int feed_frame(struct rp_gather *g, const struct parked *p, uint64_t *bytes, struct rp_error *err)
{
    struct rp_record r;
    uint32_t pos = 0;
    bool epoch = false;
    while (rp_frame_next(p->payload, p->len, &pos, &r)) {
        r.offset += *bytes;
        int rc = g->events.feed(g->events.ctx, &r, err);
        if (rc < 0)
            return rc;
        epoch |= rc == 1;
    }
    *bytes += p->len;
    return g->events.taken(g->events.ctx, p->number, *bytes, epoch, err);
}

/* What came is refused: nothing more is fed, and the lanes stay until rp_gather_shutdown, for the reason is to be the news that
 * comes first at the other side, and not a lane's end. */
static void refuse(struct rp_gather *g, int rc, const struct rp_error *err)
{
    pthread_mutex_lock(&g->lock);
    bool first = !g->stopped;
    g->stopped = true;
    pthread_mutex_unlock(&g->lock);
    if (first)
        g->events.refused(g->events.ctx, rc, err);
}

/* A frame has come; it is taken over. Feeds it, and what waited for it, if its turn has come and nobody else does. */
static int deliver(struct rp_gather *g, struct parked *p, struct rp_error *err)
{
    int rc = 0;
    pthread_mutex_lock(&g->lock);
    if (p->number <= g->taken)
        give_back(g, p);        /* sent twice */
    else
        rc = park(g, p, err);
    struct parked *next;
    while (rc == 0 && !g->feeding && !g->stopped && (next = next_frame(g))) {
        uint64_t bytes = g->bytes;
        g->feeding = true;
        pthread_mutex_unlock(&g->lock);
        rc = feed_frame(g, next, &bytes, err);
        pthread_mutex_lock(&g->lock);
        g->feeding = rc < 0;        /* after a refusal nobody feeds again */
        if (rc == 0) {
            g->taken = next->number;
            g->bytes = bytes;
        }
        give_back(g, next);
    }
    pthread_mutex_unlock(&g->lock);
    return rc;
}

/* --- lanes --- */

/* Exactly len bytes; what came with them waits in `ahead`. */
static int receive(struct lane *l, uint8_t *to, uint32_t len)
{
    while (len > 0) {
        if (l->from == l->to && len >= READ_AHEAD / 2)
            return rp_conn_recv_all(l->conn, to, len, 0);
        if (l->from == l->to) {
            ssize_t n = l->conn->ops->recv(l->conn, l->ahead, READ_AHEAD, RP_CONN_FOREVER);
            if (n <= 0)
                return n < 0 ? (int)n : -ECONNRESET;
            l->from = 0;
            l->to = (uint32_t)n;
        }
        uint32_t part = len < l->to - l->from ? len : l->to - l->from;
        memcpy(to, l->ahead + l->from, part);
        l->from += part;
        to += part;
        len -= part;
    }
    return 0;
}

/* 1: a frame that is whole and undamaged; 0: the lane ended (*end says how); < 0: refused. */
static int read_frame(struct lane *l, struct parked **out, int *end, struct rp_error *err)
{
    uint8_t header[RP_FRAME_HEADER];
    struct parked *p;
    uint32_t len;
    uint64_t number;
    if ((*end = receive(l, header, sizeof(header))) < 0)
        return 0;
    int rc = rp_frame_get_header(header, &len, &number, err);
    if (rc < 0)
        return rc;
    if (!(p = get_memory(l->g, len)))
        return rp_error_set(err, ENOMEM, "no memory for a frame of %u bytes", len);
    p->number = number;
    p->len = len;
    *end = rp_fault(RP_FAULT_LINK_FRAME) ? -EIO : receive(l, p->payload, len);
    rc = *end < 0 ? 0 : rp_frame_check(p->payload, len, err);
    if (*end < 0 || rc < 0) {
        free(p->payload);
        free(p);
        return rc < 0 ? rp_error_wrap(err, "lane %u, frame %llu", l->index, (unsigned long long)number) : 0;
    }
    *out = p;
    return 1;
}

static void end_lane(struct lane *l, int end)
{
    struct rp_gather *g = l->g;
    unsigned left = 0;
    pthread_mutex_lock(&g->lock);
    struct rp_conn *conn = l->conn;
    l->conn = NULL;
    for (unsigned i = 0; i < RP_LANES_MAX; i++)
        left += g->lanes[i].used && g->lanes[i].conn;
    bool tell = !g->stopped;
    pthread_mutex_unlock(&g->lock);
    const char *transport = conn->ops->name;
    conn->ops->close(conn);
    if (tell)
        g->events.lane_ended(g->events.ctx, l->index, transport, end, left);
    pthread_mutex_lock(&g->lock);
    l->ended = true;
    pthread_mutex_unlock(&g->lock);
}

/* Until the lane's end. */
static int drain(struct lane *l)
{
    uint8_t sink[4096];
    ssize_t n;
    while ((n = l->conn->ops->recv(l->conn, sink, sizeof(sink), RP_CONN_FOREVER)) > 0)
        ;
    return n < 0 ? (int)n : -ECONNRESET;
}

static void *lane_main(void *arg)
{
    struct lane *l = arg;
    struct rp_error err = {0};
    struct parked *p = NULL;
    int rc = 0, end = 0;
    l->ahead = malloc(READ_AHEAD);
    if (!l->ahead)
        rc = rp_error_set(&err, ENOMEM, "no memory to receive on lane %u", l->index);
    while (rc == 0 && (rc = read_frame(l, &p, &end, &err)) > 0)
        rc = deliver(l->g, p, &err);
    if (rc < 0) {
        refuse(l->g, rc, &err);
        end = drain(l);
    }
    free(l->ahead);
    end_lane(l, end);
    return NULL;
}

int rp_gather_create(const struct rp_gather_events *events, struct rp_gather **out, struct rp_error *err)
{
    struct rp_gather *g = calloc(1, sizeof(*g));
    if (!g)
        return rp_error_set(err, ENOMEM, "no memory for a link's lanes");
    g->events = *events;
    pthread_mutex_init(&g->lock, NULL);
    *out = g;
    return 0;
}

/* lock held */
static struct lane *free_lane(struct rp_gather *g)
{
    for (unsigned i = 0; i < RP_LANES_MAX; i++)
        if (!g->lanes[i].used || g->lanes[i].ended)
            return &g->lanes[i];
    return NULL;
}

int rp_gather_add(struct rp_gather *g, struct rp_conn *c, unsigned index, struct rp_error *err)
{
    pthread_mutex_lock(&g->lock);
    struct lane *l = free_lane(g);
    int rc = g->stopped ? -EPIPE : l ? 0 : -ENOSPC;
    if (rc == 0 && l->used)
        pthread_join(l->thread, NULL);
    if (rc == 0) {
        *l = (struct lane){.g = g, .index = index, .conn = c};
        rc = rp_thread_start(&l->thread, "link lane", lane_main, l, NULL);
        l->used = rc == 0;
    }
    pthread_mutex_unlock(&g->lock);
    if (rc == 0)
        return 0;
    c->ops->close(c);
    return rp_error_set(err, rc, "lane %u cannot be served: %s", index, strerror(-rc));
}

void rp_gather_shutdown(struct rp_gather *g)
{
    pthread_mutex_lock(&g->lock);
    shutdown_all(g);
    pthread_mutex_unlock(&g->lock);
}

static void free_all(struct parked *p)
{
    while (p) {
        struct parked *next = p->next;
        free(p->payload);
        free(p);
        p = next;
    }
}

void rp_gather_destroy(struct rp_gather *g)
{
    if (!g)
        return;
    rp_gather_shutdown(g);
    for (unsigned i = 0; i < RP_LANES_MAX; i++)
        if (g->lanes[i].used)
            pthread_join(g->lanes[i].thread, NULL);
    free_all(g->parked);
    free_all(g->spare);
    pthread_mutex_destroy(&g->lock);
    free(g);
}
