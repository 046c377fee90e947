/*
 * The status area: how a test guest tells the world what it does, without an exit.
 *
 * Every guest in this folder keeps its whole observable state in guest memory, at a fixed guest-physical address inside its own
 * image (so no loader, firmware or boot structure can lie there). A host-side test reads it by mapping the guest's RAM
 * (memfd, memory-backend-file), with QMP pmemsave, or out of an epoch. This header is compiled into the guests and into host tests.
 *
 *   RG_STATUS_GPA            struct rg_status, one page: what and how the guest is. Written at changes of state only.
 *   RG_VCPU_GPA(i)           struct rg_vcpu, 16 KiB per vCPU: a page of live counters, then three pages of gap ring.
 *
 * Reading while the guest runs: each field is a naturally aligned word that one vCPU writes; a set of fields is consistent only
 * when the guest is paused. All times are guest TSC ticks unless the name ends in _ns; status.tsc_hz converts.
 * A host that has the RAM mapped may write `control`; nobody else writes anything in here but the guest.
 */
#ifndef TESTS_GUESTS_STATUS_H
#define TESTS_GUESTS_STATUS_H

#include <stdint.h>

#define RG_STATUS_GPA   UINT64_C(0x100000)
#define RG_VCPUS_GPA    UINT64_C(0x110000)
#define RG_VCPU_BYTES   UINT64_C(0x4000)
#define RG_VCPU_GPA(i)  (RG_VCPUS_GPA + (uint64_t)(i) * RG_VCPU_BYTES)
#define RG_VCPUS_MAX    32u
#define RG_AREA_END_GPA (RG_VCPUS_GPA + RG_VCPUS_MAX * RG_VCPU_BYTES)

#define RG_MAGIC        UINT64_C(0x3154534555475052) /* "RPGUEST1", little-endian */
#define RG_VERSION      1u

enum rg_kind {
	RG_KIND_DIRTIER = 1,
	RG_KIND_IDLE = 2,
	RG_KIND_LEDGER = 3,
	RG_KIND_BLKWRITER = 4,
	RG_KIND_REGISTERS = 5,
	RG_KIND_IPIS = 6,
};

enum rg_state {
	RG_STATE_NONE = 0,    /* the guest has not come as far as C code */
	RG_STATE_BOOTING = 1, /* parses, probes, fills */
	RG_STATE_RUNNING = 2, /* does what it is for */
	RG_STATE_DONE = 3,    /* run=… is over, or control asked it to stop; nothing is written any more */
	RG_STATE_FAILED = 4,  /* error, error_args and error_text say what */
};

enum rg_error {
	RG_ERR_NONE = 0,
	RG_ERR_EXCEPTION = 1, /* args: vector, error code, rip, cr2 */
	RG_ERR_BOOT = 2,      /* start_info or memory map unusable */
	RG_ERR_CMDLINE = 3,   /* a key that is not known, or a bad value */
	RG_ERR_SMP = 4,       /* args: the vCPU that did not start */
	RG_ERR_NO_DEVICE = 5, /* the device the guest is for is missing, or lacks a feature */
	RG_ERR_PAGE = 6,      /* args: page index, gpa, byte offset, expected sequence */
	RG_ERR_DISK = 7,      /* args: sector, expected sequence, found sequence, what */
	RG_ERR_PROTOCOL = 8,  /* the device broke the virtio rules */
	RG_ERR_CLOCK = 9,     /* time went backwards; args: before, after, vCPU */
	RG_ERR_REGISTER = 10, /* args: which, word of it, expected, found */
};

enum rg_tsc_source {
	RG_TSC_CMDLINE = 1,
	RG_TSC_KVMCLOCK = 2,
	RG_TSC_CPUID = 3,
	RG_TSC_PIT = 4,
	RG_TSC_GUESS = 5, /* nothing there to measure by: 1 GHz assumed */
};

/* Bits of rg_status.control, written by the host. */
#define RG_CONTROL_STOP   1u /* finish the operation at hand, then RG_STATE_DONE */
#define RG_CONTROL_GO     4u /* ipis: send */
#define RG_CONTROL_VERIFY 2u /* verify everything once; the guest clears the bit when it has, and counts it in `verifies` */

/* RAM as the boot protocol's memory map gave it. */
struct rg_ram {
	uint64_t gpa;
	uint64_t bytes;
};

/* A run of working pages: page index first_index + n lies at gpa + n * 4096. */
struct rg_range {
	uint64_t gpa;
	uint64_t pages;
	uint64_t first_index;
};

#define RG_RAM_MAX    8u
#define RG_RANGES_MAX 4u

/* What the dirtier was asked to do, resolved; with pages.h this says what every page must hold. */
struct rg_dirtier {
	uint64_t seed;
	uint64_t ws_pages;    /* pages 0 … ws_pages-1 are written */
	uint64_t total_pages; /* … and pages up to total_pages-1 (ballast) are filled once */
	uint64_t rate;        /* pages per second asked, all workers together; 0 = as fast as it goes */
	uint64_t table_gpa;   /* verify=1: uint32_t sequence per page; 0: no table */
	uint32_t bytes;       /* written per page visit */
	uint32_t entropy;     /* enum rg_content of what is written */
	uint32_t fill;        /* enum rg_content of what was there first */
	uint32_t pattern;     /* 0 seq, 1 random, 2 hot */
	uint32_t hot_writes;  /* percent of the writes … */
	uint32_t hot_pages;   /* … that go to this percent of the pages */
};

/* The ledger's books. The entry log is an array of struct rg_ledger_entry at log_gpa, used as a ring. */
struct rg_ledger {
	uint64_t log_gpa;
	uint64_t log_entries;
	uint64_t count;       /* ADDs acknowledged: entries ever appended */
	uint64_t hash;        /* running hash over all entries, rg_ledger_hash() */
	uint64_t rx_frames;
	uint64_t tx_frames;
	uint64_t tx_dropped;
	uint64_t announces;   /* gratuitous ARPs sent on the device's request */
	uint64_t tcp_accepted;
	uint64_t tcp_closed;
	uint64_t tcp_resets;
	uint64_t tcp_retransmits;
	uint64_t udp_requests;
	uint64_t tcp_requests;
	uint8_t mac[6];
	uint8_t tcp_open;
	uint8_t pad;
	uint32_t ip; /* host order */
};

struct rg_ledger_entry {
	uint64_t number; /* 1, 2, … */
	uint64_t id;     /* the client's */
	uint64_t peer;   /* ip << 32 | port << 16 | 6 for TCP, 17 for UDP */
	uint64_t tsc;
};

/* The running hash after entry `number` with `id`; it starts at 0. */
static inline uint64_t rg_ledger_hash(uint64_t hash, uint64_t number, uint64_t id)
{
	uint64_t x = (hash ^ id) * UINT64_C(0x9e3779b97f4a7c15) + number;

	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	return x ^ x >> 31;
}

/*
 * The block writer's books. map_gpa: uint32_t per block, what the disk must hold there (pages.h). flight_gpa: uint8_t per block: 1 while a
 * write to it is with the device (the disk may hold the block's content before or after it), 2 while a read is.
 */
struct rg_blk {
	uint64_t map_gpa;
	uint64_t flight_gpa;
	uint64_t capacity_sectors;
	uint64_t blocks; /* blocks used: the first ones of the disk */
	uint64_t seed;
	uint64_t features;
	uint32_t block_bytes;
	uint32_t depth;
	uint64_t writes;  /* completed, write-zeroes included */
	uint64_t zeroes;  /* write-zeroes completed */
	uint64_t flushes; /* completed */
	uint64_t reads;   /* completed and compared */
	uint64_t passes;  /* times every block was read and compared */
	uint64_t in_flight;
	uint64_t latency_max_ns;
};

struct rg_status {
	uint64_t magic;
	uint32_t version;
	uint32_t kind;
	uint32_t state;
	uint32_t vcpus;
	uint32_t control;
	uint32_t verifies;    /* RG_CONTROL_VERIFY requests answered */

	uint64_t first_tsc;   /* at the very first instruction, CPL 0 */
	uint64_t user_tsc;    /* at the first instruction at CPL 3 (where these two disagree the host does not offset the TSC) */
	uint64_t running_tsc; /* when state became RUNNING */
	uint64_t done_tsc;
	uint64_t tsc_hz;
	uint32_t tsc_source;
	uint32_t log;         /* log=1: progress on the serial port */
	uint64_t gap_min_ns;  /* gaps shorter than this are not recorded */

	uint32_t error;
	uint32_t error_vcpu;
	uint64_t error_args[4];
	char error_text[128];

	uint64_t start_info_gpa;
	uint64_t image_end_gpa;
	uint32_t ram_count;
	uint32_t range_count;
	struct rg_ram ram[RG_RAM_MAX];
	struct rg_range ranges[RG_RANGES_MAX];
	char cmdline[1024];

	union {
		struct rg_dirtier dirtier;
		struct rg_ledger ledger;
		struct rg_blk blk;
		uint8_t raw[1024];
	};
};

/*
 * The gap meter: a vCPU that polls the TSC sees every time it was not running as a jump. Gaps of at least gap_min_ns are
 * counted, summed, put into a histogram of eight steps per octave and written into a ring, so that a host-side test has exact
 * percentiles of the last RG_GAP_RING gaps.
 */
#define RG_GAP_HIST 256u
#define RG_GAP_RING 768u
#define RG_NO_PAGE  UINT64_MAX

struct rg_gap {
	uint64_t start_tsc;
	uint64_t ns;
};

struct rg_vcpu {
	/* page 0: live counters */
	uint64_t heartbeat;  /* grows while the vCPU runs */
	uint64_t last_tsc;   /* the gap meter's last look */
	uint64_t start_tsc;  /* when this vCPU came to C code */
	uint64_t iterations; /* of the guest's main operation: pages written, requests, blocks */
	uint64_t current;    /* the dirtier's page being written right now, RG_NO_PAGE between writes: the one that may be torn */
	uint64_t checked;    /* pages verified */
	uint64_t behind;     /* operations not done because the rate could not be kept */
	uint64_t apic_id;

	uint64_t gap_count;
	uint64_t gap_sum_ns;
	uint64_t gap_max_ns;
	uint64_t gap_max_tsc;   /* when the longest began */
	uint64_t tsc_backwards; /* times the TSC was smaller than before */
	uint64_t clock_ns;      /* kvmclock, when there is one, as last read: after each gap (idle: at each tick) */
	uint64_t clock_backwards;
	uint64_t clock_over_tsc_ns; /* most that kvmclock grew beyond the TSC over a gap */
	uint64_t clock_under_tsc_ns; /* most that it stayed behind the TSC over a gap: a pause in which guest time stood still */
	uint64_t clock_tsc;     /* when clock_ns was read */
	uint64_t reserved[14];
	uint32_t gap_hist[RG_GAP_HIST];
	uint8_t pad[4096 - 32 * 8 - RG_GAP_HIST * 4];

	/* pages 1–3: the newest RG_GAP_RING gaps, entry gap_count % RG_GAP_RING is the next one written */
	struct rg_gap ring[RG_GAP_RING];
};

/*
 * The histogram's step for a gap of `ns`: eight per octave from 1,024 ns on, the last one open.
 * rg_gap_step_ns() gives the shortest gap that falls in a step.
 */
static inline unsigned rg_gap_step(uint64_t ns)
{
	if (ns < 1024)
		return 0;
	unsigned octave = 63u - (unsigned)__builtin_clzll(ns);
	unsigned step = (octave - 10u) * 8u + (unsigned)(ns >> (octave - 3u) & 7u);

	return step < RG_GAP_HIST ? step : RG_GAP_HIST - 1u;
}

static inline uint64_t rg_gap_step_ns(unsigned step)
{
	return (UINT64_C(8) + step % 8u) << (step / 8u + 7u);
}

_Static_assert(sizeof(struct rg_status) <= 4096, "status is one page");
_Static_assert(sizeof(struct rg_dirtier) <= 1024 && sizeof(struct rg_ledger) <= 1024 && sizeof(struct rg_blk) <= 1024,
	       "the kinds fit the union");
_Static_assert(sizeof(struct rg_vcpu) == RG_VCPU_BYTES, "vCPU block is 16 KiB");

#endif
