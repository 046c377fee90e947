/*
 * Disk marks: files whose seal is right and whose contents are not, marks that a history of writes left behind and that were
 * flipped or cut, and raw bytes. A mark is one that was written, or refused with the reason; a disk that is marked is not opened.
 */
#include "core/bytes.h"
#include "core/disk_mark.h"
#include "core/state.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <fcntl.h>

#define WRITES 5u

static int no_sync(void *ctx, int fd) { (void)ctx, (void)fd; return 0; }
static struct rp_durable io;
static char path[96];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static char folder[64];
    (void)argc, (void)argv;
    fz_folder(folder);
    snprintf(path, sizeof(path), "%s/disk.reprise", folder);
    io = rp_durable_host;
    io.sync = no_sync;
    return 0;
}

/* -1: refused; else the mark is in *m. */
static int look(struct rp_disk_mark *m)
{
    struct rp_error err = {0}, refusal = {0};
    int rc = rp_disk_mark_read(path, m, &err), may = rp_disk_mark_check("disk", path, &refusal);
    FZ_HOLDS(rc == 0 || (err.text[0] && err.exit == RP_EXIT_DAMAGED));
    FZ_HOLDS(may == 0 || refusal.text[0]);
    FZ_HOLDS((may == 0) == (rc == 0 && m->state == RP_DISK_NONE));
    if (rc < 0)
        return -1;
    FZ_HOLDS(m->state <= RP_DISK_ACTIVE);
    FZ_HOLDS(strnlen((char *)m->vm_name, sizeof(m->vm_name)) < sizeof(m->vm_name));
    FZ_HOLDS(strnlen((char *)m->journal, sizeof(m->journal)) < sizeof(m->journal));
    return 0;
}

static void choose(struct fz *f, struct rp_disk_mark *m)
{
    size_t n;
    memset(m, 0, sizeof(*m));
    m->state = fz_u8(f) % 4;
    m->disk = fz_u8(f);
    m->epoch = fz_u32(f);
    m->term = fz_u16(f);
    const uint8_t *p = fz_bytes(f, fz_u8(f) % RP_VM_NAME_MAX, &n);
    memcpy(m->vm_name, p, n);
    p = fz_bytes(f, fz_u8(f), &n);
    memcpy(m->journal, p, n);
}

static void history(struct fz *f)
{
    static struct rp_disk_mark written[WRITES], got;
    struct rp_error err = {0};
    unsigned n = 1 + fz_u8(f) % WRITES, i;
    for (i = 0; i < n; i++) {
        choose(f, &written[i]);
        FZ_HOLDS(rp_disk_mark_write(&io, path, &written[i], &err) == 0);
        FZ_HOLDS(look(&got) == 0 && memcmp(&got, &written[i], sizeof(got)) == 0);
    }
    int fd = open(path, O_RDWR | O_CLOEXEC);
    for (i = 0; i < 4 && f->left > 0; i++) {
        uint8_t what = fz_u8(f), byte = 0;
        off_t at = fz_u16(f) % (2 * RP_SLOT_BYTES);
        ssize_t r = pread(fd, &byte, 1, at);
        byte ^= (uint8_t)(1u << (what & 7));
        FZ_HOLDS(r >= 0 && (what & 128 ? ftruncate(fd, at) == 0 : pwrite(fd, &byte, 1, at) == 1));
    }
    close(fd);
    if (look(&got) < 0)
        return;
    bool newest = memcmp(&got, &written[n - 1], sizeof(got)) == 0;
    FZ_HOLDS(newest || (n > 1 && memcmp(&got, &written[n - 2], sizeof(got)) == 0));     /* its slot may be the damaged one */
}

static void forged(struct fz *f)
{
    struct rp_disk_mark m;
    struct rp_buf b = {0};
    uint64_t seq = fz_u8(f);
    rp_buf_u32(&b, fz_u8(f) & 1 ? fz_u32(f) : 1);
    choose(f, &m);
    if (fz_u8(f) & 1)
        memset(m.vm_name, 'x', sizeof(m.vm_name));
    rp_state_encode(&rp_disk_mark_table, &m, &b);
    for (unsigned i = fz_u8(f) % 8; i > 0; i--)
        b.data[fz_below(f, (uint32_t)b.len)] = fz_u8(f);
    size_t len = fz_u8(f) & 1 ? fz_below(f, (uint32_t)b.len) : b.len;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FZ_HOLDS(fd >= 0 && rp_slot_write(&io, fd, 0x4d445052u, b.data, len, &seq) == 0);
    close(fd);
    rp_buf_fini(&b);
    look(&m);
}

static void raw(struct fz *f)
{
    struct rp_disk_mark m;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FZ_HOLDS(fd >= 0 && write(fd, f->p, f->left) == (ssize_t)f->left);
    close(fd);
    look(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct fz f = {bytes, size};
    uint8_t what = fz_u8(&f);
    struct rp_error err = {0};
    FZ_HOLDS(rp_disk_mark_remove(path, &err) == 0);
    if (what < 120)
        history(&f);
    else if (what < 240)
        forged(&f);
    else
        raw(&f);
    return 0;
}
