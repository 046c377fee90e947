/*
 * Time at CPL 3 is the TSC. Its frequency comes, in this order, from tsc_hz=, kvmclock (Linux Documentation/virt/kvm/x86/msr.rst),
 * CPUID 0x40000010 or 0x15, the PIT's channel 0.
 */
#include "tests/guests/lib/cpl0.h"
#include "tests/guests/lib/guest.h"

#define PIT_HZ       1193182u
#define PIT_CHANNEL0 0x40
#define PIT_COMMAND  0x43

uint64_t rg_gap_min_ticks = UINT64_MAX;

/* Fixed point 32.32, set once by the boot vCPU. */
static uint64_t ns_per_tick_32;

uint64_t rg_ticks_to_ns(uint64_t ticks)
{
	return (uint64_t)((unsigned __int128)ticks * ns_per_tick_32 >> 32);
}

/* 128 / 64 with a quotient known to fit; the compiler would call a library. */
static uint64_t muldiv(uint64_t a, uint64_t b, uint64_t c)
{
	uint64_t q, rest;

	__asm__("mulq %3; divq %4" : "=&a"(q), "=&d"(rest) : "0"(a), "r"(b), "r"(c) : "cc");
	return q;
}

uint64_t rg_ns_to_ticks(uint64_t ns)
{
	return muldiv(ns, RG_STATUS->tsc_hz, 1000000000u);
}

/* pvclock: ns = (ticks << shift) * mul >> 32, so hz = 10^9 * 2^32 / mul >> shift. */
static uint64_t hz_from_kvmclock(void)
{
	const struct rg_pvclock *p = &rg_pvclocks[0];

	if (!p->tsc_to_system_mul)
		return 0;
	uint64_t hz = (UINT64_C(1000000000) << 32) / p->tsc_to_system_mul;

	return p->tsc_shift < 0 ? hz << -p->tsc_shift : hz >> p->tsc_shift;
}

static uint16_t pit_count(void)
{
	rg_out8(PIT_COMMAND, 0x00); /* latch channel 0 */
	uint8_t lo = rg_in8(PIT_CHANNEL0);

	return (uint16_t)(rg_in8(PIT_CHANNEL0) << 8 | lo);
}

/* Over about 20 ms of channel 0 in mode 2 (rate generator, counting down from 65536); 0 when no PIT counts. */
static uint64_t hz_from_pit(void)
{
	rg_out8(PIT_COMMAND, 0x34);
	rg_out8(PIT_CHANNEL0, 0);
	rg_out8(PIT_CHANNEL0, 0);
	uint16_t first = pit_count();
	uint64_t t0 = rg_tsc(), now = t0, elapsed = 0;

	for (unsigned tries = 0; now - t0 < UINT64_C(1) << 32; tries++) {
		elapsed = (uint16_t)(first - pit_count());
		now = rg_tsc();
		if (elapsed >= PIT_HZ / 50)
			return muldiv(now - t0, PIT_HZ, elapsed);
		if (tries == 1000 && elapsed == 0)
			return 0; /* an empty port */
	}
	return 0;
}

void rg_clock_init(void)
{
	struct rg_status *s = RG_STATUS;
	const struct {
		uint64_t hz;
		uint32_t source;
	} known[] = {
		{ rg_cmdline_number("tsc_hz", 0), RG_TSC_CMDLINE },
		{ hz_from_kvmclock(), RG_TSC_KVMCLOCK },
		{ rg_cpuid_tsc_hz, RG_TSC_CPUID },
	};

	s->tsc_hz = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(known) && !s->tsc_hz; i++) {
		s->tsc_hz = known[i].hz;
		s->tsc_source = known[i].source;
	}
	if (!s->tsc_hz) {
		s->tsc_hz = hz_from_pit();
		s->tsc_source = RG_TSC_PIT;
	}
	if (!s->tsc_hz) {
		s->tsc_hz = 1000000000u;
		s->tsc_source = RG_TSC_GUESS;
	}
	ns_per_tick_32 = (UINT64_C(1000000000) << 32) / s->tsc_hz;
	s->gap_min_ns = rg_cmdline_time_ns("gap", 100000);
	if (s->gap_min_ns == 0)
		s->gap_min_ns = 1;
	rg_gap_min_ticks = rg_ns_to_ticks(s->gap_min_ns);
}

/* The seqlock protocol of pvclock: odd or changed version means again. */
uint64_t rg_kvmclock_ns(unsigned cpu)
{
	const struct rg_pvclock *p = &rg_pvclocks[cpu];
	uint32_t version;
	uint64_t ns;

	if (!p->tsc_to_system_mul)
		return 0;
	do {
		version = rg_load(&p->version);
		uint64_t delta = rg_tsc() - p->tsc_timestamp;

		delta = p->tsc_shift < 0 ? delta >> -p->tsc_shift : delta << p->tsc_shift;
		ns = p->system_time + (uint64_t)((unsigned __int128)delta * p->tsc_to_system_mul >> 32);
	} while (version & 1 || rg_load(&p->version) != version);
	return ns;
}
