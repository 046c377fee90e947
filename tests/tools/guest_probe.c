/*
 * guest-probe: reads a test guest's status area (tests/guests/status.h) out of its RAM, and checks what it can check from outside.
 *
 *     guest-probe [options] FILE | -p PID
 *       FILE         the guest's RAM: a memory-backend-file, /proc/PID/fd/N of a memfd, or a dump that begins at guest-physical 0
 *       -p PID       the RAM among PID's memfds
 *       -o BYTES     where guest-physical 0 is in FILE (0)
 *       -l BYTES     where RAM below 4 GiB ends; what lies above 4 GiB follows it in FILE (taken from the guest's memory map)
 *       -w STATE     wait for booting, running, done or failed; -t SECONDS at most (10). A guest that fails ends any wait.
 *       -V           verify: dirtier: every page; block writer with -d DISK: every block of the disk image against the map.
 *                    The guest must be paused or done, or pages on the move are called bad.
 *       -c BITS      first write the control word: 1 stop, 2 verify (FILE is then opened for writing)
 *       -g           the newest gaps, one per line: start_tsc ns
 *       -q           print nothing but errors
 *
 * Prints `name value` lines. Exit codes: 0 as asked · 1 the guest failed, a page is bad or the wait ran out · 2 usage.
 */
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tests/guests/pages.h"
#include "tests/guests/status.h"

#define FOUR_GIB (UINT64_C(1) << 32)
#define LOW_ALIGN (UINT64_C(1) << 27) /* RAM below 4 GiB ends at a multiple of this; the top may be reserved for firmware tables */

struct image {
	uint8_t *base;
	uint64_t bytes, offset, low_end;
};

struct options {
	const char *file, *disk, *wait;
	long pid;
	uint64_t offset, low_end;
	double seconds;
	bool verify, gaps, quiet, write;
	uint32_t control;
};

/* `bytes` of guest memory at `gpa`, or the program ends: a guest's addresses are not to be trusted. */
static const void *at(const struct image *m, uint64_t gpa, uint64_t bytes)
{
	uint64_t where = m->offset + (gpa < FOUR_GIB ? gpa : gpa - FOUR_GIB + m->low_end);

	if (where > m->bytes || bytes > m->bytes - where)
		errx(1, "guest-physical 0x%" PRIx64 " + 0x%" PRIx64 " is not in the image", gpa, bytes);
	return m->base + where;
}

static const struct rg_status *status_of(const struct image *m)
{
	return at(m, RG_STATUS_GPA, sizeof(struct rg_status));
}

static bool has_guest(const char *path)
{
	uint64_t magic = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	bool yes = fd >= 0 && pread(fd, &magic, sizeof(magic), (off_t)RG_STATUS_GPA) == sizeof(magic) && magic == RG_MAGIC;

	if (fd >= 0)
		close(fd);
	return yes;
}

/* The first memfd of the process that holds a guest; false: none, or none yet. */
static bool find_memfd(long pid, char path[64])
{
	char dir[32], link[320], target[128];

	snprintf(dir, sizeof(dir), "/proc/%ld/fd", pid);
	DIR *d = opendir(dir);

	if (!d)
		err(1, "%s", dir);
	bool found = false;

	for (struct dirent *e; !found && (e = readdir(d));) {
		snprintf(link, sizeof(link), "%s/%s", dir, e->d_name);
		ssize_t n = readlink(link, target, sizeof(target) - 1);

		if (n <= 0 || strncmp(target, "/memfd:", 7) != 0 || !has_guest(link))
			continue;
		snprintf(path, 64, "%.63s", link);
		found = true;
	}
	closedir(d);
	return found;
}

static bool map_image(const struct options *o, const char *path, struct image *m)
{
	int fd = open(path, (o->write ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		err(1, "%s", path);
	m->bytes = (uint64_t)st.st_size;
	m->offset = o->offset;
	if (m->bytes < o->offset + RG_AREA_END_GPA) {
		close(fd);
		return false;
	}
	m->base = mmap(NULL, m->bytes, PROT_READ | (o->write ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
	if (m->base == MAP_FAILED)
		err(1, "%s: mmap", path);
	close(fd);
	return true;
}

static void pause_ms(long ms)
{
	nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL);
}

static uint64_t low_end_of(const struct rg_status *s)
{
	uint64_t end = 0;

	for (uint32_t i = 0; i < s->ram_count && i < RG_RAM_MAX; i++)
		if (s->ram[i].gpa < FOUR_GIB)
			end = s->ram[i].gpa + s->ram[i].bytes;
	return (end + LOW_ALIGN - 1) & ~(LOW_ALIGN - 1);
}

static const char *const state_names[] = { "none", "booting", "running", "done", "failed" };
static const char *const kind_names[] = { "?", "dirtier", "idle", "ledger", "blkwriter", "registers", "ipis" };

static const char *name(const char *const *names, uint32_t count, uint32_t i)
{
	return i < count ? names[i] : "?";
}

static uint32_t state_number(const char *text)
{
	for (uint32_t i = 1; i < 5; i++)
		if (strcmp(text, state_names[i]) == 0)
			return i;
	errx(2, "no such state: %s", text);
}

/* Opens the image when it is there, and waits for the state asked for. */
static void open_and_wait(const struct options *o, struct image *m)
{
	uint32_t want = o->wait ? state_number(o->wait) : RG_STATE_NONE;
	uint32_t last = RG_STATE_NONE;

	for (double waited = 0;; waited += 0.002) {
		char path[64];
		const char *file = o->file;

		if (!m->base && !file && find_memfd(o->pid, path))
			file = path;
		if (m->base || (file && (access(file, F_OK) == 0 || !o->wait) && map_image(o, file, m))) {
			const struct rg_status *s = status_of(m);

			last = s->magic == RG_MAGIC ? __atomic_load_n(&s->state, __ATOMIC_ACQUIRE) : RG_STATE_NONE;
			if (last >= want && last != RG_STATE_NONE)
				return;
		}
		if (!o->wait)
			errx(1, "no guest in this image");
		if (waited >= o->seconds)
			errx(1, "the guest is not %s after %.1f s: %s", o->wait, o->seconds, name(state_names, 5, last));
		pause_ms(2);
	}
}

static int by_ns(const void *a, const void *b)
{
	const struct rg_gap *x = a, *y = b;

	return x->ns < y->ns ? -1 : x->ns > y->ns;
}

static void print_vcpu(const struct rg_vcpu *v, uint32_t cpu, bool gaps)
{
	uint64_t total = v->gap_count, n = total < RG_GAP_RING ? total : RG_GAP_RING;
	struct rg_gap *sorted = calloc(RG_GAP_RING, sizeof(*sorted));

	if (!sorted)
		errx(1, "out of memory");
	printf("vcpu%u.heartbeat %" PRIu64 "\nvcpu%u.iterations %" PRIu64 "\nvcpu%u.checked %" PRIu64 "\nvcpu%u.behind %" PRIu64 "\n", cpu, v->heartbeat, cpu,
	       v->iterations, cpu, v->checked, cpu, v->behind);
	printf("vcpu%u.last_tsc %" PRIu64 "\n", cpu, v->last_tsc);
	printf("vcpu%u.gaps %" PRIu64 "\nvcpu%u.gap_sum_us %.1f\nvcpu%u.gap_max_us %.1f\n", cpu, total, cpu, (double)v->gap_sum_ns / 1e3, cpu, (double)v->gap_max_ns / 1e3);
	memcpy(sorted, v->ring, n * sizeof(*sorted));
	qsort(sorted, n, sizeof(*sorted), by_ns);
	if (n)
		printf("vcpu%u.gap_p50_us %.1f\nvcpu%u.gap_p99_us %.1f\n", cpu, (double)sorted[n / 2].ns / 1e3, cpu, (double)sorted[n * 99 / 100].ns / 1e3);
	printf("vcpu%u.tsc_backwards %" PRIu64 "\nvcpu%u.clock_backwards %" PRIu64 "\n", cpu, v->tsc_backwards, cpu, v->clock_backwards);
	printf("vcpu%u.clock_over_tsc_us %.1f\nvcpu%u.clock_under_tsc_us %.1f\n", cpu, (double)v->clock_over_tsc_ns / 1e3, cpu,
	       (double)v->clock_under_tsc_ns / 1e3);
	for (uint64_t i = 0; gaps && i < n; i++) {
		const struct rg_gap *g = &v->ring[(total - n + i) % RG_GAP_RING];

		printf("vcpu%u.gap %" PRIu64 " %" PRIu64 "\n", cpu, g->start_tsc, g->ns);
	}
	free(sorted);
}

static void print_kind(const struct rg_status *s)
{
	const struct rg_ledger *l = &s->ledger;
	const struct rg_blk *b = &s->blk;

	switch (s->kind) {
	case RG_KIND_DIRTIER:
		printf("pages %" PRIu64 "\nrate %" PRIu64 "\n", s->dirtier.total_pages, s->dirtier.rate);
		break;
	case RG_KIND_LEDGER:
		printf("count %" PRIu64 "\nhash %" PRIx64 "\nrx_frames %" PRIu64 "\ntx_frames %" PRIu64 "\ntx_dropped %" PRIu64 "\n", l->count, l->hash, l->rx_frames,
		       l->tx_frames, l->tx_dropped);
		printf("announces %" PRIu64 "\ntcp_accepted %" PRIu64 "\ntcp_open %u\ntcp_resets %" PRIu64 "\ntcp_retransmits %" PRIu64 "\n", l->announces,
		       l->tcp_accepted, l->tcp_open, l->tcp_resets, l->tcp_retransmits);
		break;
	case RG_KIND_BLKWRITER:
		printf("writes %" PRIu64 "\nzeroes %" PRIu64 "\nflushes %" PRIu64 "\nreads %" PRIu64 "\npasses %" PRIu64 "\nin_flight %" PRIu64 "\nlatency_max_us %.1f\n",
		       b->writes, b->zeroes, b->flushes, b->reads, b->passes, b->in_flight, (double)b->latency_max_ns / 1e3);
		break;
	default:
		break;
	}
}

static void print_status(const struct image *m, bool gaps)
{
	const struct rg_status *s = status_of(m);
	double hz = s->tsc_hz ? (double)s->tsc_hz : 1e9;

	printf("kind %s\nstate %s\nvcpus %u\nverifies %u\n", name(kind_names, 6, s->kind), name(state_names, 5, s->state), s->vcpus, s->verifies);
	printf("tsc_hz %" PRIu64 "\ntsc_source %u\nfirst_tsc %" PRIu64 "\nboot_us %.1f\nrunning_us %.1f\n", s->tsc_hz, s->tsc_source, s->first_tsc,
	       (double)(s->user_tsc - s->first_tsc) / hz * 1e6, (double)(s->running_tsc - s->user_tsc) / hz * 1e6);
	if (s->error)
		printf("error %u\nerror_text %.127s\n", s->error, s->error_text);
	print_kind(s);
	for (uint32_t i = 0; i < s->vcpus && i < RG_VCPUS_MAX; i++)
		print_vcpu(at(m, RG_VCPU_GPA(i), RG_VCPU_BYTES), i, gaps);
}

static uint64_t page_gpa(const struct rg_status *s, uint64_t index)
{
	uint32_t i = 0;

	while (i + 1 < s->range_count && i + 1 < RG_RANGES_MAX && index >= s->ranges[i + 1].first_index)
		i++;
	return s->ranges[i].gpa + (index - s->ranges[i].first_index) * RG_PAGE_BYTES;
}

static bool being_written(const struct image *m, uint64_t index)
{
	const struct rg_status *s = status_of(m);

	for (uint32_t i = 0; i < s->vcpus && i < RG_VCPUS_MAX; i++)
		if (((const struct rg_vcpu *)at(m, RG_VCPU_GPA(i), RG_VCPU_BYTES))->current == index)
			return true;
	return false;
}

/* With a table: each page is its newest version. Without: each page is some version of itself, whole. */
static void verify_dirtier(const struct image *m)
{
	const struct rg_status *s = status_of(m);
	const struct rg_dirtier *d = &s->dirtier;
	const uint32_t *table = d->table_gpa ? at(m, d->table_gpa, d->total_pages * sizeof(*table)) : NULL;

	for (uint64_t i = 0; i < d->total_pages; i++) {
		uint64_t gpa = page_gpa(s, i);
		const uint64_t *p = at(m, gpa, RG_PAGE_BYTES);
		uint64_t seq = table ? table[i] : p[0] == RG_PAGE_MAGIC ? p[2] : 0;

		if (being_written(m, i))
			continue;
		for (unsigned j = 0; j < RG_PAGE_WORDS; j++) {
			uint64_t want = rg_page_word(d->seed, i, seq, d->entropy, d->fill, d->bytes, j);

			if (p[j] != want)
				errx(1, "page %" PRIu64 " at 0x%" PRIx64 ", visited %" PRIu64 " times: byte %u is 0x%" PRIx64 ", should be 0x%" PRIx64, i, gpa, seq,
				    j * 8, p[j], want);
		}
	}
	printf("verified_pages %" PRIu64 "\n", d->total_pages);
}

static void verify_ledger(const struct image *m)
{
	const struct rg_ledger *l = &status_of(m)->ledger;
	uint64_t hash = 0;

	if (l->count > l->log_entries)
		errx(1, "the book has gone round: %" PRIu64 " entries of %" PRIu64, l->count, l->log_entries);
	const struct rg_ledger_entry *e = at(m, l->log_gpa, l->count * sizeof(*e));

	for (uint64_t i = 0; i < l->count; i++) {
		if (e[i].number != i + 1)
			errx(1, "entry %" PRIu64 " of the book has number %" PRIu64, i + 1, e[i].number);
		hash = rg_ledger_hash(hash, e[i].number, e[i].id);
	}
	if (hash != l->hash)
		errx(1, "the book's hash is %" PRIx64 ", the guest's %" PRIx64, hash, l->hash);
	printf("verified_entries %" PRIu64 "\n", l->count);
}

static bool sector_is(const uint64_t *p, uint64_t seed, uint64_t lba, uint32_t entry)
{
	for (unsigned j = 0; j < RG_SECTOR_WORDS; j++)
		if (p[j] != rg_sector_word(seed, lba, entry, j))
			return false;
	return true;
}

/* A block with a write in flight may be old or new, sector by sector; any other is what the map says. */
static void verify_disk(const struct image *m, const char *path)
{
	const struct rg_blk *b = &status_of(m)->blk;
	uint32_t sectors = b->block_bytes / RG_SECTOR_BYTES;
	const uint32_t *map = at(m, b->map_gpa, b->blocks * sizeof(*map));
	const uint8_t *flight = at(m, b->flight_gpa, b->blocks);
	uint64_t block[65536 / 8], checked = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		err(1, "%s", path);
	if (b->block_bytes > sizeof(block))
		errx(1, "block of %u bytes", b->block_bytes);
	for (uint64_t i = 0; i < b->blocks; i++) {
		if (!map[i])
			continue;
		if (pread(fd, block, b->block_bytes, (off_t)(i * b->block_bytes)) != (ssize_t)b->block_bytes)
			errx(1, "%s: cannot read block %" PRIu64, path, i);
		for (uint32_t k = 0; k < sectors; k++) {
			const uint64_t *p = &block[k * RG_SECTOR_WORDS];
			uint32_t next = (map[i] & ~RG_BLOCK_ZERO) + 1;
			uint64_t lba = i * sectors + k;

			if (sector_is(p, b->seed, lba, map[i]) ||
			    (flight[i] == 1 && (sector_is(p, b->seed, lba, next) || sector_is(p, b->seed, lba, next | RG_BLOCK_ZERO))))
				continue;
			errx(1, "sector %" PRIu64 ": RAM says write %u%s%s, disk says write %" PRIu64 " of sector %" PRIu64, lba, map[i] & ~RG_BLOCK_ZERO,
			    map[i] & RG_BLOCK_ZERO ? " (zeroes)" : "", flight[i] == 1 ? ", next in flight" : "", p[2], p[1]);
		}
		checked++;
	}
	close(fd);
	printf("verified_blocks %" PRIu64 "\n", checked);
}

static void verify(const struct image *m, const struct options *o)
{
	switch (status_of(m)->kind) {
	case RG_KIND_DIRTIER:
		verify_dirtier(m);
		break;
	case RG_KIND_LEDGER:
		verify_ledger(m);
		break;
	case RG_KIND_BLKWRITER:
		if (!o->disk)
			errx(2, "the block writer is verified against -d DISK");
		verify_disk(m, o->disk);
		break;
	default:
		break;
	}
}

static void parse_args(struct options *o, int argc, char **argv)
{
	int c;

	*o = (struct options){ .seconds = 10 };
	while ((c = getopt(argc, argv, "p:o:l:w:t:Vd:c:gq")) != -1) {
		switch (c) {
		case 'p': o->pid = strtol(optarg, NULL, 10); break;
		case 'o': o->offset = strtoull(optarg, NULL, 0); break;
		case 'l': o->low_end = strtoull(optarg, NULL, 0); break;
		case 'w': o->wait = optarg; break;
		case 't': o->seconds = strtod(optarg, NULL); break;
		case 'V': o->verify = true; break;
		case 'd': o->disk = optarg; break;
		case 'c': o->control = (uint32_t)strtoul(optarg, NULL, 0); o->write = true; break;
		case 'g': o->gaps = true; break;
		case 'q': o->quiet = true; break;
		default: errx(2, "usage: guest-probe [-o bytes] [-l bytes] [-w state [-t s]] [-V [-d disk]] [-c bits] [-g] [-q] FILE | -p PID");
		}
	}
	if (optind < argc)
		o->file = argv[optind++];
	if (optind != argc || !o->file == !o->pid)
		errx(2, "want one file, or -p PID");
}

int main(int argc, char **argv)
{
	struct image m = { 0 };
	struct options o;

	parse_args(&o, argc, argv);
	if (o.write) {
		struct options open_only = o;

		open_only.wait = NULL;
		open_and_wait(&open_only, &m);
		__atomic_or_fetch((uint32_t *)(void *)(m.base + m.offset + RG_STATUS_GPA + offsetof(struct rg_status, control)), o.control, __ATOMIC_ACQ_REL);
	}
	open_and_wait(&o, &m);
	m.low_end = o.low_end ? o.low_end : low_end_of(status_of(&m));
	bool failed = status_of(&m)->state == RG_STATE_FAILED;

	if (!o.quiet)
		print_status(&m, o.gaps);
	if (failed && (!o.wait || strcmp(o.wait, "failed") != 0))
		errx(1, "the guest failed: %.127s", status_of(&m)->error_text);
	if (o.verify)
		verify(&m, &o);
	return 0;
}
