/*
 * replica_fixture.h - a standby's copies of two disks in a directory of their own, what a primary would send of its disks (a model that
 * changes at random), and what the files must hold at each epoch.
 */
#ifndef RP_TESTS_REPLICA_FIXTURE_H
#define RP_TESTS_REPLICA_FIXTURE_H

#include "core/fault.h"
#include "replicator/journal.h"
#include "replicator/replica.h"
#include "tests/unit/crash_io.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define DISKS 2u
#define DISK_BYTES (256u << 10)
#define RING RP_JOURNAL_RING_MIN
#define EPOCHS 80u

static char dir[64], paths[DISKS][96], marks[DISKS][112], journal[128];
static uint8_t model[DISKS][DISK_BYTES];                    /* what the primary's disks hold */
static uint8_t (*history)[DISKS][DISK_BYTES];               /* … held at each epoch */
static struct rp_disk_base base;
static struct rp_epoch_header header;
static struct rp_buf records;
static unsigned seed;

static inline void setup(void)
{
    snprintf(dir, sizeof(dir), "/tmp/reprise-replica-XXXXXX");
    cr_assert(mkdtemp(dir));
    for (unsigned i = 0; i < DISKS; i++) {
        snprintf(paths[i], sizeof(paths[i]), "%s/disk%u", dir, i);
        snprintf(marks[i], sizeof(marks[i]), "%s.reprise", paths[i]);
    }
    snprintf(journal, sizeof(journal), "%s-journal", marks[0]);
    memset(base.sync_id, 0x5a, sizeof(base.sync_id));
    memset(header.vm_id, 7, sizeof(header.vm_id));
    strcpy((char *)header.vm_name, "pump");
    header.term = 3;
    seed = (unsigned)getpid();
    printf("seed %u\n", seed);
    history = calloc(EPOCHS + 2, sizeof(*history));
}

static inline void teardown(void)
{
    char command[128];
    unsetenv("RP_FAULT");
    rp_fault_reload();
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
    rp_buf_fini(&records);
    free(history);
}

static inline void fault(const char *what)
{
    setenv("RP_FAULT", what, 1);
    rp_fault_reload();
}

static inline int open_replica(const struct rp_durable *io, struct rp_replica **r, struct rp_error *err)
{
    struct rp_replica_config cfg = {.ndisks = DISKS, .journal_bytes = RING, .io = io,
                                    .disks = {{.path = paths[0], .overwrite = true}, {.path = paths[1], .overwrite = true}}};
    return rp_replica_open(&cfg, r, err);
}

static inline struct rp_replica *must_open(const struct rp_durable *io)
{
    struct rp_replica *r = NULL;
    struct rp_error err = {0};
    cr_assert_eq(open_replica(io, &r, &err), 0, "%s", err.text);
    return r;
}

static inline struct rp_replica_status status(struct rp_replica *r)
{
    struct rp_replica_status s;
    rp_replica_status(r, &s);
    return s;
}

/* Until all that is committed is in the files. */
static inline void settle(struct rp_replica *r)
{
    while (status(r).backlog_bytes)
        usleep(500);
}

/* --- what a primary sends --- */

/* From here on another VM's does: what is held is nothing to it, so its syncs go straight to the files (R4). */
static inline void another_vm(void)
{
    header.vm_id[0]++;
}

static inline void put(uint32_t disk, uint32_t kind, uint64_t offset, uint32_t len, const uint8_t *data)
{
    rp_disk_put(&records, &(struct rp_disk_entry){.disk = disk, .kind = kind, .offset = offset, .len = len, .data = data});
}

static inline void put_syncs(uint64_t since)
{
    struct rp_disk_base b = base;
    b.epoch = since;
    for (uint32_t d = 0; d < DISKS; d++)
        rp_disk_put_sync(&records, d, DISK_BYTES, &b);
}

/* A random change of the model. */
static inline void change(void)
{
    uint32_t disk = (uint32_t)rand_r(&seed) % DISKS, len = 512u << rand_r(&seed) % 6;
    uint64_t offset = (uint64_t)rand_r(&seed) % ((DISK_BYTES - len) / 512 + 1) * 512;
    uint32_t kind = rand_r(&seed) % 5 ? RP_DISK_KIND_WRITE : rand_r(&seed) % 2 ? RP_DISK_KIND_ZERO : RP_DISK_KIND_DISCARD;
    for (uint32_t i = 0; i < len; i++)
        model[disk][offset + i] = kind == RP_DISK_KIND_WRITE ? (uint8_t)rand_r(&seed) : 0;
    put(disk, kind, offset, len, &model[disk][offset]);
}

static inline void whole_disks(void)
{
    for (uint32_t d = 0; d < DISKS; d++)
        put(d, RP_DISK_KIND_WRITE, 0, DISK_BYTES, model[d]);
}

/* Hands over what was put. */
static inline int send(struct rp_replica *r, struct rp_error *err)
{
    struct rp_reader in = rp_reader_of(records.data, records.len);
    int rc = 0;
    while (in.left && rc == 0) {
        struct rp_record rec = {.type = RP_REC_DISK, .len = rp_get_u32(&in)};
        rec.payload = rp_get(&in, rec.len);
        rc = rp_replica_record(r, &header, &rec, err);
    }
    rp_buf_reset(&records);
    return rc;
}

static inline int finish(struct rp_replica *r, struct rp_error *err)
{
    int rc = send(r, err);
    if (rc == 0)
        rc = rp_replica_commit(r, &header, err);
    if (rc < 0)
        rp_replica_drop(r);
    return rc;
}

static inline void must_finish(struct rp_replica *r)
{
    struct rp_error err = {0};
    cr_assert_eq(finish(r, &err), 0, "epoch %lu: %s", header.number, err.text);
}

/* Epoch 1: the initial copy. */
static inline void sync_up(struct rp_replica *r)
{
    header.number = 1;
    for (unsigned i = 0; i < 20; i++)
        change();
    rp_buf_reset(&records);
    put_syncs(0);
    whole_disks();
    must_finish(r);
    memcpy(history[1], model, sizeof(model));
}

static inline bool equal(const uint8_t want[DISKS][DISK_BYTES])
{
    static uint8_t have[DISK_BYTES];
    for (unsigned d = 0; d < DISKS; d++) {
        int fd = open(paths[d], O_RDONLY);
        cr_assert_eq(rp_read_all(fd, have, sizeof(have), 0), 0);
        close(fd);
        if (memcmp(have, want[d], DISK_BYTES))
            return false;
    }
    return true;
}

#endif
