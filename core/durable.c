#include "core/durable.h"

#include "core/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wcast-qual"
#pragma GCC diagnostic ignored "-Wshadow"
#include <xxhash.h>
#pragma GCC diagnostic pop

#define ZEROES (256u << 10)     /* written at a time where a filesystem cannot zero a range */

static int host_write(void *ctx, int fd, const void *data, size_t len, uint64_t offset)
{
    const uint8_t *p = data;
    (void)ctx;
    while (len > 0) {
        ssize_t n = pwrite(fd, p, len, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        p += n;
        offset += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static int write_zeroes(int fd, uint64_t offset, uint64_t len)
{
    uint8_t *zeroes = calloc(1, ZEROES);
    int rc = zeroes ? 0 : -ENOMEM;
    while (rc == 0 && len > 0) {
        size_t n = len < ZEROES ? (size_t)len : ZEROES;
        rc = host_write(NULL, fd, zeroes, n, offset);
        offset += n;
        len -= n;
    }
    free(zeroes);
    return rc;
}

static int host_zero(void *ctx, int fd, uint64_t offset, uint64_t len, bool unmap)
{
    int mode = FALLOC_FL_KEEP_SIZE | (unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE), rc;
    (void)ctx;
    do
        rc = fallocate(fd, mode, (off_t)offset, (off_t)len) < 0 ? -errno : 0;
    while (rc == -EINTR);
    /* EINVAL: the range is not of whole blocks of a device whose blocks are larger than a guest's sectors. */
    return rc == -EOPNOTSUPP || rc == -ENOSYS || rc == -EINVAL ? write_zeroes(fd, offset, len) : rc;
}

static int host_sync(void *ctx, int fd)
{
    (void)ctx;
    return fdatasync(fd) < 0 ? -errno : 0;
}

const struct rp_durable rp_durable_host = {.write = host_write, .zero = host_zero, .sync = host_sync};

int rp_read_all(int fd, void *data, size_t len, uint64_t offset)
{
    uint8_t *p = data;
    while (len > 0) {
        ssize_t n = pread(fd, p, len, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ENODATA;
        p += n;
        offset += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

/* --- slots --- */

static bool slot_valid(const uint8_t *slot, uint32_t magic)
{
    uint32_t len = rp_ld32(slot + 4);
    return rp_ld32(slot) == magic && len <= RP_SLOT_PAYLOAD_MAX && XXH3_64bits(slot, 16 + len) == rp_ld64(slot + 16 + len);
}

int rp_slot_read(int fd, uint32_t magic, uint8_t *payload, size_t *len, uint64_t *seq)
{
    uint8_t slot[RP_SLOT_BYTES];
    int rc = -ENODATA;
    *seq = 0;
    for (unsigned i = 0; i < 2; i++) {
        int r = rp_read_all(fd, slot, sizeof(slot), (uint64_t)i * RP_SLOT_BYTES);
        if (r < 0 && r != -ENODATA)
            return r;
        if (r < 0 || !slot_valid(slot, magic) || (rc == 0 && rp_ld64(slot + 8) <= *seq))
            continue;
        *seq = rp_ld64(slot + 8);
        *len = rp_ld32(slot + 4);
        memcpy(payload, slot + 16, *len);
        rc = 0;
    }
    return rc;
}

int rp_slot_write(const struct rp_durable *io, int fd, uint32_t magic, const void *payload, size_t len, uint64_t *seq)
{
    uint8_t slot[RP_SLOT_BYTES] = {0};
    if (len > RP_SLOT_PAYLOAD_MAX)
        return -EMSGSIZE;
    rp_st32(slot, magic);
    rp_st32(slot + 4, (uint32_t)len);
    rp_st64(slot + 8, *seq + 1);
    memcpy(slot + 16, payload, len);
    rp_st64(slot + 16 + len, XXH3_64bits(slot, 16 + len));
    ++*seq;     /* also when this fails: the other slot is the one that must stay */
    int rc = io->write(io->ctx, fd, slot, sizeof(slot), (*seq & 1) * RP_SLOT_BYTES);
    return rc < 0 ? rc : io->sync(io->ctx, fd);
}

static int sync_folder(const char *path)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof(copy), "%s", path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = fsync(fd) < 0 && errno != EINVAL && errno != EROFS ? -errno : 0;   /* EINVAL: this filesystem has nothing to sync */
    close(fd);
    return rc;
}

static int temporary(const char *path, char out[PATH_MAX], struct rp_error *err)
{
    int n = snprintf(out, PATH_MAX, "%s.new", path);
    return n < 0 || n >= PATH_MAX ? rp_error_set(err, ENAMETOOLONG, "%s: the name is too long", path) : 0;
}

int rp_durable_create(const char *path, int *fd, struct rp_error *err)
{
    char name[PATH_MAX];
    int rc = temporary(path, name, err);
    if (rc < 0)
        return rc;
    *fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    return *fd < 0 ? rp_error_set(err, errno, "%s: %s", name, strerror(errno)) : 0;
}

int rp_durable_place(const char *path, struct rp_error *err)
{
    char name[PATH_MAX];
    int rc = temporary(path, name, err);
    if (rc < 0)
        return rc;
    if (rename(name, path) < 0)
        return rp_error_set(err, errno, "%s: cannot be given its name: %s", name, strerror(errno));
    rc = sync_folder(path);
    return rc < 0 ? rp_error_set(err, rc, "%s: its folder cannot be synced: %s", path, strerror(-rc)) : 0;
}
