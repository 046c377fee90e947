/*
 * Copy-on-write: pages that are write-protected in the pause and copied after it. The real userfaultfd on the memory of a guest
 * that really writes (tests/bench/source.h); where the host has none, skipped with its reason. Seeds are printed.
 */
#include "core/clock.h"
#include "core/fault.h"
#include "core/uffd.h"
#include "replicator/cow.h"
#include "replicator/engine.h"
#include "tests/unit/crawl_sink.h"

#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

TestSuite(cow, .timeout = 240);

#if defined(__SANITIZE_THREAD__)
#define GUEST_BYTES (4ull << 20)    /* all of it is hashed at each cut, which ThreadSanitizer makes slow */
#else
#define GUEST_BYTES (32ull << 20)
#endif
#define SMALL 256u      /* pages of the tests without an engine */

/* --- the mechanism alone --- */

struct bench {
    struct rp_ram_view ram;
    struct rp_arena *arena;
    struct rp_cow *cow;
    struct rp_captured list[SMALL];
    struct rp_cow_run run;
    _Atomic unsigned wrote;
};

static void need_uffd(void)
{
    struct rp_error err = {0};
    int fd = rp_uffd_open(UFFD_FEATURE_WP_HUGETLBFS_SHMEM, NULL, &err);
    if (fd < 0)
        cr_skip_test("%s", err.text);
    close(fd);
}

static uint8_t was(uint64_t gfn)
{
    return (uint8_t)(gfn * 7 + 1);
}

/* RAM that holds was(gfn), all of it protected. */
static void bench_begin(struct bench *b)
{
    struct rp_error err = {0};
    int fd = memfd_create("small", MFD_CLOEXEC);
    need_uffd();
    *b = (struct bench){.ram = {.gfn_end = SMALL, .pages = SMALL, .nregions = 1, .regions = {{0, SMALL}}}};
    cr_assert_eq(ftruncate(fd, SMALL * RP_PAGE_SIZE), 0);
    b->ram.base = mmap(NULL, SMALL * RP_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    for (uint64_t g = 0; g < SMALL; g++)
        memset(rp_ram_page(&b->ram, g), was(g), RP_PAGE_SIZE);
    cr_assert_eq(rp_arena_create(SMALL * RP_PAGE_SIZE, SMALL, &b->arena, NULL), 0);
    cr_assert_eq(rp_cow_create(&b->ram, b->arena, &b->cow, &err), 0, "%s", err.text);
    uint32_t slots[SMALL];
    cr_assert_eq(rp_arena_alloc(b->arena, slots, SMALL), SMALL);
    for (uint32_t i = 0; i < SMALL; i++)
        b->list[i] = (struct rp_captured){.gfn = i, .slot = slots[i]};
    b->run = (struct rp_cow_run){.gfn = 0, .span = SMALL, .first = 0, .pages = SMALL};
    rp_cow_begin(b->cow);
    cr_assert_eq(rp_cow_protect(b->cow, b->list, &b->run), 0);
    rp_cow_begun(b->cow);
}

/* C1: whatever was written since, the copies are of what the pages held when they were protected. */
static void bench_end(struct bench *b)
{
    rp_cow_finish(b->cow, b->list, &b->run);
    uint64_t faults = rp_cow_end(b->cow);
    struct rp_cow_costs costs;
    rp_cow_costs(b->cow, &costs);
    printf("%lu faults; %.0f ns a run, %.0f ns a page, %.0f ns a fault\n", faults, costs.run_ns, costs.page_ns, costs.fault_ns);
    cr_assert(costs.run_ns + costs.page_ns > 0 && costs.fault_ns > 0, "costs are measured");
    for (uint64_t g = 0; g < SMALL; g++) {
        const uint8_t *copy = rp_arena_page(b->arena, b->list[g].slot);
        for (unsigned i = 0; i < RP_PAGE_SIZE; i += 64)
            cr_assert_eq(copy[i], was(g), "page %lu at %u", g, i);
    }
    rp_cow_destroy(b->cow);
    rp_arena_destroy(b->arena);
    munmap(b->ram.base, SMALL * RP_PAGE_SIZE);
}

static void *write_all(void *arg)
{
    struct bench *b = arg;
    for (uint64_t g = 0; g < SMALL; g++) {
        memset(rp_ram_page(&b->ram, g), 0xEE, RP_PAGE_SIZE);
        atomic_fetch_add(&b->wrote, 1);
    }
    return NULL;
}

Test(cow, C1_a_page_is_copied_before_it_is_written)
{
    static struct bench b;
    pthread_t writers[2];
    bench_begin(&b);
    for (unsigned i = 0; i < 2; i++)
        pthread_create(&writers[i], NULL, write_all, &b);
    for (uint64_t i = SMALL; i > 0; i -= 16)        /* from the other end: faults and copies meet */
        rp_cow_copy(b.cow, b.list + i - 16, 16);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(writers[i], NULL);
    cr_assert_eq(atomic_load(&b.wrote), 2 * SMALL);
    bench_end(&b);
}

/* The kernel writes for a device: read(2) into guest memory waits for its page as a vCPU does. */
Test(cow, read_into_protected_memory_is_served)
{
    static struct bench b;
    static uint8_t data[8 * RP_PAGE_SIZE];
    int fd = memfd_create("disk", MFD_CLOEXEC);
    memset(data, 0x5A, sizeof(data));
    cr_assert_eq(write(fd, data, sizeof(data)), (ssize_t)sizeof(data));
    bench_begin(&b);
    cr_assert_eq(pread(fd, rp_ram_page(&b.ram, 9), sizeof(data), 0), (ssize_t)sizeof(data));
    cr_assert_eq(memcmp(rp_ram_page(&b.ram, 9), data, sizeof(data)), 0);
    close(fd);
    bench_end(&b);
}

/* … and so does a ring, whether the request is carried out by its caller or by one of the kernel's workers. */
static void ring_reads(unsigned flags)
{
    static struct bench b;
    static uint8_t data[8 * RP_PAGE_SIZE];
    struct io_uring ring;
    struct io_uring_cqe *cqe;
    int fd = memfd_create("disk", MFD_CLOEXEC);
    memset(data, 0xA5, sizeof(data));
    cr_assert_eq(write(fd, data, sizeof(data)), (ssize_t)sizeof(data));
    int rc = io_uring_queue_init(8, &ring, 0);
    if (rc < 0)
        cr_skip_test("no io_uring: %s", strerror(-rc));
    bench_begin(&b);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    io_uring_prep_read(sqe, fd, rp_ram_page(&b.ram, 64), sizeof(data), 0);
    sqe->flags |= (uint8_t)flags;
    cr_assert_eq(io_uring_submit(&ring), 1);
    cr_assert_eq(io_uring_wait_cqe(&ring, &cqe), 0);
    cr_assert_eq(cqe->res, (int)sizeof(data), "%s", strerror(-cqe->res));
    io_uring_queue_exit(&ring);
    cr_assert_eq(memcmp(rp_ram_page(&b.ram, 64), data, sizeof(data)), 0);
    close(fd);
    bench_end(&b);
}

Test(cow, io_uring_into_protected_memory_is_served)
{
    ring_reads(0);
}

Test(cow, io_uring_worker_into_protected_memory_is_served)
{
    ring_reads(IOSQE_ASYNC);
}

/* C2: with pages still protected, destroying lets everybody go on. */
Test(cow, C2_destroy_lets_everybody_go)
{
    static struct bench b;
    pthread_t writer;
    bench_begin(&b);
    rp_cow_destroy(b.cow);
    pthread_create(&writer, NULL, write_all, &b);
    pthread_join(writer, NULL);
    cr_assert_eq(atomic_load(&b.wrote), SMALL);
    rp_arena_destroy(b.arena);
}

Test(cow, one_userfaultfd_at_a_time)
{
    static struct bench b;
    struct rp_error err = {0};
    struct rp_cow *second;
    bench_begin(&b);
    cr_assert_eq(rp_cow_create(&b.ram, b.arena, &second, &err), -EBUSY);
    cr_assert(strstr(err.text, "another userfaultfd"), "%s", err.text);
    bench_end(&b);
}

/* --- the engine with it: every epoch is what the guest was at its cut --- */

struct bed {
    struct synth *guest;
    struct crawler sink;
    struct rp_events *events;
    struct rp_engine *engine;
    struct rp_engine_stats st;
};

static void bed_begin(struct bed *b, const struct synth_config *guest, enum rp_capture_choice choice, uint64_t memory_bytes)
{
    struct rp_error err = {0};
    struct rp_engine_config cfg = {.goal = {.epoch_ns = 5000000, .pause_ns = 1}, .capture = choice, .memory_bytes = memory_bytes};
    need_uffd();
    printf("seed %u\n", guest->seed);
    b->guest = synth_make(guest);
    crawl_make(&b->sink, b->guest, true);
    cr_assert_eq(rp_events_create(512, &b->events), 0);
    cr_assert_eq(rp_engine_create(synth_source(b->guest), &b->sink.base, RP_RUN_CONTINUOUS, &cfg, b->events, &b->engine, &err), 0, "%s", err.text);
    cr_assert_eq(rp_engine_start(b->engine, NULL, NULL, &err), 0, "%s", err.text);
    synth_start(b->guest);
}

/* Until so many epochs were compared, or the run is over. */
static void compare(struct bed *b, uint64_t epochs)
{
    uint64_t until = atomic_load(&b->sink.compared) + epochs;
    do {
        usleep(5000);
        rp_engine_stats(b->engine, &b->st);
    } while (atomic_load(&b->sink.compared) < until && b->st.state != RP_ENGINE_FAILED && b->st.state != RP_ENGINE_DONE);
}

/* The guest goes on: nobody hangs in a fault. */
static void guest_writes(struct bed *b)
{
    uint64_t had = synth_written(b->guest);
    while (synth_written(b->guest) < had + 100)
        usleep(1000);
}

static void bed_end(struct bed *b, int expect)
{
    struct rp_error err = {0};
    rp_engine_stop(b->engine);
    cr_assert_eq(rp_engine_wait(b->engine, &err), expect, "%s", err.text);
    rp_engine_stats(b->engine, &b->st);
    guest_writes(b);
    printf("%lu epochs compared; copy-on-write at %lu cuts: %lu pages, %lu faults; pause p50 %.3f ms; %lu put off\n",
           (uint64_t)atomic_load(&b->sink.compared), b->st.cow.cuts, b->st.cow.pages, b->st.cow.faults,
           (double)rp_hist_quantile(&b->st.pause, 0.5) / 1e6, b->st.cuts_put_off);
    rp_engine_destroy(b->engine);
    synth_stop(b->guest);
    synth_free(b->guest);
    rp_image_destroy(b->sink.image);
    rp_events_destroy(b->events);
}

static bool told(struct rp_events *ev, const char *name, const char *part)
{
    static struct rp_event all[512];
    unsigned n = rp_events_copy(ev, all, 512);
    bool found = false;
    for (unsigned i = 0; i < n; i++)
        if (strcmp(all[i].name, name) == 0) {
            printf("  %s %s\n", name, all[i].data);
            cr_assert(strstr(all[i].data, "\"reason\": \""), "INV-7");
            found |= strstr(all[i].data, part) != NULL;
        }
    return found;
}

static struct synth_config random_writers(void)
{
    return (struct synth_config){.ram_bytes = GUEST_BYTES, .writers = 2, .pages_s = 20000, .bytes = 512, .content = SYNTH_NOISE,
                                 .fill = SYNTH_TEXT, .digest = true, .seed = (uint32_t)getpid()};
}

Test(cow, every_epoch_is_what_the_guest_was)
{
    static struct bed b;
    struct synth_config guest = random_writers();
    bed_begin(&b, &guest, RP_CHOOSE_COW, 0);
    compare(&b, 60);
    bed_end(&b, 0);
    cr_assert_geq(atomic_load(&b.sink.compared), 60);
    cr_assert_gt(b.st.cow.pages, 0);
    cr_assert_gt(b.st.cow.faults, 0, "pages are written while they are protected");
    cr_assert_geq(b.st.cow.cuts, 50);
}

Test(cow, every_epoch_is_what_the_guest_was_in_sequence)
{
    static struct bed b;
    struct synth_config guest = random_writers();
    guest.pattern = SYNTH_SEQ;
    bed_begin(&b, &guest, RP_CHOOSE_COW, 0);
    compare(&b, 40);
    bed_end(&b, 0);
    cr_assert_geq(atomic_load(&b.sink.compared), 40);
    cr_assert_gt(b.st.cow.pages, 0);
}

static _Atomic bool kept;
static _Atomic unsigned keeps;
static struct rp_source_ops keeping;            /* synthetic, with keep */
static int (*synth_cut)(struct rp_source *s, struct rp_cut *c, struct rp_error *err);

static void note_keep(struct rp_source *s, bool keep)
{
    (void)s;
    atomic_store(&kept, keep);
    atomic_fetch_add(&keeps, keep);
}

static int cut_kept(struct rp_source *s, struct rp_cut *c, struct rp_error *err)
{
    cr_assert(atomic_load(&kept), "a page that is given back after the cut would be copied as zeroes");
    return synth_cut(s, c, err);
}

/* The source gives nothing back from before a cut until its pages are copied, and may again after. */
Test(cow, the_source_keeps_its_pages_meanwhile)
{
    static struct bed b;
    struct synth_config guest = random_writers();
    struct rp_error err = {0};
    struct rp_engine_config cfg = {.goal = {.epoch_ns = 5000000}, .capture = RP_CHOOSE_COW};
    need_uffd();
    b.guest = synth_make(&guest);
    struct rp_source *src = synth_source(b.guest);
    keeping = *src->ops;
    synth_cut = keeping.cut;
    keeping.keep = note_keep;
    keeping.cut = cut_kept;
    src->ops = &keeping;
    crawl_make(&b.sink, b.guest, true);
    cr_assert_eq(rp_events_create(64, &b.events), 0);
    cr_assert_eq(rp_engine_create(src, &b.sink.base, RP_RUN_CONTINUOUS, &cfg, b.events, &b.engine, &err), 0, "%s", err.text);
    cr_assert_eq(rp_engine_start(b.engine, NULL, NULL, &err), 0, "%s", err.text);
    synth_start(b.guest);
    compare(&b, 10);
    bed_end(&b, 0);
    cr_assert_geq(atomic_load(&keeps), 10);
    cr_assert(!atomic_load(&kept));
}

/* INV-5: a page that is protected has its slot; with few of them cuts are put off, and nothing is lost. */
Test(cow, INV5_with_a_tiny_arena)
{
    static struct bed b;
    struct synth_config guest = random_writers();
    bed_begin(&b, &guest, RP_CHOOSE_COW, 300 * RP_PAGE_SIZE);
    compare(&b, 20);
    bed_end(&b, 0);
    cr_assert_geq(atomic_load(&b.sink.compared), 20);
    cr_assert_gt(b.st.cow.pages, 0);
}

/* C2: the sink is lost, or the run is stopped, in the middle of everything; the guest never notices. */
Test(cow, C2_the_sink_is_lost)
{
    static struct bed b;
    struct synth_config guest = random_writers();
    struct rp_error why = {0};
    bed_begin(&b, &guest, RP_CHOOSE_COW, 0);
    compare(&b, 10);
    crawl_cancel(&b.sink.base);     /* every emit fails from here on */
    rp_error_set(&why, EPIPE, "lost by the test");
    cr_assert(rp_engine_wait(b.engine, &why) < 0);
    bed_end(&b, -EPIPE);
}

Test(cow, C2_stopped_while_a_fault_is_served)
{
    static struct bed b;
    struct synth_config guest = random_writers();
    bed_begin(&b, &guest, RP_CHOOSE_COW, 0);
    compare(&b, 10);
    setenv("RP_FAULT", "cow-fault:1:stall", 1);     /* for a second, with its writer waiting */
    rp_fault_reload();
    while (!rp_fault_fired())
        usleep(1000);
    bed_end(&b, 0);
    unsetenv("RP_FAULT");
}

/* A fault point fires: the epochs go on and are whole, copy-on-write is off, and that is told with its reason (INV-7). */
static void off_by(const char *point)
{
    static struct bed b;
    struct synth_config guest = random_writers();
    bed_begin(&b, &guest, RP_CHOOSE_COW, 0);
    compare(&b, 10);
    setenv("RP_FAULT", point, 1);
    rp_fault_reload();
    while (!rp_fault_fired())
        usleep(1000);
    compare(&b, 20);
    unsetenv("RP_FAULT");
    rp_fault_reload();
    cr_assert_eq(b.st.cow.able, false);
    cr_assert(*b.st.cow.why);
    cr_assert(told(b.events, "CAPTURE", "the kernel refused"), "INV-7");
    bed_end(&b, 0);
    cr_assert_geq(atomic_load(&b.sink.compared), 30);
}

Test(cow, off_when_a_run_cannot_be_protected)
{
    off_by("cow-protect:7");
}

Test(cow, off_when_a_page_cannot_be_let_go)
{
    off_by("cow-fault:3");
}

Test(cow, off_when_a_run_cannot_be_let_go)
{
    off_by("cow-finish:5");
}

/* Chosen by measuring: whatever it is here, there are figures for it, and a host where it does not pay is left in peace. */
Test(cow, is_chosen_by_what_was_measured)
{
    static struct bed b;
    struct synth_config guest = random_writers();
    guest.ram_bytes = 32u << 20;
    guest.pattern = SYNTH_SEQ;
    guest.pages_s = 0;
    bed_begin(&b, &guest, RP_CHOOSE_BY_MEASURE, 0);
    compare(&b, 30);
    (void)told(b.events, "CAPTURE", "");
    bed_end(&b, 0);
    cr_assert(b.st.cow.able, "%s", b.st.cow.why);
    cr_assert(b.st.cow.page_ns > 0 && b.st.cow.fault_ns > 0 && b.st.copy_ns > 0);
    printf("a page: protect %.0f ns, copy %.0f ns; a fault: %.0f ns; copy-on-write %s, strategy %s\n", b.st.cow.page_ns, b.st.copy_ns,
           b.st.cow.fault_ns, b.st.cow.pays ? "pays" : "does not pay", b.st.capture);
}
