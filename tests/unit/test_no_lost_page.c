/*
 * No page is lost (issue "the machine", must hold 3): while a guest's CPUs, its disk and its network change RAM, epochs
 * are cut at random times; full RAM at cut N must equal base + deltas 1…N, with both dirty trackers.
 *
 * Between cuts pages are also harvested and copied while the guest runs, as early send does: what changes after such a
 * copy must come back. RP_SEED repeats a run, RP_CUTS says how many cuts each test makes; RP_LINUX_KERNEL and
 * RP_LINUX_INITRD (the lab's) add a stock kernel, whose KVM clock and steal time are written by the host's kernel.
 */
#include "tests/unit/native.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define DISK_BYTES (16u << 20)

struct run {
    unsigned cuts;
    uint32_t seed, rnd;
    unsigned cut_n;
    struct rp_machine *m;
    struct rp_source *src;
    const struct rp_ram_view *ram;
    uint8_t *shadow;            /* what a receiver would hold; like ram->base */
    struct rp_pageset set;
    uint64_t reported;
    int peer;                   /* the wire's other end, -1: none */
    _Atomic bool stop;
    pthread_t feeder;
};

static uint32_t rnd(struct run *r)
{
    r->rnd = r->rnd * 1664525u + 1013904223u;
    return r->rnd >> 8;
}

/* --- the wire: ARP requests that the guest answers, and frames for nobody --- */

static void *feed(void *arg)
{
    struct run *r = arg;
    static const uint8_t arp[42] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 0, 9,
        0, 0, 0, 0, 0, 0, 10, 0, 0, 2};
    uint8_t f[1500] = {0}, got[2048];
    uint32_t x = r->seed | 1;

    while (!atomic_load(&r->stop)) {
        size_t len = 60 + (x >> 8) % 1400;

        x = x * 1664525u + 1013904223u;
        memcpy(f, arp, sizeof arp);
        for (size_t i = sizeof arp; i < len; i++)
            f[i] = (uint8_t)(x >> (i % 24));
        if (x & 0x100)
            f[12] = 0x86;
        (void)!send(r->peer, f, len, MSG_DONTWAIT);
        while (recv(r->peer, got, sizeof got, MSG_DONTWAIT) > 0)
            ;
        usleep((x >> 12) % 3000);
    }
    return NULL;
}

/* --- the receiver --- */

/* What was reported reaches the receiver. */
static void deliver(struct run *r)
{
    for (uint64_t g = rp_pageset_next(&r->set, 0); g < r->set.bits; g = rp_pageset_next(&r->set, g + 1)) {
        cr_assert(rp_ram_contains(r->ram, g, 1), "cut %u: frame 0x%lx was reported and is no RAM", r->cut_n, g);
        memcpy(r->shadow + (g << RP_PAGE_SHIFT), rp_ram_page(r->ram, g), RP_PAGE_SIZE);
        r->reported++;
    }
    rp_pageset_clear(&r->set);
}

static void must_agree(const struct run *r, const char *tracker)
{
    for (uint32_t i = 0; i < r->ram->nregions; i++)
        for (uint64_t g = r->ram->regions[i].gfn; g < r->ram->regions[i].gfn + r->ram->regions[i].pages; g++) {
            const uint8_t *have = r->shadow + (g << RP_PAGE_SHIFT), *want = rp_ram_page(r->ram, g);
            unsigned at = 0;
            if (memcmp(have, want, RP_PAGE_SIZE) == 0)
                continue;
            while (have[at] == want[at])
                at++;
            cr_assert(false, "cut %u, %s: the page at 0x%lx was lost (byte %u is %02x, the receiver has %02x); RP_SEED=%u", r->cut_n,
                           tracker, g << RP_PAGE_SHIFT, at, want[at], have[at], r->seed);
        }
}

/* One epoch. False: the guest has ended. */
static bool epoch(struct run *r, const char *tracker)
{
    struct rp_sections sections = {0};
    struct rp_cut cut = {.sections = &sections, .dirty = &r->set, .epoch = r->cut_n};
    struct rp_error err = {0};
    int rc;

    if (rnd(r) % 4)
        usleep(rnd(r) % 12000);
    for (unsigned n = rnd(r) % 3; n > 0; n--) {
        cr_assert_eq(r->src->ops->harvest(r->src, &r->set, &err), 0, "%s", err.text);
        deliver(r);
        usleep(rnd(r) % 2000);
    }
    rc = r->src->ops->cut(r->src, &cut, &err);
    if (rc == -ESHUTDOWN)
        return false;
    cr_assert_eq(rc, 0, "%s", err.text);
    deliver(r);
    must_agree(r, tracker);
    rp_sections_fini(&sections);
    cr_assert_eq(r->src->ops->resume(r->src, &err), 0, "%s", err.text);
    return true;
}

static void track(struct run *r, bool on)
{
    struct rp_error err = {0};

    if (!on) {
        r->src->ops->track_stop(r->src);
        return;
    }
    /* A full epoch begins from zeroes: what it does not name is zero. */
    cr_assert_eq(madvise(r->shadow, r->ram->gfn_end << RP_PAGE_SHIFT, MADV_DONTNEED), 0);
    cr_assert_eq(r->src->ops->track_start(r->src, true, &err), 0, "%s", err.text);
}

static void start(struct run *r, struct rp_machine_config *cfg)
{
    const char *seed = getenv("RP_SEED");
    struct rp_error err = {0};
    uint64_t bytes;
    int rc;

    r->seed = seed ? (uint32_t)strtoul(seed, NULL, 0) : (uint32_t)rp_clock_ns();
    r->rnd = r->seed;
    rc = rp_machine_create(cfg, NULL, &r->m, &err);
    if (rc < 0 && cfg->dirty == RP_DIRTY_RING && err.exit == RP_EXIT_HOST)
        cr_skip_test("%s", err.text);
    cr_assert_eq(rc, 0, "%s", err.text);
    r->src = rp_machine_source(r->m);
    r->ram = &rp_machine_ram(r->m)->view;
    bytes = r->ram->gfn_end << RP_PAGE_SHIFT;
    r->shadow = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    cr_assert(r->shadow != MAP_FAILED);
    cr_assert_eq(rp_pageset_init(&r->set, r->ram->gfn_end), 0);
    if (r->peer >= 0)
        cr_assert_eq(pthread_create(&r->feeder, NULL, feed, r), 0);
    cr_assert_eq(rp_machine_start(r->m, &err), 0, "%s", err.text);
}

static void finish(struct run *r)
{
    atomic_store(&r->stop, true);
    if (r->peer >= 0) {
        pthread_join(r->feeder, NULL);
        close(r->peer);
    }
    munmap(r->shadow, r->ram->gfn_end << RP_PAGE_SHIFT);
    rp_pageset_fini(&r->set);
    rp_machine_destroy(r->m);
}

static void cuts(struct run *r, const char *tracker)
{
    track(r, true);
    for (r->cut_n = 1; r->cut_n <= r->cuts; r->cut_n++) {
        if (r->cut_n % 97 == 0) {       /* whoever starts again starts from everything */
            track(r, false);
            usleep(2000);
            track(r, true);
        }
        if (!epoch(r, tracker))
            break;
    }
    fprintf(stderr, "%s: %u cuts, %lu pages, RP_SEED=%u\n", tracker, r->cut_n - 1, r->reported, r->seed);
}

/* --- what the guests need --- */

static int wire(struct rp_machine_config *cfg)
{
    int sv[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, sv), 0);
    cfg->nnics = 1;
    cfg->nics[0] = (struct rp_nic_config){.kind = RP_NIC_FD, .fd = sv[0]};
    return sv[1];
}

static void disk(struct rp_machine_config *cfg)
{
    char path[] = "/tmp/reprise-no-lost-page-XXXXXX";
    int fd = mkstemp(path);

    cr_assert(fd >= 0 && ftruncate(fd, DISK_BYTES) == 0);
    unlink(path);
    cfg->ndisks = 1;
    cfg->disks[0] = (struct rp_disk_config){.fd = fd};
}

static void native(const char *guest, const char *cmdline, unsigned vcpus, int tracker)
{
    struct rp_machine_config cfg = native_config(guest, cmdline, vcpus, 24);
    struct run r = {.cuts = native_cuts(150, UINT_MAX), .peer = -1};

    need_kvm(guest);
    cfg.dirty = tracker;
    if (strcmp(guest, "ledger") == 0)
        r.peer = wire(&cfg);
    if (strcmp(guest, "blkwriter") == 0)
        disk(&cfg);
    start(&r, &cfg);
    wait_running(r.m);
    cuts(&r, tracker == RP_DIRTY_RING ? "ring" : "log");
    cr_assert_eq(r.cut_n, r.cuts + 1, "the guest ended: %s", rp_machine_failure(r.m));
    cr_assert_eq(guest_status(r.m)->state, RG_STATE_RUNNING, "guest: %s", (const char *)guest_status(r.m)->error_text);
    finish(&r);
}

#define DIRTIER "ws=8M rate=4000 bytes=128 verify=1"
#define BLKWRITER "size=8M depth=8 zeroes=5 rate=2000"

TestSuite(no_lost_page, .timeout = 1800);

Test(no_lost_page, dirtier_log) { native("dirtier", DIRTIER, 1, RP_DIRTY_LOG); }
Test(no_lost_page, dirtier_ring) { native("dirtier", DIRTIER, 1, RP_DIRTY_RING); }
Test(no_lost_page, dirtier_smp_log) { native("dirtier", DIRTIER " smp=2 pattern=hot", 2, RP_DIRTY_LOG); }
Test(no_lost_page, dirtier_smp_ring) { native("dirtier", DIRTIER " smp=2 pattern=hot", 2, RP_DIRTY_RING); }
Test(no_lost_page, disk_log) { native("blkwriter", BLKWRITER, 1, RP_DIRTY_LOG); }
Test(no_lost_page, disk_ring) { native("blkwriter", BLKWRITER, 1, RP_DIRTY_RING); }
Test(no_lost_page, network_log) { native("ledger", "entries=1000", 1, RP_DIRTY_LOG); }
Test(no_lost_page, network_ring) { native("ledger", "entries=1000", 1, RP_DIRTY_RING); }

/* A stock kernel from its first instruction on: boot, drivers, clock, disk load, network, entropy, free-page reports. */
static void linux_guest(int tracker)
{
    const char *kernel = getenv("RP_LINUX_KERNEL"), *initrd = getenv("RP_LINUX_INITRD");
    struct rp_machine_config cfg = native_config(NULL, "console=ttyS0 quiet mitigations=off random.trust_cpu=on mode=blk "
                                                 "ip=10.0.0.2/24 blk=-t,20,-d,4,-w", 2, 144);
    struct run r = {.cuts = native_cuts(150, UINT_MAX)};

    need_kvm(NULL);
    if (!kernel || !initrd)
        cr_skip_test("RP_LINUX_KERNEL and RP_LINUX_INITRD name no kernel");
    cfg.kernel = kernel;
    cfg.initrd = initrd;
    cfg.dirty = tracker;
    cfg.rng = cfg.balloon = true;
    disk(&cfg);
    r.peer = wire(&cfg);
    start(&r, &cfg);
    cuts(&r, tracker == RP_DIRTY_RING ? "ring" : "log");
    cr_assert_neq(rp_machine_state(r.m), RP_VM_FAILED, "%s", rp_machine_failure(r.m));
    finish(&r);
}

Test(no_lost_page, linux_log) { linux_guest(RP_DIRTY_LOG); }
Test(no_lost_page, linux_ring) { linux_guest(RP_DIRTY_RING); }
