#include "replicator/sums.h"

#include "core/bytes.h"
#include "core/clock.h"
#include "core/fault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LIST_HEADER 24u
#define SUM_BYTES 16u
#define CHUNK 1024u                     /* sums sent, or received, at a time: 16 KiB */
#define BASE_NS 5000000000ull           /* all the lists may take this … */
#define NS_PER_BLOCK 4000u              /* … and as long as 4 MB/s take for each sum, like the hashes of pages (held.c) */

static int send_part(struct rp_conn *c, const void *bytes, size_t len, uint64_t until, struct rp_error *err)
{
    if (rp_fault(RP_FAULT_LINK_SUMS))
        return rp_error_set(err, EIO, "saying what the disks hold: fault point");
    int rc = rp_conn_send_by(c, bytes, len, until);
    return rc < 0 ? rp_error_set(err, rc, "saying what the disks hold: %s", strerror(-rc)) : 0;
}

static int send_header(struct rp_conn *c, uint32_t disk, const struct rp_disk_sum_list *l, uint64_t until, struct rp_error *err)
{
    uint8_t header[LIST_HEADER] = {0};
    rp_st32(header, disk);
    rp_st32(header + 4, l->block_bytes);
    rp_st64(header + 8, l->seed);
    rp_st32(header + 16, l->blocks);
    return send_part(c, header, sizeof(header), until, err);
}

static int send_list(struct rp_conn *c, uint32_t disk, const struct rp_disk_sum_list *l, uint64_t until, struct rp_error *err)
{
    uint8_t chunk[CHUNK * SUM_BYTES];
    int rc = send_header(c, disk, l, until, err);
    for (uint32_t at = 0, n; at < l->blocks && rc == 0; at += n) {
        n = l->blocks - at < CHUNK ? l->blocks - at : CHUNK;
        for (uint32_t i = 0; i < n; i++) {
            rp_st64(chunk + i * SUM_BYTES, l->sums[at + i].lo);
            rp_st64(chunk + i * SUM_BYTES + 8, l->sums[at + i].hi);
        }
        rc = send_part(c, chunk, n * SUM_BYTES, until, err);
    }
    return rc;
}

int rp_sums_send(struct rp_conn *c, const struct rp_disk_sums *s, struct rp_error *err)
{
    const struct rp_disk_sum_list none = {0};
    uint64_t until = rp_clock_ns() + BASE_NS;
    for (unsigned i = 0; i < RP_DISK_SUMS_DISKS; i++)
        until += (uint64_t)s->disks[i].blocks * NS_PER_BLOCK;
    for (unsigned i = 0; i < RP_DISK_SUMS_DISKS; i++) {
        int rc = s->disks[i].sums && s->disks[i].blocks ? send_list(c, i, &s->disks[i], until, err) : 0;
        if (rc < 0)
            return rc;
    }
    return send_header(c, 0, &none, until, err);
}

/* --- the primary's side --- */

/* Lists that come too slowly are ones that cannot be had: the disks are copied whole then. */
static int receive_part(struct rp_conn *c, void *bytes, size_t len, uint64_t until, struct rp_error *err)
{
    int rc = rp_conn_recv_all(c, bytes, len, until);
    return rc < 0 ? rp_error_set(err, rc == -ETIMEDOUT ? EPROTO : rc, "waiting for what the standby's disks hold: %s", strerror(-rc)) : 0;
}

/* The sums of a list whose header has come, of which the first `l->blocks` of `blocks` are kept. */
static int receive_sums(struct rp_conn *c, struct rp_disk_sum_list *l, uint32_t blocks, uint64_t until, struct rp_error *err)
{
    uint8_t chunk[CHUNK * SUM_BYTES];
    for (uint32_t at = 0, n; at < blocks; at += n) {
        n = blocks - at < CHUNK ? blocks - at : CHUNK;
        int rc = receive_part(c, chunk, n * SUM_BYTES, until, err);
        if (rc < 0)
            return rc;
        for (uint32_t i = 0; i < n && at + i < l->blocks; i++)
            l->sums[at + i] = (struct rp_hash128){rp_ld64(chunk + i * SUM_BYTES), rp_ld64(chunk + i * SUM_BYTES + 8)};
    }
    return 0;
}

/* One list, of disk *next or one behind it. 1: there are more; 0: that was the end. */
static int receive_list(struct rp_conn *c, const uint64_t size_bytes[RP_DISK_SUMS_DISKS], uint32_t *next, struct rp_disk_sums *out,
                        uint64_t *until, struct rp_error *err)
{
    uint8_t header[LIST_HEADER];
    int rc = receive_part(c, header, sizeof(header), *until, err);
    if (rc < 0)
        return rc;
    uint32_t disk = rp_ld32(header), block_bytes = rp_ld32(header + 4), blocks = rp_ld32(header + 16);
    if (blocks == 0)
        return 0;
    if (disk < *next || disk >= RP_DISK_SUMS_DISKS || !rp_disk_sums_possible(block_bytes, blocks))
        return rp_error_set(err, EPROTO, "the standby says that it knows %u blocks of %u bytes of disk %u, after disk %d", blocks, block_bytes, disk,
                            (int)*next - 1);
    struct rp_disk_sum_list *l = &out->disks[disk];
    uint64_t ours = size_bytes[disk] / block_bytes;
    *l = (struct rp_disk_sum_list){.seed = rp_ld64(header + 8), .block_bytes = block_bytes, .blocks = ours < blocks ? (uint32_t)ours : blocks};
    if (l->blocks && !(l->sums = malloc(l->blocks * sizeof(*l->sums))))
        return rp_error_set(err, ENOMEM, "no memory for what the standby's disks hold");
    *next = disk + 1;
    *until += (uint64_t)blocks * NS_PER_BLOCK;
    rc = receive_sums(c, l, blocks, *until, err);
    return rc < 0 ? rc : 1;
}

int rp_sums_receive(struct rp_conn *c, const uint64_t size_bytes[RP_DISK_SUMS_DISKS], struct rp_disk_sums *out, struct rp_error *err)
{
    struct rp_disk_sums s = {0};
    uint64_t until = rp_clock_ns() + BASE_NS;
    uint32_t next = 0;
    int rc;
    while ((rc = receive_list(c, size_bytes, &next, &s, &until, err)) > 0)
        ;
    if (rc < 0)
        rp_disk_sums_fini(&s);
    else
        *out = s;
    return rc;
}
