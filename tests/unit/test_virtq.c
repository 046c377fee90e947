/* Split virtqueues against a friendly and a hostile driver, in guest RAM, without KVM. */
#include "core/bytes.h"
#include "vmm/virtq.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>

#define N 8u
#define DESC 0x1000u
#define AVAIL 0x2000u
#define USED 0x3000u
#define DATA 0x10000u
#define RAM_BYTES (1u << 20)
#define BITS(a, b) ((1ull << (a)) | (1ull << (b)))
#define FEATURES BITS(VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC)

static struct rp_guest_ram ram;
static struct rp_virtq q;
static struct rp_chain chain;
static struct rp_error err;

static uint8_t *at(uint64_t gpa) { return rp_ram_at(&ram, rp_gpa(gpa), 1); }

static void setup(void)
{
    struct rp_ram_config cfg = {.size_bytes = RAM_BYTES};

    cr_assert_eq(rp_guest_ram_init(&ram, &cfg, &err), 0, "%s", err.text);
    q = (struct rp_virtq){.ram = &ram, .size_max = N};
    rp_virtq_reset(&q);
    q.s.desc_gpa = DESC;
    q.s.avail_gpa = AVAIL;
    q.s.used_gpa = USED;
    cr_assert_eq(rp_virtq_enable(&q, FEATURES, &err), 0, "%s", err.text);
}
static void teardown(void) { rp_guest_ram_fini(&ram); }
TestSuite(virtq, .init = setup, .fini = teardown);

static void desc_at(uint64_t table, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    uint8_t *d = at(table) + 16 * i;

    rp_st64(d, addr);
    rp_st32(d + 8, len);
    rp_st16(d + 12, flags);
    rp_st16(d + 14, next);
}

static void offer(uint16_t head)
{
    uint16_t idx = rp_ld16(at(AVAIL) + 2);

    rp_st16(at(AVAIL) + 4 + 2 * (idx % N), head);
    rp_st16(at(AVAIL) + 2, (uint16_t)(idx + 1));
}

static int pop(void)
{
    rp_error_clear(&err);
    return rp_virtq_pop(&q, &chain, &err);
}

Test(virtq, chain_of_out_and_in)
{
    desc_at(DESC, 3, DATA, 16, VRING_DESC_F_NEXT, 5);
    desc_at(DESC, 5, DATA + 0x100, 512, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1);
    desc_at(DESC, 1, DATA + 0x1000, 1, VRING_DESC_F_WRITE, 0);
    cr_assert_eq(pop(), 0);
    offer(3);
    cr_assert_eq(pop(), 1, "%s", err.text);
    cr_assert_eq(chain.head, 3);
    cr_assert_eq(chain.nout, 1u);
    cr_assert_eq(chain.nin, 2u);
    cr_assert_eq(chain.out_bytes, 16u);
    cr_assert_eq(chain.in_bytes, 513u);
    cr_assert_eq(chain.iov[2].iov_base, at(DATA + 0x1000));
    cr_assert_eq(pop(), 0);
}

Test(virtq, indirect_after_direct)
{
    desc_at(DESC, 0, DATA, 16, VRING_DESC_F_NEXT, 1);
    desc_at(DESC, 1, 0x8000, 32, VRING_DESC_F_INDIRECT, 0);
    desc_at(0x8000, 0, DATA + 64, 64, VRING_DESC_F_NEXT, 1);
    desc_at(0x8000, 1, DATA + 256, 64, VRING_DESC_F_WRITE, 0);
    offer(0);
    cr_assert_eq(pop(), 1, "%s", err.text);
    cr_assert_eq(chain.out_bytes, 80u);
    cr_assert_eq(chain.in_bytes, 64u);
}

Test(virtq, hostile_chains_are_refused_with_a_reason)
{
    static const struct { const char *what; uint64_t addr; uint32_t len; uint16_t flags, next; const char *says; } bad[] = {
        {"loops to itself", DATA, 1, VRING_DESC_F_NEXT, 0, "loops"},
        {"next beyond the table", DATA, 1, VRING_DESC_F_NEXT, N, "beyond"},
        {"next far beyond", DATA, 1, VRING_DESC_F_NEXT, 0xffff, "beyond"},
        {"buffer beyond RAM", RAM_BYTES, 1, 0, 0, "not in RAM"},
        {"buffer over the end", RAM_BYTES - 1, 2, 0, 0, "not in RAM"},
        {"address wraps", UINT64_MAX - 4, 16, 0, 0, "not in RAM"},
        {"length 4 GiB", DATA, UINT32_MAX, 0, 0, "not in RAM"},
        {"indirect of no bytes", 0x8000, 0, VRING_DESC_F_INDIRECT, 0, "indirect table"},
        {"indirect of 17 bytes", 0x8000, 17, VRING_DESC_F_INDIRECT, 0, "indirect table"},
        {"indirect of 4 GiB", 0x8000, 0xfffffff0, VRING_DESC_F_INDIRECT, 0, "indirect table"},
        {"indirect outside RAM", RAM_BYTES, 16, VRING_DESC_F_INDIRECT, 0, "not in RAM"},
        {"indirect with next", 0x8000, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1, "NEXT"},
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        desc_at(DESC, 0, bad[i].addr, bad[i].len, bad[i].flags, bad[i].next);
        offer(0);
        cr_assert_eq(pop(), -EBADMSG, "%s: taken", bad[i].what);
        cr_assert(strstr(err.text, bad[i].says), "%s: says '%s'", bad[i].what, err.text);
        q.s.avail_idx = rp_ld16(at(AVAIL) + 2);
    }
}

Test(virtq, indirect_inside_indirect_and_loop_in_a_table)
{
    desc_at(DESC, 0, 0x8000, 32, VRING_DESC_F_INDIRECT, 0);
    desc_at(0x8000, 0, 0x9000, 16, VRING_DESC_F_INDIRECT, 0);
    offer(0);
    cr_assert_eq(pop(), -EBADMSG);
    cr_assert(strstr(err.text, "inside an indirect"), "%s", err.text);
    desc_at(0x8000, 0, DATA, 8, VRING_DESC_F_NEXT, 1);
    desc_at(0x8000, 1, DATA, 8, VRING_DESC_F_NEXT, 0);
    cr_assert_eq(pop(), -EBADMSG);
    cr_assert(strstr(err.text, "loops"), "%s", err.text);
}

Test(virtq, out_after_in_is_refused)
{
    desc_at(DESC, 0, DATA, 8, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1);
    desc_at(DESC, 1, DATA, 8, 0, 0);
    offer(0);
    cr_assert_eq(pop(), -EBADMSG);
}

Test(virtq, avail_index_and_head_out_of_range)
{
    rp_st16(at(AVAIL) + 2, N + 1);
    cr_assert_eq(pop(), -EBADMSG);
    rp_st16(at(AVAIL) + 2, 0);
    offer(N);
    cr_assert_eq(pop(), -EBADMSG);
    cr_assert(strstr(err.text, "names descriptor"), "%s", err.text);
}

Test(virtq, rings_outside_of_ram_or_crooked_are_refused)
{
    struct rp_virtq bad = {.ram = &ram, .size_max = N};
    static const struct { uint64_t desc, avail, used; uint16_t size; } c[] = {
        {RAM_BYTES, AVAIL, USED, N}, {DESC, RAM_BYTES - 4, USED, N}, {DESC, AVAIL, RAM_BYTES - 8, N},
        {DESC + 1, AVAIL, USED, N}, {DESC, AVAIL + 1, USED, N}, {DESC, AVAIL, USED + 2, N},
        {DESC, AVAIL, USED, 0}, {DESC, AVAIL, USED, 2 * N}, {DESC, AVAIL, USED, 3}, {UINT64_MAX - 15, AVAIL, USED, N},
    };

    for (size_t i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
        rp_virtq_reset(&bad);
        bad.s.desc_gpa = c[i].desc;
        bad.s.avail_gpa = c[i].avail;
        bad.s.used_gpa = c[i].used;
        bad.s.size = c[i].size;
        cr_assert_eq(rp_virtq_enable(&bad, 0, &err), -EBADMSG, "case %zu", i);
        cr_assert_eq(bad.s.enabled, 0);
    }
}

Test(virtq, used_ring_and_event_index)
{
    desc_at(DESC, 0, DATA, 8, VRING_DESC_F_WRITE, 0);
    rp_st16(at(AVAIL) + 4 + 2 * N, 1);      /* used_event: tell me about entry 1 */
    offer(0);
    offer(0);
    cr_assert_eq(pop(), 1);
    rp_virtq_push(&q, chain.head, 8);
    cr_assert_eq(rp_ld16(at(USED) + 2), 0, "visible before publish");
    cr_assert_not(rp_virtq_publish(&q), "entry 0 was not asked for");
    cr_assert_eq(rp_ld16(at(USED) + 2), 1);
    cr_assert_eq(pop(), 1);
    rp_virtq_push(&q, chain.head, 4);
    cr_assert(rp_virtq_publish(&q));
    cr_assert_eq(rp_ld32(at(USED) + 4 + 8 + 4), 4u);
    cr_assert_not(rp_virtq_publish(&q), "nothing new");
}

Test(virtq, kicks_are_asked_for_at_the_right_index)
{
    desc_at(DESC, 0, DATA, 8, 0, 0);
    offer(0);
    cr_assert(rp_virtq_want_kicks(&q, true), "a request came before the wish");
    cr_assert_eq(pop(), 1);
    cr_assert_not(rp_virtq_want_kicks(&q, true));
    cr_assert_eq(rp_ld16(at(USED) + 4 + 8 * N), 1, "avail_event");
    cr_assert_eq(rp_virtq_enable(&q, 0, &err), 0);
    rp_virtq_want_kicks(&q, false);
    cr_assert_eq(rp_ld16(at(USED)), VRING_USED_F_NO_NOTIFY);
}

Test(virtq, ring_and_buffer_writes_mark_ram_dirty)
{
    desc_at(DESC, 0, DATA + 0xff0, 32, VRING_DESC_F_WRITE, 0);
    offer(0);
    cr_assert_eq(pop(), 1);
    rp_ram_track(&ram, true);
    cr_assert_eq(rp_chain_write(&ram, &chain, 8, "0123456789", 10), 10u);
    rp_virtq_push(&q, 0, 18);
    rp_virtq_publish(&q);
    cr_assert(rp_pageset_test(&ram.device_dirty, USED >> 12));
    cr_assert(rp_pageset_test(&ram.device_dirty, DATA >> 12));
    cr_assert(rp_pageset_test(&ram.device_dirty, (DATA >> 12) + 1));
    cr_assert_eq(rp_pageset_count(&ram.device_dirty), 3u);
    cr_assert_arr_eq(at(DATA + 0xff8), "01234567", 8);
}

Test(virtq, index_wraps_at_65536)
{
    desc_at(DESC, 0, DATA, 8, VRING_DESC_F_WRITE, 0);
    q.s.avail_idx = q.s.used_idx = q.s.signalled = q.published = 0xfffe;
    rp_st16(at(AVAIL) + 2, 0xfffe);
    rp_st16(at(AVAIL) + 4 + 2 * N, 0xffff);
    for (int i = 0; i < 4; i++) {
        offer(0);
        cr_assert_eq(pop(), 1, "%s", err.text);
        rp_virtq_push(&q, 0, 1);
        cr_assert_eq(rp_virtq_publish(&q), i == 1);
    }
    cr_assert_eq(rp_ld16(at(USED) + 2), 2);
}

/* A driver that writes garbage everywhere, over and over: nothing but refusals, whatever the bytes. */
Test(virtq, random_rings_never_crash)
{
    unsigned seed = 12345;

    for (int round = 0; round < 20000; round++) {
        for (unsigned i = 0; i < N; i++) {
            uint64_t addr = (uint64_t)rand_r(&seed) % (rand_r(&seed) % 4 ? RAM_BYTES : 2 * RAM_BYTES);

            desc_at(DESC, i, addr, (uint32_t)rand_r(&seed) % 8192, (uint16_t)(rand_r(&seed) % 8), (uint16_t)((unsigned)rand_r(&seed) % (N + 1)));
        }
        rp_st16(at(AVAIL) + 2, (uint16_t)(q.s.avail_idx + (unsigned)rand_r(&seed) % (N + 2)));
        while (pop() == 1) {
            uint8_t buf[256];

            rp_chain_read(&chain, (uint64_t)rand_r(&seed) % 64, buf, sizeof(buf));
            rp_virtq_push(&q, chain.head, 0);
        }
        rp_virtq_publish(&q);
        q.s.avail_idx = rp_ld16(at(AVAIL) + 2);
    }
}
