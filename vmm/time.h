/*
 * time.h - guest time across a cut: kvmclock and the TSCs as one reading, taken at one instant, and given back.
 *
 *   TIME-1  guest time never goes backwards: a guest continues at the reading, or later by the wall-clock time that
 *           has passed since (when it is to follow the host's clock and that has advanced).
 *   TIME-2  kvmclock and every vCPU's TSC advance by the same span.
 *
 * Source: Linux Documentation/virt/kvm/devices/vcpu.rst, "ATTRIBUTE KVM_VCPU_TSC_OFFSET"; api.rst, KVM_SET_CLOCK.
 */
#ifndef RP_VMM_TIME_H
#define RP_VMM_TIME_H

#include "core/state.h"

struct rp_clock_state {
    uint64_t kvmclock_ns;       /* at the instant */
    uint64_t wall_ns;           /* host CLOCK_REALTIME at the instant */
    uint64_t host_tsc;          /* host TSC at the instant */
    uint32_t tsc_khz;           /* the guest's TSC frequency; 0: unknown */
    uint32_t pad;
};
extern const struct rp_state_table rp_clock_table;

/* A reading. `vcpufd`: any vCPU, for the frequency. */
int rp_clock_read_guest(int vmfd, int vcpufd, struct rp_clock_state *out, struct rp_error *err) RP_MUST_CHECK;
/* Sets kvmclock to go on from the reading `s`; *elapsed_ns: by how much it has advanced since, at host TSC *host_tsc. */
int rp_clock_enter(int vmfd, const struct rp_clock_state *s, bool follow_wall, uint64_t *elapsed_ns, uint64_t *host_tsc,
                   struct rp_error *err) RP_MUST_CHECK;

#endif
