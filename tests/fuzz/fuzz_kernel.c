/*
 * Kernel images (ELF with a PVH note, bzImage) and initrds: hostile files. Whatever the file says: nothing is written outside of
 * guest RAM above 1 MiB and the loader's own places, the entry lies in RAM, and a refusal is the user's (exit status 2) with a reason.
 */
#include "tests/fuzz/fuzz.h"
#include "vmm/boot.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_BYTES (20u << 20)
#define CANARY 0x00000u     /* below the GDT nothing is the loader's */

static struct rp_guest_ram ram;
static char kernel_path[64], initrd_path[64];
static int kernel_fd, initrd_fd;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    struct rp_ram_config cfg = {.size_bytes = RAM_BYTES};
    kernel_fd = memfd_create("kernel", MFD_CLOEXEC);
    initrd_fd = memfd_create("initrd", MFD_CLOEXEC);
    snprintf(kernel_path, sizeof(kernel_path), "/proc/self/fd/%d", kernel_fd);
    snprintf(initrd_path, sizeof(initrd_path), "/proc/self/fd/%d", initrd_fd);
    return kernel_fd < 0 || initrd_fd < 0 || rp_guest_ram_init(&ram, &cfg, NULL) < 0 ? -1 : 0;
}

static void put(int fd, const uint8_t *p, size_t n)
{
    FZ_HOLDS(ftruncate(fd, 0) == 0 && pwrite(fd, p, n, 0) == (ssize_t)n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t zero[RP_BOOT_GDT];
    struct fz f = {data, size};
    struct rp_error err = {0};
    struct rp_boot_entry entry = {0};
    uint8_t how = fz_u8(&f);
    size_t n, initrd = how & 1 ? fz_u8(&f) : 0;
    const uint8_t *p = fz_bytes(&f, initrd, &n);
    char cmdline[64] = "console=ttyS0";
    put(initrd_fd, p, n);
    put(kernel_fd, f.p, f.left);
    struct rp_boot_config cfg = {.kernel = kernel_path, .initrd = how & 1 ? initrd_path : NULL, .cmdline = how & 2 ? cmdline : NULL, .rsdp_gpa = 0xe0000};
    int rc = rp_boot_load(&ram, &cfg, &entry, &err);
    FZ_HOLDS(memcmp(rp_ram_at(&ram, rp_gpa(CANARY), sizeof(zero)), zero, sizeof(zero)) == 0);
    FZ_HOLDS(memcmp(rp_ram_at(&ram, rp_gpa(0xf0000), sizeof(zero)), zero, sizeof(zero)) == 0);
    if (rc < 0) {
        FZ_HOLDS(err.text[0] && err.exit == RP_EXIT_USAGE);
    } else {
        FZ_HOLDS(rp_ram_at(&ram, rp_gpa(entry.rip), 1) != NULL && entry.rip >= RP_BOOT_HIGH);
        FZ_HOLDS(entry.kind == RP_BOOT_PVH || entry.kind == RP_BOOT_LINUX64);
    }
    return 0;
}
