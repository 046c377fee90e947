/*
 * The C code that runs at CPL 0, where some hosts interpret: a TSS and IDT so that a fault is recorded instead of a triple fault,
 * kvmclock, and what CPUID says about the TSC. A few hundred instructions.
 */
#include "tests/guests/lib/cpl0.h"
#include "tests/guests/lib/guest.h"

#define VECTORS            32
#define MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01u
#define KVM_FEATURE_CLOCKSOURCE2 (1u << 3)

struct tss {
	uint32_t reserved0;
	uint64_t rsp0;
	uint8_t reserved[90];
	uint16_t iomap;
} __attribute__((packed));

struct gate {
	uint16_t offset0;
	uint16_t selector;
	uint8_t ist;
	uint8_t type;
	uint16_t offset16;
	uint32_t offset32;
	uint32_t reserved;
};

struct table_pointer {
	uint16_t limit;
	uint64_t base;
} __attribute__((packed));

struct fault_frame {
	uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

void rg_cpl0_init(unsigned cpu);
void rg_fault(const struct fault_frame *f, uint64_t cr2);

extern uint64_t rg_gdt_tss[2 * RG_CPUS_MAX];
extern char rg_kstacks[RG_CPUS_MAX][RG_KSTACK_BYTES];
extern char rg_fault_stubs[VECTORS][16];

struct rg_pvclock rg_pvclocks[RG_CPUS_MAX] __attribute__((aligned(4096)));
uint64_t rg_cpuid_tsc_hz;

/*
 * All TSSs in front of one permission bitmap of zeros that they share: a host that interprets may lose RFLAGS.IOPL on the way to
 * CPL 3 and then asks the bitmap (AMD64 manual volume 2, "I/O-Permission Bitmap"). A byte of ones ends it.
 */
static struct {
	struct tss tss[RG_CPUS_MAX];
	uint8_t ports[65536 / 8];
	uint8_t end;
} tasks __attribute__((aligned(4096)));

static struct gate idt[VECTORS] __attribute__((aligned(16)));

static void cpuid(uint32_t leaf, uint32_t r[4])
{
	__asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(0));
}

static void wrmsr(uint32_t msr, uint64_t v)
{
	__asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}

static void fill_idt(void)
{
	for (unsigned i = 0; i < VECTORS; i++) {
		uint64_t at = (uint64_t)rg_fault_stubs[i];

		idt[i] = (struct gate){ (uint16_t)at, RG_SEL_KCODE64, 0, 0x8e, (uint16_t)(at >> 16), (uint32_t)(at >> 32), 0 };
	}
}

static void load_tables(unsigned cpu)
{
	struct tss *t = &tasks.tss[cpu];
	uint64_t base = (uint64_t)t, limit = (uint64_t)&tasks.end - base;
	struct table_pointer idt_pointer = { sizeof(idt) - 1, (uint64_t)idt };

	t->rsp0 = (uint64_t)rg_kstacks[cpu + 1];
	t->iomap = (uint16_t)((uint64_t)tasks.ports - base);
	tasks.end = 0xff;
	/* 64-bit TSS descriptor, available (type 9): AMD64 manual volume 2, "System descriptors". */
	rg_gdt_tss[2 * cpu] = limit | (base & 0xffffff) << 16 | UINT64_C(0x89) << 40 | (base >> 24 & 0xff) << 56;
	rg_gdt_tss[2 * cpu + 1] = base >> 32;
	__asm__ volatile("lidt %0; ltr %w1" : : "m"(idt_pointer), "r"(RG_SEL_TSS + 16 * cpu) : "memory");
}

static bool is_kvm(uint32_t *last)
{
	uint32_t r[4];

	cpuid(1, r);
	if (!(r[2] >> 31))
		return false;
	cpuid(0x40000000, r);
	*last = r[0];
	return r[1] == 0x4b4d564b && r[2] == 0x564b4d56 && r[3] == 0x4d; /* "KVMKVMKVM" */
}

static void init_clock(unsigned cpu)
{
	uint32_t r[4], last;

	if (is_kvm(&last)) {
		cpuid(0x40000001, r);
		if (r[0] & KVM_FEATURE_CLOCKSOURCE2)
			wrmsr(MSR_KVM_SYSTEM_TIME_NEW, (uint64_t)&rg_pvclocks[cpu] | 1);
		if (cpu == 0 && last >= 0x40000010) {
			cpuid(0x40000010, r);
			rg_cpuid_tsc_hz = (uint64_t)r[0] * 1000;
		}
	}
	if (cpu != 0 || rg_cpuid_tsc_hz)
		return;
	cpuid(0, r);
	if (r[0] < 0x15)
		return;
	cpuid(0x15, r);
	if (r[0] && r[1] && r[2])
		rg_cpuid_tsc_hz = (uint64_t)r[2] * r[1] / r[0];
}

__attribute__((weak)) void guest_cpl0(unsigned cpu)
{
	(void)cpu;
}

void rg_cpl0_init(unsigned cpu)
{
	if (cpu == 0)
		fill_idt();
	load_tables(cpu);
	init_clock(cpu);
	guest_cpl0(cpu);
}

void rg_fault(const struct fault_frame *f, uint64_t cr2)
{
	rg_fail(RG_ERR_EXCEPTION, (const uint64_t[4]){ f->vector, f->error, f->rip, cr2 },
		"exception %lu (error 0x%lx) at 0x%lx, rflags 0x%lx, rsp 0x%lx, cr2 0x%lx", f->vector,
		f->error, f->rip, f->rflags, f->rsp, cr2);
}
