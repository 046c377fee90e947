/*
 * What a test guest's pages hold: a pure function of (seed, page index, sequence), so that the guest, a host-side test and an
 * archive reader can all say whether a page is the right one without a copy of it.
 *
 * A page visited `seq` times (seq ≥ 1) with `bytes` written per visit:
 *
 *   byte 0       32            bytes              4096
 *        | header | content(seq) | fill: content(0) |
 *
 * Sequence 0 is the fill alone, also with a header, unless the fill is RG_CONTENT_NONE: then the page is as the VMM gave it, zero.
 */
#ifndef TESTS_GUESTS_PAGES_H
#define TESTS_GUESTS_PAGES_H

#include <stdint.h>

#define RG_PAGE_BYTES 4096u
#define RG_PAGE_WORDS 512u
#define RG_PAGE_MAGIC UINT64_C(0x4547415045525052) /* "RPREPAGE" */
#define RG_HEAD_WORDS 4u

enum rg_content {
	RG_CONTENT_NONE = 0, /* as fill only: never written, all zero */
	RG_CONTENT_ZERO = 1,
	RG_CONTENT_TEXT = 2,    /* words, lz4 makes it about a third */
	RG_CONTENT_RANDOM = 3,  /* incompressible */
	RG_CONTENT_COUNTER = 4, /* words that grow by one, different at each visit */
};

struct rg_page_head {
	uint64_t magic;
	uint64_t index;
	uint64_t seq;
	uint64_t hash; /* rg_page_key() of the above */
};

/* splitmix64's finalizer: a bijection that spreads every bit (Steele, Lea, Flood, 2014). */
static inline uint64_t rg_mix(uint64_t x)
{
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

static inline uint64_t rg_page_key(uint64_t seed, uint64_t index, uint64_t seq)
{
	return rg_mix(rg_mix(rg_mix(seed + 1) ^ index) + seq * UINT64_C(0x9e3779b97f4a7c15));
}

/* Word `i`: pairs of words go together, as in a language. */
static inline uint64_t rg_text_word(uint64_t random, unsigned i)
{
	static const char words[32][8] = {
		"the page", " of the ", "epoch is", " written", " before ", "and then", " memory ", "standby ",
		"primary ", "commits ", "a guest ", "in order", " to the ", "network ", "packets ", "release ",
		"nothing ", "is lost ", "because ", "the host", " failed ", " returns", "checksum", " equals ",
		"storage ", "archive ", " restore", "running ", "machine ", "virtual ", "counter ", "ledger. ",
	};
	uint64_t v;

	__builtin_memcpy(&v, words[(random + i % 2) & 31], sizeof(v)); /* little-endian, as everything here */
	/* One pair in eight carries a number, as text in memory does. */
	if ((random >> 5 & 7) == 0 && i % 2)
		v = (v & UINT64_C(0xffffffff)) | (UINT64_C(0x30303030) + (random >> 8 & UINT64_C(0x07070707))) << 32;
	return v;
}

/* Word `i` of a page's content. */
static inline uint64_t rg_content_word(uint32_t content, uint64_t key, unsigned i)
{
	switch (content) {
	case RG_CONTENT_RANDOM:
		return rg_mix(key + (i + 1) * UINT64_C(0x9e3779b97f4a7c15));
	case RG_CONTENT_TEXT:
		return rg_text_word(rg_mix(key + i / 2), i);
	case RG_CONTENT_COUNTER:
		return (key & UINT64_C(0xffffffff)) + i;
	default:
		return 0;
	}
}

/* Word `i` that page `index` must hold after `seq` visits of `bytes` each. */
static inline uint64_t rg_page_word(uint64_t seed, uint64_t index, uint64_t seq, uint32_t entropy, uint32_t fill, uint32_t bytes, unsigned i)
{
	if (seq == 0 && fill == RG_CONTENT_NONE)
		return 0;
	uint64_t key = rg_page_key(seed, index, seq);

	switch (i) {
	case 0:
		return RG_PAGE_MAGIC;
	case 1:
		return index;
	case 2:
		return seq;
	case 3:
		return key;
	default:
		break;
	}
	if (seq != 0 && i * 8u < bytes)
		return rg_content_word(entropy, key, i);
	return rg_content_word(fill, rg_page_key(seed, index, 0), i);
}

#define RG_SECTOR_BYTES 512u
#define RG_SECTOR_WORDS 64u
#define RG_SECTOR_MAGIC UINT64_C(0x524f544345535052) /* "RPSECTOR" */

/*
 * What the block writer's map (struct rg_blk.map_gpa) says of a block: 0, nothing was written to it yet and it may hold anything;
 * else a sequence, and RG_BLOCK_ZERO if that write was a write-zeroes.
 */
#define RG_BLOCK_ZERO 0x80000000u

/* Word `i` that sector `lba` must hold after the write `entry` of the map. */
static inline uint64_t rg_sector_word(uint64_t seed, uint64_t lba, uint32_t entry, unsigned i)
{
	if (entry & RG_BLOCK_ZERO)
		return 0;
	uint64_t key = rg_page_key(seed, lba, entry);

	switch (i) {
	case 0:
		return RG_SECTOR_MAGIC;
	case 1:
		return lba;
	case 2:
		return entry;
	case 3:
		return key;
	default:
		return rg_content_word(RG_CONTENT_RANDOM, key, i);
	}
}

#endif
