/*
 * idle: a guest that does next to nothing. Every vCPU writes its heartbeat once per tick= (default 1 ms) and polls the TSC in
 * registers in between, so an idle epoch has one dirty page per vCPU. Start-up time is status.first_tsc … running_tsc.
 *
 *   smp=1  tick=1ms
 */
#include "tests/guests/lib/guest.h"

const uint32_t guest_kind = RG_KIND_IDLE;

static uint64_t tick;

static void idle(unsigned cpu)
{
	struct rg_vcpu *v = RG_VCPU(cpu);

	for (uint64_t next = rg_tsc() + tick;; next += tick) {
		uint64_t last = rg_tsc(), now;

		/* Gaps are seen here, without writing. */
		while ((int64_t)((now = rg_tsc()) - next) < 0) {
			if (now - last >= rg_gap_min_ticks)
				rg_gap_record(v, last, now);
			last = now;
		}
		if (now - last >= rg_gap_min_ticks)
			rg_gap_record(v, last, now);
		if (now - next > tick)
			next = now;
		uint64_t ns = rg_kvmclock_ns(cpu);

		if (ns < v->clock_ns)
			v->clock_backwards++;
		v->clock_ns = ns;
		v->clock_tsc = now;
		v->last_tsc = now;
		v->iterations++;
		rg_store(&v->heartbeat, v->heartbeat + 1);
		if (rg_over(now))
			return;
	}
}

void guest_main(void)
{
	static const char *const keys[] = { "tick", NULL };
	unsigned cpus = (unsigned)rg_cmdline_number("smp", 1);

	rg_cmdline_keys(keys);
	tick = rg_ns_to_ticks(rg_cmdline_time_ns("tick", 1000000));
	if (cpus > 1)
		rg_smp_start(cpus, idle);
	rg_running();
	idle(0);
}
