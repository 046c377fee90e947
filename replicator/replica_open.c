/* A standby's disks: opening them, after a crash too (R2), and closing. See replica.h. */
#include "replicator/replica_internal.h"

#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

static int measure(struct rp_replica_file *d, struct rp_error *err)
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

/* R7: without a mark it is nobody's copy, and what it holds is somebody's. What cannot tell of holes (a block device) has data throughout. */
static int check_foreign(const struct rp_replica_file *d, bool overwrite, struct rp_error *err)
{
    if (d->mark.state != RP_DISK_NONE || overwrite || d->size_bytes == 0 || (lseek(d->fd, 0, SEEK_DATA) < 0 && errno == ENXIO))
        return 0;
    return rp_error_exit(err, RP_EXIT_REFUSED, EEXIST, "disk %s: holds data, and is not marked as a copy of a VM's disk (%s): the VM's disk would be "
                         "copied over it. Name a file that is empty or not there, or say \"overwrite\": --disk F,overwrite", d->path, d->mark_path);
}

static int open_disk(struct rp_replica_file *d, const struct rp_replica_disk *cfg, struct rp_error *err)
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
    if (rc == 0)
        rc = rp_disk_mark_read(d->mark_path, &d->mark, err);
    return rc < 0 ? rc : check_foreign(d, cfg->overwrite, err);
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
    uint64_t from = pos.base.epoch;
    bool any = pos.at != rp_journal_committed(j);
    while (rc == 0 && pos.at != rp_journal_committed(j))
        rc = rp_replica_apply(r, j, &pos, err);
    if (rc == 0 && any)
        rc = rp_replica_trim(r, j, &pos, err);
    if (rc < 0) {
        rp_journal_close(j);
        return rc;
    }
    if (any)
        rp_log(RP_LOG_INFO, "disks: epochs %llu to %llu were in the journal and have been applied", (unsigned long long)from + 1,
               (unsigned long long)pos.base.epoch);
    r->journal = j;
    r->applied = pos;
    r->whole = true;
    r->base = pos.base;
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

int rp_replica_open(const struct rp_replica_config *cfg, struct rp_replica **out, struct rp_error *err)
{
    struct rp_replica *r = calloc(1, sizeof(*r));
    if (!r)
        return rp_error_set(err, ENOMEM, "no memory for the copies of the disks");
    r->io = cfg->io ? cfg->io : &rp_durable_host;
    r->journal_bytes = cfg->journal_bytes ? cfg->journal_bytes : RP_JOURNAL_RING_BYTES;
    r->ndisks = cfg->ndisks;
    r->sums.generation = 1;
    for (unsigned i = 0; i < RP_REPLICA_DISKS_MAX; i++)
        r->disks[i].fd = -1;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->change, NULL);
    pthread_cond_init(&r->sums.wake, NULL);
    int rc = cfg->ndisks > RP_REPLICA_DISKS_MAX ? rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "more than %u disks", RP_REPLICA_DISKS_MAX) : 0;
    if (rc == 0)
        rc = open_all(r, cfg, err);
    if (rc == 0 && one_set(r))
        rc = recover(r, err);
    if (rc == 0 && r->kept)
        rc = rp_replica_start_applier(r, err);
    if (rc == 0 && r->kept)
        rc = rp_replica_start_sums(r, err);
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
    rp_replica_stop_sums(r);
    rp_journal_close(r->journal);
    for (unsigned i = 0; i < RP_REPLICA_DISKS_MAX; i++)
        if (r->disks[i].fd >= 0)
            close(r->disks[i].fd);
    pthread_cond_destroy(&r->sums.wake);
    pthread_cond_destroy(&r->change);
    pthread_mutex_destroy(&r->lock);
    free(r);
}
