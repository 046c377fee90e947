#include "core/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Through the device (Linux 6.1, permissions by file) or by the call (CAP_SYS_PTRACE or the sysctl). -1: neither, errno of the call. */
static int open_either(void)
{
    int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (dev >= 0) {
        int fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        close(dev);
        if (fd >= 0)
            return fd;
    }
    return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
}

int rp_uffd_open(uint64_t features, uint64_t *have, struct rp_error *err)
{
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    int fd = open_either();
    if (fd < 0 && errno == EPERM)
        return rp_error_exit(err, RP_EXIT_HOST, EPERM, "userfaultfd is not permitted: %s", RP_UFFD_PERMIT);
    if (fd < 0)
        return rp_error_exit(err, RP_EXIT_HOST, EOPNOTSUPP, "userfaultfd: %s: boot a kernel with CONFIG_USERFAULTFD", strerror(errno));
    if (ioctl(fd, UFFDIO_API, &api) < 0) {
        close(fd);
        return rp_error_exit(err, RP_EXIT_HOST, EOPNOTSUPP, "this kernel's userfaultfd lacks features (0x%llx): boot Linux 5.19 or newer",
                             (unsigned long long)features);
    }
    if (have)
        *have = api.features;
    return fd;
}
