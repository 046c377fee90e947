/*
 * Starting the other vCPUs: INIT, SIPI through the local APIC's registers (AMD64 manual volume 2, chapter "APIC"; Intel SDM
 * volume 3, "MP initialization"). The APIC page is identity-mapped with the U bit, so this runs at CPL 3 like the rest.
 * APIC ids are taken to be 0 … count-1.
 */
#include "tests/guests/lib/guest.h"
#include "tests/guests/lib/layout.h"
#include "tests/guests/lib/smp.h"

#define APIC_GPA      UINT64_C(0xfee00000)
#define APIC_ID       0x20
#define APIC_SVR      0xf0
#define APIC_ICR_LOW  0x300
#define APIC_ICR_HIGH 0x310
#define ICR_BUSY      (1u << 12)
#define ICR_FIXED     0x4000u /* level assert */
#define ICR_INIT      0x4500u
#define ICR_SIPI      0x4600u

extern uint32_t rg_ap_number;
extern char rg_trampoline[], rg_trampoline_end[];

/* Written by the arriving vCPU, read by the boot vCPU; entry is set before any start. */
static uint32_t arrived;
static void (*ap_entry)(unsigned cpu);

static uint32_t apic_read(unsigned reg)
{
	return *(volatile uint32_t *)(APIC_GPA + reg);
}

static void apic_write(unsigned reg, uint32_t v)
{
	*(volatile uint32_t *)(APIC_GPA + reg) = v;
}

static void wait_ns(uint64_t ns)
{
	uint64_t until = rg_tsc() + rg_ns_to_ticks(ns);

	while ((int64_t)(until - rg_tsc()) > 0)
		__asm__ volatile("pause");
}

static void send(unsigned apic_id, uint32_t command)
{
	apic_write(APIC_ICR_HIGH, apic_id << 24);
	apic_write(APIC_ICR_LOW, command);
	while (apic_read(APIC_ICR_LOW) & ICR_BUSY)
		;
}

void rg_smp_interrupt(unsigned cpu, unsigned vector)
{
	send(cpu, ICR_FIXED | vector);
}

static bool wait_arrival(unsigned cpu, uint64_t ns)
{
	uint64_t until = rg_tsc() + rg_ns_to_ticks(ns);

	while ((int64_t)(until - rg_tsc()) > 0)
		if (rg_load(&arrived) == cpu)
			return true;
	return false;
}

static void start_one(unsigned cpu)
{
	rg_store(&rg_ap_number, cpu);
	for (unsigned tries = 0; tries < 3; tries++) {
		send(cpu, ICR_INIT);
		wait_ns(200000);
		send(cpu, ICR_SIPI | RG_TRAMPOLINE >> 12);
		if (wait_arrival(cpu, 2000000000))
			return;
	}
	rg_fail(RG_ERR_SMP, (const uint64_t[4]){ cpu }, "vCPU %u did not answer INIT and SIPI", cpu);
}

void rg_smp_start(unsigned count, void (*entry)(unsigned cpu))
{
	if (count > RG_VCPUS_MAX)
		rg_fail(RG_ERR_CMDLINE, NULL, "smp=%u: at most %u", count, RG_VCPUS_MAX);
	ap_entry = entry;
	RG_VCPU(0)->apic_id = apic_read(APIC_ID) >> 24;
	apic_write(APIC_SVR, apic_read(APIC_SVR) | 0x1ff);
	memcpy((void *)RG_TRAMPOLINE, rg_trampoline, (size_t)(rg_trampoline_end - rg_trampoline));
	for (unsigned cpu = 1; cpu < count; cpu++) {
		start_one(cpu);
		RG_STATUS->vcpus = cpu + 1;
	}
}

void rg_smp_arrive(unsigned cpu)
{
	RG_VCPU(cpu)->apic_id = apic_read(APIC_ID) >> 24;
	rg_store(&arrived, cpu);
	ap_entry(cpu);
	for (;;)
		__asm__ volatile("pause");
}
