/* A standby's copies of disks, on real files: whole epochs whatever happens (docs/disks.md, R1 to R7). */
#include "tests/unit/replica_fixture.h"
#include "tests/unit/wide_blocks.h"

TestSuite(replica, .init = setup, .fini = teardown, .timeout = 240);

/* --- the straight way --- */

Test(replica, R1_epochs_count_at_their_commit_and_reach_the_files)
{
    struct rp_replica *r = must_open(NULL);
    struct rp_error err = {0};
    cr_assert_not(status(r).whole);
    sync_up(r);
    cr_assert(status(r).whole);
    cr_assert_eq(status(r).epoch, 1);
    for (header.number = 2; header.number <= EPOCHS; header.number++) {
        for (int i = rand_r(&seed) % 12; i > 0; i--)
            change();
        must_finish(r);
        cr_assert_eq(status(r).epoch, header.number);
    }
    header.number = EPOCHS;
    cr_assert_eq(rp_replica_promote(r, EPOCHS - 1, 4, &err), -ESTALE, "not the epoch of RAM");
    cr_assert_eq(rp_replica_promote(r, EPOCHS, 4, &err), 0, "%s", err.text);
    cr_assert(equal(model));
    rp_replica_close(r);

    struct rp_disk_mark m;
    cr_assert_eq(rp_disk_mark_read(marks[1], &m, &err), 0, "%s", err.text);
    cr_assert_eq(m.state, RP_DISK_ACTIVE);
    cr_assert_eq(m.term, 4);
    cr_assert_eq(m.epoch, EPOCHS);
    cr_assert_eq(m.disk, 1);
    cr_assert_eq(rp_disk_mark_check(paths[1], marks[1], &err), -ESTALE, "R5");
    cr_assert(strstr(err.text, "may have gone on at its standby"), "%s", err.text);
    cr_assert_eq(access(journal, F_OK), -1);
}

/* An epoch that is dropped leaves nothing, however much of it came. */
Test(replica, a_dropped_epoch_leaves_nothing)
{
    struct rp_replica *r = must_open(NULL);
    struct rp_error err = {0};
    sync_up(r);
    for (header.number = 2; header.number < 20; header.number++) {
        static uint8_t before[DISKS][DISK_BYTES];
        memcpy(before, model, sizeof(model));
        for (unsigned i = 0; i < 10; i++)
            change();
        cr_assert_eq(send(r, &err), 0);
        rp_replica_drop(r);
        memcpy(model, before, sizeof(model));
        for (int i = rand_r(&seed) % 3; i > 0; i--)
            change();
        must_finish(r);
    }
    header.number--;
    cr_assert_eq(rp_replica_promote(r, header.number, 0, &err), 0, "%s", err.text);
    cr_assert(equal(model));
    rp_replica_close(r);
}

/* A journal that is far smaller than what travels: the receiver waits for the files, and goes on. */
Test(replica, INV5_the_journal_goes_round_and_round)
{
    struct rp_replica *r = must_open(NULL);
    struct rp_error err = {0};
    sync_up(r);
    for (header.number = 2; header.number < 120; header.number++) {
        for (unsigned i = 0; i < 40; i++)
            change();
        must_finish(r);
    }
    header.number--;
    /* more than the journal ever holds */
    for (unsigned i = 0; i < 8; i++)
        put(0, RP_DISK_KIND_WRITE, 0, DISK_BYTES, model[0]);
    header.number++;
    cr_assert_eq(finish(r, &err), -EFBIG);
    cr_assert(strstr(err.text, "more than its 1 MiB"), "%s", err.text);
    header.number--;
    cr_assert_eq(rp_replica_promote(r, header.number, 0, &err), 0, "%s", err.text);
    cr_assert(equal(model));
    rp_replica_close(r);
}

/* Restarted without a crash: it is whole, a primary may build upon it, differences suffice. */
Test(replica, a_standby_that_returns_takes_differences)
{
    struct rp_replica *r = must_open(NULL);
    struct rp_error err = {0};
    sync_up(r);
    header.number = 2;
    change();
    must_finish(r);
    rp_replica_close(r);
    r = must_open(NULL);
    struct rp_replica_status s = status(r);
    cr_assert(s.whole);
    cr_assert_eq(s.base.epoch, 2);
    cr_assert_eq(memcmp(s.base.sync_id, base.sync_id, sizeof(base.sync_id)), 0);
    cr_assert(equal(model));

    header.number = 9;
    put_syncs(2);
    change();
    change();
    must_finish(r);
    cr_assert_eq(status(r).epoch, 9);
    settle(r);
    cr_assert(equal(model));
    base.sync_id[0] ^= 1;
    header.number = 10;
    put_syncs(9);
    cr_assert_eq(finish(r, &err), -ESTALE);
    cr_assert(strstr(err.text, "since epoch 9"), "%s", err.text);
    cr_assert(status(r).whole, "nothing was touched");
    rp_replica_close(r);
}

/* Nothing of what is held is touched before the sync is committed: it can be gone on from until then, and after a crash. */
Test(replica, R4_a_sync_that_fits_the_journal_leaves_what_is_held)
{
    struct rp_replica *r = must_open(NULL);
    struct rp_error err = {0};
    sync_up(r);
    for (unsigned i = 0; i < 3; i++) {
        header.number = 5;
        header.term = 4;
        base.sync_id[0] = 0x33;
        put_syncs(0);
        put(0, RP_DISK_KIND_WRITE, 0, 4096, model[1]);
        cr_assert_eq(send(r, &err), 0, "%s", err.text);
        cr_assert(status(r).whole);
        cr_assert_eq(status(r).epoch, 1);
        if (i == 1) {           /* it dies */
            rp_replica_close(r);
            r = must_open(NULL);
        } else {
            rp_replica_drop(r);
        }
        cr_assert_eq(status(r).base.sync_id[0], 0x5a);
        cr_assert(equal(model));
    }
    header.term = 3;            /* R6, from its first word on */
    put_syncs(0);
    cr_assert_eq(finish(r, &err), -ESTALE);
    header.term = 4;
    put_syncs(0);
    put(0, RP_DISK_KIND_WRITE, 0, 4096, model[1]);
    must_finish(r);
    rp_replica_close(r);
    r = must_open(NULL);
    memcpy(model[0], model[1], 4096);
    cr_assert(equal(model));
    cr_assert_eq(status(r).base.sync_id[0], 0x33, "the sync id is the commit's");
    cr_assert_eq(status(r).epoch, 5);
    put_syncs(0);
    put(0, RP_DISK_KIND_WRITE, 0, 4096, model[1] + 8192);
    header.number = 6;
    cr_assert_eq(send(r, &err), 0, "%s", err.text);
    rp_replica_drop(r);
    cr_assert_eq(rp_replica_promote(r, 5, 9, &err), 0, "%s", err.text);
    cr_assert(equal(model));
    rp_replica_close(r);
}

/* Larger than the journal: what came first goes on to the files, and nothing is lost of it. */
Test(replica, R4_a_sync_that_outgrows_the_journal_goes_straight_to_the_files)
{
    struct rp_replica *r = must_open(NULL);
    struct rp_error err = {0};
    sync_up(r);
    header.number = 5;
    put_syncs(0);
    for (unsigned i = 0; i < 200; i++) {
        change();
        if (i % 40 == 20)
            whole_disks();
    }
    cr_assert_eq(send(r, &err), 0, "%s", err.text);
    cr_assert_not(status(r).whole);
    cr_assert_eq(rp_replica_commit(r, &header, &err), 0, "%s", err.text);
    cr_assert(equal(model));
    cr_assert_eq(status(r).epoch, 5);
    rp_replica_close(r);
    r = must_open(NULL);
    cr_assert(status(r).whole);
    cr_assert(equal(model));
    rp_replica_close(r);
}

Test(replica, R4_a_sync_that_did_not_end_is_of_no_use)
{
    struct rp_replica *r = must_open(NULL);
    struct rp_error err = {0};
    sync_up(r);
    header.number = 5;
    put_syncs(0);
    for (unsigned i = 0; i < 3; i++)    /* more than the journal holds */
        whole_disks();
    put(0, RP_DISK_KIND_WRITE, 0, 4096, model[1]);
    cr_assert_eq(send(r, &err), 0);
    cr_assert_not(status(r).whole);
    rp_replica_drop(r);
    cr_assert_not(status(r).whole);
    cr_assert_eq(rp_replica_promote(r, 1, 9, &err), -ESTALE);
    cr_assert(strstr(err.text, "middle of a sync"), "%s", err.text);
    header.number = 6;
    put(0, RP_DISK_KIND_WRITE, 0, 512, model[0]);
    cr_assert_eq(finish(r, &err), -ESTALE, "no base");
    cr_assert_eq(finish(r, &err), -EINVAL, "an epoch without disks");
    rp_replica_close(r);
    cr_assert_eq(rp_disk_mark_check(paths[0], marks[0], &err), -ESTALE);
    cr_assert(strstr(err.text, "first sync did not end"), "%s", err.text);
    r = must_open(NULL);
    cr_assert_not(status(r).whole);
    sync_up(r);
    cr_assert(status(r).whole);
    rp_replica_close(r);
    cr_assert_eq(rp_disk_mark_check(paths[0], marks[0], &err), -ESTALE, "a replica is no VM's disk");
}

Test(replica, R5_the_old_primarys_disk_is_synced_anew)
{
    struct rp_disk_mark m = {.state = RP_DISK_ACTIVE, .term = 3, .epoch = 40, .vm_name = "pump"};
    struct rp_error err = {0};
    memset(m.vm_id, 7, sizeof(m.vm_id));
    for (unsigned i = 0; i < DISKS; i++) {
        m.disk = i;
        cr_assert_eq(rp_disk_mark_write(&rp_durable_host, marks[i], &m, &err), 0, "%s", err.text);
    }
    struct rp_replica *r = must_open(NULL);
    cr_assert_not(status(r).whole);
    cr_assert_eq(status(r).base.epoch, 0);
    header.number = 1;
    header.term = 2;        /* R6 */
    put_syncs(0);
    cr_assert_eq(finish(r, &err), -ESTALE);
    cr_assert(strstr(err.text, "the primary is the stale one"), "%s", err.text);
    cr_assert_eq(rp_disk_mark_read(marks[0], &m, &err), 0);
    cr_assert_eq(m.state, RP_DISK_ACTIVE, "untouched");
    header.term = 4;
    sync_up(r);
    cr_assert(equal(model));
    rp_replica_close(r);
}

/* A file without a mark that holds anything is somebody's; what holds nothing, what is a copy already, and what is given away is taken. */
Test(replica, R7_a_file_that_holds_something_is_not_overwritten)
{
    struct rp_replica *r = NULL;
    struct rp_error err = {0};
    struct rp_replica_config cfg = {.ndisks = 1, .disks = {{.path = paths[0]}}, .journal_bytes = RING};
    int fd = open(paths[0], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(fd >= 0 && ftruncate(fd, DISK_BYTES) == 0);
    cr_assert_eq(rp_replica_open(&cfg, &r, &err), 0, "all holes: %s", err.text);
    rp_replica_close(r);
    cr_assert_eq(pwrite(fd, "somebody's", 10, DISK_BYTES - 10), 10);
    cr_assert_eq(rp_replica_open(&cfg, &r, &err), -EEXIST);
    cr_assert(err.exit == RP_EXIT_REFUSED && strstr(err.text, "overwrite") && strstr(err.text, paths[0]), "%s", err.text);
    char kept[10];
    cr_assert(pread(fd, kept, 10, DISK_BYTES - 10) == 10 && memcmp(kept, "somebody's", 10) == 0);
    cr_assert_eq(access(marks[0], F_OK), -1);
    cfg.disks[0].overwrite = true;
    cr_assert_eq(rp_replica_open(&cfg, &r, &err), 0, "%s", err.text);
    rp_replica_close(r);
    cfg.disks[0].overwrite = false;
    struct rp_disk_mark m = {.state = RP_DISK_ACTIVE};
    cr_assert_eq(rp_disk_mark_write(&rp_durable_host, marks[0], &m, &err), 0, "%s", err.text);
    cr_assert_eq(rp_replica_open(&cfg, &r, &err), 0, "marked: %s", err.text);
    rp_replica_close(r);
    close(fd);
}

Test(replica, both_sides_must_agree_what_is_private)
{
    struct rp_replica_config cfg = {.ndisks = 2, .disks = {{.path = paths[0]}, {.path = NULL}}, .journal_bytes = RING};
    struct rp_replica *r, *second;
    struct rp_error err = {0};
    cr_assert_eq(rp_replica_open(&cfg, &r, &err), 0, "%s", err.text);
    header.number = 1;
    put_syncs(0);
    cr_assert_eq(finish(r, &err), -EINVAL);
    cr_assert(strstr(err.text, "sends its writes, but here it is not private"), "%s", err.text);
    cr_assert_eq(open_replica(NULL, &second, &err), -EBUSY);
    cr_assert(strstr(err.text, "locked by another VM or standby"), "%s", err.text);
    rp_replica_close(r);
    r = must_open(NULL);
    rp_disk_put_sync(&records, 0, DISK_BYTES, &base);
    cr_assert_eq(finish(r, &err), -EINVAL);
    cr_assert(strstr(err.text, "is it private on both sides"), "%s", err.text);
    rp_replica_close(r);
}

Test(replica, INV4_writes_beyond_the_disk_are_refused)
{
    struct rp_replica *r = must_open(NULL);
    struct rp_error err = {0};
    sync_up(r);
    header.number = 2;
    put(1, RP_DISK_KIND_WRITE, DISK_BYTES - 512, 1024, model[1]);
    cr_assert_eq(finish(r, &err), -EBADMSG);
    put(1, RP_DISK_KIND_ZERO, 1ull << 62, 512, NULL);
    cr_assert_eq(finish(r, &err), -EBADMSG);
    put(7, RP_DISK_KIND_ZERO, 0, 512, NULL);
    cr_assert_eq(finish(r, &err), -EINVAL);
    put_syncs(0);
    put_syncs(0);
    cr_assert_eq(finish(r, &err), -EBADMSG);
    cr_assert(equal(model));
    rp_replica_close(r);
}

/* --- faults --- */

/* A primary whose disk has sectors of 512 bytes zeroes some of them; the standby keeps its copy on a device with larger blocks. */
Test(replica, a_device_of_larger_blocks_takes_zeroes_of_a_sector)
{
    uint8_t bytes[8192], want[8192];
    int file = open(paths[0], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    memset(want, 0x5a, sizeof(want));
    cr_assert_eq(ftruncate(file, DISK_BYTES), 0);
    int fd = wide_blocks(file);
    close(file);
    if (fd < 0)
        cr_skip_test("no loop device of 4 KiB blocks: %s", strerror(errno));
    cr_assert_eq(rp_durable_host.write(NULL, fd, want, sizeof(want), 0), 0);
    for (unsigned unmap = 0; unmap < 2; unmap++) {
        uint64_t at = 512 + unmap * 4096;
        memset(want + at, 0, 1024);
        cr_assert_eq(rp_durable_host.zero(NULL, fd, at, 1024, unmap), 0);
        cr_assert_eq(rp_read_all(fd, bytes, sizeof(bytes), 0), 0);
        cr_assert_eq(memcmp(bytes, want, sizeof(want)), 0);
    }
    close(fd);
}

#define JOURNAL_POINTS 3u
static const char *const journal_points[JOURNAL_POINTS] = {"journal-write:1", "journal-write:2", "journal-sync:1"};

/* Holds epoch 1, which is `before`; of epoch 2 the journal took nothing. */
static struct rp_replica *with_a_failed_journal(const char *point, uint8_t before[DISKS][DISK_BYTES])
{
    struct rp_replica *r = must_open(NULL);
    struct rp_error err = {0};
    sync_up(r);
    memcpy(before, model, sizeof(model));
    header.number = 2;
    change();
    fault(point);
    cr_assert_lt(finish(r, &err), 0, "%s", point);
    fault("");
    cr_assert_eq(status(r).epoch, 1);
    return r;
}

Test(replica, fault_journal_write_and_sync)
{
    for (unsigned i = 0; i < JOURNAL_POINTS; i++) {
        struct rp_error err = {0};
        static uint8_t before[DISKS][DISK_BYTES];
        struct rp_replica *r = with_a_failed_journal(journal_points[i], before);
        change();
        cr_assert_lt(finish(r, &err), 0, "broken: nothing more is taken");
        cr_assert_eq(rp_replica_promote(r, 1, 3, &err), 0, "%s", err.text);
        memcpy(model, before, sizeof(model));
        cr_assert(equal(model), "%s", journal_points[i]);
        rp_replica_close(r);
    }
}

/* The host's disk was full for a moment: whoever comes next finds what was held, and a standby that takes epochs again. */
Test(replica, a_journal_that_failed_is_made_anew_by_the_next_sync)
{
    for (unsigned i = 0; i < JOURNAL_POINTS; i++) {
        struct rp_error err = {0};
        static uint8_t before[DISKS][DISK_BYTES];
        struct rp_replica *r = with_a_failed_journal(journal_points[i], before);
        memcpy(model, before, sizeof(model));
        header.number = 3;
        put_syncs(1);
        change();
        cr_assert_eq(send(r, &err), 0, "%s: %s", journal_points[i], err.text);
        cr_assert(status(r).whole, "R4");
        cr_assert(equal(before), "R4");
        cr_assert_eq(rp_replica_commit(r, &header, &err), 0, "%s: %s", journal_points[i], err.text);
        rp_replica_close(r);
        r = must_open(NULL);    /* R2 */
        cr_assert_eq(status(r).epoch, 3);
        cr_assert(equal(model), "%s", journal_points[i]);
        rp_replica_close(r);
    }
}

Test(replica, fault_replica_write_and_sync)
{
    static const char *const points[] = {"replica-write:1", "replica-sync:1"};
    for (unsigned i = 0; i < 2; i++) {
        struct rp_replica *r = must_open(NULL);
        struct rp_error err = {0};
        sync_up(r);
        header.number = 2;
        fault(points[i]);
        put(0, RP_DISK_KIND_WRITE, 0, 4096, model[1]);
        memcpy(model[0], model[1], 4096);
        must_finish(r);     /* it counts: it is in the journal */
        cr_assert_eq(rp_replica_promote(r, 2, 5, &err), -EIO, "%s", points[i]);
        cr_assert(status(r).failed);
        cr_assert_not(status(r).whole);
        header.number = 3;
        cr_assert_eq(finish(r, &err), -EIO);
        rp_replica_close(r);
        fault("");
        r = must_open(NULL);    /* R2: nothing was lost */
        cr_assert_eq(status(r).epoch, 2);
        cr_assert(equal(model));
        rp_replica_close(r);
    }
}

Test(replica, fault_disk_mark)
{
    struct rp_replica *r = must_open(NULL);
    struct rp_error err = {0};
    sync_up(r);
    header.number = 2;
    fault("disk-mark:1");
    put_syncs(0);
    cr_assert_eq(finish(r, &err), -EIO);
    fault("");
    cr_assert(equal(model));
    fault("disk-mark:2");
    cr_assert_eq(rp_replica_promote(r, 1, 5, &err), -EIO);
    rp_replica_close(r);
    r = must_open(NULL);
    cr_assert_not(status(r).whole, "one disk is ACTIVE: the set is none");
    rp_replica_close(r);
}

/* --- crashes --- */

/* The run of a standby; `acked` grows as epochs are acknowledged. The model is a function of the seed. */
static void live(struct rp_replica *r, volatile uint64_t *acked, unsigned naps)
{
    for (header.number = 2; header.number <= EPOCHS; header.number++) {
        struct rp_error err = {0};
        for (int i = rand_r(&seed) % 14; i > 0; i--)
            change();
        memcpy(history[header.number], model, sizeof(model));
        if (finish(r, &err) < 0)
            _exit(3);
        *acked = header.number;
        if (naps && header.number % naps == 0)
            usleep(header.number % (4 * naps) ? 500 : 250000);
    }
}

static bool same_epoch(uint64_t a, uint64_t b)
{
    return memcmp(history[a], history[b], sizeof(model)) == 0;
}

/* After a crash: the disks are one epoch, whole, that was acknowledged last or was about to be. */
static void check_crashed(uint64_t acked, const char *where)
{
    struct rp_replica *r = must_open(NULL);
    uint64_t m = status(r).epoch;
    cr_assert(status(r).whole, "%s", where);
    cr_assert(same_epoch(m, acked) || m == acked + 1, "%s: acknowledged %lu, the disks are at %lu", where, acked, m);
    cr_assert(equal(history[m]), "%s: the disks are not epoch %lu", where, m);
    rp_replica_close(r);
}

/* R2 with power loss: at hundreds of moments, with whatever was not synced lost, torn or there. */
Test(replica, R2_power_loss_at_any_moment)
{
    static uint64_t acked_at[1 << 20];      /* per operation: epochs acknowledged before it */
    const char *watched[] = {paths[0], paths[1], marks[0], marks[1], journal};
    struct crash_io c;
    crash_init(&c);
    struct rp_replica *r = must_open(&c.io);
    sync_up(r);
    crash_watch(&c, watched, 5);
    for (header.number = 2; header.number <= EPOCHS; header.number++) {
        size_t from = crash_ops(&c);
        if (header.number % 9 == 0)         /* a session that begins with what has changed since, */
            put_syncs(header.number - 1);
        if (header.number % 9 == 5) {       /* or without a common past, when all that is there is equal */
            base.sync_id[1]++;
            put_syncs(0);
        }
        for (int i = rand_r(&seed) % 14; i > 0; i--)
            change();
        memcpy(history[header.number], model, sizeof(model));
        must_finish(r);
        for (size_t i = from; i <= crash_ops(&c); i++)
            acked_at[i] = header.number - 1;
        if (header.number % 7 == 0)
            usleep(header.number % 3 ? 2000 : 230000);
    }
    rp_replica_close(r);
    size_t last = crash_ops(&c);
    for (size_t i = 1; i <= last; i++)
        acked_at[i] = acked_at[i] ? acked_at[i] : acked_at[i - 1];
    for (unsigned trial = 0; trial < 400; trial++) {
        char where[80];
        size_t k = trial < 40 ? last - trial * (last / 40) : (size_t)rand_r(&seed) % (last + 1);
        unsigned used = seed;
        snprintf(where, sizeof(where), "crash after operation %zu of %zu, seed %u", k, last, used);
        crash_at(&c, k, &seed);
        check_crashed(acked_at[k] ? acked_at[k] : 1, where);
    }
    printf("%zu operations, 400 crashes\n", last);
    crash_fini(&c);
}

/* The process is killed at every kind of write and sync, in turn; the parent looks at what is there. */
Test(replica, R2_kill_at_every_write_and_sync)
{
    static const char *const points[] = {"journal-write", "journal-sync", "replica-write", "replica-sync"};
    struct shared { volatile uint64_t acked; } *s = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    unsigned killed = 0, first_seed = seed;
    for (unsigned p = 0; p < 4; p++)
        for (unsigned nth = 1; nth < 400; nth += nth / 3 + 1) {
            char what[64];
            seed = first_seed;
            memset(model, 0, sizeof(model));
            header.number = 1;
            struct rp_replica *r = must_open(NULL);
            sync_up(r);
            rp_replica_close(r);
            snprintf(what, sizeof(what), "%s:%u:kill", points[p], nth);
            s->acked = 1;
            pid_t pid = fork();
            if (pid == 0) {
                r = must_open(NULL);
                fault(what);
                live(r, &s->acked, 10);
                _exit(0);
            }
            int st;
            cr_assert_eq(waitpid(pid, &st, 0), pid);
            cr_assert((WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL) || (WIFEXITED(st) && WEXITSTATUS(st) == 0), "%s: status %x", what, st);
            killed += WIFSIGNALED(st);
            /* the same history again, in this process */
            for (header.number = 2; header.number <= EPOCHS; header.number++) {
                for (int i = rand_r(&seed) % 14; i > 0; i--)
                    change();
                rp_buf_reset(&records);
                memcpy(history[header.number], model, sizeof(model));
            }
            check_crashed(s->acked, what);
        }
    printf("%u kills\n", killed);
    cr_assert_gt(killed, 30);
    munmap(s, 4096);
}

/* A journal with a byte flipped anywhere is a shorter one, or none; it never leads to a mixture. */
Test(replica, INV4_a_damaged_journal_is_cut_where_it_is_damaged)
{
    struct crash_io c;
    const char *watched[] = {paths[0], paths[1], marks[0], marks[1], journal};
    crash_init(&c);
    struct rp_replica *r = must_open(&c.io);
    sync_up(r);
    crash_watch(&c, watched, 5);
    for (header.number = 2; header.number <= 12; header.number++) {
        for (unsigned i = 0; i < 3; i++)
            change();
        memcpy(history[header.number], model, sizeof(model));
        must_finish(r);
    }
    rp_replica_close(r);
    /* the files as they were at epoch 1, and the tail; the ring whole, but for one byte */
    for (size_t i = 0; i < c.n; i++)
        if (c.ops[i].file < 2 || (c.ops[i].file == 4 && c.ops[i].offset < 2 * RP_SLOT_BYTES))
            c.ops[i].kind = CRASH_SYNC;
    unsigned shorter = 0;
    for (unsigned trial = 0; trial < 300; trial++) {
        crash_at(&c, c.n, &seed);
        int fd = open(journal, O_RDWR);
        uint8_t b;
        off_t at = (off_t)(2 * RP_SLOT_BYTES) + rand_r(&seed) % 60000;
        cr_assert_eq(pread(fd, &b, 1, at), 1);
        b ^= (uint8_t)(1 + rand_r(&seed) % 255);
        cr_assert_eq(pwrite(fd, &b, 1, at), 1);
        close(fd);
        r = must_open(NULL);
        uint64_t m = status(r).epoch;
        cr_assert(m >= 1 && m <= 12);
        cr_assert(equal(history[m]), "byte %ld: not epoch %lu", (long)at, m);
        shorter += m < 12;
        rp_replica_close(r);
    }
    cr_assert_gt(shorter, 50);
    crash_fini(&c);
}
