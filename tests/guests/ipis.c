/*
 * ipis: every vCPU but the first sends it interrupts, each vector once, when the host says so. Guests run with interrupts off: what arrives
 * stays in the first vCPU's APIC (IRR), so that a cut must find there all that its senders have counted. Vectors 32 … 255 are dealt
 * to vCPUs 1 … smp-1 in turn: the n-th of vCPU c is 32 + (c - 1) + n * (smp - 1).
 *
 *   smp=2  every=5us
 */
#include "tests/guests/lib/guest.h"

const uint32_t guest_kind = RG_KIND_IPIS;

static uint64_t every;
static unsigned cpus;

static void rest(struct rg_vcpu *v, uint64_t until)
{
	while ((int64_t)(until - rg_tsc()) > 0)
		__asm__ volatile("pause");
	rg_store(&v->heartbeat, v->heartbeat + 1);
}

static void send_all(unsigned cpu)
{
	struct rg_vcpu *v = RG_VCPU(cpu);

	while (!(rg_load(&RG_STATUS->control) & RG_CONTROL_GO))
		rest(v, rg_tsc() + every);
	for (unsigned vector = 32 + cpu - 1; vector < 256; vector += cpus - 1) {
		rg_smp_interrupt(0, vector);
		rg_store(&v->iterations, v->iterations + 1);
		rest(v, rg_tsc() + every);
	}
	while (!rg_over(rg_tsc()))
		rest(v, rg_tsc() + every);
}

void guest_main(void)
{
	static const char *const keys[] = { "every", NULL };

	rg_cmdline_keys(keys);
	cpus = (unsigned)rg_cmdline_number("smp", 2);
	every = rg_ns_to_ticks(rg_cmdline_time_ns("every", 5000));
	if (cpus < 2)
		rg_fail(RG_ERR_CMDLINE, NULL, "smp=%u: at least 2", cpus);
	rg_smp_start(cpus, send_all);
	rg_running();
	while (!rg_over(rg_tsc()))
		rest(RG_VCPU(0), rg_tsc() + every);
}
