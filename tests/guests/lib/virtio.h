/*
 * Modern virtio over PCI, polled: the part of the driver side that the test guests need.
 *
 * A virtqueue here is a table of slots: slot n owns descriptors n * chain … n * chain + chain - 1, set up once or per use by the
 * driver, and is either the driver's or the device's. A completion for a slot that is not the device's fails the guest
 * (RG_ERR_PROTOCOL): a request answered twice, after a failover say, does not go unnoticed.
 *
 * Virtual I/O Device (VIRTIO) 1.1 (OASIS): 2.6 split virtqueues, 3.1 initialization, 4.1 PCI.
 */
#ifndef TESTS_GUESTS_LIB_VIRTIO_H
#define TESTS_GUESTS_LIB_VIRTIO_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/guests/lib/pci.h"

#define RG_VIRTIO_NET 1u
#define RG_VIRTIO_BLK 2u
#define RG_VIRTIO_F_VERSION_1 (UINT64_C(1) << 32)

#define RG_DESC_NEXT  1u
#define RG_DESC_WRITE 2u /* the device writes */

struct rg_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct rg_avail {
	uint16_t flags;
	uint16_t idx;
	uint16_t ring[];
};

struct rg_used {
	uint16_t flags;
	uint16_t idx;
	struct {
		uint32_t id;
		uint32_t len;
	} ring[];
};

struct rg_vq {
	struct rg_desc *desc;
	struct rg_avail *avail;
	struct rg_used *used;
	uint8_t *busy; /* per slot: the device has it */
	uint64_t notify_gpa;
	uint16_t index, size, chain, slots;
	uint16_t avail_idx, used_idx, kicked_idx;
};

struct rg_virtio {
	struct rg_pci pci;
	uint32_t type;
	uint64_t common, notify, device; /* guest-physical */
	uint32_t notify_multiplier;
	uint64_t features; /* negotiated */
};

/* Finds the n-th device of `type`, resets it and negotiates `required` and what it has of `wanted`. Fails the guest without it. */
void rg_virtio_init(struct rg_virtio *d, uint32_t type, unsigned n, uint64_t required, uint64_t wanted);

/* Queue `index` with at most `slots` slots of `chain` descriptors; vq->slots says how many there are. */
void rg_virtio_queue(struct rg_virtio *d, struct rg_vq *vq, uint16_t index, uint16_t slots, uint16_t chain);
void rg_virtio_ready(struct rg_virtio *d);

/* Device configuration: one read, one exit, each. */
uint8_t rg_virtio_config8(const struct rg_virtio *d, unsigned offset);
uint16_t rg_virtio_config16(const struct rg_virtio *d, unsigned offset);
uint32_t rg_virtio_config32(const struct rg_virtio *d, unsigned offset);

/* The first descriptor of a slot; the others follow it. */
struct rg_desc *rg_vq_desc(struct rg_vq *vq, uint16_t slot);

/* Gives a slot to the device; the device is told at the next rg_vq_kick(). */
void rg_vq_post(struct rg_vq *vq, uint16_t slot);
void rg_vq_kick(struct rg_vq *vq);

/* Takes one completed slot back; false when there is none. */
bool rg_vq_poll(struct rg_vq *vq, uint16_t *slot, uint32_t *len);

#endif
