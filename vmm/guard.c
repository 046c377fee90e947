/*
 * A disk's guard: requests go through, writes that overlap one after the other (DISK-2).
 *
 *   submit ─► in the list ─► issued ─► done at the host ─► kept (private) ─► told to the guest
 *                └─ waits: for an overlapping one before it, for a piece of the copy being read, for the bound (DISK-3);
 *                   on a shared disk for the commit (DISK-5)
 *
 * A private disk's write is handed to rp_disks_keep when the host has done it, before the guest hears of it (DISK-1). A
 * request that waits is in flight as far as the guest and the device's state know: who enters the epoch issues it again. So
 * a shared disk's guest is never told of a write that is not on the storage.
 *
 * Reads and flushes pass: a flush covers what the guest was told of, a read sees the writes that wait, too (DISK-6). A
 * private disk's discard is done as zeroing that may give space back, so that the copy can be the same.
 */
#include "vmm/disks_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct rp_guard *guard_of(struct rp_disk *d)
{
    return (struct rp_guard *)(void *)d;
}

static bool overlap(uint64_t a, uint64_t a_end, uint64_t b, uint64_t b_end)
{
    return a < b_end && b < a_end;
}

static uint64_t end_of(const struct rp_disk_req *r)
{
    return r->offset_bytes + r->len_bytes;
}

bool rp_guard_busy(const struct rp_guard *g, uint64_t from, uint64_t to)
{
    for (const struct rp_guard_op *op = g->first; op; op = op->next)
        if (op->issued && overlap(op->lower.offset_bytes, end_of(&op->lower), from, to))
            return true;
    return false;
}

/* Is it a private disk's write for which there is no room? */
static bool too_much(const struct rp_guard_op *op)
{
    return op->lower.op == RP_DISK_WRITE && !op->guard->shared && !rp_disks_room(op->guard->all, op->lower.len_bytes);
}

/* Must it wait for the commit, for another one, or for the piece being copied? */
static bool obstructed(const struct rp_guard_op *op)
{
    const struct rp_guard *g = op->guard;
    const struct rp_disks *d = g->all;
    uint64_t from = op->lower.offset_bytes, to = end_of(&op->lower);

    if (g->shared && rp_disks_held(g->all, op->after))
        return true;
    if (d->piece == g && overlap(from, to, d->piece_from, d->piece_to))
        return true;
    for (const struct rp_guard_op *o = g->first; o != op; o = o->next)
        if (overlap(from, to, o->lower.offset_bytes, end_of(&o->lower)))
            return true;
    return false;
}

static void issue(struct rp_guard_op *op)
{
    struct rp_disks *d = op->guard->all;

    op->issued = true;
    if (d->keeping && op->lower.op == RP_DISK_WRITE && !op->guard->shared) {
        op->reserved_bytes = op->lower.len_bytes;
        d->reserved_bytes += op->reserved_bytes;
    }
    rp_disk_submit(op->guard->lower, &op->lower);
}

void rp_guard_retry(struct rp_guard *g)
{
    bool full = false;

    for (struct rp_guard_op *op = g->first; op && g->waiting; op = op->next) {
        if (op->issued)
            continue;
        full = full || too_much(op);
        if ((full && op->lower.op == RP_DISK_WRITE) || obstructed(op))
            continue;
        g->waiting--;
        issue(op);
    }
}

static void on_done(struct rp_disk_req *r, int rc)
{
    struct rp_guard_op *op = (struct rp_guard_op *)(void *)r;
    struct rp_guard *g = op->guard;
    struct rp_disk_req *guest = op->guest;

    *(op->prev ? &op->prev->next : &g->first) = op->next;
    *(op->next ? &op->next->prev : &g->last) = op->prev;
    g->all->reserved_bytes -= op->reserved_bytes;
    /* A write that failed may have been done in part; the copy then has all of it, which the guest cannot hold against us. */
    if (!g->shared)
        rp_disks_keep(g, r);
    free(op);
    guest->done(guest, rc);
    if (g->waiting)
        rp_guard_retry(g);
    if (g->all->awaited && g->all->piece == g) {
        g->all->awaited = false;
        sem_post(&g->all->quiet);
    }
}

/* --- reads of what waits --- */

static bool waits_for(const struct rp_guard *g, const struct rp_disk_req *r)
{
    for (const struct rp_guard_op *op = g->waiting ? g->first : NULL; op; op = op->next)
        if (!op->issued && overlap(r->offset_bytes, end_of(r), op->lower.offset_bytes, end_of(&op->lower)))
            return true;
    return false;
}

/* What the guest has asked to be written at r's place and what is not done yet, in the order in which it asked. */
static void lay_over(const struct rp_guard *g, const struct rp_disk_req *r)
{
    for (const struct rp_guard_op *op = g->first; op; op = op->next) {
        const struct rp_disk_req *w = &op->lower;
        uint64_t from = r->offset_bytes > w->offset_bytes ? r->offset_bytes : w->offset_bytes;
        uint64_t to = end_of(r) < end_of(w) ? end_of(r) : end_of(w);
        if (from >= to)
            continue;
        if (w->op == RP_DISK_WRITE)
            memcpy(r->buf + (from - r->offset_bytes), w->buf + (from - w->offset_bytes), to - from);
        else if (w->op == RP_DISK_ZERO)
            memset(r->buf + (from - r->offset_bytes), 0, to - from);
    }
}

/* A read that sees what waits: an operation that is not in the list. */
static void on_read_done(struct rp_disk_req *r, int rc)
{
    struct rp_guard_op *op = (struct rp_guard_op *)(void *)r;
    struct rp_disk_req *guest = op->guest;

    if (rc == 0)
        lay_over(op->guard, r);
    free(op);
    guest->done(guest, rc);
}

static void guard_submit(struct rp_disk *disk, struct rp_disk_req *r)
{
    struct rp_guard *g = guard_of(disk);
    struct rp_guard_op *op;

    disk->in_flight--;      /* counted where it is */
    if (r->op == RP_DISK_FLUSH || (r->op == RP_DISK_READ && !(g->shared && waits_for(g, r)))) {
        rp_disk_submit(g->lower, r);
        return;
    }
    op = calloc(1, sizeof(*op));
    if (!op) {              /* told at the next kick, like a failure of the host */
        r->next = disk->failed;
        disk->failed = r;
        return;
    }
    op->lower = *r;
    op->guest = r;
    op->guard = g;
    if (r->op == RP_DISK_READ) {
        op->lower.done = on_read_done;
        rp_disk_submit(g->lower, &op->lower);
        return;
    }
    op->lower.done = on_done;
    op->after = g->all->newest_cut;
    if (r->op == RP_DISK_DISCARD && !g->shared) {
        op->lower.op = RP_DISK_ZERO;
        op->lower.unmap = true;
    }
    op->prev = g->last;
    *(g->last ? &g->last->next : &g->first) = op;
    g->last = op;
    if (!too_much(op) && !obstructed(op)) {
        issue(op);
        return;
    }
    g->waiting++;
    if (g->shared)
        rp_disks_waits(g->all);
}

static void fail_those(struct rp_disk *disk)
{
    bool any = disk->failed != NULL;

    while (disk->failed) {
        struct rp_disk_req *r = disk->failed;

        disk->failed = r->next;
        r->done(r, -ENOMEM);
    }
    if (any && disk->batch_end)
        disk->batch_end(disk->ctx);
}

static void guard_kick(struct rp_disk *disk)
{
    rp_disk_kick(guard_of(disk)->lower);
    fail_those(disk);
}

static void on_batch_end(void *ctx)
{
    struct rp_guard *g = ctx;

    if (g->d.batch_end)
        g->d.batch_end(g->d.ctx);
}

/* Everything at the host is done; what still waits was never begun: the epoch says that it is in flight. */
static void guard_drain(struct rp_disk *disk)
{
    struct rp_guard *g = guard_of(disk);
    struct rp_guard_op *next;

    fail_those(disk);
    do
        rp_disk_drain(g->lower);
    while (rp_guard_busy(g, 0, UINT64_MAX));
    for (struct rp_guard_op *op = g->first; op; op = next) {
        next = op->next;
        op->guest->done(op->guest, -ECANCELED);
        free(op);
    }
    g->first = g->last = NULL;
    g->waiting = 0;
}

static int guard_lock(struct rp_disk *disk, bool on, struct rp_error *err)
{
    return rp_disk_lock(guard_of(disk)->lower, on, err);
}

static void guard_destroy(struct rp_disk *disk)
{
    struct rp_guard *g = guard_of(disk);

    for (struct rp_guard **at = &g->all->guards; *at; at = &(*at)->next)
        if (*at == g) {
            *at = g->next;
            break;
        }
    rp_disk_close(g->lower);
    free(g->lacks);
    free(g->sums.sums);
    free(g);
}

static const struct rp_disk_ops guard_ops = {.name = "guard", .submit = guard_submit, .kick = guard_kick, .drain = guard_drain,
                                             .lock = guard_lock, .destroy = guard_destroy};

int rp_guard_create(struct rp_disks *d, const struct rp_disk_config *cfg, struct rp_disk *lower, struct rp_guard **out, struct rp_error *err)
{
    struct rp_guard *g = calloc(1, sizeof(*g));

    if (!g)
        return rp_error_set(err, ENOMEM, "disk: no memory");
    g->d = (struct rp_disk){.ops = &guard_ops, .size_bytes = lower->size_bytes, .readonly = lower->readonly,
                            .can_discard = lower->can_discard, .can_zero = lower->can_zero};
    g->lower = lower;
    g->all = d;
    g->shared = !rp_disk_is_private(cfg);
    g->blocks = (lower->size_bytes + RP_DISKS_BLOCK_BYTES - 1) / RP_DISKS_BLOCK_BYTES;
    if (cfg->path)
        snprintf(g->path, sizeof(g->path), "%s", cfg->path);
    if (cfg->state)
        snprintf(g->state, sizeof(g->state), "%s", cfg->state);
    lower->batch_end = on_batch_end;
    lower->ctx = g;
    *out = g;
    return 0;
}
