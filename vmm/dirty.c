/* Dirty tracking by KVM; see dirty.h. */
#include "vmm/dirty.h"

#include "vmm/vcpu.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define CLEAR_GAP 2048u         /* words without a bit that one call to clear may span: another call costs more */
#define CLEAR_NS 150000u        /* that one call may take: KVM holds a lock meanwhile for which the page faults of a guest that runs wait */
#define CLEAR_WORD_NS 300u      /* about what a call takes: for a word with bits, and … */
#define CLEAR_PAGE_NS 40u       /* … for each bit */
#define RING_ENTRIES 65536u     /* per vCPU; 1 MiB. More makes a look at a full ring long, fewer makes exits */

struct rp_dirty {
    int vmfd;                   /* borrowed */
    struct rp_guest_ram *ram;   /* borrowed */
    bool ring, manual, on;      /* constant after creation; on: source's thread */
    bool armed;                 /* source's thread: KVM tracks; also between stop and start */
    bool everything;            /* source's thread: the next harvest reports all RAM */
    uint64_t *bitmap;           /* log: scratch for the largest region */
    pthread_mutex_t lock;       /* rings: heads, seen */
    unsigned nrings;
    uint32_t entries;
    struct { struct kvm_dirty_gfn *e; uint32_t head; } rings[RP_VCPU_GANG_MAX];
    struct rp_pageset seen;     /* lock: taken out of rings by vCPUs that were full */
};

static int set_slot(struct rp_dirty *d, uint32_t i, bool log, struct rp_error *err)
{
    const struct rp_ram_region *r = &d->ram->view.regions[i];
    struct kvm_userspace_memory_region s = {
        .slot = i, .flags = log ? KVM_MEM_LOG_DIRTY_PAGES : 0, .guest_phys_addr = r->gfn << RP_PAGE_SHIFT,
        .memory_size = r->pages << RP_PAGE_SHIFT,
        .userspace_addr = (uint64_t)(uintptr_t)rp_ram_page(&d->ram->view, r->gfn)};

    if (ioctl(d->vmfd, KVM_SET_USER_MEMORY_REGION, &s) != 0)
        return rp_error_exit(err, RP_EXIT_HOST, errno, "KVM_SET_USER_MEMORY_REGION for %" PRIu64 " MiB at 0x%" PRIx64 ": %m",
                             (uint64_t)s.memory_size >> 20, (uint64_t)s.guest_phys_addr);
    return 0;
}

static bool enable(int vmfd, uint32_t cap, uint64_t arg)
{
    struct kvm_enable_cap c = {.cap = cap, .args = {arg}};

    return ioctl(vmfd, KVM_ENABLE_CAP, &c) == 0;
}

static int choose(struct rp_dirty *d, int want, struct rp_error *err)
{
    int have;

    if (want == RP_DIRTY_RING) {
        uint32_t cap = KVM_CAP_DIRTY_LOG_RING;
        have = ioctl(d->vmfd, KVM_CHECK_EXTENSION, cap);
        if (have <= 0) {
            cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL;
            have = ioctl(d->vmfd, KVM_CHECK_EXTENSION, cap);
        }
        d->entries = RING_ENTRIES;
        while (have > 0 && d->entries * sizeof(struct kvm_dirty_gfn) > (uint32_t)have)
            d->entries /= 2;
        d->ring = have > 0 && enable(d->vmfd, cap, d->entries * sizeof(struct kvm_dirty_gfn));
        if (!d->ring)
            return rp_error_exit(err, RP_EXIT_HOST, EOPNOTSUPP, "this host's KVM has no dirty ring (KVM_CAP_DIRTY_LOG_RING): "
                                 "use the dirty log");
        return 0;
    }
    have = ioctl(d->vmfd, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    d->manual = have > 0 && enable(d->vmfd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, (uint64_t)have);
    return 0;
}

int rp_dirty_create(int vmfd, struct rp_guest_ram *ram, int want, struct rp_dirty **out, struct rp_error *err)
{
    struct rp_dirty *d = calloc(1, sizeof *d);
    uint64_t most = 0;
    int rc;

    if (!d)
        return rp_error_set(err, ENOMEM, "dirty tracking: out of memory");
    d->vmfd = vmfd;
    d->ram = ram;
    pthread_mutex_init(&d->lock, NULL);
    rc = choose(d, want, err);
    for (uint32_t i = 0; i < ram->view.nregions && rc == 0; i++) {
        if (ram->view.regions[i].pages > most)
            most = ram->view.regions[i].pages;
        rc = set_slot(d, i, false, err);
    }
    if (rc == 0) {
        d->bitmap = d->ring ? NULL : malloc((size_t)((most + 63) / 64 * 8));
        if ((!d->ring && !d->bitmap) || (d->ring && rp_pageset_init(&d->seen, ram->view.gfn_end) < 0))
            rc = rp_error_set(err, ENOMEM, "dirty tracking: out of memory");
    }
    if (rc < 0) {
        rp_dirty_destroy(d);
        return rc;
    }
    *out = d;
    return 0;
}

int rp_dirty_attach(struct rp_dirty *d, const struct rp_vcpus *g, struct rp_error *err)
{
    for (unsigned i = 0; d->ring && i < g->n; i++) {
        void *p = mmap(NULL, d->entries * sizeof(struct kvm_dirty_gfn), PROT_READ | PROT_WRITE, MAP_SHARED, g->v[i].fd,
                       KVM_DIRTY_LOG_PAGE_OFFSET * sysconf(_SC_PAGESIZE));
        if (p == MAP_FAILED)
            return rp_error_exit(err, RP_EXIT_HOST, errno, "vcpu %u: mapping its dirty ring: %m", i);
        d->rings[i].e = p;
        d->nrings = i + 1;
    }
    return 0;
}

void rp_dirty_destroy(struct rp_dirty *d)
{
    if (!d)
        return;
    for (unsigned i = 0; i < d->nrings; i++)
        munmap(d->rings[i].e, d->entries * sizeof(struct kvm_dirty_gfn));
    rp_pageset_fini(&d->seen);
    free(d->bitmap);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

/* --- log --- */

static int get_log(struct rp_dirty *d, uint32_t slot, struct rp_error *err)
{
    struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = d->bitmap};

    if (ioctl(d->vmfd, KVM_GET_DIRTY_LOG, &log) != 0)
        return rp_error_set(err, errno, "KVM_GET_DIRTY_LOG of slot %u: %m", slot);
    return 0;
}

/* Clears [first, first + pages) of the slot as far as the scratch bitmap has it; 64-page aligned. */
static int clear_log(struct rp_dirty *d, uint32_t slot, uint64_t first, uint64_t pages, struct rp_error *err)
{
    uint64_t left = d->ram->view.regions[slot].pages - first;
    struct kvm_clear_dirty_log c = {.slot = slot, .first_page = first, .num_pages = (uint32_t)(pages < left ? pages : left),
                                    .dirty_bitmap = d->bitmap + first / 64};

    if (ioctl(d->vmfd, KVM_CLEAR_DIRTY_LOG, &c) != 0)
        return rp_error_set(err, errno, "KVM_CLEAR_DIRTY_LOG of slot %u: %m", slot);
    return 0;
}

/* Merges the scratch bitmap and clears runs of words that have bits: clearing costs per call and, much less, per word. */
static int take_log(struct rp_dirty *d, uint32_t slot, struct rp_pageset *set, struct rp_error *err)
{
    const struct rp_ram_region *r = &d->ram->view.regions[slot];
    uint64_t words = (r->pages + 63) / 64, base = r->gfn / 64;
    uint64_t run = UINT64_MAX, gap = 0, ns = 0;
    int rc = 0;

    for (uint64_t w = 0; w < words && rc == 0; w++) {
        uint64_t bits = d->bitmap[w];
        if (bits) {
            set->words[base + w] |= bits;
            if (run == UINT64_MAX)
                run = w;
            gap = 0;
            ns += CLEAR_WORD_NS + CLEAR_PAGE_NS * (unsigned)__builtin_popcountll(bits);
        } else {
            gap++;
        }
        if (run != UINT64_MAX && w + 1 < words && (gap == CLEAR_GAP || ns >= CLEAR_NS)) {
            rc = d->manual ? clear_log(d, slot, run * 64, (w - run + 1) * 64, err) : 0;
            run = UINT64_MAX;
            ns = 0;
        }
    }
    if (rc == 0 && run != UINT64_MAX && d->manual)
        rc = clear_log(d, slot, run * 64, r->pages - run * 64, err);
    return rc;
}

static int harvest_log(struct rp_dirty *d, struct rp_pageset *set, struct rp_error *err)
{
    int rc = 0;

    for (uint32_t i = 0; i < d->ram->view.nregions && rc == 0; i++) {
        rc = get_log(d, i, err);
        if (rc == 0)
            rc = take_log(d, i, set, err);
    }
    return rc;
}

/* --- ring --- */

/* Takes what is in a ring; its lock held. A slot's index is its region's. */
static uint32_t take_ring(struct rp_dirty *d, unsigned i, struct rp_pageset *set)
{
    uint32_t n = 0;

    for (;; n++) {
        struct kvm_dirty_gfn *e = &d->rings[i].e[d->rings[i].head & (d->entries - 1)];
        uint32_t slot;
        uint64_t gfn;
        /* Pairs with the kernel's release store of the flag after slot and offset. */
        if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
            return n;
        slot = e->slot & 0xffff;
        if (slot < d->ram->view.nregions && e->offset < d->ram->view.regions[slot].pages) {
            gfn = d->ram->view.regions[slot].gfn + e->offset;
            set->words[gfn / 64] |= 1ull << (gfn % 64);
        }
        __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        d->rings[i].head++;
    }
}

static int harvest_ring(struct rp_dirty *d, struct rp_pageset *set, struct rp_error *err)
{
    uint32_t n = 0;
    int rc = 0;

    pthread_mutex_lock(&d->lock);
    rp_pageset_or(set, &d->seen);
    rp_pageset_clear(&d->seen);
    for (unsigned i = 0; i < d->nrings; i++)
        n += take_ring(d, i, set);
    if (n > 0 && ioctl(d->vmfd, KVM_RESET_DIRTY_RINGS, 0) < 0)
        rc = rp_error_set(err, errno, "KVM_RESET_DIRTY_RINGS: %m");
    pthread_mutex_unlock(&d->lock);
    return rc;
}

void rp_dirty_ring_full(struct rp_dirty *d, unsigned vcpu)
{
    pthread_mutex_lock(&d->lock);
    (void)take_ring(d, vcpu, &d->seen);
    (void)ioctl(d->vmfd, KVM_RESET_DIRTY_RINGS, 0);
    pthread_mutex_unlock(&d->lock);
}

/* --- both --- */

static int harvest(struct rp_dirty *d, struct rp_pageset *set, struct rp_error *err)
{
    int rc = d->ring ? harvest_ring(d, set, err) : harvest_log(d, set, err);

    if (rc == 0)
        rp_pageset_take(set, &d->ram->device_dirty);
    return rc;
}

int rp_dirty_start(struct rp_dirty *d, bool all, struct rp_error *err)
{
    struct rp_pageset junk;
    int rc = 0;

    rp_ram_track(d->ram, true);
    for (uint32_t i = 0; i < d->ram->view.nregions && rc == 0 && !d->armed; i++)     /* or it has tracked since the last time */
        rc = set_slot(d, i, true, err);
    if (rc < 0)
        return rc;
    d->on = d->armed = true;
    d->everything = all;
    if (all)
        return 0;
    /* Initially-set says "everything is dirty": take that once. (The first fetch protects what it clears.) */
    rc = rp_pageset_init(&junk, d->ram->view.gfn_end);
    if (rc < 0)
        return rp_error_set(err, rc, "dirty tracking: out of memory");
    rc = harvest(d, &junk, err);
    rp_pageset_fini(&junk);
    return rc;
}

void rp_dirty_stop(struct rp_dirty *d)
{
    struct rp_pageset junk;

    if (!d->on)
        return;
    rp_ram_track(d->ram, false);
    d->on = false;
    /* A log that nobody clears costs the guest nothing but its huge pages; to take it away has KVM walk all of its tables, milliseconds
     * for which the guest's faults wait. */
    if (!d->ring && d->ram->small)
        return;
    for (uint32_t i = 0; i < d->ram->view.nregions; i++)
        (void)set_slot(d, i, false, NULL);
    d->armed = false;
    if (d->ring && rp_pageset_init(&junk, d->ram->view.gfn_end) == 0) {
        (void)harvest_ring(d, &junk, NULL);     /* leaves empty rings behind */
        rp_pageset_fini(&junk);
    }
}

/* Everything: what RAM holds. KVM's own answer, that all of it may have changed, is dropped. The look comes after the
 * harvest: a page that is empty then and is written later is seen by the next one. */
static int harvest_all(struct rp_dirty *d, struct rp_pageset *set, struct rp_error *err)
{
    struct rp_pageset junk;
    int rc = rp_pageset_init(&junk, d->ram->view.gfn_end);

    if (rc < 0)
        return rp_error_set(err, rc, "dirty tracking: out of memory");
    rc = harvest(d, &junk, err);
    if (rc == 0) {
        rp_ram_held(d->ram, set);
        d->everything = false;
    }
    rp_pageset_fini(&junk);
    return rc;
}

int rp_dirty_harvest(struct rp_dirty *d, struct rp_pageset *set, struct rp_error *err)
{
    return d->everything ? harvest_all(d, set, err) : harvest(d, set, err);
}
