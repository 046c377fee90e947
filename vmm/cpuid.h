/*
 * cpuid.h - the CPU that a guest sees: what KVM supports on this host, made independent of it where that costs
 * nothing, plus topology. The table is part of the machine's state: an epoch is entered with the table it was cut
 * with, or refused by naming the features that the new host lacks.
 */
#ifndef RP_VMM_CPUID_H
#define RP_VMM_CPUID_H

#include "core/state.h"

#define RP_CPUID_MAX 256

struct rp_cpuid_entry { uint32_t function, index, flags, eax, ebx, ecx, edx, pad; };
struct rp_cpuid {
    uint32_t n;
    uint32_t pad;
    struct rp_cpuid_entry e[RP_CPUID_MAX];
};
extern const struct rp_state_table rp_cpuid_table;

/* This host's table for `vcpus` vCPUs. `kvmfd`: /dev/kvm. */
int rp_cpuid_host(int kvmfd, unsigned vcpus, struct rp_cpuid *out, struct rp_error *err) RP_MUST_CHECK;
/* KVM_SET_CPUID2 with the APIC id of vCPU `index` put in. */
int rp_cpuid_apply(const struct rp_cpuid *c, int vcpufd, unsigned index, struct rp_error *err) RP_MUST_CHECK;
/* 0 when `host` offers every feature of `want`; else -EOPNOTSUPP with the names of what lacks. */
int rp_cpuid_compatible(const struct rp_cpuid *want, const struct rp_cpuid *host, struct rp_error *err) RP_MUST_CHECK;

#endif
