/*
 * The copy of a machine's private disk for a standby that has said what it holds of it (vmm/disks_copy.c): what is equal does not travel, and
 * the copy and what the guest was told agree all the same.
 */
#include "tests/unit/disks_fixture.h"

TestSuite(disk_sums, .init = setup, .fini = teardown, .timeout = 120);

/* A list of what the copy holds, in blocks of so many bytes. */
static void sum_copy(uint32_t block_bytes, uint32_t blocks, uint64_t list_seed)
{
    struct rp_disk_sum_list *l = &sums.disks[0];

    *l = (struct rp_disk_sum_list){.seed = list_seed, .block_bytes = block_bytes, .blocks = blocks};
    l->sums = malloc(blocks * sizeof(*l->sums));
    for (uint32_t i = 0; i < blocks; i++)
        l->sums[i] = rp_disk_block_sum(l, copy + (uint64_t)i * block_bytes);
}

/* A disk without holes, before the guest has written to it; the copy is equal. */
static void fill_disk(void)
{
    int fd = open(image, O_WRONLY);

    for (uint32_t b = 0; b < BLOCKS; b++) {
        uint64_t block[BLOCK / 8];

        told[b] = asked[b] = 1;
        pattern(block, b, 1);
        memcpy(copy + (uint64_t)b * BLOCK, block, BLOCK);
        cr_assert_eq(pwrite(fd, block, BLOCK, (off_t)b * BLOCK), BLOCK);
    }
    close(fd);
}

/* Copies with what `sums` says, the guest writing all the while; what it was told of is in the copy, always. *equal: what did not travel. */
static void copy_with_sums(uint64_t epoch, uint64_t *equal)
{
    struct rp_disk_progress p;
    uint64_t before = data_bytes;

    start_run(NULL);
    cr_assert_eq(sync_base, 0);
    write_for(2);
    while (pull(128 << 10))
        write_for(1);
    rp_disks_progress(disks, &p);
    *equal = p.equal_bytes;
    cr_assert_eq(p.done_bytes, p.sync_bytes);
    cut(epoch, NULL);
    check_agreement(epoch);
    cr_assert(guest_rests(WAIT_MS));
    cut(epoch + 1, NULL);
    check_agreement(epoch + 1);
    expect_equal_file();
    rp_disks_stop(disks);
    printf("%lu bytes of data sent, %lu bytes equal\n", data_bytes - before, p.equal_bytes);
}

Test(disk_sums, a_copy_that_holds_most_of_it_gets_the_rest)
{
    uint64_t epoch = 1, equal;

    fill_disk();
    keep_copy = true;
    reach = BLOCKS / 4;
    for (uint32_t block = RP_DISK_SUMS_BLOCK_MIN; block <= RP_DISK_SUMS_BLOCK_MAX; block *= 2, epoch += 2) {
        write_for(10);              /* which the copy does not hear of: a standby that was away, and ran the VM before */
        sum_copy(block, (uint32_t)(copy_bytes / block), epoch * 77);
        copy_with_sums(epoch, &equal);
        cr_assert_null(sums.disks[0].sums, "it was not taken");
        cr_assert_geq(equal, copy_bytes / 2, "blocks of %u bytes: nobody writes to three quarters of the disk", block);
        cr_assert_leq(equal, copy_bytes);
    }
    /* a list that ends in the middle of the disk */
    write_for(10);
    sum_copy(RP_DISK_SUMS_BLOCK_MIN, (uint32_t)(copy_bytes / RP_DISK_SUMS_BLOCK_MIN / 2), epoch);
    copy_with_sums(epoch, &equal);
    cr_assert_geq(equal, copy_bytes / 8);
    cr_assert_leq(equal, copy_bytes / 2);
}

/* Writes the next version of n blocks from `block` on. */
static void guest_writes_at(struct slot *s, uint32_t block, uint32_t n)
{
    cr_assert(!s->busy && n <= SPAN);
    s->block = block;
    s->n = n;
    for (uint32_t b = block; b < block + n; b++)
        pattern((uint64_t *)drv_at(&drv, s->at + 4096 + (b - block) * BLOCK), b, ++asked[b]);
    post(s, VIRTIO_BLK_T_OUT, block * (BLOCK / 512), n * BLOCK);
    drv_kick(&drv, 0);
}

/* The copy is ahead: it holds what was never committed, and the guest does that again. Written before the piece is read, the block is
 * equal, and is left out behind the write; written again, the copy follows. */
Test(disk_sums, a_copy_that_is_ahead_follows)
{
    enum { PER_SUM = RP_DISK_SUMS_BLOCK_MIN / BLOCK };

    fill_disk();
    keep_copy = true;
    for (uint32_t b = 0; b < 4 * PER_SUM; b++)
        pattern((uint64_t *)(void *)(copy + (uint64_t)b * BLOCK), b, 2);
    sum_copy(RP_DISK_SUMS_BLOCK_MIN, DISK_BYTES / RP_DISK_SUMS_BLOCK_MIN, 21);
    start_run(NULL);
    for (uint32_t b = 0; b < 2 * PER_SUM; b += SPAN)        /* two of the four */
        guest_writes_at(&slots[b / SPAN], b, SPAN);
    cr_assert(guest_rests(WAIT_MS));
    for (bool more = true; more;) {
        more = pull(64 << 10);
        guest_writes_at(&slots[0], PER_SUM + 3, 1);         /* skipped, or not yet */
        guest_writes_at(&slots[1], 3 * PER_SUM + 1, 2);     /* sent */
        cr_assert(guest_rests(WAIT_MS));
    }
    struct rp_disk_progress p;
    rp_disks_progress(disks, &p);
    cr_assert_geq(p.equal_bytes, DISK_BYTES - 3 * RP_DISK_SUMS_BLOCK_MIN);
    cr_assert_leq(p.equal_bytes, DISK_BYTES - 2 * RP_DISK_SUMS_BLOCK_MIN);
    cut(1, NULL);
    check_agreement(1);
    expect_equal_file();
    rp_disks_stop(disks);
}

/* A hole ends in the middle of a sum's block: what is left of that one travels, and the next ones are compared. */
Test(disk_sums, holes_between_blocks_that_are_equal)
{
    uint64_t equal, epoch = 1;
    int fd;

    fill_disk();
    fd = open(image, O_RDWR);
    cr_assert_eq(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1 << 20, 3 * RP_DISKS_BLOCK_BYTES), 0);
    if (lseek(fd, 1 << 20, SEEK_HOLE) != 1 << 20)
        cr_skip_test("the filesystem of /tmp has no holes");
    close(fd);
    for (uint32_t b = (1 << 20) / BLOCK; b < ((1 << 20) + 3 * RP_DISKS_BLOCK_BYTES) / BLOCK; b++)
        told[b] = asked[b] = 0;
    keep_copy = true;
    reach = 32;
    for (uint32_t block = RP_DISK_SUMS_BLOCK_MIN; block <= RP_DISK_SUMS_BLOCK_MAX; block *= 2, epoch += 2) {
        memset(copy + (1 << 20), 0x77, 3 * RP_DISKS_BLOCK_BYTES);
        sum_copy(block, DISK_BYTES / block, 4);
        copy_with_sums(epoch, &equal);
        cr_assert_geq(equal, DISK_BYTES - (1 << 20) - 2 * RP_DISK_SUMS_BLOCK_MAX, "blocks of %u bytes", block);
    }
}

/* What travels when nothing differs: the SYNC entry. What is zero on both sides counts as equal, too. */
Test(disk_sums, an_equal_copy_gets_nothing)
{
    uint64_t equal, before;

    fill_disk();
    int fd = open(image, O_WRONLY);
    static const uint8_t zeroes[DISK_BYTES / 4];
    cr_assert_eq(pwrite(fd, zeroes, sizeof(zeroes), 0), (ssize_t)sizeof(zeroes));
    close(fd);
    memset(copy, 0, sizeof(zeroes));
    for (uint32_t b = 0; b < BLOCKS / 4; b++)
        told[b] = asked[b] = 0;
    keep_copy = true;
    sum_copy(RP_DISK_SUMS_BLOCK_MIN, DISK_BYTES / RP_DISK_SUMS_BLOCK_MIN, 5);
    before = entries;
    start_run(NULL);
    unsigned pulls = 1;
    while (pull(1 << 20))
        pulls++;
    cr_assert_geq(pulls, DISK_BYTES >> 20, "the engine waits for a whole disk to be read");
    cr_assert_eq(entries, before);
    struct rp_disk_progress p;
    rp_disks_progress(disks, &p);
    cr_assert_eq(p.equal_bytes, DISK_BYTES);
    cut(1, NULL);
    expect_equal_file();
    rp_disks_stop(disks);
    /* the next run has no list, and brings all of it */
    keep_copy = false;
    copy_with_sums(2, &equal);
    cr_assert_eq(equal, 0);
}

/* Lists that are not the copy's, or none: nothing is left out because of them. */
Test(disk_sums, INV4_sums_of_another_disk_or_of_none)
{
    static const struct { uint32_t block_bytes, blocks; } impossible[] = {
        {0, 4}, {1, 4}, {4096, 4}, {3 * RP_DISK_SUMS_BLOCK_MIN, 4}, {2 * RP_DISK_SUMS_BLOCK_MAX, 4}, {1u << 31, 1},
        {RP_DISK_SUMS_BLOCK_MIN, RP_DISK_SUMS_BLOCKS_MAX + 1}, {RP_DISK_SUMS_BLOCK_MIN, UINT32_MAX},
    };
    uint64_t epoch = 1, equal;

    fill_disk();
    reach = BLOCKS / 4;
    for (unsigned i = 0; i < sizeof(impossible) / sizeof(impossible[0]); i++, epoch += 2) {
        struct rp_disk_sum_list *l = &sums.disks[0];

        *l = (struct rp_disk_sum_list){.block_bytes = impossible[i].block_bytes, .blocks = impossible[i].blocks, .sums = calloc(4, sizeof(*l->sums))};
        copy_with_sums(epoch, &equal);
        cr_assert_eq(equal, 0);
        rp_disk_sums_fini(&sums);
    }
    /* the right sums, but with another seed */
    sum_copy(RP_DISK_SUMS_BLOCK_MIN, DISK_BYTES / RP_DISK_SUMS_BLOCK_MIN, 1);
    sums.disks[0].seed = 2;
    copy_with_sums(epoch, &equal);
    cr_assert_eq(equal, 0);
    epoch += 2;
    /* more blocks than the disk has */
    sum_copy(RP_DISK_SUMS_BLOCK_MIN, DISK_BYTES / RP_DISK_SUMS_BLOCK_MIN, 3);
    sums.disks[0].sums = realloc(sums.disks[0].sums, 4096 * sizeof(struct rp_hash128));
    memset(sums.disks[0].sums + DISK_BYTES / RP_DISK_SUMS_BLOCK_MIN, 0xee, (4096 - DISK_BYTES / RP_DISK_SUMS_BLOCK_MIN) * sizeof(struct rp_hash128));
    sums.disks[0].blocks = 4096;
    keep_copy = true;
    copy_with_sums(epoch, &equal);
    cr_assert_gt(equal, 0);
}

/* A run that brings differences has no use for sums: they stay whose they are. */
Test(disk_sums, differences_do_without_sums)
{
    struct rp_disk_base have;
    uint64_t sizes[RP_DISK_SUMS_DISKS] = {0};

    start_run(NULL);
    while (pull(1 << 20))
        ;
    cut(1, NULL);
    rp_disks_release(disks, 1);
    rp_disks_stop(disks);
    have = last_sync;
    have.epoch = 1;
    cr_assert_not(rp_disks_whole(disks, &have, sizes));
    have.sync_id[3] ^= 1;
    cr_assert(rp_disks_whole(disks, &have, sizes));
    cr_assert_eq(sizes[0], DISK_BYTES);
    cr_assert_eq(sizes[1], 0);
    have.sync_id[3] ^= 1;
    sum_copy(RP_DISK_SUMS_BLOCK_MIN, 4, 1);
    start_run(&have);
    cr_assert_eq(pull(1 << 20), 0);
    cr_assert_eq(sync_base, 1);
    cr_assert_not_null(sums.disks[0].sums);
    rp_disks_stop(disks);
    rp_disk_sums_fini(&sums);
}

static void setup_odd(void) { make(DISK_BYTES - 3 * 512); }

/* The end of a disk that fills no block travels, whatever is said of it: a sum counts where both have the whole block. */
Test(odd, the_end_of_the_disk_travels, .init = setup_odd, .fini = teardown, .timeout = 60)
{
    uint64_t equal, tail = copy_bytes % RP_DISK_SUMS_BLOCK_MIN, at = copy_bytes - tail;
    int fd = open(image, O_WRONLY);

    for (uint64_t i = 0; i < copy_bytes; i++)
        copy[i] = (uint8_t)(i % 251 + 1);
    cr_assert_eq(pwrite(fd, copy, copy_bytes, 0), (ssize_t)copy_bytes);
    close(fd);
    /* The standby's disk is larger: its last block begins with our end, and goes on with what a piece before has left in the copy's memory. */
    uint8_t *larger = malloc(copy_bytes + RP_DISK_SUMS_BLOCK_MIN), *own = copy;
    memcpy(larger, copy, copy_bytes);
    memcpy(larger + copy_bytes, copy + copy_bytes - RP_DISKS_PIECE_BYTES, RP_DISK_SUMS_BLOCK_MIN);
    copy = larger;
    sum_copy(RP_DISK_SUMS_BLOCK_MIN, (uint32_t)(copy_bytes / RP_DISK_SUMS_BLOCK_MIN) + 1, 9);
    copy = own;
    free(larger);
    memset(copy + at, 0, tail);
    keep_copy = true;
    start_run(NULL);
    while (pull(1 << 20))
        ;
    struct rp_disk_progress p;
    rp_disks_progress(disks, &p);
    equal = p.equal_bytes;
    cr_assert_eq(equal, at);
    cr_assert_eq(data_bytes, tail);
    cut(1, NULL);
    rp_disks_stop(disks);
    uint8_t *have = malloc(copy_bytes);
    fd = open(image, O_RDONLY);
    cr_assert_eq(rp_read_all(fd, have, copy_bytes, 0), 0);
    cr_assert_eq(memcmp(have, copy, copy_bytes), 0);
    close(fd);
    free(have);
}
