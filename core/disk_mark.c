#include "core/disk_mark.h"

#include "core/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARK_MAGIC 0x4d445052u      /* "RPDM" */
#define MARK_VERSION 1u

static int validate(const void *state, struct rp_error *err)
{
    const struct rp_disk_mark *m = state;
    if (m->state > RP_DISK_ACTIVE || m->journal[sizeof(m->journal) - 1] || m->vm_name[sizeof(m->vm_name) - 1])
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "an impossible mark");
    return 0;
}

#define M struct rp_disk_mark
static const struct rp_field fields[] = {
    RP_U32(M, state, 1), RP_U32(M, disk, 2), RP_BYTES(M, vm_id, 3), RP_BYTES(M, vm_name, 4), RP_U64(M, epoch, 5),
    RP_U64(M, term, 6), RP_U64(M, wall_ns, 7), RP_BYTES(M, journal, 8),
};
#undef M
const struct rp_state_table rp_disk_mark_table = {
    .name = "disk-mark", .version = MARK_VERSION, .size = sizeof(struct rp_disk_mark),
    .fields = fields, .nfields = sizeof(fields) / sizeof(fields[0]), .validate = validate};

int rp_disk_mark_path(const char *disk, const char *given, const char *suffix, char out[RP_DISK_PATH_MAX], struct rp_error *err)
{
    struct stat st;
    char *real = NULL;
    int n;
    if (given)
        n = snprintf(out, RP_DISK_PATH_MAX, "%s", given);
    else if (!disk || (stat(disk, &st) == 0 && !S_ISREG(st.st_mode)))
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "disk %s: is not a file that could have its state beside it: say where it is kept, "
                             "state=FILE", disk ? disk : "(descriptor)");
    else
        n = snprintf(out, RP_DISK_PATH_MAX, "%s%s", (real = realpath(disk, NULL)) ? real : disk, suffix);
    free(real);
    return n < 0 || n >= RP_DISK_PATH_MAX ? rp_error_exit(err, RP_EXIT_USAGE, ENAMETOOLONG, "disk %s: its name is too long", disk) : 0;
}

static int decode(const char *path, int fd, struct rp_disk_mark *out, uint64_t *seq, struct rp_error *err)
{
    uint8_t payload[RP_SLOT_PAYLOAD_MAX];
    size_t len;
    int rc = rp_slot_read(fd, MARK_MAGIC, payload, &len, seq);
    if (rc == -ENODATA)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "%s: holds no valid mark of a disk: remove it if the disk is known to be good", path);
    if (rc < 0)
        return rp_error_set(err, rc, "%s: %s", path, strerror(-rc));
    if (len < 4 || rp_ld32(payload) != MARK_VERSION)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "%s: a mark of version %u, this program knows %u", path,
                             len < 4 ? 0 : rp_ld32(payload), MARK_VERSION);
    memset(out, 0, sizeof(*out));
    rc = rp_state_decode(&rp_disk_mark_table, out, payload + 4, len - 4, err);
    return rc < 0 ? rp_error_wrap(err, "%s", path) : 0;
}

int rp_disk_mark_read(const char *path, struct rp_disk_mark *out, struct rp_error *err)
{
    uint64_t seq;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        memset(out, 0, sizeof(*out));
        return 0;
    }
    if (fd < 0)
        return rp_error_set(err, errno, "%s: %s", path, strerror(errno));
    int rc = decode(path, fd, out, &seq, err);
    close(fd);
    return rc;
}

/* The mark as its slot holds it. */
static int encode(const struct rp_disk_mark *m, struct rp_buf *b)
{
    rp_buf_u32(b, MARK_VERSION);
    rp_state_encode(&rp_disk_mark_table, m, b);
    return b->failed ? -ENOMEM : 0;
}

static int write_new(const struct rp_durable *io, const char *path, const struct rp_buf *b, struct rp_error *err)
{
    uint64_t seq = 0;
    int fd, rc = rp_durable_create(path, &fd, err);
    if (rc < 0)
        return rc;
    rc = rp_slot_write(io, fd, MARK_MAGIC, b->data, b->len, &seq);
    close(fd);
    return rc < 0 ? rp_error_set(err, rc, "%s: %s", path, strerror(-rc)) : rp_durable_place(path, err);
}

static int write_next(const struct rp_durable *io, const char *path, int fd, const struct rp_buf *b, struct rp_error *err)
{
    struct rp_disk_mark old;
    uint64_t seq;
    int rc = decode(path, fd, &old, &seq, err);
    if (rc < 0)
        return rc;
    rc = rp_slot_write(io, fd, MARK_MAGIC, b->data, b->len, &seq);
    return rc < 0 ? rp_error_set(err, rc, "%s: %s", path, strerror(-rc)) : 0;
}

int rp_disk_mark_write(const struct rp_durable *io, const char *path, const struct rp_disk_mark *m, struct rp_error *err)
{
    struct rp_buf b = {0};
    if (rp_fault(RP_FAULT_DISK_MARK))
        return rp_error_set(err, EIO, "%s: fault point disk-mark", path);
    int rc = encode(m, &b), fd = -1;
    if (rc < 0)
        rp_error_set(err, rc, "%s: no memory", path);
    else if ((fd = open(path, O_RDWR | O_CLOEXEC)) < 0)
        rc = errno == ENOENT ? write_new(io, path, &b, err) : rp_error_set(err, errno, "%s: %s", path, strerror(errno));
    else
        rc = write_next(io, path, fd, &b, err);
    if (fd >= 0)
        close(fd);
    rp_buf_fini(&b);
    return rc;
}

int rp_disk_mark_remove(const char *path, struct rp_error *err)
{
    return unlink(path) < 0 && errno != ENOENT ? rp_error_set(err, errno, "%s: %s", path, strerror(errno)) : 0;
}

int rp_disk_mark_check(const char *disk, const char *mark_path, struct rp_error *err)
{
    struct rp_disk_mark m;
    int rc = rp_disk_mark_read(mark_path, &m, err);
    if (rc < 0)
        return rp_error_wrap(err, "disk %s", disk);
    const char *name = (const char *)m.vm_name;
    switch (m.state) {
    case RP_DISK_SYNCING:
        return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "disk %s: is a copy of VM \"%s\"'s disk %u whose first sync did not end: only a "
                             "standby can use it", disk, name, m.disk);
    case RP_DISK_REPLICA:
        return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "disk %s: is a standby's copy of VM \"%s\"'s disk %u: start that standby and let it take "
                             "over, or say \"take\" if this copy is the newest there is", disk, name, m.disk);
    case RP_DISK_ACTIVE:
        return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "disk %s: VM \"%s\" ran on it, protected (term %llu, epoch %llu), and may have gone on "
                             "at its standby: start it as a standby, or say \"take\" if this disk is the newest", disk, name,
                             (unsigned long long)m.term, (unsigned long long)m.epoch);
    default:
        return 0;
    }
}
