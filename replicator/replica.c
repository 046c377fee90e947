#include "replicator/replica.h"

#include "core/clock.h"
#include "core/fault.h"
#include "core/log.h"
#include "replicator/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define IDLE_SYNC_NS 200000000ull   /* applied and not synced for so long while nothing comes: sync, so that takeover need not */

struct disk {
    bool kept;
    bool regular;
    int fd;
    uint64_t size_bytes;            /* receiving thread */
    char path[RP_DISK_PATH_MAX], mark_path[RP_DISK_PATH_MAX];
    struct rp_disk_mark mark;       /* as it is on disk */
};

struct rp_replica {
    const struct rp_durable *io;
    uint64_t journal_bytes;
    char journal_path[RP_DISK_PATH_MAX];
    unsigned ndisks, kept;
    struct disk disks[RP_REPLICA_DISKS_MAX];

    /* receiving thread */
    bool direct;                    /* the epoch being taken syncs: entries go straight to the files */
    unsigned synced;                /* bit per disk: its SYNC came in this epoch */
    struct rp_disk_base sync_base;  /* of this epoch's SYNCs */

    pthread_mutex_t lock;
    pthread_cond_t change;
    struct rp_journal *journal;     /* lock for replacing it; then see journal.h */
    bool whole;                     /* lock; written by the receiving thread */
    struct rp_disk_base base;       /* lock: epoch is the newest that counts */
    uint8_t vm_id[16];              /* lock */
    struct rp_journal_pos applied;  /* lock: in the files */
    struct rp_error failure;        /* lock: code != 0: nothing more is taken */
    bool busy;                      /* lock: the applying thread is outside of the lock with the journal */
    bool stop, settle;              /* lock: settle: apply and sync all, and say so */
    _Atomic uint64_t sync_bytes;
    pthread_t applier;
    bool started;
};

/* --- writing to the files --- */

static int apply_entry(struct rp_replica *r, uint32_t disk, uint32_t kind, uint64_t offset, uint64_t len, const uint8_t *data)
{
    int fd = r->disks[disk].fd;
    if (rp_fault(RP_FAULT_REPLICA_WRITE))
        return -EIO;
    if (kind == RP_DISK_KIND_WRITE)
        return r->io->write(r->io->ctx, fd, data, len, offset);
    return r->io->zero(r->io->ctx, fd, offset, len, kind == RP_DISK_KIND_DISCARD);
}

static int sync_files(struct rp_replica *r)
{
    for (unsigned i = 0; i < r->ndisks; i++) {
        int rc = 0;
        if (!r->disks[i].kept)
            continue;
        rc = rp_fault(RP_FAULT_REPLICA_SYNC) ? -EIO : r->io->sync(r->io->ctx, r->disks[i].fd);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int disk_error(struct rp_replica *r, unsigned disk, int rc, const char *what, struct rp_error *err)
{
    return rp_error_set(err, rc, "disk %s: %s: %s", r->disks[disk].path, what, strerror(-rc));
}

/* --- the applying thread --- */

/* Applies what is committed behind *pos. The lock is not held. */
static int apply_committed(struct rp_replica *r, struct rp_journal *j, struct rp_journal_pos *pos, struct rp_error *err)
{
    uint64_t end = rp_journal_committed(j), start = pos->at;
    while (pos->at < end && pos->at - start < rp_journal_ring_bytes(j) / 8) {
        struct rp_journal_record rec;
        int rc = rp_journal_read(j, pos, &rec, err);
        if (rc < 0)
            return rc;
        if (rec.kind == RP_JOURNAL_COMMIT)
            continue;
        if (rec.disk >= r->ndisks || !r->disks[rec.disk].kept || rec.kind > RP_DISK_KIND_DISCARD)
            return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "%s: a record for disk %u, kind %u", r->journal_path, rec.disk, rec.kind);
        rc = apply_entry(r, rec.disk, rec.kind, rec.offset, rec.len, rec.data);
        if (rc < 0)
            return disk_error(r, rec.disk, rc, "cannot be written", err);
    }
    return 0;
}

static int sync_and_trim(struct rp_replica *r, struct rp_journal *j, const struct rp_journal_pos *pos, struct rp_error *err)
{
    int rc = sync_files(r);
    if (rc < 0)
        return rp_error_set(err, rc, "the copies of the disks cannot be synced: %s", strerror(-rc));
    return rp_journal_trim(j, pos, err);
}

/* lock held. What there is to do: apply, sync (`*sync`), or nothing until the time given. */
static bool work_to_do(struct rp_replica *r, bool *sync, uint64_t idle_since)
{
    uint64_t unsynced = r->applied.at - rp_journal_tail(r->journal);
    bool all = r->applied.at == rp_journal_committed(r->journal);
    *sync = unsynced && (unsynced > rp_journal_ring_bytes(r->journal) / 4 ||
                         (all && (r->settle || rp_clock_ns() - idle_since > IDLE_SYNC_NS)));
    return !all || *sync;
}

/* lock held. While something is applied and not synced, not for longer than that may last. */
static void wait_change(struct rp_replica *r)
{
    if (!r->journal || r->failure.code || r->applied.at == rp_journal_tail(r->journal)) {
        pthread_cond_wait(&r->change, &r->lock);
        return;
    }
    uint64_t until = rp_clock_ns() + IDLE_SYNC_NS;
    struct timespec ts = rp_timespec(until);
    pthread_cond_timedwait(&r->change, &r->lock, &ts);
}

static void *applier_main(void *arg)
{
    struct rp_replica *r = arg;
    uint64_t idle_since = rp_clock_ns();
    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        bool sync = false;
        struct rp_error err = {0};
        if (!r->journal || r->failure.code || !work_to_do(r, &sync, idle_since)) {
            wait_change(r);
            continue;
        }
        struct rp_journal_pos pos = r->applied;
        r->busy = true;
        pthread_mutex_unlock(&r->lock);
        int rc = apply_committed(r, r->journal, &pos, &err);
        if (rc == 0 && sync)
            rc = sync_and_trim(r, r->journal, &pos, &err);
        pthread_mutex_lock(&r->lock);
        r->busy = false;
        if (rc < 0)
            r->failure = err;
        else
            r->applied = pos;
        idle_since = rp_clock_ns();
        pthread_cond_broadcast(&r->change);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* lock held: until everything committed is in the files and synced, or something failed. */
static int settle(struct rp_replica *r, struct rp_error *err)
{
    r->settle = true;
    pthread_cond_broadcast(&r->change);
    while (!r->failure.code && r->journal && (r->busy || rp_journal_tail(r->journal) != rp_journal_committed(r->journal)))
        pthread_cond_wait(&r->change, &r->lock);
    r->settle = false;
    if (r->failure.code && err)
        *err = r->failure;
    return r->failure.code;
}

/* --- marks --- */

static int set_marks(struct rp_replica *r, enum rp_disk_state state, const uint8_t vm_id[16], const uint8_t *vm_name, uint64_t epoch,
                     uint64_t term, struct rp_error *err)
{
    for (unsigned i = 0; i < r->ndisks; i++) {
        struct disk *d = &r->disks[i];
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

/* R4: from here on the files are of no use until the epoch is committed. */
static int begin_direct(struct rp_replica *r, const struct rp_epoch_header *h, const struct rp_disk_base *base, struct rp_error *err)
{
    int rc = check_term(r, h, err);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&r->lock);
    if (base->epoch && (!r->whole || memcmp(base->sync_id, r->base.sync_id, sizeof(base->sync_id)) != 0 || base->epoch > r->base.epoch))
        rc = rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "the primary sends what changed in its disks since epoch %llu, but the copies here are not "
                           "that epoch's", (unsigned long long)base->epoch);
    if (rc == 0)
        rc = settle(r, err);
    if (rc == 0)
        rc = set_marks(r, RP_DISK_SYNCING, h->vm_id, h->vm_name, h->number, h->term, err);
    if (rc == 0) {
        r->whole = false;
        rp_journal_close(r->journal);
        r->journal = NULL;
    }
    pthread_mutex_unlock(&r->lock);
    if (rc == 0) {
        r->direct = true;
        r->synced = 0;
        r->sync_base = *base;
        atomic_store(&r->sync_bytes, 0);
    }
    return rc;
}

static int take_sync(struct rp_replica *r, const struct rp_epoch_header *h, const struct rp_disk_entry *e, struct rp_error *err)
{
    struct rp_disk_base base = rp_disk_sync_of(e);
    struct disk *d = &r->disks[e->disk];
    int rc = 0;
    if (r->direct && (r->synced >> e->disk & 1 || memcmp(&base, &r->sync_base, sizeof(base)) != 0))
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "disk %u: a second SYNC in one epoch", e->disk);
    if (!r->direct)
        rc = begin_direct(r, h, &base, err);
    if (rc < 0)
        return rc;
    if (d->size_bytes < e->offset && !d->regular)
        return rp_error_set(err, ENOSPC, "disk %s: has %llu bytes, the primary's has %llu", d->path, (unsigned long long)d->size_bytes,
                            (unsigned long long)e->offset);
    if (d->size_bytes < e->offset && ftruncate(d->fd, (off_t)e->offset) < 0)
        return disk_error(r, e->disk, -errno, "cannot be made as large as the primary's", err);
    if (d->size_bytes < e->offset)
        d->size_bytes = e->offset;
    r->synced |= 1u << e->disk;
    return 0;
}

static int commit_direct(struct rp_replica *r, const struct rp_epoch_header *h, struct rp_error *err)
{
    struct rp_journal_identity id = {.base = {.epoch = h->number}};
    struct rp_journal *j;
    for (unsigned i = 0; i < r->ndisks; i++)
        if (r->disks[i].kept && !(r->synced >> i & 1))
            return rp_error_exit(err, RP_EXIT_REFUSED, EINVAL, "disk %s is kept here, but the primary sends nothing of its disk %u: is it private on "
                                 "both sides?", r->disks[i].path, i);
    int rc = sync_files(r);
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

static int journal_entry(struct rp_replica *r, const struct rp_disk_entry *e, struct rp_error *err)
{
    int rc;
    while ((rc = rp_journal_append(r->journal, e, err)) == -ENOSPC)
        if ((rc = wait_for_room(r, err)) < 0)
            return rc;
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
    struct disk *d = &r->disks[e->disk];
    if (!r->direct && !r->whole)
        return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "disk %s: holds no epoch that the primary could build upon", d->path);
    if (r->direct && !(r->synced >> e->disk & 1))
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "disk %u: a write before its SYNC", e->disk);
    if (e->offset > d->size_bytes || e->len > d->size_bytes - e->offset)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "disk %s: a write at %llu, %u bytes, beyond its end (%llu)", d->path,
                             (unsigned long long)e->offset, e->len, (unsigned long long)d->size_bytes);
    if (!r->direct)
        return journal_entry(r, e, err);
    atomic_fetch_add(&r->sync_bytes, e->len);
    int rc = apply_entry(r, e->disk, e->kind, e->offset, e->len, e->data);
    return rc < 0 ? disk_error(r, e->disk, rc, "cannot be written", err) : 0;
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
    if (r->direct)
        return commit_direct(r, h, err);
    if (!r->whole)
        return rp_error_exit(err, RP_EXIT_REFUSED, EINVAL, "disks are kept here, but the primary sends nothing of its own: are they private "
                             "(--disk FILE) on both sides, and is there one?");
    while (rp_journal_dirty(r->journal) && (rc = rp_journal_commit(r->journal, h->number, err)) == -ENOSPC)
        if ((rc = wait_for_room(r, err)) < 0)
            return rc;
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&r->lock);
    r->base.epoch = h->number;
    pthread_cond_broadcast(&r->change);
    pthread_mutex_unlock(&r->lock);
    return 0;
}

void rp_replica_drop(void *replica)
{
    struct rp_replica *r = replica;
    r->direct = false;
    if (r->journal)
        rp_journal_rollback(r->journal);
}

void rp_replica_status(struct rp_replica *r, struct rp_replica_status *out)
{
    *out = (struct rp_replica_status){.kept = r->kept, .sync_bytes = atomic_load(&r->sync_bytes)};
    pthread_mutex_lock(&r->lock);
    out->failed = r->failure.code != 0;
    out->whole = r->kept == 0 || (r->whole && !out->failed);
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
        rc = settle(r, err);
    memcpy(vm_id, r->vm_id, sizeof(vm_id));
    pthread_mutex_unlock(&r->lock);
    for (unsigned i = 0; i < r->ndisks; i++)
        if (r->disks[i].kept)
            memcpy(vm_name, r->disks[i].mark.vm_name, sizeof(vm_name));
    if (rc == 0)
        rc = set_marks(r, RP_DISK_ACTIVE, vm_id, vm_name, epoch, term, err);
    if (rc < 0)
        return rc;
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

/* --- opening --- */

static int measure(struct disk *d, struct rp_error *err)
{
    struct stat st;
    if (fstat(d->fd, &st) < 0)
        return rp_error_set(err, errno, "disk %s: %s", d->path, strerror(errno));
    d->regular = S_ISREG(st.st_mode);
    d->size_bytes = (uint64_t)st.st_size;
    if (!d->regular && (!S_ISBLK(st.st_mode) || ioctl(d->fd, BLKGETSIZE64, &d->size_bytes) < 0))
        return rp_error_set(err, EINVAL, "disk %s: neither a file nor a block device", d->path);
    return 0;
}

static int open_disk(struct disk *d, const struct rp_replica_disk *cfg, struct rp_error *err)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    snprintf(d->path, sizeof(d->path), "%s", cfg->path);
    d->fd = open(cfg->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (d->fd < 0)
        return rp_error_set(err, errno, "disk %s: %s", cfg->path, strerror(errno));
    d->kept = true;
    if (fcntl(d->fd, F_OFD_SETLK, &fl) < 0 && (errno == EAGAIN || errno == EACCES))
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "disk %s: locked by another VM or standby", cfg->path);
    int rc = measure(d, err);
    if (rc == 0)
        rc = rp_disk_mark_path(cfg->path, cfg->state, ".reprise", d->mark_path, err);
    return rc < 0 ? rc : rp_disk_mark_read(d->mark_path, &d->mark, err);
}

/* Are the disks one set of copies, whole? */
static bool one_set(const struct rp_replica *r)
{
    const struct rp_disk_mark *first = NULL;
    for (unsigned i = 0; i < r->ndisks; i++) {
        const struct rp_disk_mark *m = &r->disks[i].mark;
        if (!r->disks[i].kept)
            continue;
        first = first ? first : m;
        if (m->state != RP_DISK_REPLICA || m->disk != i || memcmp(m->vm_id, first->vm_id, sizeof(m->vm_id)) != 0 ||
            strcmp((const char *)m->journal, r->journal_path) != 0)
            return false;
    }
    return first != NULL;
}

/* R2: after a crash the files become the newest committed epoch's, before anything else happens. */
static int recover(struct rp_replica *r, struct rp_error *err)
{
    struct rp_journal *j;
    struct rp_error why = {0};
    int rc = rp_journal_open(r->io, r->journal_path, &j, &why);
    if (rc < 0) {
        rp_log(RP_LOG_WARN, "%s: the copies of the disks will be synced anew", why.text);
        return 0;
    }
    struct rp_journal_pos pos;
    rp_journal_tail_pos(j, &pos);
    uint64_t from = pos.epoch;
    bool any = pos.at != rp_journal_committed(j);
    while (rc == 0 && pos.at != rp_journal_committed(j))
        rc = apply_committed(r, j, &pos, err);
    if (rc == 0 && any)
        rc = sync_and_trim(r, j, &pos, err);
    if (rc < 0) {
        rp_journal_close(j);
        return rc;
    }
    if (any)
        rp_log(RP_LOG_INFO, "disks: epochs %llu to %llu were in the journal and have been applied", (unsigned long long)from + 1,
               (unsigned long long)pos.epoch);
    r->journal = j;
    r->applied = pos;
    r->whole = true;
    r->base = rp_journal_identity(j)->base;
    r->base.epoch = pos.epoch;
    memcpy(r->vm_id, rp_journal_identity(j)->vm_id, sizeof(r->vm_id));
    return 0;
}

static int open_all(struct rp_replica *r, const struct rp_replica_config *cfg, struct rp_error *err)
{
    int rc = 0;
    for (unsigned i = 0; i < cfg->ndisks && rc == 0; i++) {
        if (!cfg->disks[i].path)
            continue;
        rc = open_disk(&r->disks[i], &cfg->disks[i], err);
        if (rc == 0 && r->kept++ == 0) {    /* beside the first one's mark */
            int n = snprintf(r->journal_path, sizeof(r->journal_path), "%s-journal", r->disks[i].mark_path);
            if (n < 0 || n >= (int)sizeof(r->journal_path))
                rc = rp_error_exit(err, RP_EXIT_USAGE, ENAMETOOLONG, "disk %s: its name is too long", cfg->disks[i].path);
        }
    }
    return rc;
}

static int start_applier(struct rp_replica *r, struct rp_error *err)
{
    int rc = pthread_create(&r->applier, NULL, applier_main, r);
    if (rc)
        return rp_error_set(err, rc, "cannot start the thread that applies disk writes: %s", strerror(rc));
    pthread_setname_np(r->applier, "disk apply");
    r->started = true;
    return 0;
}

int rp_replica_open(const struct rp_replica_config *cfg, struct rp_replica **out, struct rp_error *err)
{
    struct rp_replica *r = calloc(1, sizeof(*r));
    pthread_condattr_t attr;
    if (!r)
        return rp_error_set(err, ENOMEM, "no memory for the copies of the disks");
    r->io = cfg->io ? cfg->io : &rp_durable_host;
    r->journal_bytes = cfg->journal_bytes ? cfg->journal_bytes : RP_JOURNAL_RING_BYTES;
    r->ndisks = cfg->ndisks;
    for (unsigned i = 0; i < RP_REPLICA_DISKS_MAX; i++)
        r->disks[i].fd = -1;
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&r->change, &attr);
    pthread_condattr_destroy(&attr);
    int rc = cfg->ndisks > RP_REPLICA_DISKS_MAX ? rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "more than %u disks", RP_REPLICA_DISKS_MAX) : 0;
    if (rc == 0)
        rc = open_all(r, cfg, err);
    if (rc == 0 && one_set(r))
        rc = recover(r, err);
    if (rc == 0 && r->kept)
        rc = start_applier(r, err);
    if (rc < 0) {
        rp_replica_close(r);
        return rc;
    }
    *out = r;
    return 0;
}

void rp_replica_close(struct rp_replica *r)
{
    if (!r)
        return;
    if (r->started) {
        pthread_mutex_lock(&r->lock);
        r->stop = true;
        pthread_cond_broadcast(&r->change);
        pthread_mutex_unlock(&r->lock);
        pthread_join(r->applier, NULL);
    }
    rp_journal_close(r->journal);
    for (unsigned i = 0; i < RP_REPLICA_DISKS_MAX; i++)
        if (r->disks[i].fd >= 0)
            close(r->disks[i].fd);
    pthread_cond_destroy(&r->change);
    pthread_mutex_destroy(&r->lock);
    free(r);
}
