/*
 * replica.h - a standby's copies of a VM's private disks: whole epochs only, crash-safely. docs/disks.md has the states and
 * the promises R1 to R7.
 *
 *     receiving thread   rp_replica_record ─► journal (or, while SYNCING, the file)   rp_replica_commit: durable, counts
 *     applying thread                          journal ─► files, syncs them, trims the journal
 *     takeover           rp_replica_promote: all applied and synced, marks ACTIVE, files closed: the machine opens them
 *     summing thread     files ─► sums of their blocks, while no session goes on: a primary that would copy them whole skips what is equal
 *
 * rp_replica_record, _commit and _drop are what struct rp_image_ops asks for. Disks the standby does not keep (shared,
 * read-only) have no path: entries for them are refused.
 * Threads: one for record, commit and drop; one for the rest; status and session any.
 */
#ifndef RP_REPLICATOR_REPLICA_H
#define RP_REPLICATOR_REPLICA_H

#include "core/disk_mark.h"
#include "core/disk_sums.h"
#include "core/stream.h"

#define RP_REPLICA_DISKS_MAX 8u

struct rp_replica_disk {
    const char *path;           /* NULL: not kept here */
    const char *state;          /* where its mark is, NULL: beside it */
    bool overwrite;             /* whatever the file holds */
};
struct rp_replica_config {
    unsigned ndisks;            /* numbered like the VM's */
    struct rp_replica_disk disks[RP_REPLICA_DISKS_MAX];
    uint64_t journal_bytes;     /* 0: RP_JOURNAL_RING_BYTES */
    const struct rp_durable *io;    /* NULL: the host */
};

struct rp_replica_status {
    unsigned kept;              /* disks kept here */
    bool whole;                 /* they are at `base.epoch`, all of them (or none is kept) */
    struct rp_disk_base base;   /* what a primary may build upon; all zero: nothing */
    uint8_t vm_id[16];
    uint64_t epoch;             /* newest epoch that counts, 0: none */
    uint64_t backlog_bytes;     /* committed, not applied yet */
    uint64_t sync_bytes;        /* written directly since the last SYNC */
    uint64_t summed_bytes;      /* of blocks whose sums are known */
    bool failed;                /* a disk or the journal failed: no epoch is taken any more, takeover is refused */
};

struct rp_replica;
/* Opens and locks the files (a file that is not there is made, empty), and makes them whole again after a crash (R2).
 * RP_EXIT_REFUSED: locked by another process, or a file that holds something and is nobody's copy (R7). A disk that some protected VM ran
 * on is taken: it will be synced anew. */
int rp_replica_open(const struct rp_replica_config *cfg, struct rp_replica **out, struct rp_error *err) RP_MUST_CHECK;
/* Leaves everything as it is on disk: what was committed is in the journal or applied. */
void rp_replica_close(struct rp_replica *r);

int rp_replica_record(void *replica, const struct rp_epoch_header *h, const struct rp_record *rec, struct rp_error *err) RP_MUST_CHECK;
int rp_replica_commit(void *replica, const struct rp_epoch_header *h, struct rp_error *err) RP_MUST_CHECK;
void rp_replica_drop(void *replica);

/* A session begins (before its primary is told anything of the disks), or none goes on any more. Between sessions the files are summed. */
void rp_replica_session(struct rp_replica *r, bool on);
/* In a session, before anything is taken: the sums of the blocks that the files hold, as far as they are known; none when they may be
 * other ones by the time they are needed. A SYNC that the primary bases on them is refused when the files have changed meanwhile.
 * Borrowed until the next rp_replica_session or rp_replica_promote; not to be freed. */
void rp_replica_lend(struct rp_replica *r, struct rp_disk_sums *out);

void rp_replica_status(struct rp_replica *r, struct rp_replica_status *out);
/* The VM is about to run here from `epoch`, under lease term `term`: the files are that epoch's, synced, marked ACTIVE, unlocked
 * and closed. On error they are not touched further, and the VM must not run. Afterwards only rp_replica_close. */
int rp_replica_promote(struct rp_replica *r, uint64_t epoch, uint64_t term, struct rp_error *err) RP_MUST_CHECK;

#endif
