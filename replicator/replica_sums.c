/*
 * A standby's disks: the sums of their blocks (core/disk_sums.h), made while nobody sends anything, so that a primary that would have
 * to copy them whole need not bring what they hold already. See replica.h; docs/disks.md.
 *
 *     open, session over ─► lists of generation g, block by block ─► lent at a session's beginning ─► its SYNC: g still? copy, refuse
 *                               ▲                   │ a byte of a kept file is about to change: generation g + 1
 *                               └── anew, once      └─► void
 *                                   no session goes on and all is applied
 *
 * SUM-1  A sum is of what the file has held since it was read: who changes a file says so before (rp_replica_change_begin: the generation
 *        goes up, and nothing is summed until rp_replica_change_end), and a sum that was read under another generation is not kept.
 * SUM-2  Lists are lent only when they are of this generation, nothing is being changed, and nothing waits to be (the journal is applied).
 * SUM-3  A SYNC of whole disks in a session that was lent lists is taken only at their generation: between the two nothing was changed.
 * SUM-4  Once a write or a sync of a file has failed nothing is lent any more: what is read need not be what is on the disk.
 * SUM-5  A takeover waits for one block to be read, at most.
 */
#include "replicator/replica_internal.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/thread.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define LOOK_NS 50000000ull     /* between two looks whether all is applied, when no session goes on */

/* --- who changes a file --- */

void rp_replica_change_begin(struct rp_replica *r)
{
    pthread_mutex_lock(&r->lock);
    r->sums.generation++;
    r->sums.changing++;
    pthread_mutex_unlock(&r->lock);
}

void rp_replica_change_end(struct rp_replica *r, int rc)
{
    pthread_mutex_lock(&r->lock);
    r->sums.changing--;
    r->sums.off |= rc < 0;
    pthread_mutex_unlock(&r->lock);
}

void rp_replica_doubt(struct rp_replica *r)
{
    pthread_mutex_lock(&r->lock);
    r->sums.off = true;
    pthread_mutex_unlock(&r->lock);
}

/* lock held: are the files what they will be until somebody sends something? */
static bool at_rest(const struct rp_replica *r)
{
    return r->sums.changing == 0 && !r->failure.code && (!r->journal || r->applied.at == rp_journal_committed(r->journal));
}

/* --- the summing thread; lock held --- */

/* Lists of nothing yet, of the files as they are now. */
static int begin_lists(struct rp_replica *r)
{
    struct rp_replica_sums *s = &r->sums;
    rp_disk_sums_fini(&s->lists);
    for (unsigned i = 0; i < r->ndisks; i++) {
        struct rp_disk_sum_list *l = &s->lists.disks[i];
        s->goal[i] = 0;
        if (!r->disks[i].kept)
            continue;
        l->block_bytes = rp_disk_sums_block_bytes(r->disks[i].size_bytes);
        uint64_t blocks = r->disks[i].size_bytes / l->block_bytes;
        s->goal[i] = blocks < RP_DISK_SUMS_BLOCKS_MAX ? (uint32_t)blocks : RP_DISK_SUMS_BLOCKS_MAX;
        if (getrandom(&l->seed, sizeof(l->seed), 0) != sizeof(l->seed))
            return -errno;
        l->sums = malloc(sizeof(*l->sums) * (s->goal[i] ? s->goal[i] : 1));
        if (!l->sums)
            return -ENOMEM;
    }
    s->of = s->generation;
    return 0;
}

/* Is there a block to be summed, and of which disk? */
static bool work_to_do(struct rp_replica *r, unsigned *disk)
{
    struct rp_replica_sums *s = &r->sums;
    if (s->session || s->off || !at_rest(r))
        return false;
    if (s->of != s->generation && begin_lists(r) < 0) {
        rp_log(RP_LOG_WARN, "the blocks of the disks' copies cannot be summed: a disk that has to be copied will be copied whole");
        s->off = true;
        return false;
    }
    for (*disk = 0; *disk < r->ndisks; ++*disk)
        if (s->lists.disks[*disk].blocks < s->goal[*disk])
            return true;
    return false;
}

/* Sums the next block of `disk`. The lock is given up while it is read. */
static void sum_block(struct rp_replica *r, unsigned disk)
{
    struct rp_replica_sums *s = &r->sums;
    struct rp_disk_sum_list *l = &s->lists.disks[disk], as_it_is = *l;
    int fd = r->disks[disk].fd;
    uint64_t of = s->of;
    pthread_mutex_unlock(&r->lock);
    struct rp_hash128 h = {0, 0};
    int rc = rp_read_all(fd, s->block, as_it_is.block_bytes, (uint64_t)as_it_is.blocks * as_it_is.block_bytes);
    if (rc == 0)
        h = rp_disk_block_sum(&as_it_is, s->block);
    pthread_mutex_lock(&r->lock);
    if (s->generation != of || s->session)      /* SUM-1; and what is lent does not grow */
        return;
    if (rc < 0) {
        rp_log(RP_LOG_WARN, "disk %s: cannot be read at block %u of %u bytes: %s; it is summed up to there", r->disks[disk].path, l->blocks,
               l->block_bytes, strerror(-rc));
        s->goal[disk] = l->blocks;
        return;
    }
    l->sums[l->blocks++] = h;
}

static void wait_for_work(struct rp_replica *r)
{
    struct rp_replica_sums *s = &r->sums;
    if (s->session || s->off || at_rest(r)) {
        pthread_cond_wait(&s->wake, &r->lock);
        return;
    }
    rp_cond_wait_until(&s->wake, &r->lock, rp_clock_ns() + LOOK_NS);
}

static void *sums_main(void *arg)
{
    struct rp_replica *r = arg;
    rp_thread_behind();
    pthread_mutex_lock(&r->lock);
    while (!r->sums.stop) {
        unsigned disk;
        if (work_to_do(r, &disk))
            sum_block(r, disk);
        else
            wait_for_work(r);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

int rp_replica_start_sums(struct rp_replica *r, struct rp_error *err)
{
    struct rp_replica_sums *s = &r->sums;
    s->block = malloc(RP_DISK_SUMS_BLOCK_MAX);
    if (!s->block)
        return rp_error_set(err, ENOMEM, "no memory to sum the copies of the disks");
    int rc = rp_thread_start(&s->thread, "disk sums", sums_main, r, err);
    s->started = rc == 0;
    return rc;
}

void rp_replica_stop_sums(struct rp_replica *r)
{
    struct rp_replica_sums *s = &r->sums;
    pthread_mutex_lock(&r->lock);
    s->stop = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&r->lock);
    if (s->started)
        pthread_join(s->thread, NULL);
    s->started = false;
    pthread_mutex_lock(&r->lock);
    rp_disk_sums_fini(&s->lists);
    s->of = 0;
    pthread_mutex_unlock(&r->lock);
    free(s->block);
    s->block = NULL;
}

/* --- sessions --- */

void rp_replica_session(struct rp_replica *r, bool on)
{
    pthread_mutex_lock(&r->lock);
    if (r->sums.session && !on)
        pthread_cond_signal(&r->sums.wake);
    r->sums.session = on;
    r->sums.lent = 0;
    pthread_mutex_unlock(&r->lock);
}

void rp_replica_lend(struct rp_replica *r, struct rp_disk_sums *out)
{
    struct rp_replica_sums *s = &r->sums;
    *out = (struct rp_disk_sums){0};
    pthread_mutex_lock(&r->lock);
    if (s->session && !s->off && s->of == s->generation && at_rest(r)) {    /* SUM-2 */
        *out = s->lists;
        s->lent = s->of;
    }
    pthread_mutex_unlock(&r->lock);
}

int rp_replica_check_lent(struct rp_replica *r, const struct rp_disk_base *base, struct rp_error *err)
{
    const struct rp_replica_sums *s = &r->sums;
    if (base->epoch == 0 && s->lent && s->lent != s->generation)    /* SUM-3 */
        return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "the copies of the disks have changed since the primary was told what they hold");
    return 0;
}

uint64_t rp_replica_summed_bytes(const struct rp_replica *r)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; r->sums.of == r->sums.generation && i < r->ndisks; i++)
        bytes += (uint64_t)r->sums.lists.disks[i].blocks * r->sums.lists.disks[i].block_bytes;
    return bytes;
}
