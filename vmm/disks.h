/*
 * disks.h - a machine's disks under output commit (docs/disks.md): every disk that may be written to stands behind a guard.
 * A private one's keeps what was written until the engine takes it; a shared one's holds back what is written until it is
 * committed (guard.c is both).
 *
 *   virtio-blk ──► guard ──► raw, nbd              engine: start ─► { pull | cut }* ─► stop     committer: release
 *
 * Invariants (tests cite them):
 *   DISK-1  a write is kept, or known as changed, in the same hold of the machine lock in which its completion is told;
 *   DISK-2  writes that overlap take effect one after the other, in the order of submission, and are kept in that order;
 *   DISK-3  kept and uncommitted writes are at most RP_DISKS_BOUND_BYTES and one request; then requests wait, and nothing else;
 *   DISK-4  what the copies lack is in the bitmap, kept, or uncommitted in the list: nothing is ever in none of them;
 *   DISK-5  a shared disk gets a write only when the cut after which it came is released (while outputs are held), before the
 *           deadline, and not while the machine stands; until then the request is in flight;
 *   DISK-6  a read of it does not wait, and sees the writes that do when it ends.
 *
 * Threads: the machine lock guards everything; pull, start, stop and progress take it themselves (engine thread), release
 * may come from any thread and does not.
 */
#ifndef RP_VMM_DISKS_H
#define RP_VMM_DISKS_H

#include "core/source.h"
#include "vmm/disk.h"

#include <pthread.h>

#define RP_DISKS_BOUND_BYTES (16ull << 20)
#define RP_DISKS_BLOCK_BYTES (64u << 10)    /* of the bitmap of what copies lack */
#define RP_DISKS_PIECE_BYTES (1u << 20)     /* of the initial copy, read at a time */

struct rp_disks;
struct rp_loop;
struct rp_disk_config;

/* `output_fd`: an eventfd that is written when the writes kept are a reason to cut, -1: none. */
int rp_disks_create(struct rp_loop *loop, int output_fd, struct rp_disks **out, struct rp_error *err) RP_MUST_CHECK;
void rp_disks_destroy(struct rp_disks *d);          /* after the guards */

/* Puts a guard in front of an opened disk, which belongs to the guard from then on. Disks are numbered in this order. On
 * error *disk is the caller's still. */
int rp_disks_guard(struct rp_disks *d, const struct rp_disk_config *cfg, struct rp_disk **disk, struct rp_error *err) RP_MUST_CHECK;

/* See struct rp_source_ops. `vm_id`, `vm_name`: for the disks' marks. */
int rp_disks_start(struct rp_disks *d, const struct rp_disk_run *run, const uint8_t vm_id[16], const char *vm_name,
                   struct rp_error *err) RP_MUST_CHECK;
void rp_disks_stop(struct rp_disks *d);
bool rp_disks_whole(struct rp_disks *d, const struct rp_disk_base *have, uint64_t size_bytes[RP_DISK_SUMS_DISKS]);
int rp_disks_pull(struct rp_disks *d, struct rp_buf *out, size_t max_bytes, struct rp_error *err) RP_MUST_CHECK;
void rp_disks_progress(struct rp_disks *d, struct rp_disk_progress *out);

/* Machine lock held, the machine stands: `epoch` ends here. `out`: gets what is kept (empty before); NULL: a run without disks. */
int rp_disks_cut(struct rp_disks *d, uint64_t epoch, struct rp_buf *out, struct rp_error *err) RP_MUST_CHECK;
void rp_disks_release(struct rp_disks *d, uint64_t epoch);
/* The machine runs again after a cut. Machine lock held. */
void rp_disks_resume(struct rp_disks *d);
/* From the next cut on writes to shared disks wait for release (true), or may go at once (false). Any thread. */
void rp_disks_hold(struct rp_disks *d, bool hold);
/* CLOCK_BOOTTIME, 0: none: at or past it shared disks get no write (the lease). Any thread. */
void rp_disks_deadline(struct rp_disks *d, uint64_t deadline_ns);
/* Gives up (false) shared disks: what is at the host is done when it returns, their locks are free; or takes them back. */
int rp_disks_storage(struct rp_disks *d, bool hold, struct rp_error *err) RP_MUST_CHECK;
/* The VM has ended, and nobody will go on from its last committed epoch: its private disks are ordinary ones again. */
void rp_disks_ended(struct rp_disks *d);

#endif
