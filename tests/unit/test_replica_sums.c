/* What a standby says that its disks hold (replica_sums.c, SUM-1 to SUM-5 in docs/disks.md): true whatever happens to the files. */
#include "tests/unit/replica_fixture.h"

#include <stdatomic.h>

TestSuite(sums, .init = setup, .fini = teardown, .timeout = 240);

static uint64_t disk_bytes[DISKS];      /* of the files, as the lists are to see them */

/* Between sessions: until all of the files is summed. */
static void await_sums(struct rp_replica *r)
{
    uint64_t want = 0;
    for (unsigned d = 0; d < DISKS; d++) {
        uint32_t block = rp_disk_sums_block_bytes(disk_bytes[d]);
        want += disk_bytes[d] / block * block;
    }
    for (unsigned ms = 0; ms < 60000 && status(r).summed_bytes != want; ms++)
        usleep(1000);
    cr_assert_eq(status(r).summed_bytes, want);
}

/* A session with the initial copy. */
static void synced(struct rp_replica *r)
{
    rp_replica_session(r, true);
    sync_up(r);
    rp_replica_session(r, false);
}

static uint64_t lent_blocks(const struct rp_disk_sums *s)
{
    uint64_t n = 0;
    for (unsigned d = 0; d < RP_DISK_SUMS_DISKS; d++)
        n += s->disks[d].blocks;
    return n;
}

/* Every sum that is lent is of the block as the file has it now. */
static void check_lent(const struct rp_disk_sums *s)
{
    static uint8_t block[RP_DISK_SUMS_BLOCK_MAX];
    for (unsigned d = 0; d < DISKS; d++) {
        const struct rp_disk_sum_list *l = &s->disks[d];
        int fd = open(paths[d], O_RDONLY);
        for (uint32_t i = 0; i < l->blocks; i++) {
            cr_assert_eq(rp_read_all(fd, block, l->block_bytes, (uint64_t)i * l->block_bytes), 0, "disk %u: a sum of block %u, which is not there", d, i);
            struct rp_hash128 h = rp_disk_block_sum(l, block);
            cr_assert(h.lo == l->sums[i].lo && h.hi == l->sums[i].hi, "disk %u: the sum of block %u is not the file's", d, i);
        }
        close(fd);
    }
    cr_assert_eq(s->disks[DISKS].blocks, 0u);
}

/* A session begins, and is lent what there is. */
static struct rp_disk_sums begin_session(struct rp_replica *r)
{
    struct rp_disk_sums s;
    rp_replica_session(r, true);
    rp_replica_lend(r, &s);
    check_lent(&s);
    return s;
}

static void files_of(uint64_t first, uint64_t second)
{
    disk_bytes[0] = first;
    disk_bytes[1] = second;
    for (unsigned d = 0; d < DISKS; d++) {
        int fd = open(paths[d], O_RDWR | O_CREAT, 0600);
        cr_assert_eq(ftruncate(fd, (off_t)disk_bytes[d]), 0);
        for (uint64_t at = 0; at + 8 <= disk_bytes[d] && at < (8u << 20); at += 4096)
            cr_assert_eq(pwrite(fd, &at, 8, (off_t)at), 8);
        close(fd);
    }
}

Test(sums, sums_are_of_whole_blocks_and_of_every_list_their_own)
{
    struct rp_replica *r;
    struct rp_disk_sums s;
    files_of(3 * RP_DISK_SUMS_BLOCK_MIN + 4097, 70000);
    r = must_open(NULL);
    rp_replica_lend(r, &s);
    cr_assert_eq(lent_blocks(&s), 0, "nothing is lent outside of a session");
    await_sums(r);
    s = begin_session(r);
    cr_assert_eq(s.disks[0].blocks, 3);
    cr_assert_eq(s.disks[0].block_bytes, RP_DISK_SUMS_BLOCK_MIN);
    cr_assert_eq(s.disks[1].blocks, 1);
    uint64_t seeds[2] = {s.disks[0].seed, s.disks[1].seed};
    cr_assert_neq(seeds[0], seeds[1]);
    rp_replica_close(r);
    r = must_open(NULL);
    await_sums(r);
    s = begin_session(r);
    cr_assert_neq(s.disks[0].seed, seeds[0]);
    rp_replica_close(r);
    cr_assert_eq(rp_disk_sums_block_bytes(64ull << 30), RP_DISK_SUMS_BLOCK_MIN);
    cr_assert_eq(rp_disk_sums_block_bytes((64ull << 30) + RP_DISK_SUMS_BLOCK_MIN), 2 * RP_DISK_SUMS_BLOCK_MIN);
    cr_assert_eq(rp_disk_sums_block_bytes(1ull << 50), RP_DISK_SUMS_BLOCK_MAX);
}

/* A list that is not finished is good as far as it goes, and goes on when the session that found it so has ended. */
Test(sums, a_list_that_is_finished_in_part_is_lent)
{
    unsigned in_part = 0;
    files_of(1u << 29, 64u << 20);
    for (unsigned trial = 0; trial < 200 && in_part < 3; trial++) {
        struct rp_replica *r = must_open(NULL);
        while (status(r).summed_bytes == 0)
            usleep(100);
        struct rp_disk_sums s = begin_session(r);
        uint64_t bytes = status(r).summed_bytes;
        if (bytes < disk_bytes[0]) {
            in_part++;
            cr_assert_eq(lent_blocks(&s) * RP_DISK_SUMS_BLOCK_MIN, bytes);
            usleep(20000);
            cr_assert_eq(status(r).summed_bytes, bytes, "what is lent grows");
            rp_replica_session(r, false);
            await_sums(r);
            s = begin_session(r);
            cr_assert_eq(lent_blocks(&s) * RP_DISK_SUMS_BLOCK_MIN, disk_bytes[0] + disk_bytes[1]);
        }
        rp_replica_close(r);
    }
    cr_assert_eq(in_part, 3, "every list was finished at once");
}

/* SUM-1: whatever changes a file, what was summed before is lent no more. Each change is made in a session: nothing is summed anew. */
Test(sums, SUM1_a_change_voids_the_lists)
{
    enum { DIRECT_WRITE, DIRECT_ZERO, GROWN, APPLIED, BEGUN, ROLLED_BACK, NCHANGES };
    disk_bytes[0] = disk_bytes[1] = DISK_BYTES;
    for (unsigned change_no = 0; change_no < NCHANGES; change_no++) {
        bool is_void = change_no <= APPLIED;
        struct rp_replica *r = must_open(NULL);
        struct rp_error err = {0};
        memset(model, 0, sizeof(model));
        header.number = 1;
        synced(r);
        await_sums(r);
        struct rp_disk_sums s = begin_session(r);
        cr_assert_eq(lent_blocks(&s), DISKS * 4);
        header.number = 2;
        if (change_no == DIRECT_WRITE || change_no == DIRECT_ZERO)
            another_vm();
        if (change_no == GROWN) {
            rp_disk_put_sync(&records, 0, DISK_BYTES + RP_DISK_SUMS_BLOCK_MIN, &base);
            disk_bytes[0] += RP_DISK_SUMS_BLOCK_MIN;
        } else if (change_no != APPLIED && change_no != ROLLED_BACK) {
            put_syncs(0);
        }
        if (change_no == DIRECT_ZERO)
            put(0, RP_DISK_KIND_ZERO, 4096, 512, NULL);
        else if (change_no != GROWN && change_no != BEGUN)
            put(0, RP_DISK_KIND_WRITE, 4096, 512, model[1]);
        if (change_no == APPLIED) {
            must_finish(r);
            settle(r);
        } else {
            cr_assert_eq(send(r, &err), 0, "%s", err.text);
        }
        rp_replica_drop(r);
        s = begin_session(r);
        cr_assert_eq(lent_blocks(&s), is_void ? 0 : DISKS * 4, "change %u", change_no);
        cr_assert_eq(status(r).summed_bytes, is_void ? 0 : DISKS * DISK_BYTES, "change %u", change_no);
        rp_replica_session(r, false);
        await_sums(r);          /* anew, when the session is over */
        s = begin_session(r);
        cr_assert_geq(lent_blocks(&s), DISKS * 4);
        rp_replica_close(r);
        for (unsigned d = 0; d < DISKS; d++) {
            unlink(paths[d]);
            unlink(marks[d]);
        }
        disk_bytes[0] = DISK_BYTES;
    }
}

/* A host whose writes to the first disk stop half-way while `shut`. */
static struct { _Atomic bool shut; _Atomic unsigned inside; } gate;

static int gate_write(void *ctx, int fd, const void *data, size_t len, uint64_t offset)
{
    char path[64], name[128];
    ssize_t n;
    (void)ctx;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    n = readlink(path, name, sizeof(name) - 1);
    name[n < 0 ? 0 : n] = 0;
    if (strcmp(name, paths[0]) != 0)
        return rp_durable_host.write(NULL, fd, data, len, offset);
    int rc = rp_durable_host.write(NULL, fd, data, len / 2, offset);
    atomic_fetch_add(&gate.inside, 1);
    while (atomic_load(&gate.shut))
        usleep(200);
    atomic_fetch_sub(&gate.inside, 1);
    return rc < 0 ? rc : rp_durable_host.write(NULL, fd, (const uint8_t *)data + len / 2, len - len / 2, offset + len / 2);
}

/* SUM-1, SUM-2: while a committed write waits, or is half done, nothing is summed and nothing is lent, session or not. */
Test(sums, SUM2_nothing_is_lent_while_the_journal_is_being_applied)
{
    struct rp_durable io = rp_durable_host;
    io.write = gate_write;
    disk_bytes[0] = disk_bytes[1] = DISK_BYTES;
    struct rp_replica *r = must_open(&io);
    synced(r);
    await_sums(r);
    struct rp_disk_sums s = begin_session(r);
    cr_assert_eq(lent_blocks(&s), DISKS * 4);
    atomic_store(&gate.shut, true);
    header.number = 2;
    put(0, RP_DISK_KIND_WRITE, 0, 4096, model[1] + 4096);
    put(0, RP_DISK_KIND_WRITE, 8192, 4096, model[1] + 4096);
    must_finish(r);
    while (!atomic_load(&gate.inside))
        usleep(200);
    rp_replica_session(r, false);
    usleep(120000);             /* longer than it takes to look whether all is applied */
    cr_assert_eq(status(r).summed_bytes, 0, "summed while a write is half done");
    s = begin_session(r);
    cr_assert_eq(lent_blocks(&s), 0);
    rp_replica_session(r, false);
    atomic_store(&gate.shut, false);
    await_sums(r);
    s = begin_session(r);
    cr_assert_eq(lent_blocks(&s), DISKS * 4);
    rp_replica_close(r);
}

/* SUM-3: between the lists and the SYNC that relies on them something was applied: refused, and nothing is touched. */
Test(sums, SUM3_a_sync_on_lists_that_are_old_is_refused)
{
    struct rp_replica *r = must_open(NULL);
    struct rp_error err = {0};
    disk_bytes[0] = disk_bytes[1] = DISK_BYTES;
    synced(r);
    await_sums(r);
    struct rp_disk_sums s = begin_session(r);
    cr_assert_eq(lent_blocks(&s), DISKS * 4);
    header.number = 2;
    change();
    must_finish(r);
    header.number = 3;
    put_syncs(0);
    cr_assert_eq(finish(r, &err), -ESTALE, "settled only by the SYNC");
    cr_assert(strstr(err.text, "have changed since the primary was told"), "%s", err.text);
    cr_assert(status(r).whole);
    cr_assert_eq(status(r).epoch, 2);
    put_syncs(2);
    must_finish(r);             /* differences rely on nothing that was lent */
    settle(r);
    cr_assert(equal(model));
    put_syncs(0);
    cr_assert_eq(finish(r, &err), -ESTALE, "what was lent was used up");

    rp_replica_session(r, false);
    rp_replica_session(r, true);        /* the next session, which asks for nothing */
    header.number = 4;
    put_syncs(0);
    whole_disks();
    must_finish(r);
    settle(r);
    rp_replica_session(r, false);
    await_sums(r);
    s = begin_session(r);
    cr_assert_eq(lent_blocks(&s), DISKS * 4);
    header.number = 5;
    put_syncs(0);
    change();                   /* the rest is equal, and does not come */
    must_finish(r);
    settle(r);
    cr_assert_eq(status(r).epoch, 5);
    cr_assert(equal(model));
    rp_replica_close(r);
}

/* SUM-4: what a host that cannot write reads is not what is on its disk. */
Test(sums, SUM4_after_a_failure_nothing_is_lent)
{
    static const char *const points[] = {"replica-write:1", "replica-sync:1"};
    disk_bytes[0] = disk_bytes[1] = DISK_BYTES;
    for (unsigned i = 0; i < 2; i++) {
        struct rp_replica *r = must_open(NULL);
        struct rp_error err = {0};
        synced(r);
        await_sums(r);
        rp_replica_session(r, true);
        fault(points[i]);
        header.number = 2;
        another_vm();
        put_syncs(0);
        whole_disks();
        cr_assert_eq(finish(r, &err), -EIO);
        fault("");
        rp_replica_session(r, false);
        usleep(50000);
        struct rp_disk_sums s = begin_session(r);
        cr_assert_eq(lent_blocks(&s), 0, "%s", points[i]);
        sync_up(r);             /* a whole copy is taken all the same */
        cr_assert(equal(model));
        rp_replica_close(r);
        for (unsigned d = 0; d < DISKS; d++)
            unlink(marks[d]);
    }
}

/* SUM-5: all of a disk need not be read before the VM is entered. */
Test(sums, SUM5_promoted_while_the_files_are_summed)
{
    unsigned early = 0;
    for (unsigned trial = 0; trial < 8; trial++) {
        struct rp_error err = {0};
        files_of(1u << 29, DISK_BYTES);
        struct rp_replica *r = must_open(NULL);
        rp_replica_session(r, true);
        header.number = 1;
        rp_disk_put_sync(&records, 0, 1u << 29, &base);
        rp_disk_put_sync(&records, 1, DISK_BYTES, &base);
        must_finish(r);
        rp_replica_session(r, false);
        while (status(r).summed_bytes == 0)
            usleep(100);
        early += status(r).summed_bytes < disk_bytes[0] / 4;
        cr_assert_eq(rp_replica_promote(r, 1, 5, &err), 0, "%s", err.text);
        cr_assert_eq(status(r).summed_bytes, 0);
        struct rp_disk_sums s = begin_session(r);
        cr_assert_eq(lent_blocks(&s), 0, "the VM writes to the disks");
        rp_replica_close(r);
        for (unsigned d = 0; d < DISKS; d++)
            unlink(marks[d]);
    }
    cr_assert_gt(early, 0, "every list was nearly finished at once");
}

/* Sessions of all kinds, one after the other, with the files being summed whenever there is a moment: whatever is lent is true. */
Test(sums, SUM1_what_is_lent_is_what_the_files_hold)
{
    struct rp_replica *r = must_open(NULL);
    struct rp_error err = {0};
    unsigned lent = 0, none = 0;
    disk_bytes[0] = disk_bytes[1] = DISK_BYTES;
    synced(r);
    for (unsigned session = 0; session < 400; session++) {
        static uint8_t before[DISKS][DISK_BYTES];
        usleep((useconds_t)rand_r(&seed) % 1500);
        struct rp_disk_sums s = begin_session(r);
        *(lent_blocks(&s) ? &lent : &none) += 1;
        if (!status(r).whole || rand_r(&seed) % 4 == 0) {
            header.number++;
            put_syncs(0);
            whole_disks();
            if (rand_r(&seed) % 2) {
                cr_assert_eq(send(r, &err), 0, "%s", err.text);
                rp_replica_drop(r);     /* it breaks off */
            } else {
                must_finish(r);
            }
        }
        for (int i = rand_r(&seed) % 4; i > 0 && status(r).whole; i--) {
            header.number++;
            memcpy(before, model, sizeof(model));
            for (int n = rand_r(&seed) % 6; n > 0; n--)
                change();
            if (rand_r(&seed) % 3 == 0) {
                cr_assert_eq(send(r, &err), 0);
                rp_replica_drop(r);
                memcpy(model, before, sizeof(model));
            } else {
                must_finish(r);
            }
        }
        rp_replica_session(r, false);
    }
    printf("%u sessions were lent lists, %u none\n", lent, none);
    cr_assert_gt(lent, 50);
    rp_replica_session(r, true);
    header.number++;
    put_syncs(0);
    whole_disks();
    must_finish(r);
    cr_assert_eq(rp_replica_promote(r, header.number, 9, &err), 0, "%s", err.text);
    cr_assert(equal(model));
    rp_replica_close(r);
}
