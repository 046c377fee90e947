/* replica_internal.h - a standby's disks from inside: replica.c (what a primary sends, and the takeover), replica_apply.c (from the
 * journal to the files), replica_open.c (opening them, after a crash too, and closing), replica_sums.c (what they hold, as sums). */
#ifndef RP_REPLICATOR_REPLICA_INTERNAL_H
#define RP_REPLICATOR_REPLICA_INTERNAL_H

#include "replicator/journal.h"
#include "replicator/replica.h"

#include <pthread.h>
#include <stdatomic.h>

struct rp_replica_file {
    bool kept;
    bool regular;
    int fd;
    uint64_t size_bytes;            /* receiving thread; the summing thread while nothing is changed */
    char path[RP_DISK_PATH_MAX], mark_path[RP_DISK_PATH_MAX];
    struct rp_disk_mark mark;       /* as it is on disk */
};

/* The replica's lock guards all of it. */
struct rp_replica_sums {
    uint64_t generation;            /* counts changes of kept files, begun; from 1 on */
    unsigned changing;              /* of them under way */
    bool session;                   /* a primary is, or is being, served */
    bool off;                       /* what is read cannot be relied upon, or not be summed */
    struct rp_disk_sums lists;      /* what `lent` needs is left alone while a session goes on */
    uint64_t of;                    /* the generation that they are of; another: void */
    uint64_t lent;                  /* in this session: their generation, 0: they were not */
    uint32_t goal[RP_REPLICA_DISKS_MAX];    /* blocks to be summed */
    uint8_t *block;                 /* summing thread */
    pthread_cond_t wake;
    pthread_t thread;
    bool started, stop;
};

struct rp_replica {
    const struct rp_durable *io;
    uint64_t journal_bytes;
    char journal_path[RP_DISK_PATH_MAX];
    unsigned ndisks, kept;
    struct rp_replica_file disks[RP_REPLICA_DISKS_MAX];

    /* receiving thread */
    bool direct;                    /* the epoch being taken syncs: entries go straight to the files (R4) */
    bool staged;                    /* … and what it brings fits the journal as yet: what is held stays until it is committed */
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
    struct rp_replica_sums sums;
};

/* --- replica_apply.c --- */

/* Writes an entry to its file, or syncs all files: 0 or -errno. */
int rp_replica_write(struct rp_replica *r, uint32_t disk, uint32_t kind, uint64_t offset, uint64_t len, const uint8_t *data) RP_MUST_CHECK;
int rp_replica_sync(struct rp_replica *r) RP_MUST_CHECK;
int rp_replica_disk_error(struct rp_replica *r, unsigned disk, int rc, const char *what, struct rp_error *err);
/* Applies what is committed behind *pos, an eighth of the ring at most. The lock is not held. */
int rp_replica_apply(struct rp_replica *r, struct rp_journal *j, struct rp_journal_pos *pos, struct rp_error *err) RP_MUST_CHECK;
/* Syncs the files, then moves the journal's tail to *pos (R3). */
int rp_replica_trim(struct rp_replica *r, struct rp_journal *j, const struct rp_journal_pos *pos, struct rp_error *err) RP_MUST_CHECK;
/* lock held: until everything committed is in the files and synced, or something failed. */
int rp_replica_settle(struct rp_replica *r, struct rp_error *err) RP_MUST_CHECK;
int rp_replica_start_applier(struct rp_replica *r, struct rp_error *err) RP_MUST_CHECK;

/* --- replica_sums.c --- */

/* Around every change of a kept file's bytes or size, by whichever thread; the lock is not held. rc: how it ended. */
void rp_replica_change_begin(struct rp_replica *r);
void rp_replica_change_end(struct rp_replica *r, int rc);
/* A file could not be synced: sums are not made or lent any more. */
void rp_replica_doubt(struct rp_replica *r);
/* lock held, settled: may a SYNC from `base` rely on what was lent? */
int rp_replica_check_lent(struct rp_replica *r, const struct rp_disk_base *base, struct rp_error *err) RP_MUST_CHECK;
uint64_t rp_replica_summed_bytes(const struct rp_replica *r);   /* lock held */
int rp_replica_start_sums(struct rp_replica *r, struct rp_error *err) RP_MUST_CHECK;
void rp_replica_stop_sums(struct rp_replica *r);    /* waits for one block at most; the lists are gone */

#endif
