/* A standby's disks: from the journal to the files. See replica.h; R2 and R3 in docs/disks.md. */
#include "replicator/replica_internal.h"

#include "core/clock.h"
#include "core/fault.h"
#include "core/thread.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define IDLE_SYNC_NS 200000000ull   /* applied and not synced for so long while nothing comes: sync, so that takeover need not */

/* --- writing to the files --- */

int rp_replica_write(struct rp_replica *r, uint32_t disk, uint32_t kind, uint64_t offset, uint64_t len, const uint8_t *data)
{
    int fd = r->disks[disk].fd, rc;
    rp_replica_change_begin(r);
    if (rp_fault(RP_FAULT_REPLICA_WRITE))
        rc = -EIO;
    else if (kind == RP_DISK_KIND_WRITE)
        rc = r->io->write(r->io->ctx, fd, data, len, offset);
    else
        rc = r->io->zero(r->io->ctx, fd, offset, len, kind == RP_DISK_KIND_DISCARD);
    rp_replica_change_end(r, rc);
    return rc;
}

int rp_replica_sync(struct rp_replica *r)
{
    for (unsigned i = 0; i < r->ndisks; i++) {
        int rc = 0;
        if (!r->disks[i].kept)
            continue;
        rc = rp_fault(RP_FAULT_REPLICA_SYNC) ? -EIO : r->io->sync(r->io->ctx, r->disks[i].fd);
        if (rc < 0) {
            rp_replica_doubt(r);
            return rc;
        }
    }
    return 0;
}

int rp_replica_disk_error(struct rp_replica *r, unsigned disk, int rc, const char *what, struct rp_error *err)
{
    return rp_error_set(err, rc, "disk %s: %s: %s", r->disks[disk].path, what, strerror(-rc));
}

/* --- the applying thread --- */

int rp_replica_apply(struct rp_replica *r, struct rp_journal *j, struct rp_journal_pos *pos, struct rp_error *err)
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
        rc = rp_replica_write(r, rec.disk, rec.kind, rec.offset, rec.len, rec.data);
        if (rc < 0)
            return rp_replica_disk_error(r, rec.disk, rc, "cannot be written", err);
    }
    return 0;
}

int rp_replica_trim(struct rp_replica *r, struct rp_journal *j, const struct rp_journal_pos *pos, struct rp_error *err)
{
    int rc = rp_replica_sync(r);
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
    rp_cond_wait_until(&r->change, &r->lock, rp_clock_ns() + IDLE_SYNC_NS);
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
        int rc = rp_replica_apply(r, r->journal, &pos, &err);
        if (rc == 0 && sync)
            rc = rp_replica_trim(r, r->journal, &pos, &err);
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

int rp_replica_settle(struct rp_replica *r, struct rp_error *err)
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

int rp_replica_start_applier(struct rp_replica *r, struct rp_error *err)
{
    int rc = rp_thread_start(&r->applier, "disk apply", applier_main, r, err);
    r->started = rc == 0;
    return rc;
}
