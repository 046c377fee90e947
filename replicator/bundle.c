#include "replicator/bundle.h"

#include "core/fault.h"
#include "core/thread.h"
#include "replicator/frame.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

enum state { UNSENT, SENDING, FLYING };

struct frame {
    struct frame *next;         /* by number; or of the free ones */
    struct rp_buf bytes;        /* header and records */
    uint64_t number;
    enum state state;
    unsigned lane;              /* SENDING, FLYING */
    bool taken;                 /* SENDING: it was there already, from a lane that died */
};

struct lane {
    struct rp_bundle *b;
    unsigned index;
    bool used;                  /* the slot holds a lane, or a thread that is to be joined */
    bool ended;                 /* its thread has nothing more to do */
    bool spare, busy;           /* busy: somebody sends on it */
    int failed;                 /* -errno: it works no more */
    struct rp_conn *conn;       /* NULL: closed */
    const char *transport;
    pthread_t thread;
    pthread_cond_t work;
    uint64_t bytes;
};

struct rp_bundle {
    struct rp_bundle_events events;
    struct frame *open;         /* emitting thread */
    uint64_t seq;               /* emitting thread: records in it */
    pthread_mutex_t lock;       /* everything below */
    pthread_cond_t room;        /* something was taken, or it is over */
    struct lane lanes[RP_LANES_MAX];
    struct frame *first, *last; /* closed, not taken */
    struct frame *unsent;       /* no UNSENT one comes before it */
    struct frame *free;
    uint64_t row_bytes, numbers;
    uint64_t sent_bytes, again;
    bool stopped;
};

/* --- lock held --- */

static bool lives(const struct lane *l)
{
    return l->used && l->conn && !l->failed;
}

static unsigned living(const struct rp_bundle *b, bool spare)
{
    unsigned n = 0;
    for (unsigned i = 0; i < RP_LANES_MAX; i++)
        n += lives(&b->lanes[i]) && b->lanes[i].spare == spare;
    return n;
}

static bool may_send(const struct rp_bundle *b, const struct lane *l)
{
    return lives(l) && !l->busy && (!l->spare || living(b, false) == 0);
}

static struct lane *idle_lane(struct rp_bundle *b)
{
    for (unsigned i = 0; i < RP_LANES_MAX; i++)
        if (may_send(b, &b->lanes[i]))
            return &b->lanes[i];
    return NULL;
}

static struct frame *next_unsent(struct rp_bundle *b)
{
    while (b->unsent && b->unsent->state != UNSENT)
        b->unsent = b->unsent->next;
    return b->unsent;
}

static void wake_all(struct rp_bundle *b)
{
    for (unsigned i = 0; i < RP_LANES_MAX; i++)
        if (b->lanes[i].used)
            pthread_cond_broadcast(&b->lanes[i].work);
    pthread_cond_broadcast(&b->room);
}

/* Drops what was taken from the front; a frame that is being sent again stays until that is over. */
static void drop_taken(struct rp_bundle *b, uint64_t upto)
{
    struct frame **at = &b->first, *before = NULL;
    while (*at && (*at)->number <= upto) {
        struct frame *f = *at;
        f->taken = true;
        if (f->state == SENDING) {
            before = f;
            at = &f->next;
            continue;
        }
        *at = f->next;
        if (b->last == f)
            b->last = before;
        if (b->unsent == f)
            b->unsent = f->next;
        b->row_bytes -= f->bytes.len;
        f->next = b->free;
        b->free = f;
    }
    pthread_cond_broadcast(&b->room);
}

/* The frames of a lane that died wait again. Returns how many. */
static unsigned send_again(struct rp_bundle *b, unsigned lane)
{
    unsigned n = 0;
    for (struct frame *f = b->first; f; f = f->next)
        if (f->state == FLYING && f->lane == lane) {
            f->state = UNSENT;
            n++;
        }
    if (n)
        b->unsent = b->first;
    b->again += n;
    return n;
}

static void fail_lane(struct rp_bundle *b, struct lane *l, int rc)
{
    if (l->failed)
        return;
    l->failed = rc;
    l->conn->ops->shutdown(l->conn);
    wake_all(b);
}

/* Sends the next frame on a lane that may send; the lock is given up meanwhile. */
static void send_next(struct rp_bundle *b, struct lane *l)
{
    struct frame *f = next_unsent(b);
    f->state = SENDING;
    f->lane = l->index;
    l->busy = true;
    pthread_mutex_unlock(&b->lock);
    int rc = rp_fault(RP_FAULT_LINK_RECORD) ? -EIO : rp_conn_send(l->conn, f->bytes.data, f->bytes.len);
    pthread_mutex_lock(&b->lock);
    l->busy = false;
    f->state = FLYING;
    l->bytes += f->bytes.len;
    b->sent_bytes += f->bytes.len;
    if (f->taken)
        drop_taken(b, f->number);
    if (rc < 0)
        fail_lane(b, l, rc);
    if (l->failed || b->stopped)
        pthread_cond_broadcast(&l->work);   /* its thread waits for us before it closes */
}

/* --- a lane's thread --- */

static void end_lane(struct lane *l)
{
    struct rp_bundle *b = l->b;
    struct rp_lane_loss loss = {.lane = l->index, .transport = l->transport, .rc = l->failed};
    struct rp_conn *conn = l->conn;
    l->conn = NULL;
    loss.again = send_again(b, l->index);
    loss.left = living(b, false) + living(b, true);
    loss.spares = !l->spare && loss.left > 0 && living(b, false) == 0;
    bool tell = l->failed && !b->stopped;
    wake_all(b);
    pthread_mutex_unlock(&b->lock);
    conn->ops->close(conn);
    if (tell)
        b->events.lane_lost(b->events.ctx, &loss);
    pthread_mutex_lock(&b->lock);
    l->ended = true;
}

static void *lane_main(void *arg)
{
    struct lane *l = arg;
    struct rp_bundle *b = l->b;
    pthread_mutex_lock(&b->lock);
    for (;;) {
        bool over = b->stopped || l->failed;
        if (over && !l->busy)
            break;
        if (!over && next_unsent(b) && may_send(b, l))
            send_next(b, l);
        else
            pthread_cond_wait(&l->work, &b->lock);
    }
    end_lane(l);
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

/* --- the emitting thread --- */

static int broken(struct rp_error *err)
{
    return rp_error_set(err, EPIPE, "the link to the standby is down");
}

static int open_frame(struct rp_bundle *b, struct rp_error *err)
{
    pthread_mutex_lock(&b->lock);
    while (!b->stopped && living(b, false) + living(b, true) > 0 && b->row_bytes >= RP_FRAME_WINDOW)
        pthread_cond_wait(&b->room, &b->lock);
    bool over = b->stopped || living(b, false) + living(b, true) == 0;
    struct frame *f = b->free;
    if (!over && f)
        b->free = f->next;
    pthread_mutex_unlock(&b->lock);
    if (over)
        return broken(err);
    if (!f && !(f = calloc(1, sizeof(*f))))
        return rp_error_set(err, ENOMEM, "no memory for a lane's frame");
    rp_buf_reset(&f->bytes);
    f->state = UNSENT;
    f->taken = false;
    f->next = NULL;
    b->open = f;
    b->seq = 0;
    return rp_buf_extend(&f->bytes, RP_FRAME_HEADER) ? 0 : rp_error_set(err, ENOMEM, "no memory for a lane's frame");
}

/* Lock held. */
static void close_frame(struct rp_bundle *b)
{
    struct frame *f = b->open;
    b->open = NULL;
    f->number = ++b->numbers;
    rp_frame_put_header(f->bytes.data, (uint32_t)(f->bytes.len - RP_FRAME_HEADER), f->number);
    if (b->last)
        b->last->next = f;
    else
        b->first = f;
    b->last = f;
    if (!b->unsent)
        b->unsent = f;
    b->row_bytes += f->bytes.len;
}

int rp_bundle_put(struct rp_bundle *b, struct rp_buf *record, struct rp_error *err)
{
    int rc = b->open ? 0 : open_frame(b, err);
    if (rc < 0)
        return rc;
    if (rp_record_seal(record, 0, b->seq) < 0)
        return rp_error_set(err, ENOMEM, "a record could not be made");
    rp_buf_put(&b->open->bytes, record->data, record->len);
    if (b->open->bytes.failed)
        return rp_error_set(err, ENOMEM, "no memory for a lane's frame");
    b->seq++;
    if (b->open->bytes.len < RP_FRAME_FULL)
        return 0;
    pthread_mutex_lock(&b->lock);
    close_frame(b);
    struct lane *l = idle_lane(b);
    if (l)
        pthread_cond_signal(&l->work);      /* it is sent while the next one is filled */
    pthread_mutex_unlock(&b->lock);
    return 0;
}

int rp_bundle_flush(struct rp_bundle *b, struct rp_error *err)
{
    struct lane *l;
    pthread_mutex_lock(&b->lock);
    if (b->open && b->seq > 0)
        close_frame(b);
    /* Whoever flushes waits for the answer anyway: it spares a lane's thread the waking up. */
    while (!b->stopped && next_unsent(b) && (l = idle_lane(b)))
        send_next(b, l);
    bool over = b->stopped || living(b, false) + living(b, true) == 0;
    pthread_mutex_unlock(&b->lock);
    return over ? broken(err) : 0;
}

/* --- any thread --- */

int rp_bundle_taken(struct rp_bundle *b, uint64_t number)
{
    pthread_mutex_lock(&b->lock);
    bool known = number <= b->numbers;
    if (known)
        drop_taken(b, number);
    pthread_mutex_unlock(&b->lock);
    return known ? 0 : -EPROTO;
}

void rp_bundle_look(struct rp_bundle *b)
{
    char byte;
    pthread_mutex_lock(&b->lock);
    for (unsigned i = 0; i < RP_LANES_MAX && !b->stopped; i++) {
        struct lane *l = &b->lanes[i];
        if (!lives(l))
            continue;
        /* The other side of a lane says nothing: whatever comes is its end. */
        ssize_t n = l->conn->ops->recv(l->conn, &byte, 1, RP_CONN_NOW);
        if (n != -EAGAIN)
            fail_lane(b, l, n < 0 ? (int)n : n == 0 ? -ECONNRESET : -EPROTO);
    }
    pthread_mutex_unlock(&b->lock);
}

int rp_bundle_free_index(struct rp_bundle *b)
{
    int found = -ENOSPC;
    pthread_mutex_lock(&b->lock);
    for (unsigned i = 0; i < RP_LANES_MAX && found < 0; i++)
        if (!b->lanes[i].used || b->lanes[i].ended)
            found = (int)i;
    pthread_mutex_unlock(&b->lock);
    return found;
}

int rp_bundle_add(struct rp_bundle *b, struct rp_conn *c, unsigned index, bool spare, struct rp_error *err)
{
    struct lane *l = &b->lanes[index];
    pthread_mutex_lock(&b->lock);
    bool reap = l->used && l->ended, taken = index >= RP_LANES_MAX || (l->used && !l->ended) || b->stopped;
    pthread_mutex_unlock(&b->lock);
    if (taken) {
        c->ops->close(c);
        return rp_error_set(err, EPIPE, "lane %u has no place", index);
    }
    if (reap)
        pthread_join(l->thread, NULL);
    pthread_mutex_lock(&b->lock);
    l->spare = spare;
    l->transport = c->ops->name;
    l->conn = c;
    l->failed = 0;
    l->bytes = 0;
    l->busy = l->ended = false;
    int rc = rp_thread_start(&l->thread, "link lane", lane_main, l, err);
    l->used = rc == 0;
    if (rc < 0)
        l->conn = NULL;
    pthread_mutex_unlock(&b->lock);
    if (rc < 0)
        c->ops->close(c);
    return rc;
}

int rp_bundle_create(const struct rp_bundle_events *events, struct rp_bundle **out, struct rp_error *err)
{
    struct rp_bundle *b = calloc(1, sizeof(*b));
    if (!b)
        return rp_error_set(err, ENOMEM, "no memory for a link's lanes");
    b->events = *events;
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->room, NULL);
    for (unsigned i = 0; i < RP_LANES_MAX; i++) {
        b->lanes[i].b = b;
        b->lanes[i].index = i;
        pthread_cond_init(&b->lanes[i].work, NULL);
    }
    *out = b;
    return 0;
}

void rp_bundle_stop(struct rp_bundle *b)
{
    pthread_mutex_lock(&b->lock);
    b->stopped = true;
    for (unsigned i = 0; i < RP_LANES_MAX; i++)
        if (b->lanes[i].used && b->lanes[i].conn)
            b->lanes[i].conn->ops->shutdown(b->lanes[i].conn);
    wake_all(b);
    pthread_mutex_unlock(&b->lock);
}

void rp_bundle_join(struct rp_bundle *b)
{
    rp_bundle_stop(b);
    for (unsigned i = 0; i < RP_LANES_MAX; i++) {
        pthread_mutex_lock(&b->lock);
        bool used = b->lanes[i].used;
        b->lanes[i].used = false;       /* nobody adds lanes to a bundle that was stopped */
        pthread_mutex_unlock(&b->lock);
        if (used)
            pthread_join(b->lanes[i].thread, NULL);
    }
}

static void free_frames(struct frame *f)
{
    while (f) {
        struct frame *next = f->next;
        rp_buf_fini(&f->bytes);
        free(f);
        f = next;
    }
}

void rp_bundle_destroy(struct rp_bundle *b)
{
    if (!b)
        return;
    rp_bundle_join(b);
    for (unsigned i = 0; i < RP_LANES_MAX; i++)
        pthread_cond_destroy(&b->lanes[i].work);
    free_frames(b->open);
    free_frames(b->first);
    free_frames(b->free);
    pthread_cond_destroy(&b->room);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

void rp_bundle_stats(struct rp_bundle *b, struct rp_bundle_stats *out)
{
    *out = (struct rp_bundle_stats){.transport = ""};
    pthread_mutex_lock(&b->lock);
    bool spare = living(b, false) == 0;
    out->bytes = b->sent_bytes;
    out->again = b->again;
    out->lanes = living(b, spare);
    for (unsigned i = 0; i < RP_LANES_MAX; i++) {
        out->lane_bytes[i] = b->lanes[i].bytes;
        if (lives(&b->lanes[i]) && b->lanes[i].spare == spare)
            out->transport = b->lanes[i].transport;
    }
    pthread_mutex_unlock(&b->lock);
}
