/*
 * A standby that comes back is sent what differs (docs/link.md): whatever breaks on the way and whatever it says that it holds, its
 * image is a whole verified epoch or none (INV-2), and protection comes back (INV-7). Engine, protection, link and image over real
 * sockets; source and standby without KVM.
 */
#include "core/bytes.h"
#include "core/fault.h"
#include "replicator/handshake.h"
#include "replicator/held.h"
#include "replicator/protect.h"
#include "tests/unit/fake_standby.h"
#include "tests/unit/shake_hands.h"

#include <errno.h>

#define LONG_MS 60000
#define RAM_BYTES ((uint64_t)PAGES * RP_PAGE_SIZE)

TestSuite(resync, .timeout = 300);

static struct fake fake;
static struct rp_source_ops ops;
static struct rp_events *events;
static struct rp_protect_status status;
static struct standby standby;
static _Atomic unsigned stale;          /* how often a primary has said that what is held is so */
static _Atomic bool closing;
static _Atomic bool disown_fails, disown_waits;
static bool with_disks;                 /* the source has private disks, which lack all, and the standby knows what it holds of them */
static struct rp_disk_sums known;       /* what it knows */
static _Atomic unsigned lent;           /* how often it was asked */
static struct { _Atomic unsigned runs; struct rp_disk_sums sums; } disk_run;    /* of the source's disks: how many, and what the newest one was given */
#define RETRY_MS 20         /* between a loss and the next attempt */

static void on_stale(void *ctx)
{
    (void)ctx;
    atomic_fetch_add(&stale, 1);
}

static void on_sums(void *ctx, struct rp_disk_sums *out)
{
    (void)ctx;
    *out = known;
    atomic_fetch_add(&lent, 1);
}

/* Serves one session after the other; the image stays. */
static void *serve_main(void *arg)
{
    struct standby *s = arg;
    struct rp_error err = {0};
    while (!atomic_load(&closing))
        cr_assert_eq(rp_link_serve(s->recv, &s->outcome, &err), 0, "%s", err.text);
    return NULL;
}

static void serve(const char *scheme, uint64_t staging_bytes)
{
    struct rp_error err = {0};
    struct rp_image_ops image = {.ctx = &standby, .ram = standby_ram};
    struct rp_link_recv_config cfg = {.vm_name = "fake", .timeout_ms = 20000, .stale = on_stale, .sums = on_sums};
    struct rp_listener *l;
    if (strcmp(scheme, "rdma") == 0 && !getenv("RP_RDMA_ADDRESS"))
        cr_skip_test("RP_RDMA_ADDRESS names no address of a verbs device (tests/lab/run unit tests=test_resync has one)");
    standby = (struct standby){0};
    standby.uri = own_address(scheme);
    cr_assert_eq(rp_image_create(RP_IMAGE_STAGED, &image, staging_bytes, &standby.image, &err), 0);
    cr_assert_eq(rp_listen(&standby.uri, &l, &err), 0, "%s", err.text);
    cfg.image = standby.image;
    cr_assert_eq(rp_link_recv_create(l, &cfg, &standby.recv, &err), 0, "%s", err.text);
    pthread_create(&standby.thread, NULL, serve_main, &standby);
}

static void arm(const char *fault)
{
    setenv("RP_FAULT", fault, 1);
    rp_fault_reload();
}

static int on_disown(void *ctx, struct rp_error *err)
{
    (void)ctx;
    while (atomic_load(&disown_waits))
        usleep(1000);
    return atomic_load(&disown_fails) ? rp_error_set(err, EIO, "the storage is gone") : 0;
}

/* --- the source's disks --- */

#define BLOCK RP_DISK_SUMS_BLOCK_MIN
static const uint64_t disk_sizes[RP_DISK_SUMS_DISKS] = {3000ull * BLOCK + 512, 0, 5 * BLOCK, 0, 100ull * BLOCK};

static bool disk_whole(struct rp_source *s, const struct rp_disk_base *have, uint64_t size_bytes[RP_DISK_SUMS_DISKS])
{
    (void)s, (void)have;
    memcpy(size_bytes, disk_sizes, sizeof(disk_sizes));
    return true;
}

static int disk_start(struct rp_source *s, const struct rp_disk_run *run, struct rp_error *err)
{
    (void)s, (void)err;
    rp_disk_sums_fini(&disk_run.sums);
    disk_run.sums = *run->sums;
    memset(run->sums, 0, sizeof(*run->sums));
    atomic_fetch_add(&disk_run.runs, 1);
    return 0;
}

static void disk_stop(struct rp_source *s) { (void)s; }

static int disk_pull(struct rp_source *s, struct rp_buf *out, size_t max_bytes, struct rp_error *err)
{
    (void)s, (void)out, (void)max_bytes, (void)err;
    return 0;
}

static void disk_progress(struct rp_source *s, struct rp_disk_progress *out)
{
    (void)s;
    *out = (struct rp_disk_progress){.sync_bytes = 40, .done_bytes = 40, .equal_bytes = 30};
}

static void make_disks(void)
{
    static const uint32_t blocks[RP_DISK_SUMS_DISKS] = {2500, 0, 700, 9};   /* of disk 2 more than the source has; of 3, which is not private, some */
    for (unsigned d = 0; d < RP_DISK_SUMS_DISKS; d++) {
        known.disks[d] = (struct rp_disk_sum_list){.seed = d * 1000000007ull, .block_bytes = BLOCK, .blocks = blocks[d]};
        known.disks[d].sums = blocks[d] ? malloc(blocks[d] * sizeof(struct rp_hash128)) : NULL;
        for (uint32_t i = 0; i < blocks[d]; i++)
            known.disks[d].sums[i] = (struct rp_hash128){d * 10000 + i, ~(uint64_t)i};
    }
    with_disks = true;
}

static bool same_lists(const struct rp_disk_sums *got)
{
    static const uint32_t blocks[RP_DISK_SUMS_DISKS] = {2500, 0, 5};        /* within both */
    for (unsigned d = 0; d < RP_DISK_SUMS_DISKS; d++) {
        const struct rp_disk_sum_list *l = &got->disks[d];
        if (l->blocks != blocks[d] || (blocks[d] && (l->seed != known.disks[d].seed || l->block_bytes != BLOCK)))
            return false;
        for (uint32_t i = 0; i < blocks[d]; i++)
            if (memcmp(&l->sums[i], &known.disks[d].sums[i], sizeof(l->sums[i])) != 0)
                return false;
    }
    return true;
}

static void free_disks(void)
{
    rp_disk_sums_fini(&known);
    rp_disk_sums_fini(&disk_run.sums);
}

/* Random contents of a fixed part of the frames; the others are zeroes. Their writer is left out when `quiet`. */
static struct rp_protect *protect(bool quiet)
{
    struct rp_protect *p;
    struct rp_error err = {0};
    struct rp_protect_config cfg = {.link = {.uri = standby.uri, .timeout_ms = 20000}, .engine.goal.epoch_ns = 2000000, .retry_ms = RETRY_MS};
    cfg.owner.disown = on_disown;
    fake_start(&fake, 64, quiet ? 0 : 1, quiet ? 50000 : 1000);
    pthread_mutex_lock(&fake.run);
    for (uint64_t g = 0; g < PAGES; g++)
        for (unsigned i = 0; g % 4 && i < RP_PAGE_SIZE; i += 4) {
            uint32_t x = rnd(&fake.seed);
            memcpy(rp_ram_page(&fake.ram, g) + i, &x, 4);
        }
    pthread_mutex_unlock(&fake.run);
    ops = *fake.base.ops;
    if (with_disks) {
        ops.disk_start = disk_start;
        ops.disk_stop = disk_stop;
        ops.disk_whole = disk_whole;
        ops.disk_pull = disk_pull;
        ops.disk_progress = disk_progress;
    }
    fake.base.ops = &ops;
    cr_assert_eq(rp_events_create(256, &events), 0);
    cr_assert_eq(rp_protect_start(&fake.base, events, &cfg, true, &p, &err), 0, "%s", err.text);
    return p;
}

/* Protected, and since the last of at least so many losses? (The state lags behind the event of a loss.) */
static bool protected_since(uint64_t losses)
{
    static struct rp_event all[256];
    unsigned n = rp_events_copy(events, all, 256), lost = 0;
    bool is = false;
    for (unsigned i = 0; i < n; i++) {
        if (strcmp(all[i].name, "PROTECT_LOST") == 0) {
            lost++;
            is = false;
        }
        is |= strcmp(all[i].name, "PROTECTED") == 0;
    }
    return is && lost >= losses;
}

/* Until it is protected again after loss number `losses`; `status` is then of that run. */
static void wait_protected(struct rp_protect *p, uint64_t losses)
{
    for (unsigned ms = 0; ms < LONG_MS && !protected_since(losses); ms += 2)
        usleep(2000);
    rp_protect_status(p, &status);
    cr_assert(protected_since(losses), "not protected again: %s", status.why);
}

static void wait_lost(struct rp_protect *p, uint64_t losses)
{
    for (unsigned ms = 0; ms < LONG_MS; ms += 2) {
        rp_protect_status(p, &status);
        if (status.losses >= losses)
            return;
        usleep(2000);
    }
    cr_assert_fail("the loss was not noticed");
}

/* While no session goes on: the guest writes to `n` frames, to one of 8 zeroes. */
static void write_pages(uint64_t n)
{
    pthread_mutex_lock(&fake.run);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t gfn = rnd(&fake.seed) % PAGES;
        memset(rp_ram_page(&fake.ram, gfn), i % 8 ? (int)(i % 251) + 1 : 0, RP_PAGE_SIZE);
        rp_pageset_set_atomic(&fake.dirty, gfn, 1);
    }
    pthread_mutex_unlock(&fake.run);
}

/* The session ends; the standby keeps its image. */
static void cut_link(struct rp_protect *p, uint64_t losses)
{
    arm("link-heartbeat:1");
    wait_lost(p, losses);
}

static unsigned count_events(const char *name, const char *holding)
{
    struct rp_event all[256];
    unsigned n = rp_events_copy(events, all, 256), found = 0;
    for (unsigned i = 0; i < n; i++)
        found += strcmp(all[i].name, name) == 0 && strstr(all[i].data, holding) != NULL;
    return found;
}

static void print_events(const char *name)
{
    struct rp_event all[256];
    unsigned n = rp_events_copy(events, all, 256);
    for (unsigned i = 0; i < n; i++)
        if (strcmp(all[i].name, name) == 0)
            printf("%s %s\n", name, all[i].data);
}

/* Both ends hold the same; everything is put away. */
static void finish(struct rp_protect *p)
{
    struct rp_error err = {0};
    arm("");
    cr_assert_lt(rp_protect_switch(p, LONG_MS, &err), 0, "nobody has said that it runs there");
    /* The switchover's last epoch was whole, or the one before it is. */
    rp_protect_stop(p, RP_PROTECT_LEAVE);
    atomic_store(&closing, true);
    rp_link_cancel(standby.recv);
    pthread_join(standby.thread, NULL);
    standby_is_whole(&standby);
    fake_stop(&fake);
    rp_events_destroy(events);
    standby_free(&standby);
}

/* Stops protection with the guest standing and compares byte for byte. */
static void finish_quiet(struct rp_protect *p)
{
    arm("");
    uint64_t newest = rp_protect_stop(p, RP_PROTECT_LEAVE);
    atomic_store(&closing, true);
    rp_link_cancel(standby.recv);
    pthread_join(standby.thread, NULL);
    cr_assert_leq(rp_image_epoch(standby.image), newest);
    standby_is_whole(&standby);
    standby_is(&standby, &fake);
    fake_stop(&fake);
    rp_events_destroy(events);
    standby_free(&standby);
}

static void comes_back(const char *scheme)
{
    serve(scheme, 64u << 20);
    struct rp_protect *p = protect(true);
    wait_protected(p, 0);
    uint64_t full = status.engine.sync.wire_bytes;
    cr_assert(!status.engine.resync);
    cr_assert_gt(full, RAM_BYTES / 2);
    for (uint64_t i = 1; i <= 3; i++) {
        cut_link(p, i);
        write_pages(PAGES / 100);
        wait_protected(p, i);
        cr_assert(status.engine.resync);
        printf("%s: all %lu bytes, what differs %lu bytes, %lu pages sent, %lu equal\n", scheme, full, status.engine.sync.wire_bytes,
               status.engine.sync.sent_pages, status.engine.sync.equal_pages);
        cr_assert_lt(status.engine.sync.wire_bytes, full / 10);
    }
    cr_assert_eq(count_events("FULL_SYNC", "it holds nothing of this VM"), 1u);
    cr_assert_eq(count_events("RESYNC", "equal-pages"), 3u);
    cr_assert_geq(atomic_load(&stale), 3u, "it was told that the VM had run unprotected");
    finish_quiet(p);
}

Test(resync, unix_what_differs_is_sent) { comes_back("unix"); }
Test(resync, tcp_what_differs_is_sent) { comes_back("tcp"); }
Test(resync, rdma_what_differs_is_sent) { comes_back("rdma"); }

/* A guest that writes all the time, and links that break again and again. */
Test(resync, INV2_a_busy_guest_and_a_link_that_breaks)
{
    serve("unix", 64u << 20);
    struct rp_protect *p = protect(false);
    wait_protected(p, 0);
    for (uint64_t i = 1; i <= 6; i++) {
        cut_link(p, i);
        wait_protected(p, i);
    }
    cr_assert_eq(count_events("FULL_SYNC", ""), 1u);
    cr_assert_eq(count_events("RESYNC", ""), 6u);
    finish(p);
}

/* Every step of a resync fails once, on either side: it comes about in the end, and what is held meanwhile is whole. A standby that
 * refuses what it was sent is sent all of RAM next. */
static void fails_at(const char *fault, uint64_t staging_bytes, uint64_t change, unsigned resyncs)
{
    serve("unix", staging_bytes);
    struct rp_protect *p = protect(true);
    wait_protected(p, 0);
    atomic_store(&disown_waits, true);      /* the point is armed before the next attempt */
    cut_link(p, 1);
    write_pages(change);
    arm(fault);
    atomic_store(&disown_waits, false);
    for (unsigned ms = 0; ms < LONG_MS && !rp_fault_fired(); ms++)
        usleep(1000);
    cr_assert(rp_fault_fired(), "%s was not reached", fault);
    wait_protected(p, 1);
    for (unsigned ms = 0; ms < LONG_MS && count_events("RESYNC", "") + count_events("FULL_SYNC", "") < 2; ms++)
        usleep(1000);
    print_events("PROTECT_LOST");
    printf("%s: %lu losses, %u resyncs\n", fault, status.losses, count_events("RESYNC", ""));
    cr_assert_eq(count_events("RESYNC", ""), resyncs);
    finish_quiet(p);
}

Test(resync, fault_asking) { fails_at("link-ask:1", 64u << 20, 300, 1); }
Test(resync, fault_saying_what_is_held) { fails_at("link-held:2", 64u << 20, 300, 1); }
Test(resync, fault_a_frame_of_it) { fails_at("link-record:1", 64u << 20, 300, 1); }
Test(resync, fault_its_end) { fails_at("link-epoch-end:1", 64u << 20, 300, 1); }
Test(resync, fault_its_acknowledgement) { fails_at("link-ack-send:1", 64u << 20, 300, 0); }
Test(resync, fault_applying_it) { fails_at("image-apply:1", 64u << 20, 300, 0); }
Test(resync, fault_spilling) { fails_at("image-spill:1", 64 * RP_PAGE_SIZE, 300, 0); }
Test(resync, fault_after_the_spill) { fails_at("link-epoch-end:1", 64 * RP_PAGE_SIZE, 300, 1); }

/* More has changed than can be staged: it goes on in RAM. */
Test(resync, more_than_fits_the_staging_memory)
{
    serve("tcp", 64 * RP_PAGE_SIZE);
    struct rp_protect *p = protect(true);
    wait_protected(p, 0);
    cut_link(p, 1);
    write_pages(PAGES / 3);
    wait_protected(p, 1);
    cr_assert(status.engine.resync);
    finish_quiet(p);
}

/* Outputs that have to wait for the lease have not left: what the standby holds stays good, and it is not told otherwise. */
Test(resync, P1_while_outputs_wait_nothing_is_stale)
{
    serve("unix", 64u << 20);
    struct rp_protect *p = protect(true);
    wait_protected(p, 0);
    unsigned before = atomic_load(&stale);
    atomic_store(&disown_fails, true);
    cut_link(p, 1);
    write_pages(50);
    wait_protected(p, 1);
    cr_assert(status.engine.resync);
    cr_assert_eq(atomic_load(&stale), before);
    atomic_store(&disown_fails, false);
    cut_link(p, 2);
    wait_protected(p, 2);
    cr_assert_gt(atomic_load(&stale), before);
    finish_quiet(p);
}

/* The primary dies in the middle of a resync, without a word: what was held is held still, whole, and is known to be stale. */
Test(resync, INV2_the_primary_dies_in_the_middle)
{
    serve("tcp", 64u << 20);
    struct rp_protect *p = protect(true);
    struct rp_error err = {0};
    struct rp_sink *sink;
    struct rp_engine *e;
    const char *why;
    uint64_t held;
    wait_protected(p, 0);
    rp_protect_stop(p, RP_PROTECT_LEAVE);
    write_pages(2000);
    uint64_t epoch = rp_image_epoch(standby.image);
    unsigned before = atomic_load(&stale);
    struct rp_link_config link = {.uri = standby.uri, .vm_name = "fake", .gfn_end = PAGES, .stale = true, .timeout_ms = 20000};
    memset(link.vm_id, 7, sizeof(link.vm_id));
    cr_assert_eq(rp_link_sink_create(&link, &sink, &held, &err), 0, "%s", err.text);
    cr_assert_eq(held, epoch);
    struct rp_hash128 *pages = rp_link_sink_take_held(sink, &why);
    cr_assert_not_null(pages, "%s", why);
    struct rp_engine_config cfg = {.first_epoch = epoch + 10, .held = pages, .goal.bandwidth_bytes_s = 1 << 20, .codecs = 1u << RP_CODEC_RAW};
    cr_assert_eq(rp_engine_create(&fake.base, sink, RP_RUN_CONTINUOUS, &cfg, NULL, &e, &err), 0);
    free(pages);
    cr_assert_eq(rp_engine_start(e, NULL, NULL, &err), 0);
    struct rp_link_stats sent = {0};
    for (unsigned ms = 0; ms < LONG_MS && sent.bytes < (1 << 20); ms += 5) {
        usleep(5000);
        rp_link_sink_stats(sink, &sent);
    }
    sink->ops->cancel(sink);
    rp_engine_stop(e);
    cr_assert_neq(rp_engine_wait(e, &err), 1);
    sink->ops->destroy(sink);
    rp_engine_destroy(e);
    atomic_store(&closing, true);
    rp_link_cancel(standby.recv);
    pthread_join(standby.thread, NULL);
    cr_assert_geq(sent.bytes, 1u << 20);
    cr_assert_eq(rp_image_epoch(standby.image), epoch);
    cr_assert_eq(rp_image_staged_bytes(standby.image), 0u);
    cr_assert_gt(atomic_load(&stale), before);
    standby_is_whole(&standby);
    fake_stop(&fake);
    rp_events_destroy(events);
    standby_free(&standby);
}

/* --- what its disks hold --- */

static void sums_arrive(const char *scheme)
{
    make_disks();
    serve(scheme, 64u << 20);
    struct rp_protect *p = protect(true);
    wait_protected(p, 0);
    cr_assert_eq(atomic_load(&disk_run.runs), 1u);
    cr_assert(same_lists(&disk_run.sums));
    for (uint64_t i = 1; i <= 2; i++) {     /* and again, behind the hashes of pages */
        cut_link(p, i);
        write_pages(PAGES / 100);
        wait_protected(p, i);
        cr_assert(status.engine.resync);
        cr_assert_eq(atomic_load(&disk_run.runs), 1u + i);
        cr_assert(same_lists(&disk_run.sums));
    }
    cr_assert_eq(atomic_load(&lent), 3u);
    cr_assert_eq(status.engine.disk_equal_bytes, 30u);
    cr_assert_eq(count_events("DISK_SYNC", "{\"bytes\": 40, \"equal-bytes\": 30}"), 3u);
    finish_quiet(p);
    free_disks();
}

Test(resync, unix_what_the_disks_hold_is_told) { sums_arrive("unix"); }
Test(resync, tcp_what_the_disks_hold_is_told) { sums_arrive("tcp"); }
Test(resync, rdma_what_the_disks_hold_is_told) { sums_arrive("rdma"); }

/* Nobody asks when no disk has to be made whole. */
Test(resync, what_the_disks_hold_is_not_asked_for_in_vain)
{
    make_disks();
    with_disks = false;
    serve("unix", 64u << 20);
    struct rp_protect *p = protect(true);
    wait_protected(p, 0);
    cr_assert_eq(atomic_load(&lent), 0u);
    cr_assert_eq(count_events("DISK_SYNC", ""), 0u);
    finish_quiet(p);
    free_disks();
}

/* The standby breaks off at every message of its lists, in turn; the next attempt brings them. */
Test(resync, fault_saying_what_the_disks_hold)
{
    enum { MESSAGES = 9 };      /* three lists, of 2,500, 700 and 9 sums, in parts of 1,024; and the end */
    make_disks();
    serve("unix", 64u << 20);
    struct rp_protect *p = protect(true);
    wait_protected(p, 0);
    for (uint64_t nth = 1; nth <= MESSAGES + 1; nth++) {
        char what[32];
        unsigned runs = atomic_load(&disk_run.runs), asked = atomic_load(&lent);
        snprintf(what, sizeof(what), "link-sums:%lu", nth);
        atomic_store(&disown_waits, true);
        cut_link(p, nth);
        arm(what);
        atomic_store(&disown_waits, false);
        wait_protected(p, nth);
        cr_assert_eq(rp_fault_fired(), nth <= MESSAGES, "%s", what);
        cr_assert_eq(atomic_load(&lent) - asked, nth <= MESSAGES ? 2u : 1u);
        cr_assert_eq(atomic_load(&disk_run.runs), runs + 1);
        cr_assert(same_lists(&disk_run.sums), "%s", what);
    }
    finish_quiet(p);
    free_disks();
}

/* --- a standby that lies --- */

/* What a hostile one says after its WELCOME: runs as they travel, then the end (or not). */
struct lie {
    const char *what, *told;
    uint64_t gfn[2];
    uint32_t n[2];
    unsigned runs;
    bool ends;
    struct { uint32_t disk, block_bytes, blocks; } lists[2];    /* of what its disks hold, instead; blocks 0: none */
};
static const struct lie lies[] = {
    {"beyond the end", "holds 2 pages", {PAGES - 1}, {2}, 1, true, {{0}}},
    {"far beyond", "holds 1 pages", {UINT64_MAX}, {1}, 1, true, {{0}}},
    {"more than a run may have", "holds 1025 pages", {0}, {1025}, 1, true, {{0}}},
    {"backwards", "after 0xc", {10, 4}, {2, 2}, 2, true, {{0}}},
    {"not its digest's", "not those of its digest", {0}, {4}, 1, true, {{0}}},
    {"half of it", "waiting for the pages", {0}, {4}, 1, false, {{0}}},
    {.what = "a disk there cannot be", .told = "blocks of 65536 bytes of disk 8", .ends = true, .lists = {{8, BLOCK, 1}}},
    {.what = "far beyond", .told = "disk 4294967295", .ends = true, .lists = {{UINT32_MAX, BLOCK, 1}}},
    {.what = "a disk twice", .told = "of disk 2, after disk 2", .ends = true, .lists = {{2, BLOCK, 3}, {2, BLOCK, 3}}},
    {.what = "backwards", .told = "of disk 0, after disk 2", .ends = true, .lists = {{2, BLOCK, 3}, {0, BLOCK, 3}}},
    {.what = "more blocks than a list may have", .told = "knows 1048577 blocks", .ends = true, .lists = {{0, BLOCK, (1u << 20) + 1}}},
    {.what = "as many as can be said", .told = "knows 4294967295 blocks", .ends = true, .lists = {{0, BLOCK, UINT32_MAX}}},
    {.what = "blocks of nothing", .told = "blocks of 0 bytes", .ends = true, .lists = {{0, 0, 1}}},
    {.what = "blocks of pages", .told = "blocks of 4096 bytes", .ends = true, .lists = {{0, 4096, 1}}},
    {.what = "odd blocks", .told = "blocks of 65537 bytes", .ends = true, .lists = {{0, BLOCK + 1, 1}}},
    {.what = "huge blocks", .told = "blocks of 2147483648 bytes", .ends = true, .lists = {{0, 1u << 31, 1}}},
    {.what = "half of a list", .told = "waiting for what the standby's disks hold", .lists = {{0, BLOCK, 1000}}},
    {.what = "no end", .told = "waiting for what the standby's disks hold", .lists = {{0, BLOCK, 10}, {2, BLOCK, 10}}},
};

static struct {
    struct rp_listener *l;
    pthread_t thread;
    const struct lie *lie;
    _Atomic unsigned served;
    struct rp_held_ask asked[4];
} liar;

static int liar_judge(void *ctx, const struct rp_hello *h, struct rp_welcome *w, struct rp_error *err)
{
    (void)ctx, (void)h, (void)err;
    w->epoch = 3;
    w->held = (struct rp_held){.gfn_end = PAGES, .sum = {1, 2}};
    return 0;
}

/* Lists as they travel, of sums that are zeroes; at most 900 of each. */
static void lie_of_disks(struct rp_conn *c, const struct lie *lie)
{
    static uint8_t list[24 + 900 * 16];
    int rc = 0;
    for (unsigned i = 0; i < 2 && lie->lists[i].blocks && rc == 0; i++) {
        uint32_t blocks = lie->lists[i].blocks;
        rp_st32(list, lie->lists[i].disk);
        rp_st32(list + 4, lie->lists[i].block_bytes);
        rp_st32(list + 16, blocks);
        rc = rp_conn_send(c, list, 24 + (blocks < 900 ? blocks : 900) * 16);
    }
    memset(list, 0, 24);
    if (rc == 0 && lie->ends)
        rc = rp_conn_send(c, list, 24);
    if (rc < 0)
        printf("the primary has had enough\n");
}

static void *liar_main(void *arg)
{
    static uint8_t run[16 + 2000 * 16];
    const struct rp_secret key = {0};
    (void)arg;
    while (!atomic_load(&closing)) {
        struct rp_conn *c;
        struct rp_hello h;
        struct rp_error err = {0};
        struct rp_held_ask *ask = &liar.asked[liar.served % 4];
        if (rp_listener_accept(liar.l, 20, &c, &err) < 0)
            continue;
        if (shake_hands(c, &key, liar_judge, NULL, &h, &err) == 0 && rp_held_receive_ask(c, ask, &err) == 0) {
            liar.served++;
            for (unsigned i = 0; ask->wanted && i < liar.lie->runs; i++) {
                rp_st64(run, liar.lie->gfn[i]);
                rp_st32(run + 8, liar.lie->n[i]);
                if (rp_conn_send(c, run, 16 + (size_t)liar.lie->n[i] * 16) < 0)
                    break;
            }
            rp_st64(run, PAGES);
            rp_st32(run + 8, 0);
            if (ask->wanted && liar.lie->ends && rp_conn_send(c, run, 16) < 0)
                printf("the primary has had enough\n");
            if (ask->sums)
                lie_of_disks(c, liar.lie);
        }
        rp_conn_close(c);
    }
    return NULL;
}

static struct rp_uri liar_start(const struct lie *lie)
{
    struct rp_uri uri = own_address("unix");
    struct rp_error err = {0};
    liar.lie = lie;
    cr_assert_eq(rp_listen(&uri, &liar.l, &err), 0, "%s", err.text);
    pthread_create(&liar.thread, NULL, liar_main, NULL);
    return uri;
}

static void liar_stop(void)
{
    atomic_store(&closing, true);
    pthread_join(liar.thread, NULL);
    rp_listener_close(liar.l);
}

static bool whole(void *ctx, const struct rp_disk_base *have, uint64_t size_bytes[RP_DISK_SUMS_DISKS])
{
    (void)ctx;
    return disk_whole(NULL, have, size_bytes);
}

/* INV-4: refused with the place and the reason; nothing is kept of it. */
Test(resync, INV4_a_list_that_is_none_is_refused)
{
    for (unsigned i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        struct rp_error err = {0};
        struct rp_sink *sink;
        uint64_t held;
        atomic_store(&closing, false);
        struct rp_link_config cfg = {.uri = liar_start(&lies[i]), .vm_name = "fake", .gfn_end = PAGES};
        if (lies[i].lists[0].blocks) {
            cfg.gfn_end = 0;
            cfg.whole_disks = whole;
        }
        cr_assert_lt(rp_link_sink_create(&cfg, &sink, &held, &err), 0, "%s", lies[i].what);
        cr_assert(strstr(err.text, lies[i].told), "%s: %s", lies[i].what, err.text);
        liar_stop();
    }
}

/* … and not asked for in the next session: the primary would send all of RAM. */
Test(resync, a_liar_is_not_believed_twice)
{
    struct rp_protect *p;
    standby.uri = liar_start(&lies[4]);
    p = protect(true);
    for (unsigned ms = 0; ms < LONG_MS && liar.served < 2; ms++)
        usleep(1000);
    liar_stop();
    cr_assert(liar.asked[0].wanted);
    cr_assert(!liar.asked[1].wanted);
    rp_protect_stop(p, RP_PROTECT_LEAVE);
    fake_stop(&fake);
    rp_events_destroy(events);
}

Test(resync, a_liar_about_disks_is_not_believed_twice)
{
    struct rp_protect *p;
    with_disks = true;
    standby.uri = liar_start(&lies[sizeof(lies) / sizeof(lies[0]) - 3]);
    p = protect(true);
    for (unsigned ms = 0; ms < LONG_MS && liar.served < 2; ms++)
        usleep(1000);
    liar_stop();
    cr_assert(liar.asked[0].sums);
    cr_assert(!liar.asked[1].sums);
    rp_protect_stop(p, RP_PROTECT_LEAVE);
    fake_stop(&fake);
    rp_events_destroy(events);
}
