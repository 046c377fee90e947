/*
 * dirty.h - which pages the guest has written since the last look: one interface, two of KVM's trackers.
 *
 *   log bitmap   a bit per page; with manual protect and initially-set, enabling costs nothing and clearing re-protects
 *                exactly the pages that were fetched. A look costs a scan of the bitmap.
 *   dirty ring   a ring of frame numbers per vCPU; a look costs the pages that are in it. A full ring stops its vCPU
 *                (KVM_EXIT_DIRTY_RING_FULL) until it has been harvested.
 *
 * What the host itself writes is the other half: guest_ram.h's device_dirty, merged in by rp_dirty_harvest.
 * Thread: start, stop, harvest from the source's thread; rp_dirty_ring_full from a vCPU thread. The rings are under a
 * lock of their own, a leaf.
 * Source: Documentation/virt/kvm/api.rst, KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, KVM_CAP_DIRTY_LOG_RING.
 */
#ifndef RP_VMM_DIRTY_H
#define RP_VMM_DIRTY_H

#include "vmm/guest_ram.h"
#include "vmm/machine.h"

struct rp_dirty;
struct rp_vcpus;

/* Makes the VM's memory slots, one per RAM region, and chooses the tracker. Before any vCPU exists (the ring's size
 * is fixed then). `ram` is borrowed. */
int rp_dirty_create(int vmfd, struct rp_guest_ram *ram, int want, struct rp_dirty **out, struct rp_error *err) RP_MUST_CHECK;
/* Maps the rings. After the vCPUs were made. */
int rp_dirty_attach(struct rp_dirty *d, const struct rp_vcpus *g, struct rp_error *err) RP_MUST_CHECK;
void rp_dirty_destroy(struct rp_dirty *d);      /* before the vCPUs' descriptors are closed */

/* From here on every write is seen. `all`: the next harvest reports every RAM page that holds something (rp_ram_held). */
int rp_dirty_start(struct rp_dirty *d, bool all, struct rp_error *err) RP_MUST_CHECK;
/* KVM may go on tracking where that costs the guest nothing. */
void rp_dirty_stop(struct rp_dirty *d);
/* ORs what was written since the last harvest into `set` and watches those pages again. While the guest runs, a page
 * written during the call is reported now or at the next call; while it stands still the set is exact. */
int rp_dirty_harvest(struct rp_dirty *d, struct rp_pageset *set, struct rp_error *err) RP_MUST_CHECK;
/* A vCPU's ring is full: makes room. On that vCPU's thread. */
void rp_dirty_ring_full(struct rp_dirty *d, unsigned vcpu);

#endif
