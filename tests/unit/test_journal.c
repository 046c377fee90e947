/* The disk journal's file when somebody else wrote into it: seals that are right around records that are not. */
#include "replicator/journal.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wcast-qual"
#pragma GCC diagnostic ignored "-Wshadow"
#include <xxhash.h>
#pragma GCC diagnostic pop

static char path[64];

static void make(void)
{
    struct rp_journal_identity id = {.base.epoch = 5};
    struct rp_journal *j;
    struct rp_error err = {0};
    snprintf(path, sizeof(path), "/tmp/reprise-journal-%d", getpid());
    cr_assert_eq(rp_journal_create(&rp_durable_host, path, RP_JOURNAL_RING_MIN, &id, &j, &err), 0, "%s", err.text);
    rp_journal_close(j);
}

static void gone(void) { unlink(path); }

TestSuite(journal, .init = make, .fini = gone, .timeout = 60);

/* The first record of an empty journal, with `bytes` of data, sealed as the format has it. */
static void forge(uint32_t kind, uint64_t len, uint32_t bytes)
{
    uint8_t slot[RP_SLOT_PAYLOAD_MAX], h[48], data[64] = {0};
    size_t n;
    uint64_t seq;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_eq(rp_slot_read(fd, 0x4a445052u, slot, &n, &seq), 0);
    rp_st32(h, 0x524a5052u);
    rp_st32(h + 4, kind);
    rp_st64(h + 8, rp_ld64(slot + 4));      /* life, at position 0 */
    rp_st32(h + 16, 0);
    rp_st32(h + 20, bytes);
    rp_st64(h + 24, 6);
    rp_st64(h + 32, len);
    rp_st64(h + 40, XXH3_64bits_withSeed(h, 40, XXH3_64bits_withSeed(data, bytes, 0)));
    cr_assert_eq(pwrite(fd, h, sizeof(h), 2 * RP_SLOT_BYTES), (ssize_t)sizeof(h));
    cr_assert_eq(pwrite(fd, data, bytes, 2 * RP_SLOT_BYTES + 48), (ssize_t)bytes);
    close(fd);
}

static struct rp_journal *open_it(struct rp_error *err)
{
    struct rp_journal *j = NULL;
    int rc = rp_journal_open(&rp_durable_host, path, &j, err);
    cr_assert_eq(rc == 0, j != NULL);
    return j;
}

/* Found by fuzz_journal: such a WRITE was read, and its owner would have written what lies behind the buffer to a disk. */
Test(journal, INV4_a_record_that_nobody_could_have_written_is_refused)
{
    const struct { uint32_t kind; uint64_t len; uint32_t bytes; } bad[] = {
        {RP_DISK_KIND_WRITE, 1 << 20, 8}, {RP_DISK_KIND_WRITE, 4, 8}, {RP_DISK_KIND_ZERO, 4096, 8},
        {RP_DISK_KIND_DISCARD, 1ull << 40, 0}, {RP_DISK_KIND_SYNC, 8, 8}, {0, 0, 0}, {RP_JOURNAL_COMMIT, 0, 8}, {99, 0, 0}};
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct rp_error err = {0};
        forge(bad[i].kind, bad[i].len, bad[i].bytes);
        cr_assert_null(open_it(&err), "record %u was taken", i);
        cr_assert_eq(err.exit, RP_EXIT_DAMAGED);
        cr_assert(strstr(err.text, "makes no sense"), "%s", err.text);
    }
}

/* And what could have been written is taken: the forgery above is refused for its fields alone. */
Test(journal, a_commit_is_taken)
{
    struct rp_error err = {0};
    forge(RP_JOURNAL_COMMIT, 0, 0);
    struct rp_journal *j = open_it(&err);
    cr_assert(j != NULL, "%s", err.text);
    cr_assert_eq(rp_journal_epoch(j), 6u);
    cr_assert_eq(rp_journal_committed(j), 48u);
    rp_journal_close(j);
}
