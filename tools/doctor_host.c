/* Checks of the host beside KVM: kernel, memory, userfaultfd, io_uring, taps, RDMA, limits. */
#include "tools/doctor.h"

#include "core/uffd.h"
#include "tools/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <liburing.h>
#include <linux/if_tun.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

static bool read_line(const char *path, char *out, size_t size)
{
    FILE *f = fopen(path, "re");
    bool got = f && fgets(out, (int)size, f);
    if (f)
        fclose(f);
    out[got ? strcspn(out, "\n") : 0] = '\0';
    return got;
}

/* "MemAvailable:  123 kB" of /proc/meminfo, in MiB; 0 when it is not there. */
static unsigned long meminfo_mib(const char *key)
{
    char line[128];
    unsigned long kib = 0;
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof(line), f))
        if (strncmp(line, key, strlen(key)) == 0 && sscanf(line + strlen(key), ": %lu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib >> 10;
}

void rp_check_kernel(struct rp_finding *f)
{
    struct utsname u;
    int major = 0, minor = 0;
    if (uname(&u) < 0 || sscanf(u.release, "%d.%d", &major, &minor) != 2)
        rp_finding_set(f, RP_FIND_LESS, "what it can do is unknown", NULL, "no version to be had");
    else if (major < 5 || (major == 5 && minor < 10))
        rp_finding_set(f, RP_FIND_MISSING, "io_uring, KVM's manual dirty log and the like are too young or absent",
                       "boot Linux 5.10 or newer (tested: 6.1)", "Linux %s", u.release);
    else
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "Linux %s on %s, %ld CPUs", u.release, u.machine, sysconf(_SC_NPROCESSORS_ONLN));
}

void rp_check_memory(struct rp_finding *f)
{
    unsigned long total = meminfo_mib("MemTotal"), available = meminfo_mib("MemAvailable");
    int fd = memfd_create("doctor", MFD_CLOEXEC);
    if (fd < 0)
        rp_finding_set(f, RP_FIND_MISSING, "guest RAM is a memfd", "boot a kernel with CONFIG_MEMFD_CREATE", "memfd_create: %s",
                       strerror(errno));
    else if (available < 256)
        rp_finding_set(f, RP_FIND_LESS, "larger VMs are refused", "free memory, or give the host more", "%lu of %lu MiB available",
                       available, total);
    else
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "%lu of %lu MiB available", available, total);
    if (fd >= 0)
        close(fd);
}

void rp_check_thp(struct rp_finding *f)
{
    char mode[128];
    if (!read_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled", mode, sizeof(mode)))
        rp_finding_set(f, RP_FIND_LESS, "every guest page is mapped by itself: more faults, more TLB misses",
                       "boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE", "no transparent huge pages for shared memory");
    else if (strstr(mode, "[never]") || strstr(mode, "[deny]"))
        rp_finding_set(f, RP_FIND_LESS, "every guest page is mapped by itself: more faults, more TLB misses",
                       "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled", "%s", mode);
    else
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "%s", mode);
}

void rp_check_hugepages(struct rp_finding *f)
{
    char total[32] = "", free_[32] = "";
    read_line("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", total, sizeof(total));
    read_line("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", free_, sizeof(free_));
    if (!total[0])
        rp_finding_set(f, RP_FIND_LESS, "--hugepages is refused", "boot a kernel with CONFIG_HUGETLBFS", "no 2 MiB pages");
    else if (strtoul(total, NULL, 10) == 0)
        rp_finding_set(f, RP_FIND_LESS, "--hugepages is refused", "sysctl vm.nr_hugepages=N (2 MiB each)", "none reserved");
    else
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "%s of %s 2 MiB pages free", free_, total);
}

void rp_check_userfaultfd(struct rp_finding *f)
{
    static const char so[] = "no copy-on-write capture and no postcopy: dirty pages are copied in the pause";
    struct rp_error err = {0};
    uint64_t have = 0;
    int fd = rp_uffd_open(0, &have, &err);
    if (fd < 0) {
        rp_finding_set(f, RP_FIND_LESS, so, fd == -EPERM ? RP_UFFD_PERMIT : "boot a kernel with CONFIG_USERFAULTFD", "%s",
                       fd == -EPERM ? "not permitted" : err.text);
        return;
    }
    close(fd);
    bool wp = have & UFFD_FEATURE_WP_HUGETLBFS_SHMEM, minor = have & UFFD_FEATURE_MINOR_SHMEM;
    bool missing = have & UFFD_FEATURE_MISSING_SHMEM, async = have & UFFD_FEATURE_WP_ASYNC;
    rp_finding_set(f, wp && missing ? RP_FIND_OK : RP_FIND_LESS, wp && missing ? NULL : so, wp && missing ? NULL : "boot Linux 5.19 or newer",
                   "on shared memory: missing %s, write-protect %s, minor %s, asynchronous write-protect %s", missing ? "yes" : "no",
                   wp ? "yes" : "no", minor ? "yes" : "no", async ? "yes" : "no");
}

void rp_check_io_uring(struct rp_finding *f)
{
    struct io_uring ring;
    int rc = io_uring_queue_init(8, &ring, 0);
    if (rc == 0) {
        io_uring_queue_exit(&ring);
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "usable");
    } else if (rc == -EPERM) {
        rp_finding_set(f, RP_FIND_LESS, "a VM with a disk is refused", "sysctl kernel.io_uring_disabled=0, or allow it in the container's "
                       "seccomp profile", "not permitted");
    } else {
        rp_finding_set(f, RP_FIND_LESS, "a VM with a disk is refused", "boot a kernel with CONFIG_IO_URING", "%s", strerror(-rc));
    }
}

void rp_check_seccomp(struct rp_finding *f)
{
    unsigned level = seccomp_api_get();
    if (level == 0)
        rp_finding_set(f, RP_FIND_LESS, "a VM's process cannot confine itself: it starts only with --sandbox off",
                       "boot a kernel with CONFIG_SECCOMP_FILTER", "no system call filters");
    else
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "filters, libseccomp API level %u", level);
}

void rp_check_tun(struct rp_finding *f)
{
    static const char so[] = "--net tap:IF is refused; unix:PATH (passt) and fd:N work";
    unsigned features = 0;
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        bool absent = errno == ENOENT || errno == ENODEV;
        rp_finding_set(f, RP_FIND_LESS, so, absent ? "modprobe tun" : "chmod 0666 /dev/net/tun (its usual mode)", "/dev/net/tun: %s",
                       strerror(errno));
        return;
    }
    if (ioctl(fd, TUNGETFEATURES, &features) < 0 || !(features & IFF_VNET_HDR))
        rp_finding_set(f, RP_FIND_LESS, so, NULL, "taps without offloads");
    else
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "/dev/net/tun; a tap for a user: ip tuntap add IF mode tap vnet_hdr user NAME");
    close(fd);
}

void rp_check_rdma(struct rp_finding *f)
{
    static const char mend[] = "load the NIC's driver, or soft-RoCE: modprobe -a crc32_generic rdma_rxe rdma_ucm ib_uverbs; "
                               "rdma link add rxe0 type rxe netdev IF";
    int n = 0;
    struct ibv_device **list = ibv_get_device_list(&n);
    if (!list || n == 0) {
        rp_finding_set(f, RP_FIND_LESS, "rdma:// is refused; tcp:// and unix: work", mend, "no device");
    } else if (access("/dev/infiniband/rdma_cm", R_OK | W_OK) < 0) {
        rp_finding_set(f, RP_FIND_LESS, "rdma:// is refused; tcp:// and unix: work", "modprobe rdma_ucm; chmod 0666 /dev/infiniband/rdma_cm",
                       "%d device%s (%s …), /dev/infiniband/rdma_cm: %s", n, n == 1 ? "" : "s", ibv_get_device_name(list[0]),
                       strerror(errno));
    } else {
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "%d device%s: %s%s", n, n == 1 ? "" : "s", ibv_get_device_name(list[0]),
                       n == 1 ? "" : " …");
    }
    if (list)
        ibv_free_device_list(list);
}

void rp_check_memlock(struct rp_finding *f)
{
    struct rlimit r;
    getrlimit(RLIMIT_MEMLOCK, &r);
    if (r.rlim_cur == RLIM_INFINITY)
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "unlimited");
    else if (r.rlim_cur < (64u << 20))
        rp_finding_set(f, RP_FIND_LESS, "RDMA registers little or nothing", "ulimit -l unlimited, LimitMEMLOCK= in systemd, or "
                       "memlock in /etc/security/limits.conf", "%llu KiB", (unsigned long long)r.rlim_cur >> 10);
    else
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "%llu MiB", (unsigned long long)r.rlim_cur >> 20);
}

void rp_check_files(struct rp_finding *f)
{
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    if (r.rlim_cur < 512)
        rp_finding_set(f, RP_FIND_LESS, "VMs with many queues run out of descriptors", "ulimit -n 4096", "%llu",
                       (unsigned long long)r.rlim_cur);
    else
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "%llu", (unsigned long long)r.rlim_cur);
}

void rp_check_runtime_dir(struct rp_finding *f)
{
    static const char mend[] = "set REPRISE_RUNTIME_DIR to a directory of yours";
    char path[RP_RUNTIME_PATH_MAX];
    struct rp_error err = {0};
    if (rp_runtime_socket("doctor", false, path, &err) < 0) {
        rp_finding_set(f, RP_FIND_MISSING, "VMs have no control socket", mend, "%s", err.text);
        return;
    }
    *strrchr(path, '/') = '\0';
    char parent[RP_RUNTIME_PATH_MAX];
    snprintf(parent, sizeof(parent), "%s", path);
    bool there = access(path, F_OK) == 0;
    if (!there && strrchr(parent, '/'))
        *strrchr(parent, '/') = '\0';
    if (access(there ? path : parent[0] ? parent : "/", W_OK | X_OK) < 0)
        rp_finding_set(f, RP_FIND_MISSING, "VMs have no control socket", mend, "%s: %s", path, strerror(errno));
    else
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "%s%s", path, there ? "" : " (will be made)");
}
