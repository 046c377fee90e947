/* Guest time; see time.h. */
#include "vmm/time.h"

#include "core/clock.h"

#include <errno.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

RP_TABLE(rp_clock_table, "clock", 1, struct rp_clock_state,
    RP_U64(struct rp_clock_state, kvmclock_ns, 1), RP_U64(struct rp_clock_state, wall_ns, 2),
    RP_U64(struct rp_clock_state, host_tsc, 3), RP_U32(struct rp_clock_state, tsc_khz, 4),
    RP_PAD(struct rp_clock_state, pad));

/* kvmclock with the host TSC of the same instant: KVM says both when it can; otherwise the TSC is read around the call. */
static int read_pair(int vmfd, struct kvm_clock_data *c, struct rp_error *err)
{
    uint64_t before = __builtin_ia32_rdtsc();

    if (ioctl(vmfd, KVM_GET_CLOCK, c) != 0)
        return rp_error_set(err, errno, "KVM_GET_CLOCK: %m");
    if (!(c->flags & KVM_CLOCK_HOST_TSC))
        c->host_tsc = before + (__builtin_ia32_rdtsc() - before) / 2;
    if (!(c->flags & KVM_CLOCK_REALTIME))
        c->realtime = rp_wall_ns();
    return 0;
}

int rp_clock_read_guest(int vmfd, int vcpufd, struct rp_clock_state *out, struct rp_error *err)
{
    struct kvm_clock_data c = {0};
    int rc = read_pair(vmfd, &c, err), khz;

    if (rc < 0)
        return rc;
    khz = ioctl(vcpufd, KVM_GET_TSC_KHZ, 0);
    *out = (struct rp_clock_state){.kvmclock_ns = c.clock, .wall_ns = c.realtime, .host_tsc = c.host_tsc,
                                   .tsc_khz = khz > 0 ? (uint32_t)khz : 0};
    return 0;
}

int rp_clock_enter(int vmfd, const struct rp_clock_state *s, bool follow_wall, uint64_t *elapsed_ns, uint64_t *host_tsc,
                   struct rp_error *err)
{
    uint64_t wall = rp_wall_ns();
    uint64_t passed = follow_wall && wall > s->wall_ns ? wall - s->wall_ns : 0;
    struct kvm_clock_data c = {.clock = s->kvmclock_ns + passed};
    int rc;

    if (s->kvmclock_ns > INT64_MAX || passed > INT64_MAX || c.clock > INT64_MAX)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "clock: a kvmclock of %llu ns", (unsigned long long)s->kvmclock_ns);
    if (ioctl(vmfd, KVM_SET_CLOCK, &c) != 0)
        return rp_error_set(err, errno, "KVM_SET_CLOCK: %m");
    rc = read_pair(vmfd, &c, err);
    if (rc < 0)
        return rc;
    /* A clock that reads a little before what was asked for (rounding) must not become a step back of the TSC. */
    *elapsed_ns = c.clock > s->kvmclock_ns ? c.clock - s->kvmclock_ns : 0;
    *host_tsc = c.host_tsc;
    return 0;
}
