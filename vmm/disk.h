/*
 * disk.h - what a block device stores its sectors in: a raw file or block device through io_uring (disk_raw.c), an
 * NBD export through libnbd (disk_nbd.c).
 *
 * Requests are asynchronous and carry one buffer of host memory, never guest RAM: the device copies, so that a write's
 * data is as it was when it was submitted and guest RAM changes only under the machine lock.
 * Thread: machine lock. `done` is called from rp_disk_kick, from the loop, or from rp_disk_drain, never from submit.
 */
#ifndef RP_VMM_DISK_H
#define RP_VMM_DISK_H

#include "core/error.h"

#include <stdbool.h>
#include <stdint.h>

struct rp_loop;
struct rp_disk_config;

enum rp_disk_op { RP_DISK_READ, RP_DISK_WRITE, RP_DISK_FLUSH, RP_DISK_DISCARD, RP_DISK_ZERO };

struct rp_disk_req {
    enum rp_disk_op op;
    bool unmap;             /* ZERO: the space may be given back */
    uint64_t offset_bytes;
    uint64_t len_bytes;
    uint8_t *buf;           /* READ, WRITE: len_bytes, page-aligned */
    void (*done)(struct rp_disk_req *r, int rc);    /* 0 or -errno; the request is the owner's again */
    uint64_t progress;      /* the backend's */
    uint8_t *scratch;       /* the backend's */
    struct rp_disk_req *next;   /* the backend's, while submitted */
};

struct rp_disk;
struct rp_disk_ops {
    const char *name;       /* "raw", "nbd" */
    void (*submit)(struct rp_disk *d, struct rp_disk_req *r);
    void (*kick)(struct rp_disk *d);
    void (*drain)(struct rp_disk *d);
    int (*lock)(struct rp_disk *d, bool on, struct rp_error *err);
    void (*destroy)(struct rp_disk *d);
    /* What the copy of a private disk needs; both NULL where there is no private disk (nbd). read_now: any thread, all or
     * -errno, beside requests. extent: is there a hole at `offset`, and how long is what is there? -errno: not known. */
    int (*read_now)(struct rp_disk *d, void *buf, uint64_t len, uint64_t offset);
    int (*extent)(struct rp_disk *d, uint64_t offset, bool *hole, uint64_t *len);
};
struct rp_disk {
    const struct rp_disk_ops *ops;
    uint64_t size_bytes;
    bool readonly;
    bool can_discard, can_zero;
    unsigned in_flight;
    struct rp_disk_req *failed;     /* the backend's: could not be submitted, told at the next kick */
    void (*batch_end)(void *ctx);   /* set by the device: after a batch of `done` */
    void *ctx;
};

/* One file per host, as opposed to storage that several hosts reach (docs/disks.md). */
bool rp_disk_is_private(const struct rp_disk_config *cfg);
/* Opens and locks what cfg names (nbd:// and nbd+unix:// URIs go to libnbd). -EBUSY: locked by another VM. */
int rp_disk_open(const struct rp_disk_config *cfg, struct rp_loop *loop, struct rp_disk **out, struct rp_error *err) RP_MUST_CHECK;
int rp_disk_raw_open(const struct rp_disk_config *cfg, struct rp_loop *loop, struct rp_disk **out, struct rp_error *err) RP_MUST_CHECK;
int rp_disk_nbd_open(const struct rp_disk_config *cfg, struct rp_loop *loop, struct rp_disk **out, struct rp_error *err) RP_MUST_CHECK;

/* Range and kind were checked by the caller. Takes effect at the next kick. */
static inline void rp_disk_submit(struct rp_disk *d, struct rp_disk_req *r)
{
    d->in_flight++;
    d->ops->submit(d, r);
}
/* Hands submitted requests to the host, in one call where it can, and reports what is done already. */
static inline void rp_disk_kick(struct rp_disk *d) { d->ops->kick(d); }
static inline void rp_disk_drain(struct rp_disk *d) { d->ops->drain(d); }   /* blocks until in_flight is 0 */
/* Takes or gives up the image's lock. -EBUSY. */
static inline int rp_disk_lock(struct rp_disk *d, bool on, struct rp_error *err) { return d->ops->lock(d, on, err); }
static inline void rp_disk_close(struct rp_disk *d) { d->ops->destroy(d); } /* after drain */

#endif
