/*
 * A machine's private disks (vmm/disks.h) behind virtio-blk, on real files, without KVM: a guest writes blocks that say what
 * they are, an engine's calls are made by the test, and what a standby would hold is kept in `copy`. At every cut the copy
 * and what the guest was told must agree (DISK-1 to DISK-4).
 */
#include "tests/unit/disks_fixture.h"
#include "tests/unit/wide_blocks.h"

#include <poll.h>

TestSuite(disks, .init = setup, .fini = teardown, .timeout = 120);

Test(disks, the_initial_copy_is_made_while_the_guest_writes)
{
    write_for(60);
    start_run(NULL);
    while (pull(64 << 10))
        write_for(1);
    cr_assert_eq(syncs, 1);
    cr_assert_eq(sync_base, 0);
    cut(1, NULL);
    check_agreement(1);
    cr_assert(guest_rests(WAIT_MS));
    cut(2, NULL);
    check_agreement(2);
    expect_equal_file();
    rp_disks_stop(disks);
}

/* DISK-1: hundreds of cuts at random moments, with requests in every stage. */
Test(disks, DISK1_at_every_cut_disk_and_guest_agree)
{
    start_run(NULL);
    while (pull(1 << 20))
        ;
    cut(1, NULL);
    for (uint64_t epoch = 2; epoch < 400; epoch++) {
        write_for(1 + (unsigned)rand_r(&seed) % 4);
        if (rand_r(&seed) % 8 == 0)
            pull(0);
        cut(epoch, NULL);
        check_agreement(epoch);
        rp_disks_release(disks, epoch - (uint64_t)rand_r(&seed) % 3);
    }
    cr_assert(guest_rests(WAIT_MS));
    cut(400, NULL);
    expect_equal_file();
    rp_disks_stop(disks);
}

/* Requests in flight at the last cut are issued again by whoever enters the epoch, on the copy. */
Test(disks, a_takeover_at_any_cut_loses_and_doubles_nothing)
{
    struct rp_sections state = {0};
    struct rp_section one;
    struct rp_error err = {0};
    char other[112];
    size_t pos = 0;
    int fd;

    start_run(NULL);
    while (pull(1 << 20))
        ;
    cut(1, NULL);
    write_for(20);
    guest_writes(SLOTS);
    cut(2, &state);
    check_agreement(2);
    /* the primary is gone; its file may have more than the copy */
    pthread_mutex_lock(&board.lock);
    blk.ops->destroy(blk.dev);
    snprintf(other, sizeof(other), "%s/other", dir);
    fd = open(other, O_CREAT | O_RDWR, 0600);
    cr_assert_eq(rp_durable_host.write(NULL, fd, copy, copy_bytes, 0), 0);
    close(fd);
    cr_assert_eq(create(other, false, &err), 0, "%s", err.text);
    cr_assert(rp_sections_next(&state, &pos, &one));
    cr_assert_eq(blk.ops->load(blk.dev, &one, &err), 0, "%s", err.text);
    blk.ops->start(blk.dev);
    pthread_mutex_unlock(&board.lock);
    cr_assert(guest_rests(WAIT_MS), "a request is lost");
    fd = open(other, O_RDONLY);
    for (uint32_t b = 0; b < BLOCKS; b++) {
        uint8_t p[BLOCK];

        cr_assert_eq(rp_read_all(fd, p, BLOCK, (uint64_t)b * BLOCK), 0);
        cr_assert(is(p, b, asked[b]), "block %u", b);
    }
    close(fd);
    rp_sections_fini(&state);
}

/* DISK-2: many writes to the same few sectors at once: whatever the disk ends with, the copy does. */
Test(disks, DISK2_overlapping_writes_end_the_same_on_both_sides)
{
    start_run(NULL);
    while (pull(1 << 20))
        ;
    cut(1, NULL);
    for (unsigned round = 0; round < 200; round++) {
        for (unsigned i = 0; i < SLOTS; i++) {
            uint32_t sectors = 1 + (uint32_t)rand_r(&seed) % 8;

            memset(drv_at(&drv, slots[i].at + 4096), rand_r(&seed), sectors * 512);
            slots[i].n = 0;
            post(&slots[i], VIRTIO_BLK_T_OUT, (uint64_t)rand_r(&seed) % 16, sectors * 512);
        }
        drv_kick(&drv, 0);
        cr_assert(guest_rests(WAIT_MS));
        cut(2 + round, NULL);
        rp_disks_release(disks, 2 + round);
        expect_equal_file();
    }
    rp_disks_stop(disks);
}

/* Nobody commits: what is kept stays within the bound, requests wait, and go on when the commit comes. */
static void fill_up(uint64_t *epoch)
{
    struct rp_disk_progress p;
    uint64_t total = 0;

    while (total < 4 * RP_DISKS_BOUND_BYTES) {
        guest_writes(SLOTS);
        uint64_t before = data_bytes;
        if (!guest_rests(400))
            break;
        cut((*epoch)++, NULL);
        total += data_bytes - before;
    }
    rp_disks_progress(disks, &p);
    cr_assert_leq(total, RP_DISKS_BOUND_BYTES + SLOTS * SPAN * BLOCK, "%lu bytes were kept", total);
    cr_assert_geq(total, RP_DISKS_BOUND_BYTES / 2);
    cr_assert_not(guest_rests(50), "the guest should wait");
    cut((*epoch)++, NULL);
    check_agreement(*epoch - 1);
}

Test(disks, DISK3_uncommitted_writes_are_bounded)
{
    uint64_t epoch = 2;
    eventfd_t n;

    start_run(NULL);
    while (pull(1 << 20))
        ;
    cut(1, NULL);
    (void)eventfd_read(output_fd, &n);
    fill_up(&epoch);
    cr_assert_eq(eventfd_read(output_fd, &n), 0, "a reason to cut was not told");
    rp_disks_release(disks, epoch - 1);
    cr_assert(guest_rests(WAIT_MS), "still waiting after the commit");
    cut(epoch, NULL);
    expect_equal_file();
    epoch++;
    rp_disks_release(disks, epoch - 1);
    fill_up(&epoch);
    rp_disks_stop(disks);
    cr_assert(guest_rests(WAIT_MS), "still waiting without a standby (INV-5)");
}

/* DISK-4: a standby that is lost and comes back gets what it lacks, not more than the blocks that changed. */
Test(disks, DISK4_a_returning_copy_gets_what_it_lacks)
{
    static uint8_t held[DISK_BYTES];
    struct rp_disk_base have = {.epoch = 0};
    uint64_t epoch = 1;
    unsigned differences = 0;

    reach = BLOCKS / 8;
    for (unsigned run = 0; run < 16; run++) {
        uint64_t before = data_bytes, holds = 0;
        unsigned epochs = 1 + (unsigned)rand_r(&seed) % 6, commits = (unsigned)rand_r(&seed) % (epochs + 1);

        start_run(&have);
        while (pull(256 << 10))
            write_for(rand_r(&seed) % 3 == 0);
        if (have.epoch) {
            differences++;
            cr_assert(sync_base && sync_base <= have.epoch, "the copy of epoch %lu was not believed", have.epoch);
            cr_assert_lt(data_bytes - before, DISK_BYTES / 2, "most of it came again");
        } else {
            cr_assert_eq(sync_base, 0);
        }
        for (unsigned i = 0; i < epochs; i++, epoch++) {
            write_for(2);
            cut(epoch, NULL);
            check_agreement(epoch);
            if (i < commits)
                rp_disks_release(disks, epoch);
            if (commits && (i < commits || (i == commits && run % 2))) {    /* run % 2: the acknowledgement was lost */
                holds = epoch;
                memcpy(held, copy, copy_bytes);
            }
        }
        write_for(2);
        rp_disks_stop(disks);
        write_for(3);
        memcpy(copy, held, copy_bytes);
        have = last_sync;
        have.epoch = holds;
        if (!holds)
            memset(&have, 0, sizeof(have));
    }
    cr_assert_gt(differences, 3);
    have.sync_id[0] ^= 1;       /* a copy of another life */
    start_run(&have);
    while (pull(1 << 20))
        ;
    cr_assert_eq(sync_base, 0);
    cr_assert(guest_rests(WAIT_MS));
    cut(epoch, NULL);
    expect_equal_file();
    rp_disks_stop(disks);
}

static void setup_sparse(void) { make(4ull << 30); }

/* Holes are not read, and travel as a few entries. */
Test(sparse, holes_cost_nothing, .init = setup_sparse, .fini = teardown, .timeout = 60)
{
    int fd = open(image, O_WRONLY);

    cr_assert_eq(pwrite(fd, "here", 4, 1ll << 31), 4);
    close(fd);
    free(copy);
    copy = NULL;        /* not kept: only counted */
    start_run(NULL);
    struct rp_buf out = {0};
    struct rp_error err = {0};
    while (rp_disks_pull(disks, &out, 1 << 20, &err) > 0)
        ;
    cr_assert_lt(out.len, 1u << 20, "%zu bytes for an empty disk", out.len);
    rp_buf_fini(&out);
    rp_disks_stop(disks);
}

static void segment(struct slot *s, uint32_t type, uint64_t sector, uint32_t sectors)
{
    uint8_t *p = drv_at(&drv, s->at + 4096);

    rp_st64(p, sector);
    rp_st32(p + 8, sectors);
    rp_st32(p + 12, 0);
    s->n = 0;
    post(s, type, 0, 16);
    drv_kick(&drv, 0);
    cr_assert(guest_rests(WAIT_MS));
    cr_assert_eq(*(uint8_t *)drv_at(&drv, s->at + 64), VIRTIO_BLK_S_OK, "request of type %u", type);
}

/* The guest's sectors have 512 bytes whatever the device under them has. */
Test(disks, a_device_of_larger_blocks_zeroes_and_discards_sectors)
{
    uint8_t bytes[BLOCK], want[BLOCK];
    struct rp_error err = {0};
    char path[32];
    int file = open(image, O_RDWR | O_CLOEXEC), fd = wide_blocks(file);

    close(file);
    if (fd < 0)
        cr_skip_test("no loop device of 4 KiB blocks: %s", strerror(errno));
    memset(want, 0x5a, BLOCK);
    cr_assert_eq(rp_durable_host.write(NULL, fd, want, BLOCK, 0), 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    pthread_mutex_lock(&board.lock);
    blk.ops->destroy(blk.dev);
    cr_assert_eq(create(path, false, &err), 0, "%s", err.text);
    drv_up(&drv, &board, SLOT, 1ull << VIRTIO_RING_F_EVENT_IDX);
    blk.ops->start(blk.dev);
    pthread_mutex_unlock(&board.lock);
    segment(&slots[0], VIRTIO_BLK_T_DISCARD, 5, 1);
    segment(&slots[0], VIRTIO_BLK_T_WRITE_ZEROES, 1, 2);
    memset(want + 512, 0, 1024);
    cr_assert_eq(rp_read_all(fd, bytes, BLOCK, 0), 0);
    cr_assert_eq(memcmp(bytes, want, 5 * 512), 0);      /* what was discarded may be either */
    cr_assert_eq(memcmp(bytes + 6 * 512, want + 6 * 512, 2 * 512), 0);
    close(fd);
}

/* R5: a disk that was protected is not used again by accident. */
Test(disks, R5_a_protected_disk_is_marked)
{
    struct rp_error err = {0};
    struct rp_disk_mark m;

    start_run(NULL);
    cr_assert_eq(rp_disk_mark_read(mark, &m, &err), 0, "%s", err.text);
    cr_assert_eq(m.state, RP_DISK_ACTIVE);
    cr_assert_eq(m.term, 3);
    rp_disks_stop(disks);
    pthread_mutex_lock(&board.lock);
    blk.ops->destroy(blk.dev);
    cr_assert_eq(create(image, false, &err), -ESTALE);
    cr_assert(strstr(err.text, "may have gone on at its standby"), "%s", err.text);
    cr_assert_eq(create(image, true, &err), 0, "%s", err.text);
    pthread_mutex_unlock(&board.lock);
    start_run(NULL);
    rp_disks_stop(disks);
    rp_disks_ended(disks);
    cr_assert_eq(access(mark, F_OK), -1);
}

/* A copy of a disk that cannot be marked is not begun. */
Test(disks, without_a_mark_no_protection)
{
    struct rp_disk_run run = {.term = 3};
    struct rp_error err = {0};
    uint8_t id[16] = {7};

    setenv("RP_FAULT", "disk-mark:1", 1);
    rp_fault_reload();
    cr_assert_eq(rp_disks_start(disks, &run, id, "pump", &err), -EIO);
    cr_assert(strstr(err.text, "private disk 0 cannot be protected"), "%s", err.text);
    unsetenv("RP_FAULT");
    rp_fault_reload();
}

/* --- shared storage --- */

static void setup_shared(void)
{
    shared = true;
    make(DISK_BYTES);
}
TestSuite(shared, .init = setup_shared, .fini = teardown, .timeout = 120);

/* Is the block on the storage what the guest asked for last, or what it was told of before? A write that is under way may be seen by half. */
static void check_storage(bool told_only)
{
    static uint8_t have[DISK_BYTES];
    uint64_t end = rp_clock_ns() + WAIT_MS * 1000000ull;
    int fd = open(image, O_RDONLY);

    cr_assert_eq(rp_read_all(fd, have, sizeof(have), 0), 0);
    for (uint32_t b = 0; b < BLOCKS; b++) {
        uint8_t *p = have + (uint64_t)b * BLOCK;

        while (!told_only && !is(p, b, told[b]) && !is(p, b, asked[b]) && rp_clock_ns() < end)
            cr_assert_eq(rp_read_all(fd, p, BLOCK, (uint64_t)b * BLOCK), 0);
        cr_assert(is(p, b, told[b]) || (!told_only && is(p, b, asked[b])), "block %u: told %x, asked %x, storage 0x%lx", b, told[b], asked[b],
                  rp_ld64(p));
    }
    close(fd);
}

static bool output_waits(void)
{
    struct pollfd p = {.fd = output_fd, .events = POLLIN};
    eventfd_t n;

    return poll(&p, 1, WAIT_MS) == 1 && eventfd_read(output_fd, &n) == 0;
}

/* INV-1, DISK-5: nothing of an epoch is on the storage before it is released; then it is, and only then the guest is told. */
Test(shared, INV1_writes_wait_for_the_commit)
{
    eventfd_t n;

    write_for(20);
    cr_assert(guest_rests(WAIT_MS), "an open gate holds nothing");
    check_storage(true);
    rp_disks_hold(disks, true);
    guest_writes(10);
    cr_assert(guest_rests(WAIT_MS), "held from the next cut on only");
    cut(1, NULL);
    rp_disks_release(disks, 1);
    for (uint64_t epoch = 2; epoch < 40; epoch++) {
        (void)eventfd_read(output_fd, &n);
        guest_writes(12);
        cr_assert_not(guest_rests(20), "told before the commit");
        check_storage(true);
        cr_assert(output_waits(), "a write that waits is a reason to cut");
        cut(epoch, NULL);
        rp_disks_release(disks, epoch - 1);
        cr_assert_not(guest_rests(20), "told before the commit");
        check_storage(true);
        rp_disks_release(disks, epoch);
        cr_assert(guest_rests(WAIT_MS), "not told after the commit");
        check_storage(true);
    }
    guest_writes(12);
    cr_assert_not(guest_rests(20));
    rp_disks_hold(disks, false);
    cr_assert(guest_rests(WAIT_MS), "waits although nobody stands by any more");
    check_storage(true);
}

/* DISK-6: a read neither waits for the commit nor passes the writes that do. */
Test(shared, a_read_sees_the_writes_that_wait)
{
    unsigned seen = 0;

    write_for(20);
    cr_assert(guest_rests(WAIT_MS));
    rp_disks_hold(disks, true);
    cut(1, NULL);
    rp_disks_release(disks, 1);
    for (uint64_t epoch = 2; epoch < 30; epoch++) {
        guest_writes(SLOTS / 2);
        cr_assert_not(guest_rests(5), "told before the commit");
        for (uint32_t block = 0; block < 64; block += SPAN) {
            const uint8_t *p = guest_reads(block, SPAN);

            cr_assert_not_null(p);
            for (uint32_t b = block; b < block + SPAN; b++, p += BLOCK) {
                /* What is being discarded may read as either. */
                cr_assert(is(p, b, asked[b]) || (asked[b] & ZERO && is(p, b, told[b])), "epoch %lu, block %u: asked %x, told %x, read 0x%lx", epoch, b,
                          asked[b], told[b], rp_ld64(p));
                seen += asked[b] != told[b];
            }
        }
        check_storage(true);
        cut(epoch, NULL);
        rp_disks_release(disks, epoch);
        cr_assert(guest_rests(WAIT_MS), "not told after the commit");
        check_storage(true);
    }
    cr_assert_gt(seen, 100u);
}

/* The primary dies with writes waiting, released and at the host: who enters the newest epoch completes them, once each. */
Test(shared, a_takeover_issues_what_was_in_flight)
{
    struct rp_error err = {0};

    rp_disks_hold(disks, true);
    cut(1, NULL);
    for (uint64_t epoch = 2; epoch < 30; epoch++) {
        struct rp_sections state = {0};
        struct rp_section one;
        size_t pos = 0;

        guest_writes(SLOTS / 2);
        cut(epoch, NULL);
        guest_writes(SLOTS / 4);
        if (rand_r(&seed) % 2)
            rp_disks_release(disks, epoch);
        usleep((useconds_t)rand_r(&seed) % 2000);
        epoch++;
        cut(epoch, &state);         /* the newest epoch the standby has; the primary learns of it, or does not */
        if (rand_r(&seed) % 2)
            rp_disks_release(disks, epoch);
        check_storage(false);
        usleep((useconds_t)rand_r(&seed) % 500);
        check_storage(false);
        pthread_mutex_lock(&board.lock);
        blk.ops->destroy(blk.dev);
        pthread_mutex_unlock(&board.lock);
        check_storage(false);
        pthread_mutex_lock(&board.lock);
        rp_disks_resume(disks);
        cr_assert_eq(create(image, false, &err), 0, "%s", err.text);
        cr_assert(rp_sections_next(&state, &pos, &one));
        cr_assert_eq(blk.ops->load(blk.dev, &one, &err), 0, "%s", err.text);
        blk.ops->start(blk.dev);
        pthread_mutex_unlock(&board.lock);
        rp_disks_release(disks, epoch + 1);
        cr_assert(guest_rests(WAIT_MS), "a request is lost");
        check_storage(true);
        epoch++;
        cut(epoch, NULL);
        rp_disks_release(disks, epoch);
        rp_sections_fini(&state);
    }
}

/* INV-3: at the lease's deadline nothing goes out any more, and a switchover leaves nothing behind at the host. */
Test(shared, INV3_no_write_past_the_deadline_or_after_the_storage_was_given_up)
{
    struct rp_error err = {0};

    rp_disks_deadline(disks, rp_clock_read(CLOCK_BOOTTIME));
    guest_writes(8);
    cr_assert_not(guest_rests(30));
    check_storage(true);
    rp_disks_deadline(disks, rp_clock_read(CLOCK_BOOTTIME) + 60000000000ull);
    cr_assert(guest_rests(WAIT_MS));
    check_storage(true);
    guest_writes(8);
    cr_assert_eq(rp_disks_storage(disks, false, &err), 0);
    int fd = open(image, O_RDWR);
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    cr_assert_eq(fcntl(fd, F_OFD_SETLK, &fl), 0, "still locked");
    check_storage(false);
    guest_writes(8);
    usleep(20000);
    cr_assert_eq(rp_disks_storage(disks, true, &err), -EBUSY);
    close(fd);
    cr_assert_eq(rp_disks_storage(disks, true, &err), 0, "%s", err.text);
    cr_assert(guest_rests(WAIT_MS));
    check_storage(true);
}
