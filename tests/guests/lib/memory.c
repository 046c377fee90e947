/*
 * RAM: from the PVH memory map (arch-x86/hvm/start_info.h of Xen, version 1), a bump allocator behind the image, and page
 * tables for RAM above 4 GiB where boot.S could not use 1 GiB pages.
 */
#include "tests/guests/lib/guest.h"
#include "tests/guests/lib/layout.h"

#define START_INFO_MAGIC 0x336ec578u
#define MEMMAP_RAM       1u
#define PAGE             4096u
#define GIB              (UINT64_C(1) << 30)
#define PTE_BIG          0xe7u

struct start_info {
	uint32_t magic;
	uint32_t version;
	uint32_t flags;
	uint32_t nr_modules;
	uint64_t modlist_paddr;
	uint64_t cmdline_paddr;
	uint64_t rsdp_paddr;
	uint64_t memmap_paddr;
	uint32_t memmap_entries;
	uint32_t reserved;
};

struct memmap_entry {
	uint64_t addr;
	uint64_t size;
	uint32_t type;
	uint32_t reserved;
};

extern char rg_image_end[];
extern uint64_t rg_pd[RG_MAP_GIB][512];
extern uint32_t rg_big_pages;

/* What is left of each run of RAM; boot vCPU only. */
static struct rg_ram left[RG_RAM_MAX];

static void map_ram(const struct rg_ram *ram)
{
	for (uint64_t gib = ram->gpa / GIB; gib <= (ram->gpa + ram->bytes - 1) / GIB; gib++) {
		if (gib < 4 || rg_big_pages)
			continue;
		for (unsigned i = 0; i < 512; i++)
			rg_pd[gib][i] = (gib * GIB + i * UINT64_C(0x200000)) | PTE_BIG;
	}
}

/* RAM runs that touch one another become one; what lies beyond the identity map is not used. */
static void add_ram(uint64_t gpa, uint64_t bytes)
{
	struct rg_status *s = RG_STATUS;
	uint64_t limit = RG_MAP_GIB * GIB;

	if (gpa >= limit)
		return;
	if (bytes > limit - gpa)
		bytes = limit - gpa;
	if (s->ram_count && s->ram[s->ram_count - 1].gpa + s->ram[s->ram_count - 1].bytes == gpa)
		s->ram[s->ram_count - 1].bytes += bytes;
	else if (s->ram_count < RG_RAM_MAX)
		s->ram[s->ram_count++] = (struct rg_ram){ gpa, bytes };
}

void rg_memory_init(const void *start_info)
{
	const struct start_info *si = start_info;
	struct rg_status *s = RG_STATUS;

	s->start_info_gpa = (uint64_t)si;
	s->image_end_gpa = (uint64_t)rg_image_end;
	s->ram_count = 0;
	if (si->magic != START_INFO_MAGIC || si->version < 1 || !si->memmap_entries)
		rg_fail(RG_ERR_BOOT, NULL, "start_info at 0x%lx: magic 0x%x, version %u, %u memory map entries",
			(uint64_t)si, si->magic, si->version, si->memmap_entries);
	const struct memmap_entry *map = (const struct memmap_entry *)si->memmap_paddr;

	for (uint32_t i = 0; i < si->memmap_entries; i++)
		if (map[i].type == MEMMAP_RAM && map[i].size)
			add_ram(map[i].addr, map[i].size);
	if (si->cmdline_paddr) {
		const char *from = (const char *)si->cmdline_paddr;
		size_t n = 0;

		for (; from[n] && n + 1 < sizeof(s->cmdline); n++)
			s->cmdline[n] = from[n] == '\n' || from[n] == '\t' ? ' ' : from[n];
		if (from[n])
			rg_fail(RG_ERR_CMDLINE, NULL, "command line longer than %lu bytes", sizeof(s->cmdline) - 1);
		s->cmdline[n] = 0;
	}

	/* Everything copied: from here on only RAM behind the image is written, and page 8. */
	uint64_t end = (uint64_t)rg_image_end;
	bool holds_image = false;

	for (uint32_t i = 0; i < s->ram_count; i++) {
		struct rg_ram r = s->ram[i];

		map_ram(&r);
		if (r.gpa <= RG_STATUS_GPA && r.gpa + r.bytes > end) {
			holds_image = true;
			r.bytes -= end - r.gpa;
			r.gpa = end;
		} else if (r.gpa < end) {
			r.bytes = 0;
		}
		left[i] = r;
	}
	if (!holds_image)
		rg_fail(RG_ERR_BOOT, NULL, "memory map: no RAM from 0x%lx to 0x%lx", RG_STATUS_GPA, end);
}

void *rg_alloc(uint64_t bytes, uint64_t align, bool zero)
{
	for (uint32_t i = 0; i < RG_STATUS->ram_count; i++) {
		uint64_t start = (left[i].gpa + align - 1) & ~(align - 1);
		uint64_t end = left[i].gpa + left[i].bytes;

		if (start < left[i].gpa || start > end || bytes > end - start)
			continue;
		left[i] = (struct rg_ram){ start + bytes, end - start - bytes };
		if (zero)
			memset((void *)start, 0, bytes);
		return (void *)start;
	}
	rg_fail(RG_ERR_BOOT, NULL, "no %lu bytes of RAM left", bytes);
}

uint64_t rg_memory_rest(uint64_t align, struct rg_range ranges[RG_RANGES_MAX], uint32_t *count)
{
	uint64_t pages = 0;
	uint32_t n = 0;

	for (uint32_t i = 0; i < RG_STATUS->ram_count && n < RG_RANGES_MAX; i++) {
		uint64_t start = (left[i].gpa + align - 1) & ~(align - 1);
		uint64_t end = (left[i].gpa + left[i].bytes) & ~(uint64_t)(PAGE - 1);

		if (start >= end)
			continue;
		ranges[n++] = (struct rg_range){ start, (end - start) / PAGE, pages };
		pages += (end - start) / PAGE;
	}
	*count = n;
	return pages;
}
