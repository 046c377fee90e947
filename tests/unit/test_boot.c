/* Kernel files: what is loaded where, and the sentence for each file that is no kernel of ours. */
#include "vmm/boot.h"

#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define RAM_BYTES (8u << 20)
#define ENTRY 0x200000u

static struct rp_guest_ram ram;
static char path[] = "/tmp/reprise-boot-XXXXXX";

static void setup(void)
{
    struct rp_ram_config cfg = {.size_bytes = RAM_BYTES};
    int fd = mkstemp(path);
    cr_assert(fd >= 0 && rp_guest_ram_init(&ram, &cfg, NULL) == 0);
    close(fd);
}

static void teardown(void)
{
    unlink(path);
    rp_guest_ram_fini(&ram);
}
TestSuite(boot, .init = setup, .fini = teardown);

struct image {
    Elf64_Ehdr h;
    Elf64_Phdr ph[2];
    uint32_t note[5];
    uint8_t code[16];
};

static struct image good_elf(void)
{
    return (struct image){
        .h = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT}, .e_type = ET_EXEC, .e_machine = EM_X86_64,
              .e_version = 1, .e_phoff = offsetof(struct image, ph), .e_ehsize = sizeof(Elf64_Ehdr), .e_phentsize = sizeof(Elf64_Phdr), .e_phnum = 2},
        .ph = {{.p_type = PT_LOAD, .p_offset = offsetof(struct image, code), .p_paddr = ENTRY, .p_filesz = 16, .p_memsz = 4096},
               {.p_type = PT_NOTE, .p_offset = offsetof(struct image, note), .p_filesz = 20, .p_memsz = 20, .p_align = 4}},
        .note = {4, 4, 18, 0x006e6558 /* "Xen" */, ENTRY},
        .code = "that is the code",
    };
}

static int load(const void *bytes, size_t n, struct rp_boot_entry *entry, struct rp_error *err)
{
    int fd = open(path, O_WRONLY | O_TRUNC);
    cr_assert(fd >= 0 && write(fd, bytes, n) == (ssize_t)n && close(fd) == 0);
    struct rp_boot_config cfg = {.kernel = path, .cmdline = "hello", .rsdp_gpa = 0xe0000};
    *err = (struct rp_error){0};
    return rp_boot_load(&ram, &cfg, entry, err);
}

Test(boot, an_elf_with_a_pvh_entry_is_loaded)
{
    struct image e = good_elf();
    struct rp_boot_entry entry = {0};
    struct rp_error err;
    uint8_t *at = rp_ram_at(&ram, rp_gpa(ENTRY), 4096);
    memset(at, 0xee, 4096);             /* a guest that was reset */
    cr_assert_eq(load(&e, sizeof(e), &entry, &err), 0, "%s", err.text);
    cr_assert(entry.kind == RP_BOOT_PVH && entry.rip == ENTRY && entry.arg == RP_BOOT_PVH_INFO);
    cr_assert(memcmp(at, "that is the code", 16) == 0 && at[16] == 0 && at[4095] == 0, "what the file does not hold is zero");
    cr_assert_str_eq((char *)rp_ram_at(&ram, rp_gpa(RP_BOOT_CMDLINE), 6), "hello");
}

static void refused(const void *bytes, size_t n, const char *why)
{
    struct rp_boot_entry entry = {.kind = RP_BOOT_NONE};
    struct rp_error err;
    cr_assert_lt(load(bytes, n, &entry, &err), 0, "%s", why);
    cr_assert(err.exit == RP_EXIT_USAGE && strstr(err.text, why) && strstr(err.text, path), "expected \"%s\", got \"%s\"", why, err.text);
    cr_assert_eq(entry.kind, RP_BOOT_NONE);
}

Test(boot, INV4_what_is_no_kernel_is_named_and_told_why)
{
    struct image e;
    refused("", 0, "not a kernel");
    refused("#!/bin/sh\n", 10, "not a kernel");
#define WITH(change, why) do { e = good_elf(); e.change; refused(&e, sizeof(e), why); } while (0)
    WITH(h.e_machine = EM_AARCH64, "another machine than x86");
    WITH(h.e_phnum = 0, "no usable program headers");
    WITH(h.e_phnum = 60000, "no usable program headers");
    WITH(h.e_phoff = UINT64_MAX, "beyond the end of the file");
    WITH(h.e_phoff = sizeof(struct image) - 8, "beyond the end of the file");
    WITH(note[2] = 17, "without a PVH entry");
    WITH(note[0] = 0xffffffff, "without a PVH entry");
    WITH(note[4] = ENTRY + 4096, "its PVH entry lies outside of its segments");
    WITH(note[4] = 0x1000, "its PVH entry lies outside of its segments");
    WITH(ph[0].p_paddr = 0x1000, "does not fit the VM's RAM above 1 MiB");
    WITH(ph[0].p_paddr = UINT64_MAX - 4095, "does not fit the VM's RAM");
    WITH(ph[0].p_memsz = RAM_BYTES, "does not fit the VM's RAM");
    WITH(ph[0].p_filesz = 8192, "larger in the file than in memory");
    WITH(ph[0].p_offset = UINT64_MAX, "beyond the end of the file");
    WITH(ph[0].p_type = PT_NULL, "nothing to load");
}

Test(boot, files_that_cannot_be_opened)
{
    struct rp_boot_entry entry;
    struct rp_error err = {0};
    struct rp_boot_config cfg = {.kernel = "/no/such/kernel"};
    cr_assert_lt(rp_boot_load(&ram, &cfg, &entry, &err), 0);
    cr_assert(err.exit == RP_EXIT_USAGE && strstr(err.text, "kernel /no/such/kernel: No such file"), "%s", err.text);
    cfg.kernel = "/";
    cr_assert_lt(rp_boot_load(&ram, &cfg, &entry, &err), 0);
    cr_assert(err.exit == RP_EXIT_USAGE && strstr(err.text, "not a regular file"), "%s", err.text);
}
