/*
 * guest_ram.h - guest RAM: one memfd, mapped once, reached only through range-checked calls.
 *
 * Layout: [0, min(size, 3 GiB)) below the PCI hole, the rest from 4 GiB up. Host address = base + gpa.
 * The memfd's offset is the guest-physical address; the hole is reserved without access, so a stray pointer faults.
 *
 * Whoever writes guest RAM from the host says so (rp_ram_dirty), after the write and before the guest can see
 * the completion: the device half of dirty tracking. rp_gpa_t is a struct so that a guest address can be
 * neither dereferenced nor mixed up with a host address or a frame number.
 * Thread: any, after creation. Device writes happen under the machine lock, so a cut never sees half of one.
 */
#ifndef RP_VMM_GUEST_RAM_H
#define RP_VMM_GUEST_RAM_H

#include "core/bytes.h"
#include "core/ram.h"

#include <stdatomic.h>
#include <stddef.h>
#include <sys/uio.h>

typedef struct { uint64_t v; } rp_gpa_t;
static inline rp_gpa_t rp_gpa(uint64_t v) { return (rp_gpa_t){v}; }

#define RP_RAM_LOW_END 0xC0000000ull    /* 3 GiB: end of low RAM, start of the PCI hole */
#define RP_RAM_HIGH_START 0x100000000ull

struct rp_ram_config {
    uint64_t size_bytes;    /* multiple of 4,096; of the huge page size with hugetlb */
    bool populate;          /* fault everything in now */
    bool behind;            /* with populate: by a thread of its own, while the RAM is in use; what it cannot do is logged */
    bool thp;               /* madvise/shmem huge pages where the host allows */
    bool hugetlb;           /* MFD_HUGETLB, 2 MiB */
    bool overcommit;        /* more than the host has */
};

struct rp_populator;        /* the thread, private to guest_ram.c */

struct rp_guest_ram {
    struct rp_ram_view view;
    int memfd;
    bool hugetlb;
    bool small;                         /* none of it is, or will be, in huge pages */
    uint64_t size_bytes;
    struct rp_pageset device_dirty;     /* atomic: pages the host wrote since the last harvest */
    _Atomic bool track;                 /* device_dirty is kept; rp_ram_track */
    struct rp_populator *populator;     /* NULL: there is none */
    bool keep;                          /* machine lock: nothing is discarded; rp_ram_keep */
};

int rp_guest_ram_init(struct rp_guest_ram *ram, const struct rp_ram_config *cfg, struct rp_error *err) RP_MUST_CHECK;
void rp_guest_ram_fini(struct rp_guest_ram *ram);

/* Host pointer to [gpa, gpa+len), or NULL when any byte of it is not RAM (hole, beyond the end, overflow). */
void *rp_ram_at(const struct rp_guest_ram *ram, rp_gpa_t gpa, uint64_t len);
/* [gpa, gpa+len) was written by the host. */
void rp_ram_dirty(struct rp_guest_ram *ram, rp_gpa_t gpa, uint64_t len);
/* Same for an iovec that rp_ram_at produced, first `len` bytes of it. */
void rp_ram_dirty_iov(struct rp_guest_ram *ram, const struct iovec *iov, int n, uint64_t len);
/* Copies and marks dirty; -EFAULT when not RAM. */
int rp_ram_write(struct rp_guest_ram *ram, rp_gpa_t gpa, const void *in, size_t len) RP_MUST_CHECK;
/* Gives [gpa, gpa+len) back to the host, pages that lie in it whole: they read as zeroes from then on, and those that
 * held something are dirty. Frames of huge pages stay as they are, and so does everything while rp_ram_keep is on.
 * Machine lock held. Returns the bytes that are holes now; -EFAULT when not RAM. */
int64_t rp_ram_discard(struct rp_guest_ram *ram, rp_gpa_t gpa, uint64_t len) RP_MUST_CHECK;
/* ORs every RAM page that holds something into `set`; the others were never written or were given back, and read as zeroes.
 * Whoever asks while the guest runs watches its writes first. */
void rp_ram_held(const struct rp_guest_ram *ram, struct rp_pageset *set);
/* While true, pages stay where they are: somebody copies them, registered them or waits for their faults. Machine lock. */
static inline void rp_ram_keep(struct rp_guest_ram *ram, bool keep) { ram->keep = keep; }
/* Starts or stops keeping device_dirty (stopping empties it). The source's thread, machine lock held. */
void rp_ram_track(struct rp_guest_ram *ram, bool on);

#endif
