/*
 * Copy-on-write capture of a real machine: vCPUs in KVM_RUN, the disk's ring and the network write pages that are protected. The real
 * engine with everything write-protected at every cut; each epoch must be what RAM was at its cut. Needs /dev/kvm (native.h):
 * tests/lab/run unit tests=test_cow_guest.
 */
#include "core/uffd.h"
#include "replicator/engine.h"
#include "tests/unit/crawl_sink.h"
#include "tests/unit/native.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

#define DISK_BYTES (16u << 20)
#define EPOCHS 25u
#define DIGESTS 256u

/* A source that notes the digest of all RAM at each cut, and is the machine otherwise. */
struct watched {
    struct rp_source base;
    struct rp_source *of;
    const struct rp_ram_view *ram;
    pthread_mutex_t lock;
    struct { uint64_t epoch; struct rp_hash128 d; } digests[DIGESTS];   /* lock */
};

static struct rp_source *of(struct rp_source *s) { return ((struct watched *)s)->of; }
static int describe(struct rp_source *s, struct rp_source_info *out, struct rp_error *err) { return of(s)->ops->describe(of(s), out, err); }
static int track_start(struct rp_source *s, bool all, struct rp_error *err) { return of(s)->ops->track_start(of(s), all, err); }
static void track_stop(struct rp_source *s) { of(s)->ops->track_stop(of(s)); }
static int harvest(struct rp_source *s, struct rp_pageset *dirty, struct rp_error *err) { return of(s)->ops->harvest(of(s), dirty, err); }
static void keep(struct rp_source *s, bool on) { of(s)->ops->keep(of(s), on); }
static int resume(struct rp_source *s, struct rp_error *err) { return of(s)->ops->resume(of(s), err); }
static void release(struct rp_source *s, uint64_t epoch) { of(s)->ops->release(of(s), epoch); }
static void gate(struct rp_source *s, bool hold) { of(s)->ops->gate(of(s), hold); }
static int output_fd(struct rp_source *s) { return of(s)->ops->output_fd(of(s)); }
static void throttle(struct rp_source *s, unsigned percent) { of(s)->ops->throttle(of(s), percent); }

static int cut(struct rp_source *s, struct rp_cut *c, struct rp_error *err)
{
    struct watched *w = (struct watched *)s;
    int rc = of(s)->ops->cut(of(s), c, err);
    if (rc == 0) {
        pthread_mutex_lock(&w->lock);
        w->digests[c->epoch % DIGESTS].epoch = c->epoch;
        w->digests[c->epoch % DIGESTS].d = rp_digest_of(w->ram);
        pthread_mutex_unlock(&w->lock);
    }
    return rc;
}

static const struct rp_source_ops watched_ops = {
    .name = "watched", .describe = describe, .track_start = track_start, .track_stop = track_stop, .harvest = harvest, .keep = keep,
    .cut = cut, .resume = resume, .release = release, .gate = gate, .output_fd = output_fd, .throttle = throttle,
};

static bool digest_at(void *guest, uint64_t epoch, uint64_t *lo, uint64_t *hi)
{
    struct watched *w = guest;
    pthread_mutex_lock(&w->lock);
    bool there = w->digests[epoch % DIGESTS].epoch == epoch;
    *lo = w->digests[epoch % DIGESTS].d.lo;
    *hi = w->digests[epoch % DIGESTS].d.hi;
    pthread_mutex_unlock(&w->lock);
    return there;
}

static struct watched source;
static struct crawler sink;
static struct rp_engine_stats st;

#define FAULTLESS_EPOCHS (100 * EPOCHS)

/* The guest goes on after EPOCHS epochs that were compared, and ends without a complaint. */
static void protect(struct rp_machine_config *cfg, int peer)
{
    struct rp_engine_config engine = {.goal = {.epoch_ns = 20000000}, .capture = RP_CHOOSE_COW};
    struct rp_error err = {0};
    struct rp_machine *m;
    struct rp_engine *e;
    cr_assert_eq(rp_machine_create(cfg, NULL, &m, &err), 0, "%s", err.text);
    source = (struct watched){.base.ops = &watched_ops, .of = rp_machine_source(m), .ram = &rp_machine_ram(m)->view};
    pthread_mutex_init(&source.lock, NULL);
    crawl_make(&sink, &source, true);
    sink.digest_at = digest_at;
    cr_assert_eq(rp_machine_start(m, &err), 0, "%s", err.text);
    wait_running(m);
    cr_assert_eq(rp_engine_create(&source.base, &sink.base, RP_RUN_CONTINUOUS, &engine, NULL, &e, &err), 0, "%s", err.text);
    cr_assert_eq(rp_engine_start(e, NULL, NULL, &err), 0, "%s", err.text);
    uint8_t frame[1000] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 0};
    st = (struct rp_engine_stats){0};
    /* Whether a page is written just while it is protected is chance: in some epoch it is. */
    while (atomic_load(&sink.compared) < EPOCHS || (!st.cow.faults && atomic_load(&sink.compared) < FAULTLESS_EPOCHS)) {
        usleep(5000);
        rp_engine_stats(e, &st);
        cr_assert_neq(st.state, RP_ENGINE_FAILED);
        if (peer >= 0)
            (void)!send(peer, frame, sizeof(frame), MSG_DONTWAIT);
    }
    rp_engine_stop(e);
    cr_assert_eq(rp_engine_wait(e, &err), 0, "%s", err.text);
    rp_engine_stats(e, &st);
    printf("figures: %lu epochs compared; %lu pages protected, %lu faults of %.0f us; a page: protect %.0f ns, copy %.0f ns; pause p50 %.3f ms\n",
           (uint64_t)atomic_load(&sink.compared), st.cow.pages, st.cow.faults, st.cow.fault_ns / 1e3, st.cow.page_ns, st.copy_ns,
           (double)rp_hist_quantile(&st.pause, 0.5) / 1e6);
    cr_assert(st.cow.able, "%s", st.cow.why);
    cr_assert_gt(st.cow.pages, 0);
    cr_assert_gt(st.cow.faults, 0, "the guest writes what is protected");
    rp_engine_destroy(e);
    cr_assert_eq(rp_machine_state(m), RP_VM_RUNNING, "%s", rp_machine_failure(m));
    cr_assert_eq(guest_status(m)->state, RG_STATE_RUNNING, "guest: %s", (const char *)guest_status(m)->error_text);
    rp_machine_destroy(m);
    rp_image_destroy(sink.image);
}

static struct rp_machine_config guest(const char *name, const char *cmdline, unsigned vcpus, int tracker)
{
    struct rp_error err = {0};
    struct rp_machine_config cfg = native_config(name, cmdline, vcpus, 24);
    need_kvm(name);
    int fd = rp_uffd_open(UFFD_FEATURE_WP_HUGETLBFS_SHMEM, NULL, &err);
    if (fd < 0)
        cr_skip_test("%s", err.text);
    close(fd);
    cfg.dirty = tracker;
    return cfg;
}

TestSuite(cow_guest, .timeout = 600);

Test(cow_guest, vcpus_write_protected_pages_log)
{
    struct rp_machine_config cfg = guest("dirtier", "ws=8M rate=20000 bytes=128 verify=1 smp=2", 2, RP_DIRTY_LOG);
    protect(&cfg, -1);
}

Test(cow_guest, vcpus_write_protected_pages_ring)
{
    struct rp_machine_config cfg = guest("dirtier", "ws=8M rate=20000 bytes=128 verify=1 smp=2", 2, RP_DIRTY_RING);
    protect(&cfg, -1);
}

Test(cow_guest, the_disk_writes_protected_pages)
{
    char path[] = "/tmp/reprise-cow-guest-XXXXXX";
    struct rp_machine_config cfg = guest("blkwriter", "size=8M depth=8 zeroes=5 rate=2000", 1, RP_DIRTY_LOG);
    int fd = mkstemp(path);
    cr_assert(fd >= 0 && ftruncate(fd, DISK_BYTES) == 0);
    unlink(path);
    cfg.ndisks = 1;
    cfg.disks[0] = (struct rp_disk_config){.fd = fd};
    protect(&cfg, -1);
}

Test(cow_guest, the_network_writes_protected_pages)
{
    int sv[2];
    struct rp_machine_config cfg = guest("ledger", "entries=1000", 1, RP_DIRTY_LOG);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, sv), 0);
    cfg.nnics = 1;
    cfg.nics[0] = (struct rp_nic_config){.kind = RP_NIC_FD, .fd = sv[0]};
    protect(&cfg, sv[1]);
    close(sv[1]);
}

/* The three choices under a guest that writes through its RAM. What is chosen is the host's business; that it is told, with figures, is ours. */
static void run_with(enum rp_capture_choice choice, const char *name)
{
    struct rp_machine_config cfg = guest("dirtier", "ws=96M rate=60000 bytes=64 pattern=seq", 1, RP_DIRTY_LOG);
    struct rp_engine_config engine = {.goal = {.epoch_ns = 40000000}, .capture = choice, .memory_bytes = 64u << 20};
    static struct rp_event all[64];
    struct rp_error err = {0};
    struct rp_events *events;
    struct rp_machine *m;
    struct rp_engine *e;
    cfg.ram.size_bytes = 128u << 20;
    cfg.ram.populate = true;
    cr_assert_eq(rp_machine_create(&cfg, NULL, &m, &err), 0, "%s", err.text);
    crawl_make(&sink, NULL, false);
    cr_assert_eq(rp_events_create(64, &events), 0);
    cr_assert_eq(rp_machine_start(m, &err), 0, "%s", err.text);
    wait_running(m);
    cr_assert_eq(rp_engine_create(rp_machine_source(m), &sink.base, RP_RUN_CONTINUOUS, &engine, events, &e, &err), 0, "%s", err.text);
    cr_assert_eq(rp_engine_start(e, NULL, NULL, &err), 0, "%s", err.text);
    do {
        usleep(20000);
        rp_engine_stats(e, &st);
        cr_assert_neq(st.state, RP_ENGINE_FAILED);
    } while (atomic_load(&st.pause.count) < 100);
    rp_engine_stop(e);
    cr_assert_eq(rp_engine_wait(e, &err), 0, "%s", err.text);
    rp_engine_stats(e, &st);
    printf("figures: %s: pause p50 %.3f p99 %.3f ms, %lu pages an epoch, %.0f pages/s; copy %.0f ns, protect %.0f (run %.0f), fault %.0f us, next write "
           "%.1f us; %lu protected, %lu faults; chose %s\n", name, (double)rp_hist_quantile(&st.pause, 0.5) / 1e6,
           (double)rp_hist_quantile(&st.pause, 0.99) / 1e6, rp_hist_quantile(&st.dirty, 0.5), st.dirty_pages_s, st.copy_ns, st.cow.page_ns,
           st.cow.run_ns, st.cow.fault_ns / 1e3, st.cow.after_ns / 1e3, st.cow.pages, st.cow.faults, st.capture);
    for (unsigned i = 0, n = rp_events_copy(events, all, 64); i < n; i++)
        if (strcmp(all[i].name, "CAPTURE") == 0)
            printf("figures: epoch %lu: %s\n", (uint64_t)all[i].epoch, all[i].data);
    cr_assert_eq(rp_machine_state(m), RP_VM_RUNNING, "%s", rp_machine_failure(m));
    rp_engine_destroy(e);
    rp_machine_destroy(m);
    rp_events_destroy(events);
}

Test(cow_guest, choices_side_by_side)
{
    run_with(RP_CHOOSE_STOP, "stop-and-copy");
    cr_assert_eq(st.cow.pages, 0);
    run_with(RP_CHOOSE_COW, "copy-on-write");
    cr_assert_gt(st.cow.pages, 0);
    run_with(RP_CHOOSE_BY_MEASURE, "auto");
}
