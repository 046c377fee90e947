/* What both boot protocols need; see boot.h. */
#include "vmm/boot.h"

#include "vmm/pci.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

int rp_boot_open(const char *path, const char *what, struct rp_boot_file *out, struct rp_error *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), e;

    if (fd < 0)
        return rp_error_exit(err, RP_EXIT_USAGE, errno, "%s %s: %m", what, path);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        e = S_ISDIR(st.st_mode) ? EISDIR : EINVAL;
        close(fd);
        return rp_error_exit(err, RP_EXIT_USAGE, e, "%s %s: not a regular file", what, path);
    }
    *out = (struct rp_boot_file){.fd = fd, .size = (uint64_t)st.st_size, .path = path};
    return 0;
}

void rp_boot_close(struct rp_boot_file *f)
{
    close(f->fd);
}

int rp_boot_read(const struct rp_boot_file *f, uint64_t off, void *out, size_t len, const char *what, struct rp_error *err)
{
    uint8_t *p = out;
    uint64_t end;

    if (!rp_add(off, len, &end) || end > f->size)
        return rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "kernel %s: its %s (%zu bytes at %" PRIu64
                             ") lies beyond the end of the file (%" PRIu64 " bytes)", f->path, what, len, off, f->size);
    while (len > 0) {
        ssize_t n = pread(f->fd, p, len, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return rp_error_exit(err, RP_EXIT_USAGE, n < 0 ? errno : EBADMSG, "%s: reading its %s: %s", f->path, what,
                                 n < 0 ? strerror(errno) : "the file has shrunk");
        p += n;
        off += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

int rp_boot_read_ram(const struct rp_boot_file *f, uint64_t off, struct rp_guest_ram *ram, uint64_t gpa, uint64_t len,
                     const char *what, struct rp_error *err)
{
    void *to = gpa >= RP_BOOT_HIGH ? rp_ram_at(ram, rp_gpa(gpa), len) : NULL;
    int rc;

    if (!to)
        return rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "kernel %s: its %s (%" PRIu64 " bytes at guest address 0x%" PRIx64
                             ") does not fit the VM's RAM (%" PRIu64 " MiB)", f->path, what, len, gpa, ram->size_bytes >> 20);
    rc = rp_boot_read(f, off, to, (size_t)len, what, err);
    if (rc == 0)
        rp_ram_dirty(ram, rp_gpa(gpa), len);
    return rc;
}

int rp_boot_load_initrd(const char *path, struct rp_guest_ram *ram, uint64_t min_start, uint64_t max_end,
                        struct rp_boot_initrd *out, struct rp_error *err)
{
    uint64_t low_end = ram->view.regions[0].pages << RP_PAGE_SHIFT;
    uint64_t end = (max_end < low_end ? max_end : low_end) & ~(uint64_t)(RP_PAGE_SIZE - 1);
    struct rp_boot_file f;
    uint64_t start;
    int rc = rp_boot_open(path, "initrd", &f, err);

    if (rc < 0)
        return rc;
    if (f.size == 0) {
        rp_boot_close(&f);
        return rp_error_exit(err, RP_EXIT_USAGE, ENOEXEC, "initrd %s: is empty", path);
    }
    start = f.size <= end ? (end - f.size) & ~(uint64_t)(RP_PAGE_SIZE - 1) : 0;
    if (start < min_start || start == 0)
        rc = rp_error_exit(err, RP_EXIT_USAGE, EFBIG, "initrd %s: %" PRIu64 " bytes do not fit between the kernel (ends at 0x%"
                           PRIx64 ") and 0x%" PRIx64 ": give the VM more RAM", path, f.size, min_start, end);
    else
        rc = rp_boot_read_ram(&f, 0, ram, start, f.size, "initrd", err);
    *out = (struct rp_boot_initrd){.gpa = start, .size = f.size};
    rp_boot_close(&f);
    return rc;
}

int rp_boot_put_cmdline(struct rp_guest_ram *ram, const char *cmdline, uint64_t max, struct rp_error *err)
{
    const char *text = cmdline ? cmdline : "";
    size_t len = strlen(text) + 1;

    if (max > RP_BOOT_CMDLINE_MAX)
        max = RP_BOOT_CMDLINE_MAX;
    if (len > max)
        return rp_error_exit(err, RP_EXIT_USAGE, E2BIG, "the command line has %zu bytes, this kernel takes %" PRIu64,
                             len - 1, max - 1);
    return rp_ram_write(ram, rp_gpa(RP_BOOT_CMDLINE), text, len);
}

unsigned rp_boot_memmap(const struct rp_guest_ram *ram, struct rp_boot_range *out)
{
    uint64_t low_end = ram->view.regions[0].pages << RP_PAGE_SHIFT;
    unsigned n = 0;

    out[n++] = (struct rp_boot_range){0, RP_BOOT_LOW_END, 1};
    out[n++] = (struct rp_boot_range){RP_BOOT_LOW_END, RP_BOOT_HIGH - RP_BOOT_LOW_END, 2};
    if (low_end > RP_BOOT_HIGH)
        out[n++] = (struct rp_boot_range){RP_BOOT_HIGH, low_end - RP_BOOT_HIGH, 1};
    out[n++] = (struct rp_boot_range){RP_PCI_ECAM_START, RP_PCI_ECAM_LEN, 2};
    if (ram->view.nregions > 1)
        out[n++] = (struct rp_boot_range){RP_RAM_HIGH_START, ram->view.regions[1].pages << RP_PAGE_SHIFT, 1};
    return n;
}

int rp_boot_check(const char *kernel, const char *initrd, struct rp_error *err)
{
    struct rp_boot_file f;
    uint8_t magic[4];
    int rc = rp_boot_open(kernel, "kernel", &f, err);

    if (rc < 0)
        return rc;
    rc = rp_boot_read(&f, 0, magic, sizeof magic, "magic", err);
    if (rc == 0)
        rc = memcmp(magic, "\177ELF", 4) == 0 ? rp_boot_elf_check(&f, err) : rp_boot_bzimage_check(&f, err);
    rp_boot_close(&f);
    if (rc == 0 && initrd && (rc = rp_boot_open(initrd, "initrd", &f, err)) == 0)
        rp_boot_close(&f);
    return rc;
}

int rp_boot_load(struct rp_guest_ram *ram, const struct rp_boot_config *cfg, struct rp_boot_entry *out, struct rp_error *err)
{
    struct rp_boot_file f;
    uint8_t magic[4];
    int rc;

    if (ram->size_bytes < 2 * RP_BOOT_HIGH)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "a kernel needs at least 2 MiB of guest RAM");
    rc = rp_boot_open(cfg->kernel, "kernel", &f, err);
    if (rc < 0)
        return rc;
    if (f.size < sizeof magic)
        rc = rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "kernel %s: not a kernel (it has %" PRIu64 " bytes)", f.path, f.size);
    else
        rc = rp_boot_read(&f, 0, magic, sizeof magic, "magic", err);
    if (rc == 0)
        rc = memcmp(magic, "\177ELF", 4) == 0 ? rp_boot_elf(&f, cfg, ram, out, err) : rp_boot_bzimage(&f, cfg, ram, out, err);
    rp_boot_close(&f);
    return rc;
}

/* --- registers --- */

static struct kvm_segment flat(uint16_t selector, uint8_t type, bool code64)
{
    return (struct kvm_segment){.base = 0, .limit = 0xffffffff, .selector = selector, .type = type, .present = 1,
                                .s = 1, .g = 1, .l = code64, .db = !code64};
}

/* PVH: 32-bit protected mode, paging off, EBX = start info. */
static void pvh_sregs(struct kvm_sregs *s)
{
    s->cs = flat(0x08, 0xb, false);
    s->ds = s->es = s->ss = s->fs = s->gs = flat(0x10, 0x3, false);
    s->cr0 = 0x11;      /* PE, ET */
    s->cr4 = 0;
    s->efer = 0;
}

/* Linux 64-bit: long mode over an identity map, __BOOT_CS 0x10, __BOOT_DS 0x18, RSI = zero page. */
static void linux64_sregs(struct kvm_sregs *s)
{
    s->cs = flat(0x10, 0xb, true);
    s->ds = s->es = s->ss = s->fs = s->gs = flat(0x18, 0x3, false);
    s->gdt = (struct kvm_dtable){.base = RP_BOOT_GDT, .limit = 4 * 8 - 1};
    s->cr3 = RP_BOOT_PAGE_TABLES;
    s->cr0 = 0x80000011;    /* PG, ET, PE */
    s->cr4 = 0x20;          /* PAE */
    s->efer = 0x500;        /* LME, LMA */
}

int rp_boot_enter(int vcpufd, const struct rp_boot_entry *entry, struct rp_error *err)
{
    struct kvm_regs r = {.rflags = 2, .rip = entry->rip};
    struct kvm_sregs s;

    if (ioctl(vcpufd, KVM_GET_SREGS, &s) != 0)
        return rp_error_set(err, errno, "vcpu 0: KVM_GET_SREGS: %m");
    s.tr = (struct kvm_segment){.limit = 0x67, .type = 0xb, .present = 1};
    s.ldt = (struct kvm_segment){.unusable = 1};
    s.idt = (struct kvm_dtable){0};
    if (entry->kind == RP_BOOT_PVH) {
        pvh_sregs(&s);
        r.rbx = entry->arg;
    } else {
        linux64_sregs(&s);
        r.rsi = entry->arg;
    }
    if (ioctl(vcpufd, KVM_SET_SREGS, &s) != 0)
        return rp_error_set(err, errno, "vcpu 0: KVM_SET_SREGS: %m");
    if (ioctl(vcpufd, KVM_SET_REGS, &r) != 0)
        return rp_error_set(err, errno, "vcpu 0: KVM_SET_REGS: %m");
    return 0;
}
