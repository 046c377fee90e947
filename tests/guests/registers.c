/*
 * registers: keeps a value it knows in every register that CPL 3 has (general, flags, x87 stack and control word, MXCSR, xmm or ymm, FS and GS
 * base), counts for a while, and checks them all. A cut that loses or mixes up vCPU state fails it, with the register's name.
 *
 *   smp=1   spins=20k: turns of a three-instruction loop between loading and checking   avx=1
 */
#include "tests/guests/lib/guest.h"
#include "tests/guests/lib/vector.h"
#include "tests/guests/pages.h"

#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u
#define CR4_OSFXSR  (1u << 9)
#define CR4_OSXMMEX (1u << 10)
#define CR4_OSXSAVE (1u << 18)
#define CPUID1_XSAVE (1u << 26)
#define CPUID1_AVX  (1u << 28)
#define XCR0_AVX    7u /* x87, SSE, AVX */

const uint32_t guest_kind = RG_KIND_REGISTERS;

static struct rg_registers registers[RG_VCPUS_MAX] __attribute__((aligned(64)));
/* What FS and GS point to: a word per vCPU each. */
static uint64_t fs_words[RG_VCPUS_MAX], gs_words[RG_VCPUS_MAX];
static bool have_avx;
static uint64_t spins;
static bool use_avx;

static void wrmsr(uint32_t msr, uint64_t v)
{
	__asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}

/* SSE and AVX on, where there are any; FS and GS to this vCPU's words. */
void guest_cpl0(unsigned cpu)
{
	uint32_t a = 1, b, c = 0, d;
	uint64_t cr4;

	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	__asm__ volatile("movq %%cr4, %0" : "=r"(cr4));
	cr4 |= CR4_OSFXSR | CR4_OSXMMEX | (c & CPUID1_XSAVE ? CR4_OSXSAVE : 0);
	__asm__ volatile("movq %0, %%cr4" : : "r"(cr4));
	if (c & CPUID1_XSAVE && c & CPUID1_AVX) {
		__asm__ volatile("xsetbv" : : "c"(0), "a"(XCR0_AVX), "d"(0));
		have_avx = true;
	}
	fs_words[cpu] = rg_mix(cpu * 2u + 1);
	gs_words[cpu] = rg_mix(cpu * 2u + 2);
	wrmsr(MSR_FS_BASE, (uint64_t)&fs_words[cpu]);
	wrmsr(MSR_GS_BASE, (uint64_t)&gs_words[cpu]);
}

static void choose(struct rg_registers *r, unsigned cpu, uint64_t round)
{
	uint64_t key = rg_page_key(cpu, round, 0);

	for (unsigned i = 0; i < RG_V_WORDS; i++)
		r->in[i] = rg_content_word(RG_CONTENT_RANDOM, key, i);
	/* IOPL as it is; CF PF AF ZF SF DF OF at random. */
	r->in[RG_V_FLAGS / 8] = (r->in[RG_V_FLAGS / 8] & RG_V_FLAGS_MASK) | 0x3002;
	/* All exceptions masked, rounding mode and flush bits at random. */
	r->in[RG_V_MXCSR / 8] = (r->in[RG_V_MXCSR / 8] & 0xe040) | 0x1f80;
	r->in[RG_V_FCW / 8] = (r->in[RG_V_FCW / 8] & 0x0c00) | 0x037f;
	r->in[RG_V_FS / 8] = fs_words[cpu];
	r->in[RG_V_GS / 8] = gs_words[cpu];
}

static const char *name_of(unsigned word)
{
	static const char *const gprs[] = { "rax", "rbx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };

	if (word < 14)
		return gprs[word];
	switch (word * 8) {
	case RG_V_FLAGS:
		return "rflags";
	case RG_V_MXCSR:
		return "mxcsr";
	case RG_V_FCW:
		return "x87 control word";
	case RG_V_FS:
		return "fs base";
	case RG_V_GS:
		return "gs base";
	default:
		return word * 8 < RG_V_VECTOR ? "x87 stack" : "vector";
	}
}

static bool checked(unsigned word)
{
	if (word * 8 >= RG_V_VECTOR)
		return word * 8 < RG_V_VECTOR + 16 * 32 && (use_avx || (word * 8 - RG_V_VECTOR) % 32 < 16);
	return word * 8 < RG_V_X87 + 8 * 8;
}

static void check(const struct rg_registers *r, unsigned cpu)
{
	for (unsigned i = 0; i < RG_V_WORDS; i++) {
		uint64_t mask = i == RG_V_FLAGS / 8 ? RG_V_FLAGS_MASK : i == RG_V_MXCSR / 8 ? 0xffff & ~0x3fu : i == RG_V_FCW / 8 ? 0xffff : UINT64_MAX;

		if (checked(i) && ((r->in[i] ^ r->out[i]) & mask))
			rg_fail(RG_ERR_REGISTER, (const uint64_t[4]){ i, (i * 8 - RG_V_VECTOR) / 32, r->in[i], r->out[i] },
				"vCPU %u: %s (word %u) was 0x%lx, is 0x%lx", cpu, name_of(i), i, r->in[i], r->out[i]);
	}
}

static void work(unsigned cpu)
{
	struct rg_vcpu *v = RG_VCPU(cpu);
	struct rg_registers *r = &registers[cpu];

	while (!rg_over(rg_beat(v))) {
		choose(r, cpu, v->iterations);
		memset(r->out, 0, sizeof(r->out));
		uint64_t left = rg_registers_round(r, spins, use_avx);

		if (left)
			rg_fail(RG_ERR_REGISTER, (const uint64_t[4]){ 0, 0, 0, left }, "vCPU %u: rcx was 0, is 0x%lx", cpu, left);
		check(r, cpu);
		v->iterations++;
		v->checked++;
	}
}

void guest_main(void)
{
	static const char *const keys[] = { "spins", "avx", NULL };
	unsigned cpus = (unsigned)rg_cmdline_number("smp", 1);

	rg_cmdline_keys(keys);
	spins = rg_cmdline_number("spins", 20000);
	use_avx = have_avx && rg_cmdline_number("avx", 1);
	if (cpus > 1)
		rg_smp_start(cpus, work);
	rg_running();
	rg_log("registers: %s", use_avx ? "ymm" : "xmm");
	work(0);
}
