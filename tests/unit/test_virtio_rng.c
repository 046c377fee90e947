/* virtio-rng, driven through its queue without KVM. */
#include "tests/unit/guest_driver.h"

#define SLOT 1
#define BUF 0x400000u
#define WAIT_MS 5000

static struct board board;
static struct rp_device rng;
static struct drv drv;

static void setup(void)
{
    struct rp_error err = {0};

    board_make(&board, 16u << 20);
    cr_assert_eq(rp_virtio_rng_create(&board.env, SLOT, &rng, &err), 0, "%s", err.text);
    cr_assert_eq(rp_loop_start(board.loop, &err), 0);
    pthread_mutex_lock(&board.lock);
    drv_up(&drv, &board, SLOT, 1ull << VIRTIO_RING_F_EVENT_IDX);
    rng.ops->start(rng.dev);
    pthread_mutex_unlock(&board.lock);
}

static void teardown(void)
{
    board_free_with(&board, &rng);
}

TestSuite(rng, .init = setup, .fini = teardown, .timeout = 60);

static void ask(uint64_t at, uint32_t size)
{
    struct seg s = {at, size, true};

    drv_post(&drv, 0, &s, 1);
    drv_kick(&drv, 0);
}

Test(rng, fills_buffers_with_different_bytes_and_marks_them)
{
    uint32_t head, len;
    const uint8_t *p;

    rp_ram_track(&board.ram, true);
    for (unsigned i = 0; i < 2; i++) {
        ask(BUF + i * 0x1000, 64);
        cr_assert(drv_done(&drv, 0, WAIT_MS, &head, &len));
        cr_assert_eq(len, 64u);
        cr_assert(rp_pageset_test(&board.ram.device_dirty, (BUF >> 12) + i));
    }
    p = drv_at(&drv, BUF);
    cr_assert(memcmp(p, p + 0x1000, 64) != 0);
    cr_assert_eq(p[64], 0, "beyond the buffer");
}

/* Answers that a broken device never publishes are in RAM all the same: whoever copies RAM has to know. */
Test(rng, what_was_written_before_it_broke_is_marked)
{
    struct seg good = {BUF, 64, true}, bad = {BUF, 64, false};

    rp_ram_track(&board.ram, true);
    drv_post(&drv, 0, &good, 1);
    drv_post(&drv, 0, &bad, 1);
    drv_kick(&drv, 0);
    cr_assert(drv_broken(&drv, WAIT_MS));
    cr_assert_eq(rp_ld32((uint8_t *)drv_at(&drv, drv.q[0].used) + 8), 64u, "the first was answered");
    cr_assert(rp_pageset_test(&board.ram.device_dirty, drv.q[0].used >> 12));
}

Test(rng, many_requests_are_all_answered)
{
    uint32_t head, len;

    for (unsigned i = 0; i < 50; i++) {
        struct seg s = {BUF + i * 0x1000, 16, true};

        drv_post(&drv, 0, &s, 1);
    }
    drv_kick(&drv, 0);
    for (unsigned i = 0; i < 50; i++) {
        cr_assert(drv_done(&drv, 0, WAIT_MS, &head, &len), "request %u", i);
        cr_assert_eq(len, 16u);
    }
}

Test(rng, a_huge_request_is_answered_in_part)
{
    uint32_t head, len;

    ask(BUF, 8u << 20);
    cr_assert(drv_done(&drv, 0, WAIT_MS, &head, &len));
    cr_assert_gt(len, 0u);
    cr_assert_leq(len, 64u << 10);
}

Test(rng, a_request_without_room_breaks_only_the_device)
{
    struct seg s = {BUF, 64, false};
    uint32_t head, len;

    drv_post(&drv, 0, &s, 1);
    drv_kick(&drv, 0);
    cr_assert(drv_broken(&drv, WAIT_MS));
    pthread_mutex_lock(&board.lock);
    drv_up(&drv, &board, SLOT, 0);
    pthread_mutex_unlock(&board.lock);
    ask(BUF, 32);
    cr_assert(drv_done(&drv, 0, WAIT_MS, &head, &len), "it works again after a reset");
}

Test(rng, a_buffer_outside_of_ram_breaks_only_the_device)
{
    ask(64u << 20, 64);
    cr_assert(drv_broken(&drv, WAIT_MS));
}

Test(rng, a_request_made_while_stopped_is_answered_by_whom_the_state_is_given)
{
    uint32_t head, len;

    pthread_mutex_lock(&board.lock);
    rng.ops->stop(rng.dev);
    pthread_mutex_unlock(&board.lock);
    ask(BUF, 64);
    cr_assert_not(drv_done(&drv, 0, 50, &head, &len), "VIRTIO-2");
    pthread_mutex_lock(&board.lock);
    board_reload(&rng, SLOT);
    rng.ops->start(rng.dev);
    pthread_mutex_unlock(&board.lock);
    cr_assert(drv_done(&drv, 0, WAIT_MS, &head, &len));
}

Test(rng_table, tiles)
{
    struct rp_error err = {0};

    cr_assert_eq(rp_state_check(&rp_virtio_rng_table, &err), 0, "%s", err.text);
}
