/* From boot.S to the guest, the gap meter's slow path, and the end. */
#include "tests/guests/lib/guest.h"
#include "tests/guests/lib/smp.h"

void rg_main(unsigned cpu, uint64_t user_tsc);

extern const void *rg_start_info;

/* run=… as a TSC value; boot vCPU writes it, in rg_running(). */
static uint64_t end_tsc = UINT64_MAX;

static void vcpu_init(unsigned cpu, uint64_t user_tsc)
{
	struct rg_vcpu *v = RG_VCPU(cpu);

	memset(v, 0, sizeof(*v));
	v->current = RG_NO_PAGE;
	v->start_tsc = user_tsc;
	v->last_tsc = rg_tsc();
}

void rg_main(unsigned cpu, uint64_t user_tsc)
{
	struct rg_status *s = RG_STATUS;

	vcpu_init(cpu, user_tsc);
	if (cpu != 0)
		rg_smp_arrive(cpu);
	s->version = RG_VERSION;
	s->kind = guest_kind;
	s->user_tsc = user_tsc;
	s->vcpus = 1;
	s->error = RG_ERR_NONE;
	s->control = 0;
	rg_store(&s->state, RG_STATE_BOOTING);
	rg_store(&s->magic, RG_MAGIC);
	rg_memory_init(rg_start_info);
	s->log = (uint32_t)rg_cmdline_number("log", 0);
	rg_clock_init();
	guest_main();
	rg_done();
}

/* What kvmclock did over a gap, against the TSC: it must never go back; whether it stood still is the VMM's policy. */
static void check_clock(struct rg_vcpu *v, uint64_t now)
{
	unsigned cpu = (unsigned)(((uint64_t)v - RG_VCPUS_GPA) / RG_VCPU_BYTES);
	uint64_t ns = rg_kvmclock_ns(cpu);

	if (ns < v->clock_ns)
		v->clock_backwards++;
	if (ns && v->clock_ns && ns >= v->clock_ns) {
		int64_t apart = (int64_t)(ns - v->clock_ns) - (int64_t)rg_ticks_to_ns(now - v->clock_tsc);

		if (apart > 0 && (uint64_t)apart > v->clock_over_tsc_ns)
			v->clock_over_tsc_ns = (uint64_t)apart;
		if (apart < 0 && (uint64_t)-apart > v->clock_under_tsc_ns)
			v->clock_under_tsc_ns = (uint64_t)-apart;
	}
	v->clock_ns = ns;
	v->clock_tsc = now;
}

void rg_gap_record(struct rg_vcpu *v, uint64_t start_tsc, uint64_t now)
{
	check_clock(v, now);
	if (now < start_tsc) {
		v->tsc_backwards++;
		return;
	}
	uint64_t ns = rg_ticks_to_ns(now - start_tsc);

	v->ring[v->gap_count % RG_GAP_RING] = (struct rg_gap){ start_tsc, ns };
	v->gap_hist[rg_gap_step(ns)]++;
	v->gap_sum_ns += ns;
	if (ns > v->gap_max_ns) {
		v->gap_max_ns = ns;
		v->gap_max_tsc = start_tsc;
	}
	rg_store(&v->gap_count, v->gap_count + 1);
}

void rg_running(void)
{
	struct rg_status *s = RG_STATUS;
	uint64_t run_ns = rg_cmdline_time_ns("run", 0);
	uint64_t now = rg_tsc();

	if (run_ns)
		rg_store(&end_tsc, now + rg_ns_to_ticks(run_ns));
	s->running_tsc = now;
	for (unsigned i = 0; i < s->vcpus; i++)
		RG_VCPU(i)->last_tsc = now;
	rg_store(&s->state, RG_STATE_RUNNING);
}

bool rg_over(uint64_t now)
{
	return now >= rg_load(&end_tsc) || rg_load(&RG_STATUS->control) & RG_CONTROL_STOP;
}

void rg_done(void)
{
	static const char *const ends[] = { "spin", "reset", "off", "exit", NULL };
	uint32_t end = rg_cmdline_choice("end", ends, 0);
	struct rg_status *s = RG_STATUS;

	s->done_tsc = rg_tsc();
	rg_store(&s->state, RG_STATE_DONE);
	rg_log("guest: done");
	switch (end) {
	case 1:
		rg_out8(0x64, 0xfe); /* keyboard controller: pulse the reset line */
		rg_out8(0xcf9, 0x06);
		break;
	case 2:
		rg_out16(0x604, 0x2000); /* PM1a_CNT: SLP_EN, SLP_TYP 0 = S5 on q35 */
		break;
	case 3:
		rg_out8(0xf4, 0);
		break;
	default:
		break;
	}
	for (;;)
		__asm__ volatile("pause");
}
