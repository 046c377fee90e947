/* A standby's disks: what a primary sends of them, and the takeover. See replica.h. */
#include "replicator/replica_internal.h"

#include "core/clock.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* --- marks --- */

static int set_marks(struct rp_replica *r, enum rp_disk_state state, const uint8_t vm_id[16], const uint8_t *vm_name, uint64_t epoch,
                     uint64_t term, struct rp_error *err)
{
    for (unsigned i = 0; i < r->ndisks; i++) {
        struct rp_replica_file *d = &r->disks[i];
        struct rp_disk_mark m = {.state = state, .disk = i, .epoch = epoch, .term = term, .wall_ns = rp_wall_ns()};
        if (!d->kept)
            continue;
        memcpy(m.vm_id, vm_id, sizeof(m.vm_id));
        memcpy(m.vm_name, vm_name, sizeof(m.vm_name));
        m.vm_name[sizeof(m.vm_name) - 1] = 0;
        snprintf((char *)m.journal, sizeof(m.journal), "%s", r->journal_path);
        int rc = rp_disk_mark_write(r->io, d->mark_path, &m, err);
        if (rc < 0)
            return rc;
        d->mark = m;
    }
    return 0;
}

/* --- an epoch that syncs --- */

/* R6: whoever has a lower term than the one under which a disk was used is not its VM's newest life. */
static int check_term(const struct rp_replica *r, const struct rp_epoch_header *h, struct rp_error *err)
{
    for (unsigned i = 0; i < r->ndisks; i++) {
        const struct rp_disk_mark *m = &r->disks[i].mark;
        if (r->disks[i].kept && m->state != RP_DISK_NONE && memcmp(m->vm_id, h->vm_id, sizeof(m->vm_id)) == 0 && h->term < m->term)
            return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "disk %s: its VM ran under term %llu already, the primary has term %llu: the primary is "
                                 "the stale one (if the lease was made anew, remove %s)", r->disks[i].path, (unsigned long long)m->term,
                                 (unsigned long long)h->term, r->disks[i].mark_path);
    }
    return 0;
}

/* The epoch being taken has begun with a SYNC. */
static bool syncs(const struct rp_replica *r)
{
    return r->direct || r->staged;
}

static bool is_of(const struct rp_replica *r, const struct rp_epoch_header *h)
{
    return r->whole && memcmp(r->vm_id, h->vm_id, sizeof(r->vm_id)) == 0;
}

/* R4: from here on the files are of no use until the epoch is committed. Lock held, everything settled. */
static int go_direct(struct rp_replica *r, const struct rp_epoch_header *h, struct rp_error *err)
{
    int rc = set_marks(r, RP_DISK_SYNCING, h->vm_id, h->vm_name, h->number, h->term, err);
    if (rc < 0)
        return rc;
    r->whole = false;
    r->direct = true;
    r->staged = false;
    return 0;
}

/* One that could not be written takes nothing more, but what it has counts. That goes to the files, and an empty one goes on from there. */
static int renew_journal(struct rp_replica *r, struct rp_error *err)
{
    struct rp_journal_identity id;
    struct rp_journal *j;
    pthread_mutex_lock(&r->lock);
    int rc = rp_replica_settle(r, err);
    id.base = r->base;
    memcpy(id.vm_id, r->vm_id, sizeof(id.vm_id));
    pthread_mutex_unlock(&r->lock);
    if (rc == 0)
        rc = rp_journal_create(r->io, r->journal_path, r->journal_bytes, &id, &j, err);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&r->lock);
    rp_journal_close(r->journal);
    r->journal = j;
    rp_journal_tail_pos(j, &r->applied);
    pthread_mutex_unlock(&r->lock);
    return 0;
}

static int begin_sync(struct rp_replica *r, const struct rp_epoch_header *h, const struct rp_disk_base *base, struct rp_error *err)
{
    int rc = check_term(r, h, err);
    if (rc == 0 && r->journal && rp_journal_broken(r->journal))
        rc = renew_journal(r, err);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&r->lock);
    if (base->epoch && (!r->whole || memcmp(base->sync_id, r->base.sync_id, sizeof(base->sync_id)) != 0 || base->epoch > r->base.epoch))
        rc = rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "the primary sends what changed in its disks since epoch %llu, but the copies here are not "
                           "that epoch's", (unsigned long long)base->epoch);
    if (rc == 0)
        rc = rp_replica_settle(r, err);
    if (rc == 0)
        rc = rp_replica_check_lent(r, base, err);
    if (rc == 0 && is_of(r, h)) {
        rc = set_marks(r, RP_DISK_REPLICA, h->vm_id, h->vm_name, r->base.epoch, h->term, err);      /* R6, from now on */
        r->staged = rc == 0;
    } else if (rc == 0) {
        rc = go_direct(r, h, err);
        if (rc == 0) {
            rp_journal_close(r->journal);
            r->journal = NULL;
        }
    }
    pthread_mutex_unlock(&r->lock);
    if (rc == 0) {
        r->synced = 0;
        r->sync_base = *base;
        atomic_store(&r->sync_bytes, 0);
    }
    return rc;
}

static int write_direct(struct rp_replica *r, uint32_t disk, uint32_t kind, uint64_t offset, uint64_t len, const uint8_t *data, struct rp_error *err)
{
    int rc = rp_replica_write(r, disk, kind, offset, len, data);
    return rc < 0 ? rp_replica_disk_error(r, disk, rc, "cannot be written", err) : 0;
}

/* A staged sync that the journal does not hold goes on straight to the files, as does what the journal has of it. */
static int unstage(struct rp_replica *r, const struct rp_epoch_header *h, struct rp_error *err)
{
    pthread_mutex_lock(&r->lock);
    struct rp_journal *j = r->journal;
    int rc = go_direct(r, h, err);
    if (rc == 0)
        r->journal = NULL;
    pthread_mutex_unlock(&r->lock);
    if (rc < 0)
        return rc;
    struct rp_journal_pos pos;
    struct rp_journal_record rec;
    uint64_t end = rp_journal_uncommitted(j, &pos);
    while (rc == 0 && pos.at < end) {
        rc = rp_journal_read(j, &pos, &rec, err);
        if (rc == 0)
            rc = write_direct(r, rec.disk, rec.kind, rec.offset, rec.len, rec.data, err);
    }
    rp_journal_close(j);
    return rc;
}

static int grow(struct rp_replica *r, struct rp_replica_file *d, uint64_t size_bytes)
{
    rp_replica_change_begin(r);
    int rc = ftruncate(d->fd, (off_t)size_bytes) < 0 ? -errno : 0;
    if (rc == 0)
        d->size_bytes = size_bytes;
    rp_replica_change_end(r, rc);
    return rc;
}

static int take_sync(struct rp_replica *r, const struct rp_epoch_header *h, const struct rp_disk_entry *e, struct rp_error *err)
{
    struct rp_disk_base base = rp_disk_sync_of(e);
    struct rp_replica_file *d = &r->disks[e->disk];
    int rc = 0;
    if (syncs(r) && (r->synced >> e->disk & 1 || memcmp(&base, &r->sync_base, sizeof(base)) != 0))
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "disk %u: a second SYNC in one epoch", e->disk);
    if (!syncs(r))
        rc = begin_sync(r, h, &base, err);
    if (rc == 0 && r->staged && d->size_bytes < e->offset)      /* what is held is of a smaller disk */
        rc = unstage(r, h, err);
    if (rc < 0)
        return rc;
    if (d->size_bytes < e->offset && !d->regular)
        return rp_error_set(err, ENOSPC, "disk %s: has %llu bytes, the primary's has %llu", d->path, (unsigned long long)d->size_bytes,
                            (unsigned long long)e->offset);
    if (d->size_bytes < e->offset && (rc = grow(r, d, e->offset)) < 0)
        return rp_replica_disk_error(r, e->disk, rc, "cannot be made as large as the primary's", err);
    r->synced |= 1u << e->disk;
    return 0;
}

static int all_synced(const struct rp_replica *r, struct rp_error *err)
{
    for (unsigned i = 0; i < r->ndisks; i++)
        if (r->disks[i].kept && !(r->synced >> i & 1))
            return rp_error_exit(err, RP_EXIT_REFUSED, EINVAL, "disk %s is kept here, but the primary sends nothing of its disk %u: is it private on "
                                 "both sides?", r->disks[i].path, i);
    return 0;
}

static int commit_direct(struct rp_replica *r, const struct rp_epoch_header *h, struct rp_error *err)
{
    struct rp_journal_identity id = {.base = {.epoch = h->number}};
    struct rp_journal *j;
    int rc = rp_replica_sync(r);
    if (rc < 0)
        return rp_error_set(err, rc, "the copies of the disks cannot be synced: %s", strerror(-rc));
    memcpy(id.vm_id, h->vm_id, sizeof(id.vm_id));
    memcpy(id.base.sync_id, r->sync_base.sync_id, sizeof(id.base.sync_id));
    rc = rp_journal_create(r->io, r->journal_path, r->journal_bytes, &id, &j, err);
    if (rc < 0)
        return rc;
    rc = set_marks(r, RP_DISK_REPLICA, h->vm_id, h->vm_name, h->number, h->term, err);
    if (rc < 0) {
        rp_journal_close(j);
        return rc;
    }
    pthread_mutex_lock(&r->lock);
    r->journal = j;
    rp_journal_tail_pos(j, &r->applied);
    r->base = id.base;
    memcpy(r->vm_id, h->vm_id, sizeof(r->vm_id));
    r->whole = true;
    pthread_mutex_unlock(&r->lock);
    r->direct = false;
    return 0;
}

/* --- the receiving thread --- */

static int failed(struct rp_replica *r, struct rp_error *err)
{
    pthread_mutex_lock(&r->lock);
    int rc = r->failure.code;
    if (rc && err)
        *err = r->failure;
    pthread_mutex_unlock(&r->lock);
    return rc;
}

/* The journal is full: until its tail has moved, as far as it goes. */
static int wait_for_room(struct rp_replica *r, struct rp_error *err)
{
    pthread_mutex_lock(&r->lock);
    uint64_t tail = rp_journal_tail(r->journal);
    r->settle = true;       /* what is committed has to go now; a quarter of the ring is not waited for */
    pthread_cond_broadcast(&r->change);
    while (!r->failure.code && rp_journal_tail(r->journal) == tail && tail != rp_journal_committed(r->journal))
        pthread_cond_wait(&r->change, &r->lock);
    r->settle = false;
    pthread_mutex_unlock(&r->lock);
    return failed(r, err);
}

/* `h`: of the epoch. */
static int journal_entry(struct rp_replica *r, const struct rp_epoch_header *h, const struct rp_disk_entry *e, struct rp_error *err)
{
    int rc;
    while ((rc = rp_journal_append(r->journal, e, err)) == -ENOSPC)
        if ((rc = wait_for_room(r, err)) < 0)
            return rc;
    if (rc != -EFBIG || !r->staged)
        return rc;
    rp_error_clear(err);
    rc = unstage(r, h, err);
    return rc == 0 ? write_direct(r, e->disk, e->kind, e->offset, e->len, e->data, err) : rc;
}

/* All of the epoch's entries count from here on; of another sync, too, when it was one. */
static int commit_journal(struct rp_replica *r, const struct rp_epoch_header *h, struct rp_error *err)
{
    const uint8_t *sync_id = r->staged ? r->sync_base.sync_id : NULL;
    int rc = 0;
    while ((sync_id || rp_journal_dirty(r->journal)) && (rc = rp_journal_commit(r->journal, h->number, sync_id, err)) == -ENOSPC)
        if ((rc = wait_for_room(r, err)) < 0)
            break;
    return rc;
}

struct taking {
    struct rp_replica *r;
    const struct rp_epoch_header *h;
};

static int take_entry(void *ctx, const struct rp_disk_entry *e, struct rp_error *err)
{
    struct taking *t = ctx;
    struct rp_replica *r = t->r;
    if (e->disk >= r->ndisks || !r->disks[e->disk].kept)
        return rp_error_exit(err, RP_EXIT_REFUSED, EINVAL, "the primary keeps its disk %u for itself and sends its writes, but here it is %s: give "
                             "--disk FILE on both sides", e->disk, e->disk < r->ndisks ? "not private" : "missing");
    if (e->kind == RP_DISK_KIND_SYNC)
        return take_sync(r, t->h, e, err);
    struct rp_replica_file *d = &r->disks[e->disk];
    if (!r->direct && !r->whole)
        return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "disk %s: holds no epoch that the primary could build upon", d->path);
    if (syncs(r) && !(r->synced >> e->disk & 1))
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "disk %u: a write before its SYNC", e->disk);
    if (e->offset > d->size_bytes || e->len > d->size_bytes - e->offset)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "disk %s: a write at %llu, %u bytes, beyond its end (%llu)", d->path,
                             (unsigned long long)e->offset, e->len, (unsigned long long)d->size_bytes);
    if (syncs(r))
        atomic_fetch_add(&r->sync_bytes, e->len);
    return r->direct ? write_direct(r, e->disk, e->kind, e->offset, e->len, e->data, err) : journal_entry(r, t->h, e, err);
}

int rp_replica_record(void *replica, const struct rp_epoch_header *h, const struct rp_record *rec, struct rp_error *err)
{
    struct taking t = {.r = replica, .h = h};
    int rc = failed(replica, err);
    return rc < 0 ? rc : rp_disk_walk(rec, take_entry, &t, err);
}

int rp_replica_commit(void *replica, const struct rp_epoch_header *h, struct rp_error *err)
{
    struct rp_replica *r = replica;
    int rc = failed(r, err);
    if (rc < 0 || r->kept == 0)
        return rc;
    if (syncs(r) && (rc = all_synced(r, err)) < 0)
        return rc;
    if (r->direct)
        return commit_direct(r, h, err);
    if (!r->whole)
        return rp_error_exit(err, RP_EXIT_REFUSED, EINVAL, "disks are kept here, but the primary sends nothing of its own: are they private "
                             "(--disk FILE) on both sides, and is there one?");
    rc = commit_journal(r, h, err);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&r->lock);
    r->base.epoch = h->number;
    if (r->staged)
        memcpy(r->base.sync_id, r->sync_base.sync_id, sizeof(r->base.sync_id));
    r->staged = false;
    pthread_cond_broadcast(&r->change);
    pthread_mutex_unlock(&r->lock);
    return 0;
}

void rp_replica_drop(void *replica)
{
    struct rp_replica *r = replica;
    r->direct = r->staged = false;
    if (r->journal)
        rp_journal_rollback(r->journal);
}

void rp_replica_status(struct rp_replica *r, struct rp_replica_status *out)
{
    *out = (struct rp_replica_status){.kept = r->kept, .sync_bytes = atomic_load(&r->sync_bytes)};
    pthread_mutex_lock(&r->lock);
    out->failed = r->failure.code != 0;
    out->whole = r->kept == 0 || (r->whole && !out->failed);
    out->summed_bytes = rp_replica_summed_bytes(r);
    if (r->whole && !out->failed) {
        out->base = r->base;
        out->epoch = r->base.epoch;
        memcpy(out->vm_id, r->vm_id, sizeof(out->vm_id));
        if (r->journal)
            out->backlog_bytes = rp_journal_committed(r->journal) - r->applied.at;
    }
    pthread_mutex_unlock(&r->lock);
}

int rp_replica_promote(struct rp_replica *r, uint64_t epoch, uint64_t term, struct rp_error *err)
{
    uint8_t vm_id[16], vm_name[RP_VM_NAME_MAX] = {0};
    int rc = 0;
    if (r->kept == 0)
        return 0;
    pthread_mutex_lock(&r->lock);
    if (!r->whole || r->base.epoch != epoch)
        rc = rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "the copies of the disks here are %s: the VM cannot go on with them",
                           r->whole ? "of another epoch than its memory" : "in the middle of a sync");
    else
        rc = rp_replica_settle(r, err);
    r->sums.stop |= rc == 0;     /* SUM-5: it ends while the marks are written */
    memcpy(vm_id, r->vm_id, sizeof(vm_id));
    pthread_mutex_unlock(&r->lock);
    for (unsigned i = 0; i < r->ndisks; i++)
        if (r->disks[i].kept)
            memcpy(vm_name, r->disks[i].mark.vm_name, sizeof(vm_name));
    if (rc == 0)
        rc = set_marks(r, RP_DISK_ACTIVE, vm_id, vm_name, epoch, term, err);
    if (rc < 0)
        return rc;
    rp_replica_stop_sums(r);
    pthread_mutex_lock(&r->lock);
    rp_journal_close(r->journal);
    r->journal = NULL;
    r->whole = false;
    pthread_mutex_unlock(&r->lock);
    (void)unlink(r->journal_path);      /* ACTIVE: nobody reads it again */
    for (unsigned i = 0; i < r->ndisks; i++)
        if (r->disks[i].kept) {
            close(r->disks[i].fd);
            r->disks[i].fd = -1;
        }
    return 0;
}
