/*
 * journal.h - the disk writes of a standby's newest epochs, on stable storage before they are applied. docs/disks.md.
 *
 * A file: two header slots (core/durable.h), then a ring of records.
 *
 *     header      u32 version | u64 life (random) | u64 tail | u64 chain at the tail | u64 epoch at the tail | u64 ring bytes |
 *                 16 bytes sync id at the tail | 16 bytes VM id
 *     record      0  u32 magic  4 u32 kind  8 u64 life ^ position  16 u32 disk  20 u32 data bytes  24 u64 offset  32 u64 length
 *                 40 u64 XXH3_64bits of the 40 bytes before, seeded with XXH3_64bits of the data, seeded with the record before's
 *                 data; padded to 8 bytes
 *     kinds       those of DISK entries; 100 COMMIT: offset = epoch, data: none, or the 16 bytes of the sync id from then on; 101 PAD: up to
 *                 the ring's end
 *
 *        tail          applied          committed            head
 *     ────┼───────────────┼─────────────────┼─────────────────┼────
 *         │ in the files, │ committed, not  │ of the epoch    │ free (as far as tail + ring)
 *         │ not synced    │ applied         │ being received  │
 *
 * J1  A position is a byte count since the journal's life began; a record at position p lies at p modulo the ring, never across its end.
 * J2  Only records whose chain from the tail is unbroken exist, and of those only up to the last COMMIT count.
 * J3  Nothing from the tail on is overwritten.
 *
 * Threads: append, commit and rollback belong to the receiving thread; read and trim to the applying thread; the two meet in
 * `tail` and `committed`, which are atomic. Waiting is the caller's business.
 */
#ifndef RP_REPLICATOR_JOURNAL_H
#define RP_REPLICATOR_JOURNAL_H

#include "core/durable.h"
#include "core/stream.h"

#define RP_JOURNAL_RING_BYTES (64ull << 20)     /* four times what a primary leaves uncommitted */
#define RP_JOURNAL_RING_MIN (1ull << 20)
#define RP_JOURNAL_COMMIT 100u

struct rp_journal_identity {
    uint8_t vm_id[16];
    struct rp_disk_base base;       /* at the tail */
};

/* A place between two records. */
struct rp_journal_pos {
    uint64_t at, chain;
    struct rp_disk_base base;       /* of the last COMMIT before */
};

struct rp_journal_record {
    uint32_t kind;                  /* enum rp_disk_kind, RP_JOURNAL_COMMIT */
    uint32_t disk;
    uint64_t offset;                /* COMMIT: the epoch */
    uint64_t len;
    const uint8_t *data;            /* WRITE; valid until the next read */
};

struct rp_journal;
/* A new, empty journal; its space is reserved. Replaces what was there. */
int rp_journal_create(const struct rp_durable *io, const char *path, uint64_t ring_bytes, const struct rp_journal_identity *id,
                      struct rp_journal **out, struct rp_error *err) RP_MUST_CHECK;
/* One that is there: finds its end (J2). -ENOENT; RP_EXIT_DAMAGED: no valid header, or a whole record that no append could have written. */
int rp_journal_open(const struct rp_durable *io, const char *path, struct rp_journal **out, struct rp_error *err) RP_MUST_CHECK;
void rp_journal_close(struct rp_journal *j);
const struct rp_journal_identity *rp_journal_identity(const struct rp_journal *j);

/* Appends an entry (no SYNC), not yet durable. -ENOSPC: not before the tail has moved (err is not set); -EFBIG: never. */
int rp_journal_append(struct rp_journal *j, const struct rp_disk_entry *e, struct rp_error *err) RP_MUST_CHECK;
/* All since the last commit counts, durably, as epoch's; `sync_id` not NULL: and is of that sync from then on. -ENOSPC as above. After another error the journal is broken:
 * whether the epoch counts after a crash is not known, and nothing more is taken. */
int rp_journal_commit(struct rp_journal *j, uint64_t epoch, const uint8_t *sync_id, struct rp_error *err) RP_MUST_CHECK;
/* Forgets what was appended since the last commit. */
void rp_journal_rollback(struct rp_journal *j);
bool rp_journal_dirty(const struct rp_journal *j);      /* something was appended since the last commit */
bool rp_journal_broken(const struct rp_journal *j);     /* an append or a commit has failed: it takes nothing more */

uint64_t rp_journal_committed(const struct rp_journal *j);
uint64_t rp_journal_epoch(const struct rp_journal *j);  /* of the newest COMMIT, or of the tail when there is none */
uint64_t rp_journal_tail(const struct rp_journal *j);   /* any thread, like committed */
void rp_journal_tail_pos(const struct rp_journal *j, struct rp_journal_pos *out);   /* applying thread */
/* Receiving thread: what was appended since the last commit lies from *out up to the position returned, and can be read. */
uint64_t rp_journal_uncommitted(const struct rp_journal *j, struct rp_journal_pos *out);
/* The record at *pos, which is before `committed` (or not committed: see above); *pos then is behind it. Checks it again. */
int rp_journal_read(struct rp_journal *j, struct rp_journal_pos *pos, struct rp_journal_record *out, struct rp_error *err) RP_MUST_CHECK;
/* All before `pos` is in the disk files and synced: its space is free (R3). */
int rp_journal_trim(struct rp_journal *j, const struct rp_journal_pos *pos, struct rp_error *err) RP_MUST_CHECK;
uint64_t rp_journal_ring_bytes(const struct rp_journal *j);

#endif
