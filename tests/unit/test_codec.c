/* Page codecs: round trips over many kinds of pages, and hostile input (INV-4). */
#include "core/codec.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static uint8_t parent[RP_PAGE_SIZE], page[RP_PAGE_SIZE], out[RP_PAGE_SIZE], back[RP_PAGE_SIZE];

static void fill_random(uint8_t *p, unsigned *seed)
{
    for (unsigned i = 0; i < RP_PAGE_SIZE; i++)
        p[i] = (uint8_t)rand_r(seed);
}

static unsigned seeded(void)
{
    unsigned seed = (unsigned)getpid() * 2654435761u;
    printf("seed %u\n", seed);
    return seed;
}

static uint32_t delta_round_trip(uint32_t limit)
{
    uint8_t *exact = malloc(limit);     /* so that ASan sees a write beyond */
    uint32_t n = rp_delta_encode(parent, page, exact, limit);
    cr_assert_lt(n, limit + 1);
    if (n) {
        memcpy(back, parent, RP_PAGE_SIZE);
        struct rp_error err = {0};
        cr_assert_eq(rp_delta_decode(exact, n, back, &err), 0, "%s", err.text);
        cr_assert_eq(memcmp(back, page, RP_PAGE_SIZE), 0);
    }
    free(exact);
    return n;
}

Test(delta, sixty_four_bytes_cost_less_than_a_hundred)
{
    unsigned seed = seeded();
    fill_random(parent, &seed);
    for (unsigned at = 0; at <= RP_PAGE_SIZE - 64; at++) {
        memcpy(page, parent, RP_PAGE_SIZE);
        for (unsigned i = 0; i < 64; i++)
            page[at + i] = (uint8_t)(parent[at + i] + 1 + (unsigned)rand_r(&seed) % 255);
        uint32_t n = delta_round_trip(RP_PAGE_SIZE);
        cr_assert(n > 0 && n < 100, "%u bytes at %u", n, at);
    }
}

Test(delta, equal_pages_are_a_delta_of_two_bytes)
{
    memcpy(page, parent, RP_PAGE_SIZE);
    cr_assert_eq(delta_round_trip(RP_PAGE_SIZE), 2);
}

Test(delta, every_single_byte)
{
    for (unsigned i = 0; i < RP_PAGE_SIZE; i++) {
        memcpy(page, parent, RP_PAGE_SIZE);
        page[i] ^= 0x80;
        cr_assert_gt(delta_round_trip(RP_PAGE_SIZE), 0);
    }
}

Test(delta, random_changes_and_limits)
{
    unsigned seed = seeded();
    for (int round = 0; round < 3000; round++) {
        fill_random(parent, &seed);
        memcpy(page, parent, RP_PAGE_SIZE);
        int runs = rand_r(&seed) % 60;
        for (int k = 0; k < runs; k++) {
            unsigned at = (unsigned)rand_r(&seed) % RP_PAGE_SIZE, len = 1 + (unsigned)rand_r(&seed) % 128;
            for (unsigned i = at; i < at + len && i < RP_PAGE_SIZE; i++)
                page[i] = (uint8_t)rand_r(&seed);
        }
        uint32_t n = delta_round_trip(RP_PAGE_SIZE);
        if (n > 1)
            cr_assert_eq(rp_delta_encode(parent, page, out, n), 0, "not smaller than its own size");
        delta_round_trip(1 + (uint32_t)rand_r(&seed) % RP_PAGE_SIZE);
    }
}

Test(delta, wholly_other_page_is_not_worth_it)
{
    unsigned seed = seeded();
    fill_random(parent, &seed);
    for (unsigned i = 0; i < RP_PAGE_SIZE; i++)
        page[i] = (uint8_t)~parent[i];
    cr_assert_eq(delta_round_trip(RP_PAGE_SIZE), 0);
}

static void delta_refused(const uint8_t *in, uint32_t n)
{
    struct rp_error err = {0};
    memset(back, 0x5a, RP_PAGE_SIZE);
    cr_assert_eq(rp_delta_decode(in, n, back, &err), -EBADMSG);
    cr_assert(err.text[0]);
    for (unsigned i = 0; i < RP_PAGE_SIZE; i++)
        cr_assert_eq(back[i], 0x5a, "a refused delta has written byte %u", i);
}

Test(delta, INV4_hostile_runs_write_nothing)
{
    delta_refused((const uint8_t[]){0}, 0);
    delta_refused((const uint8_t[]){0}, 1);
    delta_refused((const uint8_t[]){0x80}, 1);
    delta_refused((const uint8_t[]){0, 1}, 2);
    delta_refused((const uint8_t[]){0, 1, 7, 0xff, 0x3f, 1, 9}, 7);         /* the second run lies beyond the page */
    delta_refused((const uint8_t[]){0, 1, 7, 0xff, 0x1f, 1, 9}, 7);         /* by one byte */
    delta_refused((const uint8_t[]){0xff, 0xff, 0x01, 1, 9}, 5);            /* a varint of three bytes */
    delta_refused((const uint8_t[]){0, 0xff, 0x1f, 1}, 4);                  /* more changed bytes than data */
    memset(back, 0, sizeof(back));
    cr_assert_eq(rp_delta_decode((const uint8_t[]){0xff, 0x1f, 1, 9}, 4, back, NULL), 0, "the very last byte");
    cr_assert_eq(back[RP_PAGE_SIZE - 1], 9);
    uint8_t *big = calloc(1, RP_PAGE_SIZE + 2);
    delta_refused(big, RP_PAGE_SIZE + 2);
    free(big);
}

static uint32_t lz4_round_trip(uint32_t limit)
{
    uint8_t *exact = malloc(limit);
    uint32_t n = rp_lz4_encode(page, exact, limit);
    cr_assert_leq(n, limit);
    if (n) {
        struct rp_error err = {0};
        cr_assert_eq(rp_lz4_decode(exact, n, back, &err), 0, "%s", err.text);
        cr_assert_eq(memcmp(back, page, RP_PAGE_SIZE), 0);
    }
    free(exact);
    return n;
}

Test(lz4, round_trips)
{
    unsigned seed = seeded();
    for (int round = 0; round < 2000; round++) {
        unsigned alphabet = 1 + (unsigned)rand_r(&seed) % 256, run = 1 + (unsigned)rand_r(&seed) % 64;
        for (unsigned i = 0; i < RP_PAGE_SIZE; i++)
            page[i] = (uint8_t)(i % run ? page[i - 1] : (unsigned)rand_r(&seed) % alphabet);
        lz4_round_trip(RP_PAGE_SIZE);
        lz4_round_trip(1 + (uint32_t)rand_r(&seed) % RP_PAGE_SIZE);
    }
}

Test(lz4, random_is_left_alone_and_text_shrinks)
{
    unsigned seed = seeded();
    fill_random(page, &seed);
    cr_assert_eq(lz4_round_trip(RP_PAGE_SIZE), 0);
    static const char text[] = "the quick brown fox jumps over the lazy dog; ";
    for (unsigned i = 0; i < RP_PAGE_SIZE; i++)
        page[i] = (uint8_t)text[i % (sizeof(text) - 1)];
    uint32_t n = lz4_round_trip(RP_PAGE_SIZE);
    cr_assert(n > 0 && n < 400, "%u", n);
}

/* A page that is random in front and compressible behind must still be found compressible. */
Test(lz4, half_a_page_of_zeroes_pays)
{
    unsigned seed = seeded();
    fill_random(page, &seed);
    memset(page + RP_PAGE_SIZE / 2, 0, RP_PAGE_SIZE / 2);
    uint32_t n = lz4_round_trip(RP_PAGE_SIZE * 7 / 8);
    cr_assert(n > 0 && n < 2200, "%u", n);
}

Test(lz4, INV4_hostile_input)
{
    unsigned seed = seeded();
    struct rp_error err = {0};
    cr_assert_eq(rp_lz4_decode(page, 0, back, &err), -EBADMSG);
    cr_assert_eq(rp_lz4_decode(page, RP_PAGE_SIZE + 1, back, &err), -EBADMSG);
    memset(page, 'x', RP_PAGE_SIZE);
    uint32_t n = rp_lz4_encode(page, out, RP_PAGE_SIZE);
    for (uint32_t cut = 1; cut < n; cut++) {
        uint8_t *exact = malloc(cut);
        memcpy(exact, out, cut);
        cr_assert_eq(rp_lz4_decode(exact, cut, back, &err), -EBADMSG, "cut at %u", cut);
        free(exact);
    }
    for (int round = 0; round < 20000; round++) {
        uint32_t len = 1 + (uint32_t)rand_r(&seed) % 64;
        uint8_t *exact = malloc(len);
        for (uint32_t i = 0; i < len; i++)
            exact[i] = (uint8_t)rand_r(&seed);
        int rc = rp_lz4_decode(exact, len, back, &err);
        cr_assert(rc == 0 || rc == -EBADMSG);
        free(exact);
    }
}

Test(delta, changed_blocks_without_the_parent)
{
    unsigned seed = seeded();
    for (unsigned round = 0; round < 2000; round++) {
        fill_random(parent, &seed);
        memcpy(page, parent, RP_PAGE_SIZE);
        uint32_t changed = (uint32_t)rand_r(&seed) & (uint32_t)rand_r(&seed) << (rand_r(&seed) % 8);
        for (unsigned b = 0; b < 32; b++)
            if (changed >> b & 1)
                page[128 * b + (unsigned)rand_r(&seed) % 128] ^= 1;
        uint32_t limit = 1 + (uint32_t)rand_r(&seed) % RP_PAGE_SIZE;
        uint8_t *exact = malloc(limit);
        uint32_t n = rp_delta_encode_blocks(changed, page, exact, limit);
        cr_assert(n < limit);
        cr_assert(changed == 0 || n > 0 || (uint32_t)__builtin_popcount(changed) * 132 + 4 > limit);
        if (n) {
            struct rp_error err = {0};
            memcpy(back, parent, RP_PAGE_SIZE);
            cr_assert_eq(rp_delta_decode(exact, n, back, &err), 0, "%s", err.text);
            cr_assert_eq(memcmp(back, page, RP_PAGE_SIZE), 0);
        }
        free(exact);
    }
}
