/* What CPL 0 leaves for CPL 3: kvmclock's pages and what only CPUID knows. */
#ifndef TESTS_GUESTS_LIB_CPL0_H
#define TESTS_GUESTS_LIB_CPL0_H

#include <stdint.h>

#include "tests/guests/lib/layout.h"

/* struct pvclock_vcpu_time_info of the KVM ABI (Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW). */
struct rg_pvclock {
	uint32_t version;
	uint32_t pad0;
	uint64_t tsc_timestamp;
	uint64_t system_time;
	uint32_t tsc_to_system_mul;
	int8_t tsc_shift;
	uint8_t flags;
	uint8_t pad[2];
	uint8_t line[32]; /* one cache line per vCPU */
};

extern struct rg_pvclock rg_pvclocks[RG_CPUS_MAX];

/* From CPUID 0x40000010 or 0x15; 0: neither knows. */
extern uint64_t rg_cpuid_tsc_hz;

#endif
