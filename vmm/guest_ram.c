/* Guest RAM: a memfd mapped region by region into one reserved range of addresses; see guest_ram.h. */
#include "vmm/guest_ram.h"

#include "core/log.h"
#include "core/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define HUGE_BYTES (2ull << 20)
#define DISCARD_STEP (64u << 10)
#define HELD_STEP (16u << 20)      /* of which mincore makes a page of bytes: it takes no more at a time anyway */
#define POPULATE_STEP (4u << 20)        /* between two looks at whether to go on */
#define SIZE_MAX_BYTES (1ull << 40)     /* 1 TiB: far beyond what is supported, keeps every sum below 2^63 */

static void layout(struct rp_ram_view *view, uint64_t size_bytes)
{
    uint64_t low = size_bytes < RP_RAM_LOW_END ? size_bytes : RP_RAM_LOW_END;
    uint64_t high = size_bytes - low;

    view->pages = size_bytes >> RP_PAGE_SHIFT;
    view->nregions = 1;
    view->regions[0] = (struct rp_ram_region){.gfn = 0, .pages = low >> RP_PAGE_SHIFT};
    view->gfn_end = low >> RP_PAGE_SHIFT;
    if (high > 0) {
        view->nregions = 2;
        view->regions[1] = (struct rp_ram_region){
            .gfn = RP_RAM_HIGH_START >> RP_PAGE_SHIFT, .pages = high >> RP_PAGE_SHIFT};
        view->gfn_end = (RP_RAM_HIGH_START + high) >> RP_PAGE_SHIFT;
    }
}

/* MemAvailable of /proc/meminfo in bytes; 0 when it cannot be read. */
static uint64_t available_bytes(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    uint64_t kib = 0;

    if (!f)
        return 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
            break;
    fclose(f);
    return kib << 10;
}

static int check_config(const struct rp_ram_config *cfg, struct rp_error *err)
{
    uint64_t unit = cfg->hugetlb ? HUGE_BYTES : RP_PAGE_SIZE;
    uint64_t available = available_bytes();
    struct sysinfo si;

    if (cfg->size_bytes == 0 || cfg->size_bytes % unit != 0 || cfg->size_bytes > SIZE_MAX_BYTES)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "guest RAM of %" PRIu64 " bytes: must be a multiple of %" PRIu64
                             " bytes, at most 1 TiB", cfg->size_bytes, unit);
    if (cfg->hugetlb || sysinfo(&si) != 0)
        return 0;
    if (!cfg->overcommit && cfg->size_bytes > ((uint64_t)si.totalram + si.totalswap) * si.mem_unit)
        return rp_error_exit(err, RP_EXIT_HOST, ENOMEM, "guest RAM of %" PRIu64 " MiB: the host has %" PRIu64
                             " MiB of memory and swap (--overcommit allows it all the same)", cfg->size_bytes >> 20,
                             (((uint64_t)si.totalram + si.totalswap) * si.mem_unit) >> 20);
    if (cfg->populate && available != 0 && cfg->size_bytes > available)
        return rp_error_exit(err, RP_EXIT_HOST, ENOMEM, "guest RAM of %" PRIu64 " MiB, populated: only %" PRIu64
                             " MiB are available on this host", cfg->size_bytes >> 20, available >> 20);
    return 0;
}

static int make_memfd(const struct rp_ram_config *cfg, uint64_t end_bytes, struct rp_error *err)
{
    unsigned flags = MFD_CLOEXEC | (cfg->hugetlb ? MFD_HUGETLB | MFD_HUGE_2MB : 0);
    int fd = memfd_create("guest-ram", flags);
    int e;

    if (fd < 0)
        return rp_error_exit(err, RP_EXIT_HOST, errno, "memfd for guest RAM%s: %m",
                             cfg->hugetlb ? " (2 MiB huge pages; vm.nr_hugepages)" : "");
    if (ftruncate(fd, (off_t)end_bytes) != 0) {
        e = errno;
        close(fd);
        return rp_error_exit(err, RP_EXIT_HOST, e, "guest RAM: ftruncate to %" PRIu64 " bytes: %s%s", end_bytes, strerror(e),
                             e == EFBIG ? "; files may not be that long here, and it counts as one: raise ulimit -f" : "");
    }
    return fd;
}

/* Reserves `end_bytes` of addresses, 2 MiB aligned so that huge pages line up with guest frames. */
static uint8_t *reserve(uint64_t end_bytes)
{
    size_t len = (size_t)(end_bytes + HUGE_BYTES);
    uint8_t *p = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    size_t head;

    if (p == MAP_FAILED)
        return NULL;
    head = (size_t)(-(uintptr_t)p & (HUGE_BYTES - 1));
    if (head > 0)
        munmap(p, head);
    munmap(p + head + end_bytes, len - head - end_bytes);
    return p + head;
}

/* In steps: with cold memory 64 GiB take minutes. */
static int populate(uint8_t *at, size_t left)
{
    for (size_t n; left > 0; at += n, left -= n) {
        n = left < POPULATE_STEP ? left : POPULATE_STEP;
        if (rp_end_is_asked())
            return -ECANCELED;
        if (madvise(at, n, MADV_POPULATE_WRITE) != 0)
            return -errno;
    }
    return 0;
}

static int map_region(const struct rp_guest_ram *ram, const struct rp_ram_region *r, const struct rp_ram_config *cfg,
                      struct rp_error *err)
{
    uint64_t start = r->gfn << RP_PAGE_SHIFT;
    size_t len = (size_t)(r->pages << RP_PAGE_SHIFT);
    uint8_t *want = ram->view.base + start;

    if (mmap(want, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, ram->memfd, (off_t)start) != want)
        return rp_error_exit(err, RP_EXIT_HOST, errno, "guest RAM: mapping %zu bytes: %m%s", len,
                             cfg->hugetlb ? " (too few free huge pages: vm.nr_hugepages)" : "");
    /* Advice: what the host cannot do is not an error. */
    (void)madvise(want, len, MADV_DONTDUMP);
    if (cfg->thp)
        (void)madvise(want, len, MADV_HUGEPAGE);
    int rc = cfg->populate && !cfg->behind ? populate(want, len) : 0;
    return rc < 0 ? rp_error_exit(err, RP_EXIT_HOST, rc, "guest RAM: populating %zu bytes: %s", len, strerror(-rc)) : 0;
}

/* --- faulting in behind what is going on: with cold memory a GiB takes seconds, and whoever sends us pages would wait for it --- */

struct rp_populator {
    struct rp_ram_view view;
    pthread_t thread;
    _Atomic bool stop;
};

static void *populator_main(void *arg)
{
    struct rp_populator *p = arg;

    for (uint32_t i = 0; i < p->view.nregions; i++) {
        uint8_t *at = p->view.base + (p->view.regions[i].gfn << RP_PAGE_SHIFT);

        for (size_t left = (size_t)(p->view.regions[i].pages << RP_PAGE_SHIFT), n; left > 0 && !atomic_load(&p->stop); at += n, left -= n) {
            n = left < POPULATE_STEP ? left : POPULATE_STEP;
            if (madvise(at, n, MADV_POPULATE_WRITE) != 0) {
                rp_log(RP_LOG_WARN, "guest RAM: %zu MiB of it are not populated: %m", left >> 20);
                return NULL;
            }
        }
    }
    return NULL;
}

static int populate_behind(struct rp_guest_ram *ram, struct rp_error *err)
{
    struct rp_populator *p = calloc(1, sizeof(*p));
    int rc;

    if (!p)
        return rp_error_set(err, ENOMEM, "guest RAM: no memory for the thread that populates it");
    p->view = ram->view;
    rc = rp_thread_start(&p->thread, "populate", populator_main, p, err);
    if (rc < 0) {
        free(p);
        return rc;
    }
    ram->populator = p;
    return 0;
}

static void end_populating(struct rp_guest_ram *ram)
{
    if (!ram->populator)
        return;
    atomic_store(&ram->populator->stop, true);
    pthread_join(ram->populator->thread, NULL);
    free(ram->populator);
}

/* Will the host put a memfd into huge pages, on advice or without? */
static bool may_be_huge(bool advised)
{
    FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "re");
    char word[128] = "";

    if (!f)
        return false;
    if (!fgets(word, sizeof word, f))
        word[0] = 0;
    fclose(f);
    return !strstr(word, "[never]") && !strstr(word, "[deny]") && (advised || !strstr(word, "[advise]"));
}

int rp_guest_ram_init(struct rp_guest_ram *ram, const struct rp_ram_config *cfg, struct rp_error *err)
{
    uint64_t end_bytes;
    int rc = check_config(cfg, err);

    if (rc < 0)
        return rc;
    *ram = (struct rp_guest_ram){.memfd = -1, .size_bytes = cfg->size_bytes, .hugetlb = cfg->hugetlb,
                                 .small = !cfg->hugetlb && !may_be_huge(cfg->thp)};
    layout(&ram->view, cfg->size_bytes);
    end_bytes = ram->view.gfn_end << RP_PAGE_SHIFT;

    rc = rp_pageset_init(&ram->device_dirty, ram->view.gfn_end);
    if (rc < 0)
        return rp_error_set(err, rc, "guest RAM: no memory for the page set");
    rc = make_memfd(cfg, end_bytes, err);
    if (rc < 0)
        goto undo_set;
    ram->memfd = rc;
    ram->view.base = reserve(end_bytes);
    if (!ram->view.base) {
        rc = rp_error_exit(err, RP_EXIT_HOST, errno, "guest RAM: reserving %" PRIu64 " bytes of addresses: %m", end_bytes);
        goto undo_memfd;
    }
    for (uint32_t i = 0; i < ram->view.nregions; i++) {
        rc = map_region(ram, &ram->view.regions[i], cfg, err);
        if (rc < 0)
            goto undo_map;
    }
    rc = cfg->populate && cfg->behind ? populate_behind(ram, err) : 0;
    if (rc < 0)
        goto undo_map;
    return 0;

undo_map:
    munmap(ram->view.base, (size_t)end_bytes);
undo_memfd:
    close(ram->memfd);
undo_set:
    rp_pageset_fini(&ram->device_dirty);
    *ram = (struct rp_guest_ram){.memfd = -1};
    return rc;
}

void rp_guest_ram_fini(struct rp_guest_ram *ram)
{
    if (!ram->view.base)
        return;
    end_populating(ram);
    munmap(ram->view.base, (size_t)(ram->view.gfn_end << RP_PAGE_SHIFT));
    close(ram->memfd);
    rp_pageset_fini(&ram->device_dirty);
    *ram = (struct rp_guest_ram){.memfd = -1};
}

void *rp_ram_at(const struct rp_guest_ram *ram, rp_gpa_t gpa, uint64_t len)
{
    uint64_t end;

    if (!rp_add(gpa.v, len, &end))
        return NULL;
    for (uint32_t i = 0; i < ram->view.nregions; i++) {
        uint64_t start = ram->view.regions[i].gfn << RP_PAGE_SHIFT;
        uint64_t stop = start + (ram->view.regions[i].pages << RP_PAGE_SHIFT);
        if (gpa.v >= start && gpa.v < stop)
            return end <= stop ? ram->view.base + gpa.v : NULL;
    }
    return NULL;
}

void rp_ram_dirty(struct rp_guest_ram *ram, rp_gpa_t gpa, uint64_t len)
{
    uint64_t first = gpa.v >> RP_PAGE_SHIFT;

    /* Pairs with rp_ram_track: the flag goes up before the first harvest looks. */
    if (len == 0 || !atomic_load_explicit(&ram->track, memory_order_acquire))
        return;
    rp_pageset_set_atomic(&ram->device_dirty, first, ((gpa.v + len - 1) >> RP_PAGE_SHIFT) - first + 1);
}

void rp_ram_dirty_iov(struct rp_guest_ram *ram, const struct iovec *iov, int n, uint64_t len)
{
    for (int i = 0; i < n && len > 0; i++) {
        uint64_t part = iov[i].iov_len < len ? iov[i].iov_len : len;
        rp_ram_dirty(ram, rp_gpa((uint64_t)((uint8_t *)iov[i].iov_base - ram->view.base)), part);
        len -= part;
    }
}

int rp_ram_write(struct rp_guest_ram *ram, rp_gpa_t gpa, const void *in, size_t len)
{
    void *p = rp_ram_at(ram, gpa, len);

    if (!p)
        return -EFAULT;
    memcpy(p, in, len);
    rp_ram_dirty(ram, gpa, len);
    return 0;
}

/* Where the next page at or after `at` is that the memfd holds; `end` when there is none before. */
static uint64_t next_data(const struct rp_guest_ram *ram, uint64_t at, uint64_t end)
{
    off_t next = lseek(ram->memfd, (off_t)at, SEEK_DATA);

    if (next < 0)
        return errno == ENXIO ? end : at;       /* holes to the end of the file; or not known: data */
    return (uint64_t)next > end ? end : (uint64_t)next;
}

/* Of the pages from `at` on, HELD_STEP bytes at most. Returns where to go on. */
static uint64_t mark_held(const struct rp_guest_ram *ram, uint64_t at, uint64_t end, struct rp_pageset *set)
{
    unsigned char in_core[HELD_STEP >> RP_PAGE_SHIFT];
    uint64_t first = at, stop = end - at < HELD_STEP ? end : at + HELD_STEP;

    if (mincore(rp_ram_page(&ram->view, at >> RP_PAGE_SHIFT), stop - at, in_core) != 0)
        memset(in_core, 1, sizeof in_core);     /* not known: data */
    while (at < stop) {
        uint64_t data = in_core[(at - first) >> RP_PAGE_SHIFT] & 1 ? at : next_data(ram, at, end);

        if (data > at) {
            at = data;
        } else {
            rp_pageset_set(set, at >> RP_PAGE_SHIFT);
            at += RP_PAGE_SIZE;
        }
    }
    return at;
}

/* Not by SEEK_HOLE: that walks over all data up to a hole in one call, 8 ms for a GiB, and a vCPU that waits for this CPU meanwhile waits for
 * all of it. What mincore finds is held; what it does not find may be, if it was swapped out. */
void rp_ram_held(const struct rp_guest_ram *ram, struct rp_pageset *set)
{
    for (uint32_t i = 0; i < ram->view.nregions; i++) {
        uint64_t at = ram->view.regions[i].gfn << RP_PAGE_SHIFT, end = at + (ram->view.regions[i].pages << RP_PAGE_SHIFT);

        for (; ram->hugetlb && at < end; at += RP_PAGE_SIZE)    /* its memfd says nothing of holes */
            rp_pageset_set(set, at >> RP_PAGE_SHIFT);
        while (at < end)
            at = mark_held(ram, at, end, set);
    }
}

int64_t rp_ram_discard(struct rp_guest_ram *ram, rp_gpa_t gpa, uint64_t len)
{
    uint64_t at, end, next;

    if (!rp_ram_at(ram, gpa, len))
        return -EFAULT;
    if (ram->keep || ram->hugetlb)
        return 0;
    at = (gpa.v + RP_PAGE_SIZE - 1) & ~(uint64_t)(RP_PAGE_SIZE - 1);
    end = (gpa.v + len) & ~(uint64_t)(RP_PAGE_SIZE - 1);
    if (at >= end)
        return 0;
    len = end - at;
    /* In steps: where data ends (SEEK_HOLE) costs a walk over all of it, and a few pages marked too many cost nothing. */
    for (at = next_data(ram, at, end); at < end; at = next_data(ram, next, end)) {
        next = at + DISCARD_STEP < end ? at + DISCARD_STEP : end;
        if (fallocate(ram->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)(next - at)) != 0)
            len -= next - at;
        rp_ram_dirty(ram, rp_gpa(at), next - at);   /* also when it failed half-way */
    }
    return (int64_t)len;
}

void rp_ram_track(struct rp_guest_ram *ram, bool on)
{
    atomic_store_explicit(&ram->track, on, memory_order_release);
    if (!on)
        rp_pageset_clear(&ram->device_dirty);
}
