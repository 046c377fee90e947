/* virtio-balloon, driven through its queues without KVM: what happens to RAM (BALLOON-1, BALLOON-2), and hostile requests. */
#include "tests/unit/guest_driver.h"

#include "core/digest.h"

#include <errno.h>
#include <linux/virtio_balloon.h>
#include <sys/stat.h>

#define SLOT 3
#define INFLATE 0
#define DEFLATE 1
#define STATS 2
#define REPORTING 3
#define LIST 0x200000u      /* where the driver builds its requests */
#define FREE 0x800000u      /* RAM that is given away */
#define RAM_BYTES (64u << 20)
#define WAIT_MS 5000
#define ALL (1ull << VIRTIO_BALLOON_F_STATS_VQ | 1ull << VIRTIO_BALLOON_F_REPORTING | 1ull << VIRTIO_BALLOON_F_PAGE_POISON | \
             1ull << VIRTIO_BALLOON_F_DEFLATE_ON_OOM | 1ull << VIRTIO_RING_F_EVENT_IDX)

static struct board board;
static struct rp_device balloon;
static struct drv drv;

static void lock(void) { pthread_mutex_lock(&board.lock); }
static void unlock(void) { pthread_mutex_unlock(&board.lock); }

static void up(uint64_t features)
{
    lock();
    drv_up(&drv, &board, SLOT, features);
    balloon.ops->start(balloon.dev);
    unlock();
}

static void setup(void)
{
    struct rp_error err = {0};

    board_make(&board, RAM_BYTES);
    cr_assert_eq(rp_virtio_balloon_create(&board.env, SLOT, &balloon, &err), 0, "%s", err.text);
    cr_assert_eq(rp_loop_start(board.loop, &err), 0);
    up(ALL);
    rp_ram_track(&board.ram, true);
}

static void teardown(void)
{
    board_free_with(&board, &balloon);
}

TestSuite(balloon, .init = setup, .fini = teardown, .timeout = 60);

static uint64_t held_bytes(void)
{
    struct stat st;

    cr_assert_eq(fstat(board.ram.memfd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void fill(uint64_t at, uint64_t len)
{
    memset(drv_at(&drv, at), 0x5a, len);
}

/* Sends page numbers as one request. */
static void send_pfns(unsigned queue, const uint32_t *pfns, unsigned n)
{
    struct seg s = {LIST, 4 * n, false};
    uint8_t *p = drv_at(&drv, LIST);

    for (unsigned i = 0; i < n; i++)
        rp_st32(p + 4 * i, pfns[i]);
    drv_post(&drv, queue, &s, 1);
    drv_kick(&drv, queue);
}

static void wait_done(unsigned queue)
{
    uint32_t head, len;

    cr_assert(drv_done(&drv, queue, WAIT_MS, &head, &len), "queue %u", queue);
}

static void must_be(uint64_t at, uint64_t len, uint8_t byte)
{
    const uint8_t *p = drv_at(&drv, at);

    for (uint64_t i = 0; i < len; i++)
        cr_assert_eq(p[i], byte, "0x%lx is %02x, not %02x", at + i, p[i], byte);
}

static bool dirty(uint64_t gpa)
{
    return rp_pageset_test(&board.ram.device_dirty, gpa >> 12);
}

Test(balloon, inflating_gives_pages_back_as_zeroes_and_dirty)
{
    uint32_t pfns[5] = {(FREE >> 12) + 4, (FREE >> 12) + 5, (FREE >> 12) + 6, (FREE >> 12) + 20, (FREE >> 12) + 9};

    fill(FREE, 32 * 4096);
    send_pfns(INFLATE, pfns, 5);
    wait_done(INFLATE);
    for (unsigned i = 0; i < 5; i++)
        cr_assert(dirty((uint64_t)pfns[i] << 12), "page %u", pfns[i]);
    cr_assert_not(dirty(FREE));
    cr_assert_not(dirty(FREE + 7 * 4096));
    must_be(FREE, 4 * 4096, 0x5a);
    must_be(FREE + 4 * 4096, 3 * 4096, 0);
    must_be(FREE + 7 * 4096, 2 * 4096, 0x5a);
    must_be(FREE + 9 * 4096, 4096, 0);
    must_be(FREE + 10 * 4096, 10 * 4096, 0x5a);
    must_be(FREE + 20 * 4096, 4096, 0);
}

Test(balloon, deflating_is_answered_and_touches_nothing)
{
    uint32_t pfn = FREE >> 12;

    fill(FREE, 4096);
    send_pfns(DEFLATE, &pfn, 1);
    wait_done(DEFLATE);
    must_be(FREE, 4096, 0x5a);
    cr_assert_not(dirty(FREE));
}

Test(balloon, reported_pages_are_zeroes_and_the_digest_agrees)
{
    struct seg s[3] = {{FREE, 1u << 20, true}, {FREE + (4u << 20), 32u << 20, true}, {FREE + (2u << 20) + 100, 8192, true}};
    struct rp_digest digest;
    struct rp_hash128 want;
    uint64_t before;

    fill(FREE, 36u << 20);
    cr_assert_eq(rp_digest_init(&digest, board.ram.view.gfn_end), 0);
    for (uint64_t g = 0; g < board.ram.view.gfn_end; g++)
        rp_digest_update(&digest, g, rp_page_hash(g, rp_ram_page(&board.ram.view, g)));
    before = held_bytes();
    drv_post(&drv, REPORTING, s, 3);
    drv_kick(&drv, REPORTING);
    wait_done(REPORTING);
    /* The host has the memory again; a large folio that was busy may be left of it. */
    cr_assert_lt(held_bytes() + (24u << 20), before);
    must_be(FREE, 1u << 20, 0);
    must_be(FREE + (1u << 20), 1u << 20, 0x5a);
    must_be(FREE + (4u << 20), 32u << 20, 0);
    /* Of the buffer that is not aligned only the page that lies in it whole may go. */
    must_be(FREE + (2u << 20), 4096, 0x5a);
    must_be(FREE + (2u << 20) + 4096, 4096, 0);
    must_be(FREE + (2u << 20) + 8192, 4096, 0x5a);
    /* BALLOON-2: the digest kept from dirty pages alone is that of RAM. The rings were written by this test, not by the device. */
    for (uint64_t g = 0; g < board.ram.view.gfn_end; g++)
        if (dirty(g << 12) || g << 12 < FREE)
            rp_digest_update(&digest, g, rp_page_hash(g, rp_ram_page(&board.ram.view, g)));
    want = rp_digest_of(&board.ram.view);
    cr_assert(digest.sum.lo == want.lo && digest.sum.hi == want.hi);
    rp_digest_fini(&digest);
}

Test(balloon, pages_that_hold_nothing_are_not_dirty)
{
    struct seg s = {FREE + (8u << 20), 16u << 20, true};

    drv_post(&drv, REPORTING, &s, 1);
    drv_kick(&drv, REPORTING);
    wait_done(REPORTING);
    for (uint64_t at = s.addr; at < s.addr + s.len; at += 4096)
        cr_assert_not(dirty(at), "0x%lx", at);
}

Test(balloon, nothing_goes_while_ram_is_kept)
{
    struct seg s = {FREE, 8192, true};

    fill(FREE, 8192);
    lock();
    rp_ram_keep(&board.ram, true);
    unlock();
    drv_post(&drv, REPORTING, &s, 1);
    drv_kick(&drv, REPORTING);
    wait_done(REPORTING);
    must_be(FREE, 8192, 0x5a);
    cr_assert_not(dirty(FREE));
}

Test(balloon, poisoned_pages_stay)
{
    struct seg s = {FREE, 8192, true};

    fill(FREE, 8192);
    lock();
    mmio_set(&board, drv.device + offsetof(struct virtio_balloon_config, poison_val), 4, 0x5a5a5a5a);
    unlock();
    drv_post(&drv, REPORTING, &s, 1);
    drv_kick(&drv, REPORTING);
    wait_done(REPORTING);
    must_be(FREE, 8192, 0x5a);
}

/* Linux without statistics has its reporting queue in their place. */
Test(balloon, queues_move_up_when_a_feature_is_not_taken)
{
    struct seg s = {FREE, 8192, true};

    up(1ull << VIRTIO_BALLOON_F_REPORTING);
    fill(FREE, 8192);
    drv_post(&drv, STATS, &s, 1);
    drv_kick(&drv, STATS);
    wait_done(STATS);
    must_be(FREE, 8192, 0);
}

Test(balloon, the_wish_is_shown_and_the_answer_read)
{
    lock();
    rp_virtio_balloon_target(&balloon, RAM_BYTES - (16u << 20));
    cr_assert_eq(mmio_get(&board, drv.device, 4), (16u << 20) / 4096);
    mmio_set(&board, drv.device + 4, 4, (4u << 20) / 4096);
    cr_assert_eq(rp_virtio_balloon_actual(&balloon), RAM_BYTES - (4u << 20));
    mmio_set(&board, drv.device + 4, 4, 0xffffffff);
    cr_assert_eq(rp_virtio_balloon_actual(&balloon), 0u, "a guest may say what it likes");
    rp_virtio_balloon_target(&balloon, RAM_BYTES * 2ull);
    cr_assert_eq(mmio_get(&board, drv.device, 4), 0u);
    unlock();
    cr_assert(drv_pending(&drv, 0), "configuration interrupt");
}

static void send_stats(uint16_t tag, uint64_t value)
{
    struct seg s = {LIST, 20, false};
    uint8_t *p = drv_at(&drv, LIST);

    rp_st16(p, tag);
    rp_st64(p + 2, value);
    rp_st16(p + 10, 999);       /* of a newer kernel: skipped */
    rp_st64(p + 12, 1);
    drv_post(&drv, STATS, &s, 1);
    drv_kick(&drv, STATS);
}

static uint64_t stat_after(uint16_t tag, uint64_t not)
{
    struct rp_balloon_info info = {0};

    for (int i = 0; i < 5000; i++) {
        lock();
        cr_assert(rp_virtio_balloon_info(&balloon, &info));
        unlock();
        if (info.stats[tag] != not)
            break;
        usleep(1000);
    }
    return info.stats[tag];
}

Test(balloon, statistics_are_kept_until_asked_and_travel)
{
    uint32_t head, len;

    send_stats(VIRTIO_BALLOON_S_MEMFREE, 12345);
    cr_assert_eq(stat_after(VIRTIO_BALLOON_S_MEMFREE, UINT64_MAX), 12345u);
    cr_assert_not(drv_done(&drv, STATS, 50, &head, &len), "the figures are fresh: the buffer is kept");
    lock();
    balloon.ops->stop(balloon.dev);
    board_reload(&balloon, SLOT);
    balloon.ops->start(balloon.dev);
    unlock();
    cr_assert_eq(stat_after(VIRTIO_BALLOON_S_MEMFREE, 1), 12345u, "and asks for new ones: these came before the epoch");
    cr_assert(drv_done(&drv, STATS, WAIT_MS, &head, &len));
    send_stats(VIRTIO_BALLOON_S_MEMFREE, 777);
    cr_assert_eq(stat_after(VIRTIO_BALLOON_S_MEMFREE, 12345), 777u);
}

Test(balloon, hostile_pages_break_only_the_device)
{
    uint32_t pfns[2] = {FREE >> 12, 0xffffffff};

    send_pfns(INFLATE, pfns, 2);
    cr_assert(drv_broken(&drv, WAIT_MS));
    up(ALL);
    send_pfns(INFLATE, pfns, 1);
    wait_done(INFLATE);
}

Test(balloon, hostile_lists_break_only_the_device)
{
    struct seg big = {LIST, 1u << 20, false}, odd = {LIST, 6, false};

    drv_post(&drv, INFLATE, &big, 1);
    drv_kick(&drv, INFLATE);
    cr_assert(drv_broken(&drv, WAIT_MS));
    up(ALL);
    drv_post(&drv, INFLATE, &odd, 1);
    drv_kick(&drv, INFLATE);
    cr_assert(drv_broken(&drv, WAIT_MS));
}

Test(balloon, a_request_cut_in_half_is_done_again_by_whom_the_state_is_given)
{
    struct seg s = {FREE, 40u << 20, true};

    fill(FREE, 40u << 20);
    drv_post(&drv, REPORTING, &s, 1);
    drv_kick(&drv, REPORTING);
    for (int i = 0; i < 5000; i++) {        /* stops it after a turn, before the end, when the scheduler lets us */
        lock();
        if (*(uint8_t *)drv_at(&drv, FREE) == 0)
            break;
        unlock();
        usleep(10);
    }
    balloon.ops->stop(balloon.dev);
    board_reload(&balloon, SLOT);
    balloon.ops->start(balloon.dev);
    unlock();
    wait_done(REPORTING);
    must_be(FREE, 40u << 20, 0);
}

/* The state with the number in field `tag` made `v`: refused, for a reason that says `why`. */
static void refuses(uint16_t tag, uint32_t v, const char *why)
{
    struct rp_sections sections = {0};
    struct rp_section sec;
    struct rp_error err = {0};
    uint8_t *copy;

    cr_assert_eq(balloon.ops->save(balloon.dev, &sections, SLOT, &err), 0);
    cr_assert(rp_sections_find(&sections, balloon.section, SLOT, &sec));
    copy = malloc(sec.len);
    memcpy(copy, sec.bytes, sec.len);
    for (uint32_t off = 0; off + 6 <= sec.len; off += 6 + rp_ld32(copy + off + 2))
        if (rp_ld16(copy + off) == tag)
            rp_st32(copy + off + 6, v);
    sec.bytes = copy;
    cr_assert_eq(balloon.ops->load(balloon.dev, &sec, &err), -EBADMSG, "field %u = %u was taken", tag, v);
    cr_assert(strstr(err.text, why), "%s", err.text);
    free(copy);
    rp_sections_fini(&sections);
}

Test(balloon, a_state_that_cannot_be_is_refused)
{
    send_stats(VIRTIO_BALLOON_S_MEMFREE, 1);
    stat_after(VIRTIO_BALLOON_S_MEMFREE, UINT64_MAX);
    lock();
    balloon.ops->stop(balloon.dev);
    refuses(5, 5000, "statistics");
    refuses(2, UINT32_MAX, "pages wanted");
    unlock();
}

Test(balloon_table, tiles)
{
    struct rp_error err = {0};

    cr_assert_eq(rp_state_check(&rp_virtio_balloon_table, &err), 0, "%s", err.text);
}
