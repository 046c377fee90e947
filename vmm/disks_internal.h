/* disks_internal.h - what disks.c, disks_copy.c and the guards share. The machine lock guards everything but `released`. */
#ifndef RP_VMM_DISKS_INTERNAL_H
#define RP_VMM_DISKS_INTERNAL_H

#include "core/disk_mark.h"
#include "vmm/disks.h"
#include "vmm/machine.h"

#include <semaphore.h>
#include <stdatomic.h>

#define RP_DISKS_HOLE_BYTES (1ull << 30)        /* at most, of one DISK entry without data */

/* A write, zero or discard between the guest and the host. */
struct rp_guard_op {
    struct rp_disk_req lower;       /* what the host is asked */
    struct rp_disk_req *guest;
    struct rp_guard *guard;
    struct rp_guard_op *prev, *next;
    uint64_t reserved_bytes;        /* of the bound */
    uint64_t after;                 /* the newest cut when it came */
    bool issued;
};

struct rp_guard {
    struct rp_disk d;
    struct rp_disk *lower;
    struct rp_disks *all;
    struct rp_guard *next;
    unsigned number;
    char path[RP_DISK_PATH_MAX], state[RP_DISK_PATH_MAX];   /* state: where the mark is; "": beside the file */
    bool shared;                    /* nothing is kept of it; what is private's below is not used */
    bool marked;                    /* its mark says ACTIVE, by us */
    struct rp_guard_op *first, *last;   /* in the order of submission, until done */
    unsigned waiting;               /* of them not issued */
    uint64_t blocks;
    uint64_t *lacks;                /* bit per block: the copies lack it; NULL: there was no copy yet */
    uint64_t lacking, scan;         /* bits set; where the next search begins */
    struct rp_disk_sum_list sums;   /* engine thread: what the copies held before this run, until it has copied */
};

struct rp_epoch_bytes { uint64_t epoch, bytes; };
struct rp_epoch_blocks { uint64_t epoch, first, last; struct rp_guard *guard; };

/* A queue of values in an array. */
struct rp_fifo { uint8_t *items; size_t size, head, n, cap; };

struct rp_disks {
    struct rp_loop *loop;
    int output_fd, wake_fd;
    unsigned ndisks;
    struct rp_guard *guards;
    struct rp_buf log;              /* writes kept since the last pull or cut: DISK payloads */
    bool keeping;                   /* between start and stop */
    bool steady;                    /* the epoch with the initial copy was cut */
    bool told;                      /* output_fd was written for what is kept now */
    uint64_t epoch;                 /* the one that the next cut ends; 0: not known before the first */
    uint64_t first_epoch;           /* with the initial copy */
    uint64_t committed_epoch;       /* newest epoch with writes that is released; steady only */
    uint64_t reserved_bytes;        /* of requests at the host */
    uint64_t uncommitted_bytes;     /* pulled or cut, not released; steady only */
    struct rp_fifo cuts;            /* struct rp_epoch_bytes */
    struct rp_fifo ranges;          /* struct rp_epoch_blocks: uncommitted, steady only */
    struct rp_disk_base base;       /* what the bitmaps are relative to; epoch 0: nothing */
    uint64_t newest_cut;
    uint64_t sync_bytes, equal_bytes;   /* of this run's copy: how much, and what of it the copies held already */
    struct rp_guard *piece;         /* whose range [piece_from, piece_to) is being read for the copy */
    uint64_t piece_from, piece_to;
    bool awaited;                   /* the engine thread waits for `quiet` */
    sem_t quiet;                    /* a request is done: the range may be free now */
    uint8_t *buf;                   /* engine thread: RP_DISKS_PIECE_BYTES */
    /* shared disks */
    bool holding, standing;         /* outputs are held; the machine stands after a cut */
    bool waits;                     /* a write began to wait since the last cut */
    bool given_up;                  /* rp_disks_storage */
    _Atomic bool hold_wanted;       /* any thread; pairs with wake_fd, like the next two */
    _Atomic uint64_t deadline_ns;
    _Atomic uint64_t released;
};

/* disks.c */
/* DISK-4: what has been committed need not be remembered. */
void rp_disks_take_released(struct rp_disks *d);
/* What is kept belongs to the caller now, behind what `out` holds; it is uncommitted. */
int rp_disks_take_log(struct rp_disks *d, struct rp_buf *out, struct rp_error *err) RP_MUST_CHECK;
bool rp_disks_room(struct rp_disks *d, uint64_t bytes);
void rp_disks_keep(struct rp_guard *g, const struct rp_disk_req *r);    /* DISK-1: `r` has taken effect */

bool rp_disks_held(struct rp_disks *d, uint64_t after);     /* DISK-5: a shared disk's write has to wait */
void rp_disks_waits(struct rp_disks *d);                    /* one begins to */

/* disks_copy.c */
void rp_disks_lack(struct rp_guard *g, uint64_t first, uint64_t last, bool lacking);     /* whether copies lack these blocks */
/* Memory for the copy, and then: what of it this run has to bring, and the SYNC entries that say so. */
int rp_disks_copy_ready(struct rp_disks *d, struct rp_error *err) RP_MUST_CHECK;
void rp_disks_copy_begin(struct rp_disks *d, const struct rp_disk_run *run);
void rp_disks_copy_end(struct rp_disks *d);     /* engine thread: what the copies held is of no use any more */
/* The next private disk's guard, from `g` on. */
static inline struct rp_guard *rp_disks_private(struct rp_guard *g)
{
    while (g && g->shared)
        g = g->next;
    return g;
}

/* guard.c */
int rp_guard_create(struct rp_disks *d, const struct rp_disk_config *cfg, struct rp_disk *lower, struct rp_guard **out, struct rp_error *err) RP_MUST_CHECK;
bool rp_guard_busy(const struct rp_guard *g, uint64_t from, uint64_t to);   /* a request on this range is at the host */
void rp_guard_retry(struct rp_guard *g);                                    /* issues what need not wait any more */

#endif
