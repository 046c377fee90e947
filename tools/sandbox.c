#include "tools/sandbox.h"

#include <errno.h>
#include <linux/prctl.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* By what they are for. */
static const char *const allowed[] = {
    /* memory */
    "mmap", "munmap", "mprotect", "mremap", "madvise", "brk", "mincore", "mlock", "munlock", "memfd_create", "fallocate",
    /* open descriptors */
    "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "lseek", "close", "dup",
    "dup2", "dup3", "fcntl", "fsync", "fdatasync", "sync_file_range", "ftruncate", "fstat", "newfstatat", "statx", "fstatfs",
    "flock", "fadvise64", "copy_file_range", "splice", "close_range",
    /* files: checkpoints, leases, an archive, RDMA's devices */
    "open", "openat", "stat", "lstat", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "getdents64", "mkdir", "mkdirat",
    "unlink", "unlinkat", "rename", "renameat", "renameat2", "link", "linkat", "chmod", "fchmod", "fchmodat", "statfs", "getcwd",
    "umask",
    /* sockets (which families: below) */
    "connect", "bind", "listen", "accept", "accept4", "sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg", "shutdown",
    "getsockopt", "setsockopt", "getsockname", "getpeername", "socketpair",
    /* waiting */
    "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6", "eventfd2",
    "timerfd_create", "timerfd_settime", "timerfd_gettime", "pipe", "pipe2", "signalfd4", "inotify_init1", "inotify_add_watch",
    "inotify_rm_watch",
    /* rings that were set up before; userfaultfd for copy-on-write capture and postcopy */
    "io_uring_enter", "io_uring_register", "userfaultfd",
    /* threads (new ones: below), time, signals */
    "futex", "futex_waitv", "set_robust_list", "get_robust_list", "rseq", "sched_yield", "sched_getscheduler", "sched_getaffinity", "sched_setaffinity",
    "getcpu", "gettid", "getpid", "getppid", "exit", "exit_group", "membarrier", "set_tid_address", "arch_prctl", "clock_gettime",
    "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",
    "rt_sigtimedwait", "rt_sigpending", "rt_sigsuspend", "sigaltstack", "restart_syscall",
    /* looking at oneself */
    "getuid", "geteuid", "getgid", "getegid", "getrlimit", "getrusage", "uname", "sysinfo", "getrandom", "times",
};

/* Types of ioctl, the second byte of a number. */
static const unsigned ioctl_types[] = {
    0xAE,   /* KVM */
    'T',    /* terminals, taps, FIONREAD and FIONBIO */
    0x12,   /* block devices */
    0xAA,   /* userfaultfd */
    'f',    /* PAGEMAP_SCAN, file extents */
    0x1B,   /* RDMA */
    0x89,   /* sockets: interface names and addresses */
};
static const int families[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK};

static int allow_names(scmp_filter_ctx f)
{
    int rc = 0;
    for (size_t i = 0; i < sizeof(allowed) / sizeof(allowed[0]) && rc == 0; i++) {
        int nr = seccomp_syscall_resolve_name(allowed[i]);
        if (nr != __NR_SCMP_ERROR && nr >= 0)     /* unknown to this libseccomp: refused */
            rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, nr, 0);
    }
    return rc;
}

/* Calls that depend on an argument. */
static int allow_some(scmp_filter_ctx f)
{
    const scmp_datum_t self = (scmp_datum_t)getpid();
    int rc = 0;
    for (size_t i = 0; i < sizeof(ioctl_types) / sizeof(ioctl_types[0]) && rc == 0; i++)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, SCMP_A1(SCMP_CMP_MASKED_EQ, 0xFF00, ioctl_types[i] << 8));
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]) && rc == 0; i++)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(socket), 1, SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)families[i]));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(kill), 1, SCMP_A0(SCMP_CMP_EQ, self));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, SCMP_A0(SCMP_CMP_EQ, self));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1, SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME));
    if (rc == 0)    /* one's own limits may be read */
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 1, SCMP_A2(SCMP_CMP_EQ, 0));
    if (rc == 0)    /* a thread may give way */
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(setpriority), 3, SCMP_A0(SCMP_CMP_EQ, PRIO_PROCESS), SCMP_A1(SCMP_CMP_EQ, 0),
                              SCMP_A2(SCMP_CMP_LE, 19));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(sched_setscheduler), 2, SCMP_A0(SCMP_CMP_EQ, 0), SCMP_A1(SCMP_CMP_EQ, SCHED_OTHER));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(sched_setscheduler), 2, SCMP_A0(SCMP_CMP_EQ, 0), SCMP_A1(SCMP_CMP_EQ, SCHED_BATCH));
    if (rc == 0)    /* threads, no processes. clone3's flags lie in memory, out of a filter's sight: libc then takes clone. */
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1, SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    return rc;
}

static int set_attributes(scmp_filter_ctx f)
{
    int rc = seccomp_attr_set(f, SCMP_FLTATR_CTL_TSYNC, 1);
    if (rc == 0)    /* no slower memory accesses: nothing in here runs foreign code */
        (void)seccomp_attr_set(f, SCMP_FLTATR_CTL_SSB, 1);
    if (rc == 0)    /* KVM_RUN is an ioctl: a tree instead of a list */
        (void)seccomp_attr_set(f, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    return rc;
}

int rp_sandbox_enter(enum rp_sandbox_mode mode, bool machine_comes, struct rp_error *err)
{
    if (mode == RP_SANDBOX_OFF)
        return 0;
    scmp_filter_ctx f = seccomp_init(mode == RP_SANDBOX_LOG ? SCMP_ACT_LOG : SCMP_ACT_ERRNO(EPERM));
    if (!f)
        return rp_error_set(err, ENOMEM, "no memory for the system call filter");
    int rc = set_attributes(f);
    if (rc == 0)
        rc = allow_names(f);
    if (rc == 0)
        rc = allow_some(f);
    if (rc == 0 && machine_comes)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(io_uring_setup), 0);
    if (rc == 0)
        rc = seccomp_load(f);
    seccomp_release(f);
    if (rc == 0)
        return 0;
    return rp_error_exit(err, RP_EXIT_HOST, rc, "this kernel takes no system call filter (%s): boot one with CONFIG_SECCOMP_FILTER, or "
                         "run with --sandbox off", strerror(-rc));
}
