/* A machine's disks as the engine sees them: what was written and what is committed of it. See disks.h; the copy is disks_copy.c's. */
#include "vmm/disks_internal.h"

#include "core/clock.h"
#include "core/log.h"
#include "vmm/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define ENTRY_MAX (1u << 20)            /* bytes of a DISK entry's data: a record has room for four */
#define PRESS_BYTES (RP_DISKS_BOUND_BYTES / 4)

/* --- a queue of values --- */

static void *fifo_push(struct rp_fifo *f)
{
    if (f->head && f->head + f->n == f->cap) {
        memmove(f->items, f->items + f->head * f->size, f->n * f->size);
        f->head = 0;
    }
    if (f->n == f->cap) {
        size_t cap = f->cap ? f->cap * 2 : 64;
        void *p = realloc(f->items, cap * f->size);

        if (!p)
            return NULL;
        f->items = p;
        f->cap = cap;
    }
    return f->items + (f->head + f->n++) * f->size;
}

static void *fifo_first(const struct rp_fifo *f)
{
    return f->n ? f->items + f->head * f->size : NULL;
}

static void fifo_pop(struct rp_fifo *f)
{
    f->head++;
    if (--f->n == 0)
        f->head = 0;
}

/* --- keeping writes --- */

static uint64_t used(const struct rp_disks *d)
{
    return d->log.len + d->uncommitted_bytes + d->reserved_bytes;
}

bool rp_disks_room(struct rp_disks *d, uint64_t bytes)
{
    return !d->keeping || used(d) == 0 || used(d) + bytes <= RP_DISKS_BOUND_BYTES;
}

static bool pressed(const struct rp_disks *d)
{
    return d->keeping && d->steady && d->log.len && (d->log.len >= PRESS_BYTES || used(d) >= RP_DISKS_BOUND_BYTES / 2);
}

static void put_entry(struct rp_disks *d, unsigned number, uint32_t kind, uint64_t offset, uint64_t len, const uint8_t *data)
{
    uint64_t step = kind == RP_DISK_KIND_WRITE ? ENTRY_MAX : RP_DISKS_HOLE_BYTES;

    for (uint64_t done = 0; done < len; done += step)
        rp_disk_put(&d->log, &(struct rp_disk_entry){.disk = number, .kind = kind, .offset = offset + done, .data = data ? data + done : NULL,
                                                     .len = (uint32_t)(len - done < step ? len - done : step)});
}

void rp_disks_keep(struct rp_guard *g, const struct rp_disk_req *r)
{
    struct rp_disks *d = g->all;
    uint64_t first = r->offset_bytes / RP_DISKS_BLOCK_BYTES, last = (r->offset_bytes + r->len_bytes - 1) / RP_DISKS_BLOCK_BYTES;

    if (!d->keeping) {
        if (g->lacks)
            rp_disks_lack(g, first, last, true);
        return;
    }
    put_entry(d, g->number, r->op == RP_DISK_WRITE ? RP_DISK_KIND_WRITE : r->unmap ? RP_DISK_KIND_DISCARD : RP_DISK_KIND_ZERO, r->offset_bytes,
              r->len_bytes, r->op == RP_DISK_WRITE ? r->buf : NULL);
    if (d->steady) {        /* before that the copy as a whole is uncommitted */
        struct rp_epoch_blocks *b = fifo_push(&d->ranges);

        if (b)
            *b = (struct rp_epoch_blocks){.epoch = d->epoch, .first = first, .last = last, .guard = g};
        else
            d->log.failed = true;
    }
    if (pressed(d) && !d->told && d->output_fd >= 0) {
        d->told = true;
        (void)eventfd_write(d->output_fd, 1);
    }
}

static void retry_all(struct rp_disks *d)
{
    for (struct rp_guard *g = d->guards; g; g = g->next)
        if (g->waiting) {
            rp_guard_retry(g);
            rp_disk_kick(g->lower);
        }
}

void rp_disks_take_released(struct rp_disks *d)
{
    uint64_t released = atomic_load(&d->released);
    const struct rp_epoch_blocks *b;
    const struct rp_epoch_bytes *c;

    while ((c = fifo_first(&d->cuts)) && c->epoch <= released) {
        d->uncommitted_bytes -= c->bytes;
        d->committed_epoch = c->epoch;
        fifo_pop(&d->cuts);
    }
    while ((b = fifo_first(&d->ranges)) && b->epoch <= released)
        fifo_pop(&d->ranges);
    retry_all(d);
}

static void on_wake(void *ctx, uint32_t events)
{
    struct rp_disks *d = ctx;
    eventfd_t n;

    (void)events;
    (void)eventfd_read(d->wake_fd, &n);
    d->holding = d->holding && atomic_load(&d->hold_wanted);
    rp_disks_take_released(d);
}

/* --- shared disks --- */

bool rp_disks_held(struct rp_disks *d, uint64_t after)
{
    uint64_t deadline = atomic_load(&d->deadline_ns);

    return d->standing || d->given_up || (d->holding && after >= atomic_load(&d->released)) ||
           (deadline && rp_clock_read(CLOCK_BOOTTIME) >= deadline);
}

void rp_disks_waits(struct rp_disks *d)
{
    if (d->waits || !d->holding || d->output_fd < 0)
        return;
    d->waits = true;
    (void)eventfd_write(d->output_fd, 1);
}

void rp_disks_resume(struct rp_disks *d)
{
    d->standing = false;
    retry_all(d);
}

void rp_disks_hold(struct rp_disks *d, bool hold)
{
    atomic_store(&d->hold_wanted, hold);
    (void)eventfd_write(d->wake_fd, 1);
}

void rp_disks_deadline(struct rp_disks *d, uint64_t deadline_ns)
{
    atomic_store(&d->deadline_ns, deadline_ns);
    (void)eventfd_write(d->wake_fd, 1);
}

int rp_disks_storage(struct rp_disks *d, bool hold, struct rp_error *err)
{
    int rc = 0;

    rp_loop_lock(d->loop);
    d->given_up = !hold;
    for (struct rp_guard *g = d->guards; g && rc == 0; g = g->next) {
        if (!g->shared)
            continue;
        while (!hold && rp_guard_busy(g, 0, UINT64_MAX))
            rp_disk_drain(g->lower);
        rc = rp_disk_lock(g->lower, hold, err);
    }
    retry_all(d);
    rp_loop_unlock(d->loop);
    return rc;
}

void rp_disks_release(struct rp_disks *d, uint64_t epoch)
{
    uint64_t had = atomic_load(&d->released);

    if (epoch == UINT64_MAX)
        return;             /* outputs leave without a commit: nothing became safe by that */
    while (had < epoch && !atomic_compare_exchange_weak(&d->released, &had, epoch))
        ;
    if (had < epoch && d->ndisks)
        (void)eventfd_write(d->wake_fd, 1);
}

int rp_disks_take_log(struct rp_disks *d, struct rp_buf *out, struct rp_error *err)
{
    struct rp_epoch_bytes *c = d->steady && d->log.len ? fifo_push(&d->cuts) : NULL;

    if (d->log.failed || (d->steady && d->log.len && !c))
        return rp_error_set(err, ENOMEM, "no memory to keep the disks' writes");
    if (c) {
        *c = (struct rp_epoch_bytes){.epoch = d->epoch, .bytes = d->log.len};
        d->uncommitted_bytes += d->log.len;
    }
    if (out->len == 0) {
        struct rp_buf empty = *out;

        *out = d->log;
        d->log = empty;
    } else {
        rp_buf_put(out, d->log.data, d->log.len);
    }
    rp_buf_fini(&d->log);
    d->told = false;
    return out->failed ? rp_error_set(err, ENOMEM, "no memory for the disks' writes") : 0;
}

int rp_disks_cut(struct rp_disks *d, uint64_t epoch, struct rp_buf *out, struct rp_error *err)
{
    int rc = 0;

    d->standing = true;
    d->waits = false;
    d->holding = atomic_load(&d->hold_wanted);
    d->newest_cut = epoch;
    if (!d->keeping || !out)
        return 0;
    rp_disks_take_released(d);
    d->epoch = epoch;       /* the first one is not known before */
    rc = rp_disks_take_log(d, out, err);
    if (!d->steady) {
        d->steady = true;
        d->first_epoch = d->committed_epoch = epoch;
    }
    d->epoch = epoch + 1;
    return rc;
}

/* --- runs --- */

static int mark_active(struct rp_disks *d, const struct rp_disk_run *run, const uint8_t vm_id[16], const char *vm_name, struct rp_error *err)
{
    for (struct rp_guard *g = rp_disks_private(d->guards); g; g = rp_disks_private(g->next)) {
        struct rp_disk_mark m = {.state = RP_DISK_ACTIVE, .disk = g->number, .term = run->term, .epoch = d->newest_cut, .wall_ns = rp_wall_ns()};
        char path[RP_DISK_PATH_MAX];
        int rc = rp_disk_mark_path(g->path[0] ? g->path : NULL, g->state[0] ? g->state : NULL, ".reprise", path, err);

        memcpy(m.vm_id, vm_id, sizeof(m.vm_id));
        snprintf((char *)m.vm_name, sizeof(m.vm_name), "%s", vm_name);
        if (rc == 0)
            rc = rp_disk_mark_write(&rp_durable_host, path, &m, err);
        if (rc < 0)
            return rp_error_wrap(err, "private disk %u cannot be protected", g->number);
        g->marked = true;
    }
    return 0;
}

int rp_disks_start(struct rp_disks *d, const struct rp_disk_run *run, const uint8_t vm_id[16], const char *vm_name, struct rp_error *err)
{
    int rc = mark_active(d, run, vm_id, vm_name, err);

    if (rc < 0)
        return rc;
    rp_loop_lock(d->loop);
    rc = rp_disks_copy_ready(d, err);
    if (rc == 0) {
        rp_buf_reset(&d->log);
        d->log.failed = false;
        rp_disks_copy_begin(d, run);
        d->keeping = true;
        d->steady = d->told = false;
        d->epoch = 0;
    }
    rp_loop_unlock(d->loop);
    return rc;
}

void rp_disks_stop(struct rp_disks *d)
{
    const struct rp_epoch_blocks *b;

    rp_loop_lock(d->loop);
    rp_disks_take_released(d);
    rp_disks_copy_end(d);
    /* Not the newest epoch released: one without writes leaves no trace at a standby that is started anew. */
    if (d->keeping && d->steady && atomic_load(&d->released) >= d->first_epoch && !d->log.failed)
        d->base.epoch = d->committed_epoch;
    while ((b = fifo_first(&d->ranges))) {      /* DISK-4 */
        rp_disks_lack(b->guard, b->first, b->last, true);
        fifo_pop(&d->ranges);
    }
    d->cuts.n = d->cuts.head = 0;
    d->uncommitted_bytes = 0;
    rp_buf_fini(&d->log);
    d->log.failed = false;
    d->keeping = d->steady = false;
    retry_all(d);
    rp_loop_unlock(d->loop);
}

void rp_disks_progress(struct rp_disks *d, struct rp_disk_progress *out)
{
    uint64_t left = 0;

    *out = (struct rp_disk_progress){0};
    if (d->ndisks == 0)     /* constant by now; asked before every cut */
        return;
    rp_loop_lock(d->loop);
    for (struct rp_guard *g = rp_disks_private(d->guards); g; g = rp_disks_private(g->next))
        left += g->lacking * RP_DISKS_BLOCK_BYTES;
    *out = (struct rp_disk_progress){.sync_bytes = d->sync_bytes, .done_bytes = d->sync_bytes > left ? d->sync_bytes - left : 0,
                                      .equal_bytes = d->equal_bytes, .pressed = pressed(d)};
    rp_loop_unlock(d->loop);
}

void rp_disks_ended(struct rp_disks *d)
{
    for (struct rp_guard *g = rp_disks_private(d->guards); g; g = rp_disks_private(g->next)) {
        char path[RP_DISK_PATH_MAX];
        struct rp_error err = {0};

        if (g->marked && (rp_disk_mark_path(g->path[0] ? g->path : NULL, g->state[0] ? g->state : NULL, ".reprise", path, &err) < 0 ||
                          rp_disk_mark_remove(path, &err) < 0))
            rp_log(RP_LOG_WARN, "%s", err.text);
        g->marked = false;
    }
}

/* --- making --- */

int rp_disks_guard(struct rp_disks *d, const struct rp_disk_config *cfg, struct rp_disk **disk, struct rp_error *err)
{
    struct rp_guard *g, **at = &d->guards;
    unsigned number = d->ndisks;
    int rc;

    if (cfg->readonly) {
        d->ndisks++;
        return 0;
    }
    rc = rp_guard_create(d, cfg, *disk, &g, err);
    if (rc < 0)
        return rc;
    g->number = number;
    g->marked = cfg->take && !g->shared;    /* a takeover's, or the user's word: when the VM ends here it is over */
    while (*at)
        at = &(*at)->next;
    *at = g;
    d->ndisks++;
    *disk = &g->d;
    return 0;
}

int rp_disks_create(struct rp_loop *loop, int output_fd, struct rp_disks **out, struct rp_error *err)
{
    struct rp_disks *d = calloc(1, sizeof(*d));
    int rc;

    if (!d)
        return rp_error_set(err, ENOMEM, "disks: no memory");
    d->loop = loop;
    d->output_fd = output_fd;
    d->cuts.size = sizeof(struct rp_epoch_bytes);
    d->ranges.size = sizeof(struct rp_epoch_blocks);
    sem_init(&d->quiet, 0, 0);
    d->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rc = d->wake_fd < 0 ? -errno : rp_loop_add(loop, d->wake_fd, EPOLLIN, on_wake, d);
    if (rc < 0) {
        if (d->wake_fd >= 0)
            close(d->wake_fd);
        free(d);
        return rp_error_set(err, rc, "disks: no descriptor: %s", strerror(-rc));
    }
    *out = d;
    return 0;
}

void rp_disks_destroy(struct rp_disks *d)
{
    if (!d)
        return;
    rp_loop_remove(d->loop, d->wake_fd);
    close(d->wake_fd);
    rp_buf_fini(&d->log);
    free(d->cuts.items);
    free(d->ranges.items);
    free(d->buf);
    sem_destroy(&d->quiet);
    free(d);
}
