/* Which backend a NIC's configuration means. */
#include "vmm/net.h"
#include "vmm/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static int open_fd(int fd, unsigned pairs, struct rp_loop *loop, struct rp_net **out, struct rp_error *err)
{
    struct ifreq ifr = {0};
    int type = 0;
    socklen_t len = sizeof(type);

    if (fcntl(fd, F_GETFD) < 0)
        return rp_error_set(err, errno, "network descriptor %d: %m", fd);
    if (ioctl(fd, TUNGETIFF, &ifr) == 0)
        return rp_net_tap_open(NULL, fd, pairs, loop, out, err);
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_STREAM)
        return rp_net_stream_open(NULL, fd, loop, out, err);
    if (type == SOCK_DGRAM || type == SOCK_SEQPACKET)
        return rp_net_dgram_open(fd, loop, out, err);
    return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "network descriptor %d: neither a tap nor a socket; whoever starts reprise has to pass one on", fd);
}

int rp_net_open(const struct rp_nic_config *cfg, unsigned pairs, struct rp_loop *loop, struct rp_net **out, struct rp_error *err)
{
    switch (cfg->kind) {
    case RP_NIC_TAP: return rp_net_tap_open(cfg->name, -1, pairs, loop, out, err);
    case RP_NIC_UNIX: return rp_net_stream_open(cfg->name, -1, loop, out, err);
    case RP_NIC_FD: return open_fd(cfg->fd, pairs, loop, out, err);
    }
    return rp_error_set(err, EINVAL, "network backend %d", (int)cfg->kind);
}
