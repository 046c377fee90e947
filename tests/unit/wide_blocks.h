/* wide_blocks.h - a block device whose blocks are larger than a guest's sectors. */
#ifndef RP_TESTS_WIDE_BLOCKS_H
#define RP_TESTS_WIDE_BLOCKS_H

#include <fcntl.h>
#include <linux/loop.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* One of 4 KiB blocks over `file`; it goes when all that is open of it is closed. < 0: there is none to be had here (errno). */
static inline int wide_blocks(int file)
{
    struct loop_config cfg = {.fd = (uint32_t)file, .block_size = 4096, .info = {.lo_flags = LO_FLAGS_AUTOCLEAR}};
    char path[32];
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), n = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE);
    if (control >= 0)
        close(control);
    snprintf(path, sizeof(path), "/dev/loop%d", n);
    int fd = n < 0 ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, LOOP_CONFIGURE, &cfg) == 0)
        return fd;
    close(fd);
    return -1;
}

#endif
