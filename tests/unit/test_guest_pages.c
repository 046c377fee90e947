/* What the test guests and the host agree on: tests/guests/status.h and pages.h. */
#include <criterion/criterion.h>
#include <lz4.h>
#include <string.h>

#include "tests/guests/pages.h"
#include "tests/guests/status.h"

static void make_page(uint64_t page[RG_PAGE_WORDS], uint64_t index, uint64_t seq, uint32_t content, uint32_t bytes)
{
	for (unsigned i = 0; i < RG_PAGE_WORDS; i++)
		page[i] = rg_page_word(1, index, seq, content, content, bytes, i);
}

static int lz4_bytes(uint32_t content)
{
	uint64_t page[RG_PAGE_WORDS];
	char out[LZ4_COMPRESSBOUND(4096)];

	make_page(page, 7, 3, content, 4096);
	return LZ4_compress_default((const char *)page, out, sizeof(page), sizeof(out));
}

Test(guest_status, gap_steps_cover_all_lengths_in_order)
{
	for (unsigned step = 1; step < RG_GAP_HIST; step++) {
		uint64_t from = rg_gap_step_ns(step);

		cr_assert_gt(from, rg_gap_step_ns(step - 1));
		cr_assert_eq(rg_gap_step(from), step);
		cr_assert_eq(rg_gap_step(from - 1), step - 1);
	}
	cr_assert_eq(rg_gap_step(0), 0);
	cr_assert_eq(rg_gap_step(UINT64_MAX), RG_GAP_HIST - 1);
}

Test(guest_pages, entropy_is_what_its_name_says)
{
	cr_assert_lt(lz4_bytes(RG_CONTENT_ZERO), 80);
	cr_assert_gt(lz4_bytes(RG_CONTENT_RANDOM), 4096);
	int text = lz4_bytes(RG_CONTENT_TEXT);

	cr_assert(text > 4096 / 5 && text < 4096 / 2, "a text page compresses to %d bytes", text);
}

Test(guest_pages, a_visit_changes_only_what_it_writes)
{
	uint64_t before[RG_PAGE_WORDS], after[RG_PAGE_WORDS];

	make_page(before, 42, 1, RG_CONTENT_RANDOM, 64);
	make_page(after, 42, 2, RG_CONTENT_RANDOM, 64);
	for (unsigned i = 2; i < 8; i++)
		cr_assert_neq(before[i], after[i], "word %u", i);
	cr_assert_eq(memcmp(before + 8, after + 8, sizeof(before) - 64), 0);
}

Test(guest_pages, pages_and_sequences_differ)
{
	cr_assert_neq(rg_page_key(1, 1, 1), rg_page_key(1, 1, 2));
	cr_assert_neq(rg_page_key(1, 1, 1), rg_page_key(1, 2, 1));
	cr_assert_neq(rg_page_key(1, 1, 1), rg_page_key(2, 1, 1));
	cr_assert_eq(rg_page_word(1, 9, 0, RG_CONTENT_RANDOM, RG_CONTENT_NONE, 64, 3), 0);
	cr_assert_eq(rg_sector_word(1, 9, 5 | RG_BLOCK_ZERO, 1), 0);
	cr_assert_eq(rg_sector_word(1, 9, 5, 1), 9);
}
