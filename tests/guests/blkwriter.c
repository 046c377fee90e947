/*
 * blkwriter: writes blocks that say what they are, remembers in RAM what the disk must hold, and reads back: disk and RAM agree.
 *
 *   size=64M       how much of the disk, from its start     block=4K      512 … 64K
 *   mode=async|sync  sync: one write at a time, flushed       depth=8       requests in flight (async)
 *   flush=64       async: a flush after so many writes, 0 never
 *   pattern=random|seq   rate=0 writes/s, 0 = max             segs=1        descriptors a block's data is spread over, 1 … 8
 *   verify=1       one request in four reads a block, in order, and compares it; 0: only when control asks
 *   zeroes=0       percent of the writes that are write-zeroes, if the device has them
 *   seed=1         disk=0: which virtio-blk device
 *
 * The map changes when the device completes a write. A block with a request in flight is left alone until it is done, so a read always knows
 * what must come: anything else fails the guest, with the sector, what was expected and what was there. A sequence on the disk that is
 * newer than the map's means that the disk saw writes of a life this guest has not lived.
 */
#include "tests/guests/lib/guest.h"
#include "tests/guests/lib/virtio.h"
#include "tests/guests/pages.h"

/* VIRTIO 1.1, 5.2 */
#define F_RO           (UINT64_C(1) << 5)
#define F_FLUSH        (UINT64_C(1) << 9)
#define F_WRITE_ZEROES (UINT64_C(1) << 14)
#define T_IN           0u
#define T_OUT          1u
#define T_FLUSH        4u
#define T_WRITE_ZEROES 13u
#define CONFIG_CAPACITY 0
#define DEPTH_MAX      64u
#define SEGS_MAX       8u
#define BLOCK_MAX      65536u

const uint32_t guest_kind = RG_KIND_BLKWRITER;

enum pattern { PATTERN_RANDOM, PATTERN_SEQ };

struct request_head {
	uint32_t type;
	uint32_t reserved;
	uint64_t sector;
};

struct zeroes_range {
	uint64_t sector;
	uint32_t sectors;
	uint32_t flags;
};

/* What a slot of the queue is doing. */
struct slot {
	struct request_head head;
	struct zeroes_range range;
	uint8_t status;
	uint8_t busy;
	uint32_t entry; /* write: what the map will say */
	uint64_t block;
	uint64_t start_tsc;
	uint64_t *data;
};

struct writer {
	struct rg_virtio dev;
	struct rg_vq vq;
	struct slot *slots;
	unsigned depth, segs, free;
	bool sync, verify;
	uint32_t pattern, flush_every, zeroes_percent;
	uint32_t unflushed;
	uint64_t random, at, scan_at;
	uint64_t turn; /* requests started: every fourth one reads */
	uint64_t next, interval;
	bool pass, pass_reading; /* control asked for a pass: reads only until scan_at comes round */
};

static struct writer w;
static struct rg_blk *b;
static uint32_t *map;
static uint8_t *flight;

static unsigned sectors_per_block(void)
{
	return b->block_bytes / RG_SECTOR_BYTES;
}

/* ---- requests ---- */

static void start(unsigned n, uint32_t type, uint64_t block)
{
	struct slot *s = &w.slots[n];
	struct rg_desc *d = rg_vq_desc(&w.vq, (uint16_t)n);
	uint16_t at = (uint16_t)(n * w.vq.chain), count = 0;
	uint16_t data_flags = type == T_IN ? RG_DESC_WRITE : 0;

	s->head = (struct request_head){ type, 0, type == T_IN || type == T_OUT ? block * sectors_per_block() : 0 };
	s->block = block;
	s->status = 0xff;
	s->busy = 1;
	s->start_tsc = rg_tsc();
	d[count++] = (struct rg_desc){ (uint64_t)&s->head, sizeof(s->head), 0, 0 };
	if (type == T_WRITE_ZEROES)
		d[count++] = (struct rg_desc){ (uint64_t)&s->range, sizeof(s->range), 0, 0 };
	/* Pieces of whole sectors; the last one takes what does not divide. */
	unsigned sectors = sectors_per_block(), segs = w.segs < sectors ? w.segs : sectors;

	for (unsigned i = 0; i < segs && (type == T_IN || type == T_OUT); i++) {
		unsigned from = sectors * i / segs, to = sectors * (i + 1) / segs;

		d[count++] = (struct rg_desc){ (uint64_t)s->data + from * RG_SECTOR_BYTES, (to - from) * RG_SECTOR_BYTES, data_flags, 0 };
	}
	d[count++] = (struct rg_desc){ (uint64_t)&s->status, 1, RG_DESC_WRITE, 0 };
	for (uint16_t i = 0; i + 1 < count; i++) {
		d[i].flags |= RG_DESC_NEXT;
		d[i].next = (uint16_t)(at + i + 1);
	}
	w.free--;
	b->in_flight++;
	rg_vq_post(&w.vq, (uint16_t)n);
}

static unsigned free_slot(void)
{
	unsigned n = 0;

	while (w.slots[n].busy)
		n++;
	return n;
}

static void start_write(uint64_t block, bool zero)
{
	unsigned n = free_slot();
	struct slot *s = &w.slots[n];
	uint32_t seq = (map[block] & ~RG_BLOCK_ZERO) + 1;
	uint64_t lba = block * sectors_per_block();

	s->entry = zero ? seq | RG_BLOCK_ZERO : seq;
	flight[block] = 1;
	if (zero) {
		s->range = (struct zeroes_range){ lba, sectors_per_block(), 0 };
		start(n, T_WRITE_ZEROES, block);
		return;
	}
	for (unsigned i = 0; i < sectors_per_block(); i++)
		for (unsigned j = 0; j < RG_SECTOR_WORDS; j++)
			s->data[i * RG_SECTOR_WORDS + j] = rg_sector_word(b->seed, lba + i, s->entry, j);
	start(n, T_OUT, block);
}

static void compare(const struct slot *s)
{
	uint32_t entry = map[s->block];

	for (unsigned i = 0; entry && i < sectors_per_block(); i++) {
		uint64_t lba = s->block * sectors_per_block() + i;
		const uint64_t *p = &s->data[i * RG_SECTOR_WORDS];

		for (unsigned j = 0; j < RG_SECTOR_WORDS; j++) {
			if (p[j] == rg_sector_word(b->seed, lba, entry, j))
				continue;
			rg_fail(RG_ERR_DISK, (const uint64_t[4]){ lba, entry, p[2], p[1] },
				"sector %lu: byte %u is 0x%lx; RAM says write %u%s, disk says write %lu of sector %lu", lba, j * 8, p[j],
				entry & ~RG_BLOCK_ZERO, entry & RG_BLOCK_ZERO ? " (zeroes)" : "", p[2], p[1]);
		}
	}
	b->reads++;
}

static void complete(struct slot *s)
{
	uint64_t ns = rg_ticks_to_ns(rg_tsc() - s->start_tsc);

	if (s->status != 0)
		rg_fail(RG_ERR_DISK, (const uint64_t[4]){ s->head.sector, s->head.type, s->status, 0 },
			"request type %u at sector %lu ended with status %u", s->head.type, s->block * sectors_per_block(), s->status);
	s->busy = 0;
	w.free++;
	b->in_flight--;
	if (ns > b->latency_max_ns)
		b->latency_max_ns = ns;
	if (s->head.type == T_FLUSH) {
		b->flushes++;
	} else if (s->head.type == T_IN) {
		flight[s->block] = 0;
		compare(s);
	} else {
		/* A cut between these two leaves the block in flight with its new entry: the disk holds the new content by now. */
		rg_store(&map[s->block], s->entry);
		rg_store(&flight[s->block], 0);
		b->writes++;
		b->zeroes += s->head.type == T_WRITE_ZEROES;
		w.unflushed++;
		RG_VCPU(0)->iterations++;
	}
}

/* ---- what to do next ---- */

/* A block nobody is writing or reading, from `from` on; depth is far below the number of blocks. */
static uint64_t idle_block(uint64_t from)
{
	while (flight[from])
		from = from + 1 < b->blocks ? from + 1 : 0;
	return from;
}

static void next_write(void)
{
	uint64_t r = rg_mix(++w.random), from = w.at;

	if (w.pattern == PATTERN_RANDOM)
		from = (uint64_t)((unsigned __int128)r * b->blocks >> 64);
	else
		w.at = w.at + 1 < b->blocks ? w.at + 1 : 0;
	start_write(idle_block(from), rg_mix(r) % 100 < w.zeroes_percent);
}

/* Reads the next block in order. A block that is being written is left out, but not in a pass: there it waits. */
static bool next_read(void)
{
	uint64_t block = w.scan_at;

	if (flight[block] && w.pass)
		return false;
	w.scan_at = block + 1 < b->blocks ? block + 1 : 0;
	b->passes += w.scan_at == 0;
	if (flight[block])
		return true;
	flight[block] = 2;
	start(free_slot(), T_IN, block);
	return true;
}

/* RG_CONTROL_VERIFY: drain, read everything from block 0 on, drain, answer. True while it is at it. */
static bool run_pass(void)
{
	if (!w.pass && !(rg_load(&RG_STATUS->control) & RG_CONTROL_VERIFY))
		return false;
	if (!w.pass) {
		w.pass = true;
		w.pass_reading = false;
	}
	if (!w.pass_reading) {
		if (b->in_flight)
			return true;
		w.pass_reading = true;
		w.scan_at = 0;
	} else if (w.scan_at == 0) {
		if (b->in_flight)
			return true;
		w.pass = false;
		__atomic_and_fetch(&RG_STATUS->control, ~RG_CONTROL_VERIFY, __ATOMIC_ACQ_REL);
		RG_STATUS->verifies++;
		return false;
	}
	while (w.free && next_read() && w.scan_at != 0)
		;
	return true;
}

static void start_some(uint64_t now)
{
	if (run_pass())
		return;
	while (w.free) {
		bool flush = w.sync ? w.unflushed != 0 : w.flush_every && w.unflushed >= w.flush_every;

		if (w.sync && b->in_flight)
			return;
		if (flush && w.dev.features & F_FLUSH) {
			w.unflushed = 0;
			start(free_slot(), T_FLUSH, 0);
			continue;
		}
		if (w.verify && ++w.turn % 4 == 0) {
			next_read();
			continue;
		}
		if (w.interval && (int64_t)(now - w.next) < 0)
			return;
		w.next = w.next + w.interval > now - w.interval * 8 ? w.next + w.interval : now;
		next_write();
	}
}

static void poll_completions(void)
{
	uint16_t slot;
	uint32_t len;

	while (rg_vq_poll(&w.vq, &slot, &len)) {
		uint32_t want = w.slots[slot].head.type == T_IN ? b->block_bytes + 1 : 1;

		if (len > want)
			rg_fail(RG_ERR_PROTOCOL, NULL, "virtio-blk says it wrote %u bytes into a buffer of %u", len, want);
		complete(&w.slots[slot]);
	}
}

/* ---- start ---- */

static void read_options(void)
{
	static const char *const keys[] = { "size", "block", "mode", "depth", "flush", "pattern", "rate", "segs", "verify", "zeroes", "seed", "disk", NULL };
	static const char *const modes[] = { "async", "sync", NULL };
	static const char *const patterns[] = { "random", "seq", NULL };

	rg_cmdline_keys(keys);
	w.sync = rg_cmdline_choice("mode", modes, 0);
	w.pattern = rg_cmdline_choice("pattern", patterns, PATTERN_RANDOM);
	w.depth = w.sync ? 1 : (unsigned)rg_cmdline_number("depth", 8);
	w.segs = (unsigned)rg_cmdline_number("segs", 1);
	w.flush_every = (uint32_t)rg_cmdline_number("flush", 64);
	w.verify = rg_cmdline_number("verify", 1);
	w.zeroes_percent = (uint32_t)rg_cmdline_number("zeroes", 0);
	b->seed = rg_cmdline_number("seed", 1);
	b->block_bytes = (uint32_t)rg_cmdline_size("block", 4096);
	uint64_t rate = rg_cmdline_number("rate", 0);

	w.interval = rate ? RG_STATUS->tsc_hz / rate : 0;
	if (w.depth < 1 || w.depth > DEPTH_MAX || w.segs < 1 || w.segs > SEGS_MAX)
		rg_fail(RG_ERR_CMDLINE, NULL, "command line: depth=%u (1 to %u), segs=%u (1 to %u)", w.depth, DEPTH_MAX, w.segs, SEGS_MAX);
	if (b->block_bytes < RG_SECTOR_BYTES || b->block_bytes > BLOCK_MAX || b->block_bytes % RG_SECTOR_BYTES)
		rg_fail(RG_ERR_CMDLINE, NULL, "command line: block=%u: sectors of 512, up to 64K", b->block_bytes);
}

static void open_disk(void)
{
	unsigned index = (unsigned)rg_cmdline_number("disk", 0);

	rg_virtio_init(&w.dev, RG_VIRTIO_BLK, index, 0, F_RO | F_FLUSH | F_WRITE_ZEROES);
	if (w.dev.features & F_RO)
		rg_fail(RG_ERR_NO_DEVICE, NULL, "disk %u is read-only", index);
	if (!(w.dev.features & F_WRITE_ZEROES))
		w.zeroes_percent = 0;
	b->features = w.dev.features;
	b->capacity_sectors = rg_virtio_config32(&w.dev, CONFIG_CAPACITY) | (uint64_t)rg_virtio_config32(&w.dev, CONFIG_CAPACITY + 4) << 32;
	rg_virtio_queue(&w.dev, &w.vq, 0, (uint16_t)w.depth, (uint16_t)(w.segs + 2));
	w.depth = w.free = w.vq.slots;
	b->depth = w.depth;
	b->blocks = rg_cmdline_size("size", UINT64_C(64) << 20) / b->block_bytes;
	if (b->blocks > b->capacity_sectors / sectors_per_block())
		b->blocks = b->capacity_sectors / sectors_per_block();
	if (b->blocks < 2u * w.depth)
		rg_fail(RG_ERR_NO_DEVICE, NULL, "disk of %lu sectors: too small for %u requests of %u bytes", b->capacity_sectors, w.depth, b->block_bytes);
	map = rg_alloc(b->blocks * sizeof(*map), 4096, true);
	flight = rg_alloc(b->blocks, 4096, true);
	w.slots = rg_alloc(w.depth * sizeof(*w.slots), 4096, true);
	for (unsigned i = 0; i < w.depth; i++)
		w.slots[i].data = rg_alloc(b->block_bytes, 4096, true);
	b->map_gpa = (uint64_t)map;
	b->flight_gpa = (uint64_t)flight;
	rg_virtio_ready(&w.dev);
}

static void other_vcpu(unsigned cpu)
{
	while (!rg_over(rg_beat(RG_VCPU(cpu))))
		;
}

void guest_main(void)
{
	unsigned cpus = (unsigned)rg_cmdline_number("smp", 1);

	b = &RG_STATUS->blk;
	memset(b, 0, sizeof(*b));
	read_options();
	open_disk();
	w.random = rg_mix(b->seed);
	w.next = rg_tsc();
	if (cpus > 1)
		rg_smp_start(cpus, other_vcpu);
	rg_running();
	rg_log("blkwriter: %lu blocks of %u bytes, depth %u", b->blocks, b->block_bytes, w.depth);
	for (;;) {
		uint64_t now = rg_beat(RG_VCPU(0));
		bool over = rg_over(now);

		poll_completions();
		if (over && !b->in_flight)
			return;
		if (!over)
			start_some(now);
		rg_vq_kick(&w.vq);
	}
}
