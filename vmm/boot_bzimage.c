/* Linux's 64-bit boot protocol. Source: Linux Documentation/arch/x86/boot.rst ("64-bit Boot Protocol", "The Real-Mode
 * Kernel Header") and zero-page.rst. Offsets below are those of the zero page = those of the file's first sector. */
#include "vmm/boot.h"

#include <errno.h>
#include <inttypes.h>

#define ZP_RSDP 0x070
#define ZP_E820_COUNT 0x1e8
#define HDR_SETUP_SECTS 0x1f1
#define HDR_BOOT_FLAG 0x1fe         /* 0xaa55 */
#define HDR_JUMP 0x200              /* the second byte says where the header ends */
#define HDR_MAGIC 0x202             /* "HdrS" */
#define HDR_VERSION 0x206
#define HDR_LOADER 0x210
#define HDR_LOADFLAGS 0x211
#define HDR_INITRD 0x218
#define HDR_INITRD_SIZE 0x21c
#define HDR_CMDLINE 0x228
#define HDR_INITRD_MAX 0x22c
#define HDR_ALIGN 0x230
#define HDR_XLOADFLAGS 0x236
#define HDR_CMDLINE_SIZE 0x238
#define HDR_PREF_ADDRESS 0x258
#define HDR_INIT_SIZE 0x260
#define HDR_END 0x290               /* what is read of the file's header */
#define ZP_E820 0x2d0
#define VERSION_MIN 0x20c           /* xloadflags */
#define XLF_KERNEL_64 1u
#define LOADED_HIGH 1u
#define ENTRY_64 0x200u
#define SECTOR 512u

struct bz {
    uint8_t hdr[HDR_END];
    uint64_t payload;       /* file offset of the protected-mode kernel */
    uint64_t payload_bytes;
    uint64_t load, init_size;
};

static int bad(const struct rp_boot_file *f, const char *why, struct rp_error *err)
{
    return rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "kernel %s: %s", f->path, why);
}

static int read_header(const struct rp_boot_file *f, struct bz *z, struct rp_error *err)
{
    uint64_t sects, head;
    uint32_t align;

    if (f->size < HDR_END)
        return bad(f, "not a kernel (neither ELF nor bzImage)", err);
    if (rp_boot_read(f, 0, z->hdr, HDR_END, "header", err) < 0)
        return err ? err->code : -EIO;
    if (rp_ld16(z->hdr + HDR_BOOT_FLAG) != 0xaa55 || memcmp(z->hdr + HDR_MAGIC, "HdrS", 4) != 0)
        return bad(f, "not a kernel (neither ELF nor bzImage)", err);
    if (rp_ld16(z->hdr + HDR_VERSION) < VERSION_MIN)
        return bad(f, "a bzImage of a boot protocol before 2.12 (Linux 3.8)", err);
    if (!(rp_ld16(z->hdr + HDR_XLOADFLAGS) & XLF_KERNEL_64) || !(z->hdr[HDR_LOADFLAGS] & LOADED_HIGH))
        return bad(f, "a bzImage without the 64-bit entry: it is not an x86-64 kernel", err);
    sects = z->hdr[HDR_SETUP_SECTS] ? z->hdr[HDR_SETUP_SECTS] : 4;
    head = (sects + 1) * SECTOR;
    if (f->size <= head + ENTRY_64)
        return bad(f, "a bzImage that ends within its setup code", err);
    z->payload = head;
    z->payload_bytes = f->size - head;
    z->load = rp_ld64(z->hdr + HDR_PREF_ADDRESS);
    z->init_size = rp_ld32(z->hdr + HDR_INIT_SIZE);
    align = rp_ld32(z->hdr + HDR_ALIGN);
    if (align == 0 || (align & (align - 1)) || (z->load & (align - 1)))
        return bad(f, "a bzImage whose preferred address does not suit its alignment", err);
    return 0;
}

static int load_kernel(const struct rp_boot_file *f, struct bz *z, struct rp_guest_ram *ram, struct rp_error *err)
{
    if (z->init_size < z->payload_bytes)
        z->init_size = z->payload_bytes;
    if (z->load < RP_BOOT_HIGH || z->load >= RP_RAM_LOW_END || !rp_ram_at(ram, rp_gpa(z->load), z->init_size))
        return rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "kernel %s: it needs %" PRIu64 " bytes at guest address 0x%" PRIx64
                             ", the VM has %" PRIu64 " MiB of RAM", f->path, z->init_size, z->load, ram->size_bytes >> 20);
    return rp_boot_read_ram(f, z->payload, ram, z->load, z->payload_bytes, "image", err);
}

/* Identity map of the first 4 GiB with 2 MiB pages: PML4, PDPT, four page directories. */
static int put_page_tables(struct rp_guest_ram *ram)
{
    uint64_t *t = rp_ram_at(ram, rp_gpa(RP_BOOT_PAGE_TABLES), 6 * RP_PAGE_SIZE);

    if (!t)
        return -EFAULT;
    memset(t, 0, 6 * RP_PAGE_SIZE);
    t[0] = htole64((RP_BOOT_PAGE_TABLES + RP_PAGE_SIZE) | 3);
    for (uint64_t i = 0; i < 4; i++)
        t[512 + i] = htole64((RP_BOOT_PAGE_TABLES + (2 + i) * RP_PAGE_SIZE) | 3);
    for (uint64_t i = 0; i < 4 * 512; i++)
        t[1024 + i] = htole64(i << 21 | 0x83);
    rp_ram_dirty(ram, rp_gpa(RP_BOOT_PAGE_TABLES), 6 * RP_PAGE_SIZE);
    return 0;
}

static int put_gdt(struct rp_guest_ram *ram)
{
    uint8_t gdt[4 * 8] = {0};

    rp_st64(gdt + 0x10, 0x00af9b000000ffff);    /* 64-bit code */
    rp_st64(gdt + 0x18, 0x00cf93000000ffff);    /* flat data */
    return rp_ram_write(ram, rp_gpa(RP_BOOT_GDT), gdt, sizeof gdt);
}

static int put_zero_page(struct rp_guest_ram *ram, const struct bz *z, const struct rp_boot_config *cfg,
                         const struct rp_boot_initrd *rd)
{
    uint8_t zp[RP_PAGE_SIZE] = {0};
    struct rp_boot_range map[RP_BOOT_RANGES_MAX];
    unsigned n = rp_boot_memmap(ram, map);
    size_t end = HDR_MAGIC + z->hdr[HDR_JUMP + 1];

    if (end > HDR_END)
        end = HDR_END;
    if (end > HDR_SETUP_SECTS)
        memcpy(zp + HDR_SETUP_SECTS, z->hdr + HDR_SETUP_SECTS, end - HDR_SETUP_SECTS);
    zp[HDR_LOADER] = 0xff;
    rp_st32(zp + HDR_INITRD, (uint32_t)rd->gpa);
    rp_st32(zp + HDR_INITRD_SIZE, (uint32_t)rd->size);
    rp_st32(zp + HDR_CMDLINE, RP_BOOT_CMDLINE);
    rp_st64(zp + ZP_RSDP, cfg->rsdp_gpa);
    zp[ZP_E820_COUNT] = (uint8_t)n;
    for (unsigned i = 0; i < n; i++) {
        rp_st64(zp + ZP_E820 + i * 20, map[i].start);
        rp_st64(zp + ZP_E820 + i * 20 + 8, map[i].len);
        rp_st32(zp + ZP_E820 + i * 20 + 16, map[i].type);
    }
    return rp_ram_write(ram, rp_gpa(RP_BOOT_ZERO_PAGE), zp, sizeof zp);
}

int rp_boot_bzimage_check(const struct rp_boot_file *f, struct rp_error *err)
{
    struct bz z = {0};

    return read_header(f, &z, err);
}

int rp_boot_bzimage(const struct rp_boot_file *f, const struct rp_boot_config *cfg, struct rp_guest_ram *ram,
                    struct rp_boot_entry *out, struct rp_error *err)
{
    struct bz z = {0};
    struct rp_boot_initrd rd = {0};
    int rc = read_header(f, &z, err);

    if (rc == 0)
        rc = load_kernel(f, &z, ram, err);
    if (rc == 0 && cfg->initrd)
        rc = rp_boot_load_initrd(cfg->initrd, ram, z.load + z.init_size, (uint64_t)rp_ld32(z.hdr + HDR_INITRD_MAX) + 1, &rd, err);
    if (rc == 0)
        rc = rp_boot_put_cmdline(ram, cfg->cmdline, (uint64_t)rp_ld32(z.hdr + HDR_CMDLINE_SIZE) + 1, err);
    if (rc < 0)
        return rc;
    if (put_page_tables(ram) < 0 || put_gdt(ram) < 0 || put_zero_page(ram, &z, cfg, &rd) < 0)
        return rp_error_set(err, EFAULT, "kernel %s: writing its boot parameters", f->path);
    *out = (struct rp_boot_entry){.kind = RP_BOOT_LINUX64, .rip = z.load + ENTRY_64, .arg = RP_BOOT_ZERO_PAGE};
    return 0;
}
