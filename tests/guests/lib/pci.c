/* PCI Local Bus specification 3.0, chapter 6 (configuration space); ECAM: PCI Express base specification, 7.2.2. */
#include "tests/guests/lib/guest.h"
#include "tests/guests/lib/pci.h"

#define CONFIG_ADDRESS 0xcf8
#define CONFIG_DATA    0xcfc
#define REG_COMMAND    0x04
#define REG_HEADER     0x0c
#define REG_BAR0       0x10
#define COMMAND_MEMORY 0x002u
#define COMMAND_MASTER 0x004u
#define COMMAND_NOINTX 0x400u
#define BAR_IO         0x1u
#define BAR_64         0x4u
#define BAR_FLAGS      0xfu

static uint64_t ecam;
static uint64_t bar_next;

static void init(void)
{
	char text[32];

	if (bar_next)
		return;
	bar_next = rg_cmdline_size("bars", 0xd0000000);
	if (!rg_cmdline_text("pci", text, sizeof(text)))
		return;
	if (memcmp(text, "ecam:0x", 7) != 0)
		rg_fail(RG_ERR_CMDLINE, NULL, "command line: pci=%s: want ecam:0x…", text);
	for (const char *c = text + 7; *c; c++)
		ecam = ecam << 4 | (uint64_t)(*c <= '9' ? *c - '0' : (*c | 32) - 'a' + 10);
}

static uint32_t *ecam_at(const struct rg_pci *p, unsigned offset)
{
	return (uint32_t *)(ecam + (uint64_t)p->device * 0x8000 + p->function * 0x1000u + offset);
}

static void select(const struct rg_pci *p, unsigned offset)
{
	rg_out32(CONFIG_ADDRESS, 0x80000000u | (uint32_t)p->device << 11 | (uint32_t)p->function << 8 | offset);
}

uint32_t rg_pci_read(const struct rg_pci *p, unsigned offset)
{
	uint32_t v;

	if (!ecam) {
		select(p, offset);
		return rg_in32(CONFIG_DATA);
	}
	__asm__ volatile("movl %1, %0" : "=r"(v) : "m"(*ecam_at(p, offset)) : "memory");
	return v;
}

void rg_pci_write(const struct rg_pci *p, unsigned offset, uint32_t v)
{
	if (ecam) {
		__asm__ volatile("movl %1, %0" : "=m"(*ecam_at(p, offset)) : "r"(v) : "memory");
		return;
	}
	select(p, offset);
	rg_out32(CONFIG_DATA, v);
}

uint8_t rg_pci_read8(const struct rg_pci *p, unsigned offset)
{
	return (uint8_t)(rg_pci_read(p, offset & ~3u) >> 8 * (offset & 3));
}

bool rg_pci_find(uint16_t vendor_id, uint16_t device_id, uint16_t other_id, unsigned n, struct rg_pci *p)
{
	init();
	for (p->device = 0; p->device < 32; p->device++) {
		unsigned functions = 1;

		for (p->function = 0; p->function < functions; p->function++) {
			uint32_t id = rg_pci_read(p, 0);

			if (id == 0xffffffff)
				continue;
			if (p->function == 0 && rg_pci_read(p, REG_HEADER) & 0x800000)
				functions = 8;
			p->vendor_id = (uint16_t)id;
			p->device_id = (uint16_t)(id >> 16);
			if (p->vendor_id == vendor_id && (p->device_id == device_id || p->device_id == other_id) && n-- == 0)
				return true;
		}
	}
	return false;
}

static uint64_t bar_size(const struct rg_pci *p, unsigned reg, uint32_t low)
{
	rg_pci_write(p, reg, 0xffffffff);
	uint32_t mask = rg_pci_read(p, reg) & ~BAR_FLAGS;

	rg_pci_write(p, reg, low);
	return mask ? (uint64_t)(uint32_t)~mask + 1 : 0;
}

uint64_t rg_pci_bar(const struct rg_pci *p, unsigned bar)
{
	unsigned reg = REG_BAR0 + 4 * bar;
	uint32_t low = rg_pci_read(p, reg);
	bool wide = (low & 7) == BAR_64;
	uint64_t at = low & ~BAR_FLAGS;

	if (bar > 5 || low & BAR_IO)
		return 0;
	if (wide)
		at |= (uint64_t)rg_pci_read(p, reg + 4) << 32;
	if (at && at >> 32 == 0)
		return at;
	/* Not while the device decodes a half-written address. */
	rg_pci_write(p, REG_COMMAND, rg_pci_read(p, REG_COMMAND) & 0xffff & ~COMMAND_MEMORY);
	uint64_t size = bar_size(p, reg, low);

	if (!size)
		return 0;
	at = (bar_next + size - 1) & ~(size - 1);
	bar_next = at + size;
	rg_pci_write(p, reg, (uint32_t)at);
	if (wide)
		rg_pci_write(p, reg + 4, 0);
	return at;
}

void rg_pci_enable(const struct rg_pci *p)
{
	uint32_t command = rg_pci_read(p, REG_COMMAND) & 0xffff;

	rg_pci_write(p, REG_COMMAND, command | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NOINTX);
}
