/*
 * disk_mark.h - what is known of a disk file beside its bytes: who may use it. docs/disks.md, R4 to R7.
 *
 *     NONE ─► SYNCING ─► REPLICA ─► ACTIVE ─► NONE (the VM ended here, nobody else has it)
 *               ▲───────────┴─────────┘
 *
 * The mark is the file F.reprise (or another path that the user gave): two slots (durable.h) with the fields below. No file:
 * NONE. Whoever opens a disk looks at its mark first, because a file that was once part of a protected VM may be stale.
 * Any thread; the disk's lock (vmm/disk.h, replicator/replica.h) is what keeps two processes apart.
 */
#ifndef RP_CORE_DISK_MARK_H
#define RP_CORE_DISK_MARK_H

#include "core/durable.h"
#include "core/epoch.h"

#define RP_DISK_PATH_MAX 1024

enum rp_disk_state {            /* permanent numbers */
    RP_DISK_NONE = 0,           /* an ordinary disk */
    RP_DISK_SYNCING = 1,        /* a standby's copy, not complete: of no use */
    RP_DISK_REPLICA = 2,        /* a standby's copy: whole, but behind its VM */
    RP_DISK_ACTIVE = 3,         /* a VM that is or was protected runs, or ran, on it */
};

struct rp_disk_mark {
    uint32_t state;             /* enum rp_disk_state */
    uint32_t disk;              /* its number in the VM */
    uint8_t vm_id[16];
    uint8_t vm_name[RP_VM_NAME_MAX];
    uint64_t epoch;             /* when the mark was written */
    uint64_t term;              /* lease term then, 0: none */
    uint64_t wall_ns;
    uint8_t journal[RP_DISK_PATH_MAX];  /* of the copy's set, NUL-padded */
};
extern const struct rp_state_table rp_disk_mark_table;

/* Where the mark of `disk` is: `given`, or beside the file. A block device or another thing without a folder of its own needs
 * to be told (RP_EXIT_USAGE). `suffix`: ".reprise", ".reprise-journal". */
int rp_disk_mark_path(const char *disk, const char *given, const char *suffix, char out[RP_DISK_PATH_MAX], struct rp_error *err) RP_MUST_CHECK;
/* No file: 0, state NONE. RP_EXIT_DAMAGED: there is a file, but no valid mark in it. */
int rp_disk_mark_read(const char *path, struct rp_disk_mark *out, struct rp_error *err) RP_MUST_CHECK;
/* Durable when it returns 0. */
int rp_disk_mark_write(const struct rp_durable *io, const char *path, const struct rp_disk_mark *m, struct rp_error *err) RP_MUST_CHECK;
/* The disk is an ordinary one again. */
int rp_disk_mark_remove(const char *path, struct rp_error *err) RP_MUST_CHECK;
/* 0 when the disk may be used by a VM that starts here; otherwise RP_EXIT_REFUSED, with who used it and what to do. */
int rp_disk_mark_check(const char *disk, const char *mark_path, struct rp_error *err) RP_MUST_CHECK;

#endif
