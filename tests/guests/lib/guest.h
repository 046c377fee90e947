/*
 * What every test guest stands on: one processor's view of a machine without an operating system.
 *
 * Each vCPU comes to rg_main() at CPL 3 with its own stack, interrupts off, and never leaves. The boot vCPU parses the boot
 * structures, then calls guest_main(), which the guest defines; guest_main() starts the other vCPUs if it wants them.
 * Nothing here allocates but rg_alloc(), which hands out RAM behind the image and is for the boot vCPU before the others run.
 */
#ifndef TESTS_GUESTS_LIB_GUEST_H
#define TESTS_GUESTS_LIB_GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/guests/status.h"

#define RG_STATUS  ((struct rg_status *)RG_STATUS_GPA)
#define RG_VCPU(i) ((struct rg_vcpu *)RG_VCPU_GPA(i))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define rg_barrier() __asm__ volatile("" ::: "memory")

/* A store or load that the compiler neither splits nor moves away; x86 keeps stores in order, and loads. */
#define rg_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define rg_load(p)     __atomic_load_n((p), __ATOMIC_ACQUIRE)

/* ---- the guest: defined by each program ---- */

/* enum rg_kind of this program. */
extern const uint32_t guest_kind;

/* The guest's life on the boot vCPU; returning means DONE. */
void guest_main(void);

/* What the guest wants done at CPL 0 on each vCPU, where hosts may interpret; optional. */
void guest_cpl0(unsigned cpu);

/* ---- processor ---- */

static inline uint64_t rg_tsc(void)
{
	uint32_t lo, hi;

	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi) : : "memory");
	return (uint64_t)hi << 32 | lo;
}

static inline void rg_out8(uint16_t port, uint8_t v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port) : "memory"); }
static inline void rg_out16(uint16_t port, uint16_t v) { __asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port) : "memory"); }
static inline void rg_out32(uint16_t port, uint32_t v) { __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port) : "memory"); }

static inline uint8_t rg_in8(uint16_t port)
{
	uint8_t v;

	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}

static inline uint16_t rg_in16(uint16_t port)
{
	uint16_t v;

	__asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}

static inline uint32_t rg_in32(uint16_t port)
{
	uint32_t v;

	__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}

void *memcpy(void *dst, const void *src, size_t n);
void *memset(void *dst, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);

/* ---- text ---- */

/* %s %c %d %u %x %lu %lx %ld (long is 64 bits) into `buf`, always terminated. Returns what was stored, without the zero. */
size_t rg_vformat(char *buf, size_t size, const char *fmt, va_list ap);
__attribute__((format(printf, 3, 4))) size_t rg_format(char *buf, size_t size, const char *fmt, ...);

/* One line on the serial port, if log=1. An exit per byte: sparingly. */
__attribute__((format(printf, 1, 2))) void rg_log(const char *fmt, ...);

/*
 * State FAILED with `error`, its four arguments and a sentence; the sentence goes to the serial port in any case. The first
 * failure of any vCPU is the one recorded. Does not return: the vCPU polls on, its heart stopped.
 */
__attribute__((noreturn, format(printf, 3, 4))) void rg_fail(enum rg_error error, const uint64_t args[4], const char *fmt, ...);

/* ---- command line: key=value words; sizes take K, M, G, times take ns, us, ms, s ---- */

/* All keys a guest knows, beside the common ones; ends with NULL. Anything else on the command line fails with its name. */
void rg_cmdline_keys(const char *const *keys);
bool rg_cmdline_text(const char *key, char *buf, size_t size);
uint64_t rg_cmdline_size(const char *key, uint64_t otherwise);
uint64_t rg_cmdline_number(const char *key, uint64_t otherwise);
uint64_t rg_cmdline_time_ns(const char *key, uint64_t otherwise);
/* Index of the key's value in `names` (ends with NULL), `otherwise` when the key is missing. */
uint32_t rg_cmdline_choice(const char *key, const char *const *names, uint32_t otherwise);

/* ---- memory ---- */

/* Finds the RAM and sets up the allocator. */
void rg_memory_init(const void *start_info);

/* `bytes` of RAM behind the image, aligned (a power of two), within one run of RAM; zeroed when asked. Fails the guest when there is none. */
void *rg_alloc(uint64_t bytes, uint64_t align, bool zero);

/* All RAM that is left, as up to RG_RANGES_MAX runs of whole pages starting at `align`; returns the pages in them. */
uint64_t rg_memory_rest(uint64_t align, struct rg_range ranges[RG_RANGES_MAX], uint32_t *count);

/* ---- time ---- */

/* Measures tsc_hz; from here on the conversions work. */
void rg_clock_init(void);
uint64_t rg_ticks_to_ns(uint64_t ticks);
uint64_t rg_ns_to_ticks(uint64_t ns);

/* kvmclock of this vCPU in ns; 0 when there is none. */
uint64_t rg_kvmclock_ns(unsigned cpu);

/* ---- vCPUs ---- */

/* Starts vCPUs 1 … count-1, which run entry(cpu) and must not return. Fails the guest if one does not come. */
/* Interrupt `vector` to that vCPU. Anywhere, after rg_smp_start. */
void rg_smp_interrupt(unsigned cpu, unsigned vector);
void rg_smp_start(unsigned count, void (*entry)(unsigned cpu));

/* ---- the gap meter and the common end ---- */

/* Once per turn of a polling loop: heartbeat and gap meter. */
static inline uint64_t rg_beat(struct rg_vcpu *v);

/* True when control or run=… says that it is over. */
bool rg_over(uint64_t now);

/* State DONE, then what end=… says: spin (default), reset, off (ACPI PM1a at 0x604 as QEMU and Reprise have it), exit (isa-debug-exit at 0xf4). */
__attribute__((noreturn)) void rg_done(void);

/* State RUNNING; from here on run=… counts. */
void rg_running(void);

void rg_gap_record(struct rg_vcpu *v, uint64_t start_tsc, uint64_t now);

extern uint64_t rg_gap_min_ticks;

static inline uint64_t rg_beat(struct rg_vcpu *v)
{
	uint64_t now = rg_tsc();
	uint64_t last = v->last_tsc;

	if (__builtin_expect(now - last >= rg_gap_min_ticks, 0))
		rg_gap_record(v, last, now);
	rg_store(&v->last_tsc, now);
	rg_store(&v->heartbeat, v->heartbeat + 1);
	return now;
}

#endif
