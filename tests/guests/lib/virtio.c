/* See virtio.h. MMIO goes through single mov instructions: every hypervisor can decode those. */
#include "tests/guests/lib/guest.h"
#include "tests/guests/lib/virtio.h"

#define VENDOR          0x1af4
#define CAP_POINTER     0x34
#define CAP_VENDOR      0x09
#define CFG_COMMON      1
#define CFG_NOTIFY      2
#define CFG_DEVICE      4

/* struct virtio_pci_common_cfg, 4.1.4.3 */
#define C_DEV_FEATURE_SELECT 0x00
#define C_DEV_FEATURE        0x04
#define C_DRV_FEATURE_SELECT 0x08
#define C_DRV_FEATURE        0x0c
#define C_MSIX               0x10
#define C_STATUS             0x14
#define C_QUEUE_SELECT       0x16
#define C_QUEUE_SIZE         0x18
#define C_QUEUE_MSIX         0x1a
#define C_QUEUE_ENABLE       0x1c
#define C_QUEUE_NOTIFY_OFF   0x1e
#define C_QUEUE_DESC         0x20
#define C_QUEUE_AVAIL        0x28
#define C_QUEUE_USED         0x30

#define S_ACKNOWLEDGE 1
#define S_DRIVER      2
#define S_DRIVER_OK   4
#define S_FEATURES_OK 8
#define NO_VECTOR     0xffff
#define NO_INTERRUPT  1u /* avail.flags */
#define NO_NOTIFY     1u /* used.flags */

static uint8_t mmio_read8(uint64_t gpa)
{
	uint8_t v;

	__asm__ volatile("movb %1, %0" : "=q"(v) : "m"(*(const uint8_t *)gpa) : "memory");
	return v;
}

static uint16_t mmio_read16(uint64_t gpa)
{
	uint16_t v;

	__asm__ volatile("movw %1, %0" : "=r"(v) : "m"(*(const uint16_t *)gpa) : "memory");
	return v;
}

static uint32_t mmio_read32(uint64_t gpa)
{
	uint32_t v;

	__asm__ volatile("movl %1, %0" : "=r"(v) : "m"(*(const uint32_t *)gpa) : "memory");
	return v;
}

static void mmio_write8(uint64_t gpa, uint8_t v) { __asm__ volatile("movb %1, %0" : "=m"(*(uint8_t *)gpa) : "q"(v) : "memory"); }
static void mmio_write16(uint64_t gpa, uint16_t v) { __asm__ volatile("movw %1, %0" : "=m"(*(uint16_t *)gpa) : "r"(v) : "memory"); }
static void mmio_write32(uint64_t gpa, uint32_t v) { __asm__ volatile("movl %1, %0" : "=m"(*(uint32_t *)gpa) : "r"(v) : "memory"); }

static void mmio_write64(uint64_t gpa, uint64_t v)
{
	mmio_write32(gpa, (uint32_t)v);
	mmio_write32(gpa + 4, (uint32_t)(v >> 32));
}

static void find_regions(struct rg_virtio *d)
{
	uint8_t cap = rg_pci_read8(&d->pci, CAP_POINTER) & 0xfc;

	for (unsigned limit = 48; cap && limit; limit--) {
		uint32_t head = rg_pci_read(&d->pci, cap);

		if ((uint8_t)head == CAP_VENDOR) {
			uint8_t type = (uint8_t)(head >> 24);
			uint64_t *where = type == CFG_COMMON ? &d->common : type == CFG_NOTIFY ? &d->notify : &d->device;

			if ((type == CFG_COMMON || type == CFG_NOTIFY || type == CFG_DEVICE) && !*where) {
				uint64_t bar = rg_pci_bar(&d->pci, rg_pci_read(&d->pci, cap + 4u) & 0xff);

				*where = bar ? bar + rg_pci_read(&d->pci, cap + 8u) : 0;
				if (type == CFG_NOTIFY)
					d->notify_multiplier = rg_pci_read(&d->pci, cap + 16u);
			}
		}
		cap = (uint8_t)(head >> 8) & 0xfc;
	}
	if (!d->common || !d->notify || !d->device)
		rg_fail(RG_ERR_NO_DEVICE, NULL, "virtio device %u at 00:%x.%u is not modern: common 0x%lx notify 0x%lx device 0x%lx", d->type,
			d->pci.device, d->pci.function, d->common, d->notify, d->device);
	rg_pci_enable(&d->pci);
}

static void add_status(struct rg_virtio *d, uint8_t bits)
{
	mmio_write8(d->common + C_STATUS, (uint8_t)(mmio_read8(d->common + C_STATUS) | bits));
}

void rg_virtio_init(struct rg_virtio *d, uint32_t type, unsigned n, uint64_t required, uint64_t wanted)
{
	uint64_t offered;

	*d = (struct rg_virtio){ .type = type };
	/* 4.1.2.1: modern id 0x1040 + type; transitional net is 0x1000, blk 0x1001. */
	if (!rg_pci_find(VENDOR, (uint16_t)(0x1040 + type), (uint16_t)(0x1000 + type - 1), n, &d->pci))
		rg_fail(RG_ERR_NO_DEVICE, NULL, "no virtio device of type %u on PCI bus 0", type);
	find_regions(d);
	mmio_write8(d->common + C_STATUS, 0);
	while (mmio_read8(d->common + C_STATUS))
		;
	add_status(d, S_ACKNOWLEDGE);
	add_status(d, S_DRIVER);
	mmio_write32(d->common + C_DEV_FEATURE_SELECT, 0);
	offered = mmio_read32(d->common + C_DEV_FEATURE);
	mmio_write32(d->common + C_DEV_FEATURE_SELECT, 1);
	offered |= (uint64_t)mmio_read32(d->common + C_DEV_FEATURE) << 32;
	required |= RG_VIRTIO_F_VERSION_1;
	if ((offered & required) != required)
		rg_fail(RG_ERR_NO_DEVICE, NULL, "virtio device %u offers features 0x%lx, needed are 0x%lx", type, offered, required);
	d->features = required | (offered & wanted);
	for (uint32_t i = 0; i < 2; i++) {
		mmio_write32(d->common + C_DRV_FEATURE_SELECT, i);
		mmio_write32(d->common + C_DRV_FEATURE, (uint32_t)(d->features >> 32 * i));
	}
	add_status(d, S_FEATURES_OK);
	if (!(mmio_read8(d->common + C_STATUS) & S_FEATURES_OK))
		rg_fail(RG_ERR_PROTOCOL, NULL, "virtio device %u refuses features 0x%lx it offered", type, d->features);
	mmio_write16(d->common + C_MSIX, NO_VECTOR);
}

static uint16_t power_of_two_from(unsigned n)
{
	uint16_t p = 1;

	while (p < n)
		p = (uint16_t)(p << 1);
	return p;
}

void rg_virtio_queue(struct rg_virtio *d, struct rg_vq *vq, uint16_t index, uint16_t slots, uint16_t chain)
{
	mmio_write16(d->common + C_QUEUE_SELECT, index);
	uint16_t max = mmio_read16(d->common + C_QUEUE_SIZE);
	uint16_t size = power_of_two_from((unsigned)slots * chain);

	while (size > max)
		size = (uint16_t)(size >> 1);
	if (size < chain)
		rg_fail(RG_ERR_NO_DEVICE, NULL, "virtio device %u: queue %u has %u entries", d->type, index, max);
	*vq = (struct rg_vq){ .index = index, .size = size, .chain = chain };
	vq->slots = (uint16_t)(size / chain < slots ? size / chain : slots);
	vq->desc = rg_alloc(size * sizeof(*vq->desc), 4096, true);
	vq->avail = rg_alloc(sizeof(*vq->avail) + (size + 1u) * sizeof(uint16_t), 4096, true);
	vq->used = rg_alloc(sizeof(*vq->used) + size * sizeof(vq->used->ring[0]) + 2, 4096, true);
	vq->busy = rg_alloc(size, 64, true);
	vq->avail->flags = NO_INTERRUPT;
	mmio_write16(d->common + C_QUEUE_SIZE, size);
	mmio_write16(d->common + C_QUEUE_MSIX, NO_VECTOR);
	mmio_write64(d->common + C_QUEUE_DESC, (uint64_t)vq->desc);
	mmio_write64(d->common + C_QUEUE_AVAIL, (uint64_t)vq->avail);
	mmio_write64(d->common + C_QUEUE_USED, (uint64_t)vq->used);
	vq->notify_gpa = d->notify + (uint64_t)mmio_read16(d->common + C_QUEUE_NOTIFY_OFF) * d->notify_multiplier;
	mmio_write16(d->common + C_QUEUE_ENABLE, 1);
}

void rg_virtio_ready(struct rg_virtio *d)
{
	add_status(d, S_DRIVER_OK);
}

uint8_t rg_virtio_config8(const struct rg_virtio *d, unsigned offset)
{
	return mmio_read8(d->device + offset);
}

uint16_t rg_virtio_config16(const struct rg_virtio *d, unsigned offset)
{
	return mmio_read16(d->device + offset);
}

uint32_t rg_virtio_config32(const struct rg_virtio *d, unsigned offset)
{
	return mmio_read32(d->device + offset);
}

struct rg_desc *rg_vq_desc(struct rg_vq *vq, uint16_t slot)
{
	return &vq->desc[slot * vq->chain];
}

void rg_vq_post(struct rg_vq *vq, uint16_t slot)
{
	if (vq->busy[slot])
		rg_fail(RG_ERR_PROTOCOL, NULL, "queue %u: slot %u given twice", vq->index, slot);
	vq->busy[slot] = 1;
	vq->avail->ring[vq->avail_idx & (vq->size - 1)] = (uint16_t)(slot * vq->chain);
	vq->avail_idx++;
	rg_store(&vq->avail->idx, vq->avail_idx);
}

void rg_vq_kick(struct rg_vq *vq)
{
	if (vq->kicked_idx == vq->avail_idx)
		return;
	vq->kicked_idx = vq->avail_idx;
	/* 2.6.13.4.1: avail.idx must be visible before used.flags is read. */
	__asm__ volatile("mfence" ::: "memory");
	if (!(rg_load(&vq->used->flags) & NO_NOTIFY))
		mmio_write16(vq->notify_gpa, vq->index);
}

bool rg_vq_poll(struct rg_vq *vq, uint16_t *slot, uint32_t *len)
{
	if (rg_load(&vq->used->idx) == vq->used_idx)
		return false;
	uint32_t id = vq->used->ring[vq->used_idx & (vq->size - 1)].id;

	*len = vq->used->ring[vq->used_idx & (vq->size - 1)].len;
	*slot = (uint16_t)(id / vq->chain);
	if (id % vq->chain || *slot >= vq->slots || !vq->busy[*slot])
		rg_fail(RG_ERR_PROTOCOL, (const uint64_t[4]){ vq->index, id, vq->used_idx }, "queue %u: completion %u names descriptor %u, which the device does not have",
			vq->index, vq->used_idx, id);
	vq->used_idx++;
	vq->busy[*slot] = 0;
	return true;
}
