/*
 * dirtier: writes pages at a set rate, pattern and entropy, and sees every pause of its own vCPU.
 *
 *   ws=256M        working set                       smp=1        workers, each with its own slice of the pages
 *   rate=50000     pages/s of all workers, 0 = max   pattern=random|seq|hot   hot=90/10: percent of writes / of pages
 *   bytes=64       written per visit, 64 … 4096      entropy=counter|zero|text|random   what is written
 *   fill=none|zero|text|random|counter               what the pages hold first (none: as the VMM gave them; verify=1 expects zeros)
 *   ballast=0      pages filled once and left alone: a size, or `rest`
 *   base=auto      guest-physical start of the working set
 *   seed=1         verify=1: keep a sequence per page, check each page before it is rewritten and all of them in turn meanwhile
 *
 * What a page holds is a pure function (pages.h). A worker names the page it is writing in vcpu.current: at a cut that page may be
 * half written, no other can be.
 */
#include "tests/guests/lib/guest.h"
#include "tests/guests/pages.h"

#define RATE_CAP_NS 10000000u /* a worker that was held up catches up at most this much */

const uint32_t guest_kind = RG_KIND_DIRTIER;

enum pattern { PATTERN_SEQ, PATTERN_RANDOM, PATTERN_HOT };

/* A worker's slices of the written pages and of all pages; one per vCPU, its own. */
struct worker {
	struct rg_vcpu *v;
	uint64_t first, pages;           /* written */
	uint64_t check_first, check_pages; /* verified: written ones, then ballast */
	uint64_t at;                     /* seq: next page */
	uint64_t check_at;
	uint64_t random;
	uint64_t next, interval_16;      /* pacing: TSC of the next write, ticks between writes in 48.16 */
	uint32_t fraction;
};

static const struct rg_dirtier *d;
static struct worker workers[RG_VCPUS_MAX];
static uint32_t *table;
static uint32_t filled; /* workers whose slice is filled */

static uint64_t *page_at(uint64_t index)
{
	const struct rg_status *s = RG_STATUS;
	unsigned i = 0;

	while (i + 1 < s->range_count && index >= s->ranges[i + 1].first_index)
		i++;
	return (uint64_t *)(s->ranges[i].gpa + (index - s->ranges[i].first_index) * RG_PAGE_BYTES);
}

static void put_words(uint64_t *p, uint32_t content, uint64_t key, unsigned from, unsigned to)
{
	switch (content) {
	case RG_CONTENT_RANDOM:
		for (unsigned i = from; i < to; i++)
			p[i] = rg_content_word(RG_CONTENT_RANDOM, key, i);
		break;
	case RG_CONTENT_TEXT:
		for (unsigned i = from; i < to; i++)
			p[i] = rg_content_word(RG_CONTENT_TEXT, key, i);
		break;
	case RG_CONTENT_COUNTER:
		for (unsigned i = from; i < to; i++)
			p[i] = rg_content_word(RG_CONTENT_COUNTER, key, i);
		break;
	default:
		for (unsigned i = from; i < to; i++)
			p[i] = 0;
		break;
	}
}

static void put_page(uint64_t index, uint64_t seq, uint32_t content, unsigned words)
{
	uint64_t *p = page_at(index);
	uint64_t key = rg_page_key(d->seed, index, seq);

	p[0] = RG_PAGE_MAGIC;
	p[1] = index;
	p[2] = seq;
	p[3] = key;
	put_words(p, content, key, RG_HEAD_WORDS, words);
}

static void check_page(struct worker *w, uint64_t index)
{
	const uint64_t *p = page_at(index);
	uint64_t seq = table[index];

	for (unsigned i = 0; i < RG_PAGE_WORDS; i++) {
		uint64_t want = rg_page_word(d->seed, index, seq, d->entropy, d->fill, d->bytes, i);

		if (__builtin_expect(p[i] != want, 0))
			rg_fail(RG_ERR_PAGE, (const uint64_t[4]){ index, (uint64_t)p, i * 8, seq },
				"page %lu at 0x%lx, visited %lu times: byte %u is 0x%lx, should be 0x%lx", index,
				(uint64_t)p, seq, i * 8, p[i], want);
	}
	w->v->checked++;
}

static void write_one(struct worker *w)
{
	uint64_t index, seq;

	if (d->pattern == PATTERN_SEQ) {
		index = w->first + w->at;
		w->at = w->at + 1 < w->pages ? w->at + 1 : 0;
	} else {
		uint64_t r = rg_mix(++w->random);
		uint64_t span = w->pages, skip = 0;

		if (d->pattern == PATTERN_HOT) {
			uint64_t hot = span * d->hot_pages / 100;

			hot = hot ? hot : 1;
			if (rg_mix(r) % 100 < d->hot_writes || hot == span) {
				span = hot;
			} else {
				skip = hot;
				span -= hot;
			}
		}
		index = w->first + skip + (uint64_t)((unsigned __int128)r * span >> 64);
	}
	if (table) {
		check_page(w, index);
		seq = table[index] + 1u;
	} else {
		const uint64_t *p = page_at(index);

		seq = p[0] == RG_PAGE_MAGIC ? p[2] + 1 : 1;
	}
	rg_store(&w->v->current, index);
	put_page(index, seq, d->entropy, d->bytes / 8);
	if (table)
		rg_store(&table[index], (uint32_t)seq);
	rg_store(&w->v->current, RG_NO_PAGE);
	rg_store(&w->v->iterations, w->v->iterations + 1);
}

static void pace(struct worker *w, uint64_t now)
{
	uint64_t step = w->interval_16 + w->fraction;
	uint64_t cap = rg_ns_to_ticks(RATE_CAP_NS);

	w->next += step >> 16;
	w->fraction = (uint32_t)(step & 0xffff);
	if ((int64_t)(now - w->next) > (int64_t)cap) {
		w->v->behind += ((now - cap - w->next) << 16) / w->interval_16;
		w->next = now - cap;
	}
}

static void check_next(struct worker *w)
{
	uint64_t n = w->check_at;

	/* Own written pages first, then own share of the ballast. */
	check_page(w, n < w->pages ? w->first + n : w->check_first + (n - w->pages));
	w->check_at = n + 1 < w->pages + w->check_pages ? n + 1 : 0;
	if (w->check_at == 0 && w == &workers[0] && rg_load(&RG_STATUS->control) & RG_CONTROL_VERIFY) {
		__atomic_and_fetch(&RG_STATUS->control, ~RG_CONTROL_VERIFY, __ATOMIC_ACQ_REL);
		RG_STATUS->verifies++;
	}
}

static void fill_slice(const struct worker *w)
{
	if (d->fill == RG_CONTENT_NONE)
		return;
	for (uint64_t i = 0; i < w->pages; i++)
		put_page(w->first + i, 0, d->fill, RG_PAGE_WORDS);
	for (uint64_t i = 0; i < w->check_pages; i++)
		put_page(w->check_first + i, 0, d->fill, RG_PAGE_WORDS);
}

static void work(unsigned cpu)
{
	struct worker *w = &workers[cpu];
	uint64_t cpus = RG_STATUS->vcpus;

	fill_slice(w);
	__atomic_add_fetch(&filled, 1, __ATOMIC_ACQ_REL);
	if (cpu == 0) {
		while (rg_load(&filled) < cpus)
			__asm__ volatile("pause");
		rg_running();
		rg_log("dirtier: running, %lu pages", d->total_pages);
	}
	while (rg_load(&RG_STATUS->state) != RG_STATE_RUNNING)
		__asm__ volatile("pause");
	w->next = rg_tsc();
	for (;;) {
		uint64_t now = rg_beat(w->v);

		if (rg_over(now))
			return;
		if (d->rate == 0) {
			write_one(w);
		} else if ((int64_t)(now - w->next) >= 0) {
			write_one(w);
			pace(w, now);
		} else if (table) {
			check_next(w);
		}
	}
}

static void read_hot(struct rg_dirtier *o)
{
	char text[16];
	uint32_t v[2] = { 0, 0 };
	unsigned n = 0;

	o->hot_writes = 90;
	o->hot_pages = 10;
	if (!rg_cmdline_text("hot", text, sizeof(text)))
		return;
	for (const char *p = text; *p; p++) {
		if (*p == '/' && n == 0)
			n = 1;
		else if (*p >= '0' && *p <= '9')
			v[n] = v[n] * 10 + (uint32_t)(*p - '0');
		else
			n = 2;
		if (n == 2)
			break;
	}
	if (n != 1 || v[0] > 100 || v[1] < 1 || v[1] > 100)
		rg_fail(RG_ERR_CMDLINE, NULL, "command line: hot=%s: want WRITES/PAGES in percent, as 90/10", text);
	o->hot_writes = v[0];
	o->hot_pages = v[1];
}

static void read_options(struct rg_dirtier *o)
{
	static const char *const keys[] = { "ws", "base", "rate", "pattern", "hot", "bytes", "entropy", "fill", "ballast", "seed", "verify", NULL };
	static const char *const patterns[] = { "seq", "random", "hot", NULL };
	static const char *const contents[] = { "none", "zero", "text", "random", "counter", NULL };

	rg_cmdline_keys(keys);
	o->seed = rg_cmdline_number("seed", 1);
	o->rate = rg_cmdline_number("rate", 50000);
	o->pattern = rg_cmdline_choice("pattern", patterns, PATTERN_RANDOM);
	o->entropy = rg_cmdline_choice("entropy", contents, RG_CONTENT_COUNTER);
	o->fill = rg_cmdline_choice("fill", contents, RG_CONTENT_NONE);
	o->bytes = (uint32_t)rg_cmdline_size("bytes", 64) & ~7u;
	if (o->bytes < 64 || o->bytes > RG_PAGE_BYTES)
		rg_fail(RG_ERR_CMDLINE, NULL, "command line: bytes=%u: from 64 to 4096", o->bytes);
	if (o->entropy == RG_CONTENT_NONE)
		rg_fail(RG_ERR_CMDLINE, NULL, "command line: entropy=none: something has to be written");
	read_hot(o);
}

/* Where base= asks for the pages, or everything that is left. */
static uint64_t find_pages(struct rg_status *s)
{
	char text[32];
	uint64_t pages = rg_memory_rest(0x200000, s->ranges, &s->range_count);

	if (!rg_cmdline_text("base", text, sizeof(text)) || memcmp(text, "auto", 5) == 0)
		return pages;
	uint64_t base = rg_cmdline_size("base", 0) & ~(uint64_t)(RG_PAGE_BYTES - 1);

	for (unsigned i = 0; i < s->range_count; i++) {
		struct rg_range r = s->ranges[i];

		if (base < r.gpa || base >= r.gpa + r.pages * RG_PAGE_BYTES)
			continue;
		s->ranges[0] = (struct rg_range){ base, r.pages - (base - r.gpa) / RG_PAGE_BYTES, 0 };
		s->range_count = 1;
		return s->ranges[0].pages;
	}
	rg_fail(RG_ERR_CMDLINE, NULL, "command line: base=0x%lx is not in free RAM (from 0x%lx)", base, s->ranges[0].gpa);
}

static void lay_out(struct rg_dirtier *o)
{
	struct rg_status *s = RG_STATUS;
	char text[32];
	uint64_t want = rg_cmdline_size("ws", UINT64_C(256) << 20) / RG_PAGE_BYTES;
	bool rest = rg_cmdline_text("ballast", text, sizeof(text)) && memcmp(text, "rest", 5) == 0;
	uint64_t ballast = rest ? 0 : rg_cmdline_size("ballast", 0) / RG_PAGE_BYTES;

	if (rg_cmdline_number("verify", 0)) {
		/* The table must cover whatever comes after it. */
		uint64_t all = rest ? rg_memory_rest(0x200000, s->ranges, &s->range_count) : want + ballast;

		table = rg_alloc(all * sizeof(*table), RG_PAGE_BYTES, true);
		o->table_gpa = (uint64_t)table;
	}
	uint64_t have = find_pages(s);

	if (want == 0 || want + ballast > have)
		rg_fail(RG_ERR_CMDLINE, NULL, "command line: working set and ballast of %lu pages, free are %lu", want + ballast, have);
	o->ws_pages = want;
	o->total_pages = rest ? have : want + ballast;
}

static void share_out(const struct rg_dirtier *o, uint64_t cpus)
{
	for (uint64_t i = 0; i < cpus; i++) {
		uint64_t ballast = o->total_pages - o->ws_pages;
		struct worker *w = &workers[i];

		w->v = RG_VCPU(i);
		w->first = o->ws_pages * i / cpus;
		w->pages = o->ws_pages * (i + 1) / cpus - w->first;
		w->check_first = o->ws_pages + ballast * i / cpus;
		w->check_pages = o->ws_pages + ballast * (i + 1) / cpus - w->check_first;
		w->random = rg_mix(o->seed ^ i << 56);
		if (o->rate)
			w->interval_16 = (RG_STATUS->tsc_hz * cpus << 16) / o->rate;
		if (w->pages == 0)
			rg_fail(RG_ERR_CMDLINE, NULL, "command line: fewer pages than workers");
	}
}

void guest_main(void)
{
	struct rg_dirtier *o = &RG_STATUS->dirtier;
	unsigned cpus = (unsigned)rg_cmdline_number("smp", 1);

	memset(o, 0, sizeof(*o));
	d = o;
	read_options(o);
	lay_out(o);
	if (cpus < 1 || cpus > RG_VCPUS_MAX)
		rg_fail(RG_ERR_CMDLINE, NULL, "command line: smp=%u: from 1 to %u", cpus, RG_VCPUS_MAX);
	share_out(o, cpus);
	if (cpus > 1)
		rg_smp_start(cpus, work);
	work(0);
	for (unsigned i = 1; i < cpus; i++)
		while (rg_load(&RG_VCPU(i)->current) != RG_NO_PAGE)
			__asm__ volatile("pause");
}
