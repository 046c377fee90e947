/*
 * uffd.h - a userfaultfd that sees the faults of everybody who uses a mapping: threads, the kernel on their behalf (io_uring,
 * read into guest memory), and KVM for a guest. That is why UFFD_USER_MODE_ONLY is no way out for those who may not have one.
 *
 * Source: Documentation/admin-guide/mm/userfaultfd.rst, userfaultfd(2), ioctl_userfaultfd(2).
 * Thread: any.
 */
#ifndef RP_CORE_UFFD_H
#define RP_CORE_UFFD_H

#include "core/error.h"

#include <linux/userfaultfd.h>
#include <stdint.h>

/* linux/userfaultfd.h of Debian 12 ends before these. */
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#define RP_UFFD_PERMIT "chmod or chown /dev/userfaultfd for this user, or sysctl vm.unprivileged_userfaultfd=1"

/* Opens one (non-blocking, close-on-exec; the caller's) with the UFFD_FEATURE_* of `features` on; `have`, if not NULL: all that
 * this kernel has. -EPERM: not permitted (RP_UFFD_PERMIT mends it); -EOPNOTSUPP: not in this kernel, or not with these features. */
int rp_uffd_open(uint64_t features, uint64_t *have, struct rp_error *err) RP_MUST_CHECK;

#endif
