/*
 * boot.h - a kernel into guest RAM, and the registers that start it. Two protocols, told apart by the file:
 * PVH (an ELF with the note XEN_ELFNOTE_PHYS32_ENTRY) and Linux's 64-bit boot protocol (bzImage).
 *
 * Kernel files are hostile input: every offset and size is checked against the file and RAM before use.
 *
 * Guest-physical layout below 1 MiB (everything above belongs to the kernel and the initrd):
 *   0x00500 GDT · 0x06000 PVH start info, memory map, module list · 0x07000 Linux zero page · 0x09000-0x0efff page
 *   tables · 0x10000 command line · 0x9fc00-0xfffff reserved; ACPI tables from 0xe0000 (vmm/acpi.h)
 * Thread: control. Sources: Xen's start_info.h (PVH), Linux Documentation/arch/x86/boot.rst.
 */
#ifndef RP_VMM_BOOT_H
#define RP_VMM_BOOT_H

#include "vmm/guest_ram.h"

#define RP_BOOT_GDT 0x500u
#define RP_BOOT_PVH_INFO 0x6000u
#define RP_BOOT_ZERO_PAGE 0x7000u
#define RP_BOOT_PAGE_TABLES 0x9000u
#define RP_BOOT_CMDLINE 0x10000u
#define RP_BOOT_CMDLINE_MAX 0x10000u    /* with its NUL */
#define RP_BOOT_LOW_END 0x9fc00u        /* end of conventional memory */
#define RP_BOOT_HIGH 0x100000u          /* kernels load from here on */

struct rp_boot_config {
    const char *kernel, *initrd, *cmdline;  /* initrd, cmdline may be NULL */
    uint64_t rsdp_gpa;
};
struct rp_boot_entry {
    enum { RP_BOOT_NONE, RP_BOOT_PVH, RP_BOOT_LINUX64 } kind;
    uint64_t rip;
    uint64_t arg;   /* start info or zero page */
};

/* A file that is being loaded. */
struct rp_boot_file { int fd; uint64_t size; const char *path; };
int rp_boot_open(const char *path, const char *what, struct rp_boot_file *out, struct rp_error *err) RP_MUST_CHECK;
void rp_boot_close(struct rp_boot_file *f);
/* Exactly `len` bytes at `off`. -EBADMSG when the file ends before; `what` names the part in the error. */
int rp_boot_read(const struct rp_boot_file *f, uint64_t off, void *out, size_t len, const char *what,
                 struct rp_error *err) RP_MUST_CHECK;
/* The same, into guest RAM at or above RP_BOOT_HIGH. */
int rp_boot_read_ram(const struct rp_boot_file *f, uint64_t off, struct rp_guest_ram *ram, uint64_t gpa, uint64_t len,
                     const char *what, struct rp_error *err) RP_MUST_CHECK;

struct rp_boot_initrd { uint64_t gpa, size; };
/* Loads the initrd as high as it may lie: it ends at or before `max_end`, and starts at or after `min_start`. */
int rp_boot_load_initrd(const char *path, struct rp_guest_ram *ram, uint64_t min_start, uint64_t max_end,
                        struct rp_boot_initrd *out, struct rp_error *err) RP_MUST_CHECK;
int rp_boot_put_cmdline(struct rp_guest_ram *ram, const char *cmdline, uint64_t max, struct rp_error *err) RP_MUST_CHECK;

struct rp_boot_range { uint64_t start, len; uint32_t type; };   /* E820 type: 1 RAM, 2 reserved */
#define RP_BOOT_RANGES_MAX 8
/* The memory map that both protocols hand over. Returns how many. */
unsigned rp_boot_memmap(const struct rp_guest_ram *ram, struct rp_boot_range *out);

int rp_boot_elf(const struct rp_boot_file *f, const struct rp_boot_config *cfg, struct rp_guest_ram *ram,
                struct rp_boot_entry *out, struct rp_error *err) RP_MUST_CHECK;
int rp_boot_bzimage(const struct rp_boot_file *f, const struct rp_boot_config *cfg, struct rp_guest_ram *ram,
                    struct rp_boot_entry *out, struct rp_error *err) RP_MUST_CHECK;

/* Whether the file is of that kind, and complete as far as its headers say. */
int rp_boot_elf_check(const struct rp_boot_file *f, struct rp_error *err) RP_MUST_CHECK;
int rp_boot_bzimage_check(const struct rp_boot_file *f, struct rp_error *err) RP_MUST_CHECK;

/* Looks whether kernel and initrd are there and the kernel is one, before anything is made. Errors as of rp_boot_load. */
int rp_boot_check(const char *kernel, const char *initrd, struct rp_error *err) RP_MUST_CHECK;
/* Loads cfg->kernel by whichever protocol it speaks. Errors: RP_EXIT_USAGE for a file that cannot be opened or is no kernel. */
int rp_boot_load(struct rp_guest_ram *ram, const struct rp_boot_config *cfg, struct rp_boot_entry *out,
                 struct rp_error *err) RP_MUST_CHECK;
/* Sets vCPU 0's registers for the entry. */
int rp_boot_enter(int vcpufd, const struct rp_boot_entry *entry, struct rp_error *err) RP_MUST_CHECK;

#endif
