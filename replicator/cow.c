/* Copy-on-write by userfaultfd's write-protection; see cow.h. */
#include "replicator/cow.h"

#include "core/clock.h"
#include "core/fault.h"
#include "core/copy.h"
#include "core/thread.h"
#include "core/uffd.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* A page's word: its slot, and how far it is. 0: nobody needs its protection. Who changes PROTECTED to COPYING copies it. */
enum { PAGE_FREE, PAGE_PROTECTED, PAGE_COPYING, PAGE_COPIED, PAGE_STATE = 3 };
#define SLOT_SHIFT 2

#define TRIAL_PAGES 512u
#define TRIAL_SOME 64u
#define TRIAL_ROUNDS 8u
#define TRIAL_FAULTS 16u
#define THREADS 64u                 /* faulting threads remembered, by the low bits of their ids */
#define SERVE_STEP_NS 10000.0
#define NEXT_MAX_NS 1000000u        /* two faults of a thread further apart say nothing about what a fault costs */

struct rp_cow {
    struct rp_ram_view ram;
    struct rp_arena *arena;
    _Atomic uint32_t *pages;        /* [gfn_end] */
    int fd, stop_fd;
    pthread_t thread;
    bool started;
    _Atomic uint64_t faults, cpu_ns;
    _Atomic bool broken;
    pthread_mutex_t serving;        /* held while a fault is served, and while runs are being protected */
    bool active;                    /* serving: between begin and end */
    struct { uint32_t thread; uint64_t let_go_ns; } last[THREADS];  /* thread "cow faults" */
    double serve_ns, next_ns;       /* serving: to serve a fault; from there to the same thread's next one, at best */
    struct rp_cow_costs costs;      /* trial's; fault_ns: at least */
    uint64_t faults_before;         /* engine: at begin */
};

static int set_protection(struct rp_cow *c, const void *at, uint64_t pages, bool on)
{
    struct uffdio_writeprotect wp = {.range = {.start = (uintptr_t)at, .len = pages << RP_PAGE_SHIFT},
                                     .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
    return ioctl(c->fd, UFFDIO_WRITEPROTECT, &wp) < 0 ? -errno : 0;
}

/* Nothing is watched any more. Of write-protection alone UNREGISTER wakes nobody, so that is done by hand. */
static void unwatch(struct rp_cow *c)
{
    for (uint32_t i = 0; i < c->ram.nregions; i++) {
        struct uffdio_range r = {.start = (uintptr_t)rp_ram_page(&c->ram, c->ram.regions[i].gfn),
                                 .len = c->ram.regions[i].pages << RP_PAGE_SHIFT};
        (void)ioctl(c->fd, UFFDIO_UNREGISTER, &r);
        (void)ioctl(c->fd, UFFDIO_WAKE, &r);
    }
}

/* --- copying --- */

/* C1: one of those who come copies the page, the others wait until it is there. */
static void copy_once(struct rp_cow *c, uint64_t gfn, bool far)
{
    uint32_t word = atomic_load_explicit(&c->pages[gfn], memory_order_acquire);
    while ((word & PAGE_STATE) == PAGE_PROTECTED) {
        uint32_t slot = word >> SLOT_SHIFT << SLOT_SHIFT;
        if (!atomic_compare_exchange_weak_explicit(&c->pages[gfn], &word, slot | PAGE_COPYING, memory_order_acquire, memory_order_acquire))
            continue;
        const uint8_t *page = rp_ram_page(&c->ram, gfn);
        rp_copy_page(rp_arena_page(c->arena, word >> SLOT_SHIFT), page, page, far);
        atomic_store_explicit(&c->pages[gfn], slot | PAGE_COPIED, memory_order_release);
        return;
    }
    while ((word & PAGE_STATE) == PAGE_COPYING) {
        sched_yield();
        word = atomic_load_explicit(&c->pages[gfn], memory_order_acquire);
    }
}

void rp_cow_copy(struct rp_cow *c, const struct rp_captured *list, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        copy_once(c, list[i].gfn, true);
}

/* --- serving faults --- */

static uint64_t gfn_of(const struct rp_cow *c, uint64_t address)
{
    return (address - (uintptr_t)c->ram.base) >> RP_PAGE_SHIFT;
}

/*
 * What a fault costs its thread beyond being served (getting here, and going on) shows in the time from when it was let go until
 * it faults again: that is never less, and the same when it writes one protected page after the other. So the least is kept.
 */
static void learn_next(struct rp_cow *c, uint32_t thread, uint64_t now)
{
    uint64_t since = now - c->last[thread % THREADS].let_go_ns;
    if (c->last[thread % THREADS].thread != thread || since > NEXT_MAX_NS)
        return;
    double ns = (double)since;
    c->next_ns += c->next_ns == 0 || ns < c->next_ns ? ns - c->next_ns : (ns - c->next_ns) / 256;
}

/* A fault during which this thread was preempted says little of what faults cost. */
static void learn_serve(struct rp_cow *c, uint64_t took_ns)
{
    double ns = (double)took_ns, most = 4 * c->serve_ns + SERVE_STEP_NS;
    c->serve_ns += ((ns < most ? ns : most) - c->serve_ns) / 16;
}

static void serve(struct rp_cow *c, const struct uffd_msg *msg)
{
    uint64_t came = rp_clock_ns(), address = msg->arg.pagefault.address & ~(uint64_t)(RP_PAGE_SIZE - 1);
    uint32_t thread = msg->arg.pagefault.feat.ptid;
    pthread_mutex_lock(&c->serving);
    learn_next(c, thread, came);
    if (address >= (uintptr_t)c->ram.base && gfn_of(c, address) < c->ram.gfn_end)
        copy_once(c, gfn_of(c, address), false);
    int rc = rp_fault(RP_FAULT_COW_FAULT) ? -EIO : set_protection(c, (void *)(uintptr_t)address, 1, false);
    if (rc < 0) {       /* the other pages have to be copied before everything is let go: rp_cow_end, if it comes */
        atomic_store(&c->broken, true);
        if (!c->active)
            unwatch(c);
    }
    uint64_t now = rp_clock_ns();
    c->last[thread % THREADS].thread = thread;
    c->last[thread % THREADS].let_go_ns = now;
    learn_serve(c, now - came);
    atomic_fetch_add(&c->faults, 1);
    pthread_mutex_unlock(&c->serving);
}

static void *faults_main(void *arg)
{
    struct rp_cow *c = arg;
    struct pollfd fds[2] = {{.fd = c->fd, .events = POLLIN}, {.fd = c->stop_fd, .events = POLLIN}};
    while (!fds[1].revents) {
        struct uffd_msg msg;
        if (poll(fds, 2, -1) < 0)
            continue;
        while (read(c->fd, &msg, sizeof(msg)) == sizeof(msg))
            if (msg.event == UFFD_EVENT_PAGEFAULT)
                serve(c, &msg);
        atomic_store(&c->cpu_ns, rp_clock_read(CLOCK_THREAD_CPUTIME_ID));
    }
    return NULL;
}

/* --- a cut's runs --- */

void rp_cow_begin(struct rp_cow *c)
{
    /* Held until `begun`: a fault that is served late must not let go of a page that is protected anew. */
    pthread_mutex_lock(&c->serving);
    c->active = true;
    c->faults_before = atomic_load(&c->faults);
}

int rp_cow_protect(struct rp_cow *c, const struct rp_captured *list, const struct rp_cow_run *run)
{
    for (uint32_t i = run->first; i < run->first + run->pages; i++)
        atomic_store_explicit(&c->pages[list[i].gfn], list[i].slot << SLOT_SHIFT | PAGE_PROTECTED, memory_order_release);
    int rc = rp_fault(RP_FAULT_COW_PROTECT) ? -EIO : set_protection(c, rp_ram_page(&c->ram, run->gfn), run->span, true);
    if (rc < 0) {
        atomic_store(&c->broken, true);
        rp_cow_copy(c, list + run->first, run->pages);
    }
    return rc;
}

void rp_cow_begun(struct rp_cow *c)
{
    pthread_mutex_unlock(&c->serving);
}

void rp_cow_finish(struct rp_cow *c, const struct rp_captured *list, const struct rp_cow_run *run)
{
    rp_cow_copy(c, list + run->first, run->pages);      /* which the fault's thread may still be at */
    if (rp_fault(RP_FAULT_COW_FINISH) || set_protection(c, rp_ram_page(&c->ram, run->gfn), run->span, false) < 0)
        atomic_store(&c->broken, true);
    for (uint32_t i = run->first; i < run->first + run->pages; i++)
        atomic_store_explicit(&c->pages[list[i].gfn], PAGE_FREE, memory_order_release);
}

uint64_t rp_cow_end(struct rp_cow *c)
{
    pthread_mutex_lock(&c->serving);
    c->active = false;
    if (atomic_load(&c->broken))
        unwatch(c);
    pthread_mutex_unlock(&c->serving);
    return atomic_load(&c->faults) - c->faults_before;
}

bool rp_cow_usable(const struct rp_cow *c)
{
    return c && !atomic_load(&c->broken);
}

void rp_cow_costs(struct rp_cow *c, struct rp_cow_costs *out)
{
    pthread_mutex_lock(&c->serving);
    *out = c->costs;
    if (c->next_ns > 0 && c->serve_ns + c->next_ns > out->fault_ns)
        out->fault_ns = c->serve_ns + c->next_ns;
    pthread_mutex_unlock(&c->serving);
}

uint64_t rp_cow_cpu_ns(const struct rp_cow *c)
{
    return atomic_load(&c->cpu_ns);
}

/* --- making one --- */

static int watch(struct rp_cow *c, void *at, uint64_t bytes, struct rp_error *err)
{
    struct uffdio_register r = {.range = {.start = (uintptr_t)at, .len = bytes}, .mode = UFFDIO_REGISTER_MODE_WP};
    if (ioctl(c->fd, UFFDIO_REGISTER, &r) < 0)
        return errno == EBUSY ? rp_error_set(err, EBUSY, "the faults of guest RAM belong to another userfaultfd")
                              : rp_error_set(err, errno, "guest RAM cannot be watched for writes: %s", strerror(errno));
    if (!(r.ioctls & 1ull << _UFFDIO_WRITEPROTECT))
        return rp_error_set(err, EOPNOTSUPP, "guest RAM is of a kind that cannot be write-protected");
    return 0;
}

static double best(double a, uint64_t began_ns)
{
    double ns = (double)(rp_clock_ns() - began_ns);
    return a == 0 || ns < a ? ns : a;
}

/* Protects the trial's first `pages` and lets them go. The least of some times, so that it is not a busy host's mood. */
static int time_protect(struct rp_cow *c, uint8_t *trial, uint64_t pages, double *ns)
{
    int rc = 0;
    for (unsigned i = 0; i < TRIAL_ROUNDS && rc == 0; i++) {
        for (uint64_t k = 0; k < pages; k++)        /* mapped, and known to the processor */
            __atomic_store_n(trial + k * RP_PAGE_SIZE, 1, __ATOMIC_RELAXED);
        uint64_t t0 = rp_clock_ns();
        rc = set_protection(c, trial, pages, true);
        *ns = best(*ns, t0);
        if (rc == 0)
            rc = set_protection(c, trial, pages, false);
    }
    return rc;
}

static int time_fault(struct rp_cow *c, uint8_t *trial, double *ns)
{
    int rc = 0;
    for (unsigned i = 0; i < TRIAL_FAULTS && (rc = set_protection(c, trial, 1, true)) == 0; i++) {
        uint64_t t0 = rp_clock_ns();
        __atomic_store_n(trial, 2, __ATOMIC_RELAXED);       /* returns when "cow faults" has served it */
        *ns = best(*ns, t0);
    }
    return rc;
}

/* What it costs, on memory of our own. Short and long runs say what a run costs and what a page does: flushing what processors know
 * of a range costs the same for a few dozen pages and for thousands. */
static int measure(struct rp_cow *c, uint8_t *trial, struct rp_error *err)
{
    double some = 0, all = 0, fault = 0, after = 0;
    int rc = time_protect(c, trial, TRIAL_SOME, &some);
    if (rc == 0)
        rc = time_protect(c, trial, TRIAL_PAGES, &all);
    uint64_t t0 = rp_clock_ns();
    for (unsigned k = 0; k < TRIAL_PAGES; k++)      /* all were let go just now */
        __atomic_store_n(trial + k * RP_PAGE_SIZE, 3, __ATOMIC_RELAXED);
    after = best(0, t0);
    if (rc == 0)
        rc = time_fault(c, trial, &fault);
    double page = all > some ? (all - some) / (TRIAL_PAGES - TRIAL_SOME) : all / TRIAL_PAGES, run = some - page * TRIAL_SOME;
    c->costs = (struct rp_cow_costs){.run_ns = run > 0 ? run : 0, .page_ns = page, .fault_ns = fault, .after_ns = after / TRIAL_PAGES};
    atomic_store(&c->faults, 0);
    return rc < 0 ? rp_error_set(err, rc, "memory cannot be write-protected: %s", strerror(-rc)) : 0;
}

static int try_it(struct rp_cow *c, struct rp_error *err)
{
    uint64_t bytes = TRIAL_PAGES * RP_PAGE_SIZE;
    int memfd = memfd_create("cow-trial", MFD_CLOEXEC);
    uint8_t *trial = MAP_FAILED;
    if (memfd >= 0 && ftruncate(memfd, (off_t)bytes) == 0)
        trial = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memfd, 0);
    if (memfd >= 0)
        close(memfd);
    if (trial == MAP_FAILED)
        return rp_error_set(err, ENOMEM, "no memory to try copy-on-write");
    int rc = watch(c, trial, bytes, err);
    if (rc == 0)
        rc = measure(c, trial, err);
    munmap(trial, bytes);
    return rc;
}

/* Guest RAM itself: one page of each region, protected and let go. */
static int watch_ram(struct rp_cow *c, struct rp_error *err)
{
    for (uint32_t i = 0; i < c->ram.nregions; i++) {
        uint8_t *at = rp_ram_page(&c->ram, c->ram.regions[i].gfn);
        int rc = watch(c, at, c->ram.regions[i].pages << RP_PAGE_SHIFT, err);
        if (rc < 0)
            return rc;
        rc = set_protection(c, at, 1, true);
        if (rc == 0)
            rc = set_protection(c, at, 1, false);
        if (rc < 0)
            return rp_error_set(err, rc, rc == -EINVAL ? "guest RAM is of huge pages, which cannot be protected one by one"
                                                       : "guest RAM cannot be write-protected: %s", strerror(-rc));
    }
    return 0;
}

int rp_cow_create(const struct rp_ram_view *ram, struct rp_arena *arena, struct rp_cow **out, struct rp_error *err)
{
    struct rp_cow *c = calloc(1, sizeof(*c));
    if (!c)
        return rp_error_set(err, ENOMEM, "no memory for copy-on-write");
    *c = (struct rp_cow){.ram = *ram, .arena = arena, .fd = -1, .stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    pthread_mutex_init(&c->serving, NULL);
    c->pages = calloc(ram->gfn_end, sizeof(*c->pages));
    int rc = c->pages && c->stop_fd >= 0 && rp_arena_slots(arena) < UINT32_MAX >> SLOT_SHIFT
                 ? 0 : rp_error_set(err, ENOMEM, "no memory for copy-on-write");
    if (rc == 0)
        rc = c->fd = rp_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_THREAD_ID, NULL, err);
    if (rc >= 0) {
        rc = rp_thread_start(&c->thread, "cow faults", faults_main, c, err);
        c->started = rc == 0;
    }
    if (rc == 0)
        rc = try_it(c, err);
    if (rc == 0)
        rc = watch_ram(c, err);
    if (rc < 0) {
        rp_cow_destroy(c);
        return rc;
    }
    *out = c;
    return 0;
}

void rp_cow_destroy(struct rp_cow *c)
{
    if (!c)
        return;
    if (c->fd >= 0)
        unwatch(c);
    if (c->started) {
        uint64_t one = 1;
        if (write(c->stop_fd, &one, sizeof(one)) == sizeof(one))
            pthread_join(c->thread, NULL);
    }
    if (c->fd >= 0)
        close(c->fd);
    if (c->stop_fd >= 0)
        close(c->stop_fd);
    free(c->pages);
    pthread_mutex_destroy(&c->serving);
    free(c);
}
