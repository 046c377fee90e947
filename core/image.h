/*
 * image.h - the receiving side's image of a VM: RAM and the sections of the newest whole epoch.
 *
 * rp_image_feed takes records in order, stages an epoch, and on EPOCH_END verifies it: counts, and that the
 * RAM digest of the image with the epoch applied equals the trailer's. Only then is the epoch applied, whole
 * (INV-2). Until then RAM is untouched, so a stream that stops in the middle leaves the parent epoch.
 *
 *   EMPTY ──EPOCH(full)──► STAGING ──EPOCH_END, verified──► HOLDS n ──EPOCH(parent n)──► STAGING ─► HOLDS n+1
 *                             └── anything wrong ──► back to what it held before; the error says where
 *
 * A full epoch goes straight into RAM: nothing older is there to be kept (a full epoch replaces what the image held,
 * which is EMPTY from its EPOCH record on; should a restore's fail, RAM is zeroes again). The pages of a delta epoch are staged
 * (staging.h), one per changed page whatever the number of passes, and go into RAM once it is verified: the cost of an epoch depends on its pages, never on the size of RAM.
 * RP_IMAGE_STAGED bounds that memory (an epoch beyond staging_max_bytes is refused with -ENOBUFS); RP_IMAGE_DIRECT, for
 * a restore, does not.
 * A resync (RP_EPOCH_RESYNC) starts from the pages that are there, of whichever epochs: it is staged like a delta while it
 * fits, so that what the image held is kept until the resync is verified; from the page on that does not fit it goes
 * straight into RAM. What a standby's image holds when a full epoch or a resync has failed half-way is no epoch (EMPTY), but
 * its pages and their hashes are known, and the next resync starts from them.
 * Sections that a delta epoch does not bring are those of its parent.
 * Thread: one. RAM belongs to the caller, who gives the view through rp_image_ops once the layout is known.
 */
#ifndef RP_CORE_IMAGE_H
#define RP_CORE_IMAGE_H

#include "core/stream.h"

enum rp_image_mode { RP_IMAGE_STAGED, RP_IMAGE_DIRECT };

struct rp_image_ops {
    void *ctx;
    /* The first epoch's header was accepted: provide RAM of this layout (zeroed). Refuse what the host cannot give. */
    int (*ram)(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err);
    /* A DISK record of the epoch being taken (`h`), in order, as it arrives; rp_disk_walk has accepted it. It may not count
     * before disk_commit. May be NULL: then DISK records are refused. */
    int (*disk)(void *ctx, const struct rp_epoch_header *h, const struct rp_record *r, struct rp_error *err);
    /* The epoch `h` was verified and RAM has not changed yet: its disk writes (there may be none) count from here on,
     * durably. RAM follows and cannot fail; when this fails the epoch is refused. Goes with `disk`. */
    int (*disk_commit)(void *ctx, const struct rp_epoch_header *h, struct rp_error *err);
    /* The epoch is thrown away, and its disk writes with it. Goes with `disk`. */
    void (*disk_drop)(void *ctx);
};

struct rp_image;
int rp_image_create(enum rp_image_mode mode, const struct rp_image_ops *ops, uint64_t staging_max_bytes,
                    struct rp_image **out, struct rp_error *err) RP_MUST_CHECK;
void rp_image_destroy(struct rp_image *img);

/* RAM that is there already, of VM `vm_id` and of no epoch: a resync may start from it, a full epoch wipes it. Hashes every page of `held`;
 * the others are known to be zeroes and are not looked at: that would make them. Before the first record; the view is the caller's to keep,
 * as if rp_image_ops had given it. -ENOMEM. */
int rp_image_adopt(struct rp_image *img, const struct rp_ram_view *ram, const struct rp_pageset *held, const uint8_t vm_id[16],
                   struct rp_error *err) RP_MUST_CHECK;

/* Feeds one record (BEGIN and END too). 0: taken; 1: taken, and an epoch was just applied (rp_image_header);
 * <0: refused; the image holds what it held before this epoch. */
int rp_image_feed(struct rp_image *img, const struct rp_record *r, struct rp_error *err) RP_MUST_CHECK;
/* Forgets the epoch being staged (the link broke in the middle of it). */
void rp_image_drop(struct rp_image *img);

/* What a standby may use beside `ram_bytes` of RAM for epochs that are not verified yet. Its primary keeps epochs below that. */
static inline uint64_t rp_image_staging_bytes(uint64_t ram_bytes) { return (64u << 20) + ram_bytes / 10; }
/* Another bound for RP_IMAGE_STAGED, from the next page on: once the size of RAM is known. */
void rp_image_bound(struct rp_image *img, uint64_t staging_max_bytes);
uint64_t rp_image_epoch(const struct rp_image *img);    /* newest whole epoch, 0: none */
const struct rp_epoch_header *rp_image_header(const struct rp_image *img);
const struct rp_epoch_trailer *rp_image_trailer(const struct rp_image *img);
const struct rp_sections *rp_image_sections(const struct rp_image *img);
const struct rp_digest *rp_image_digest(const struct rp_image *img);
/* The digest of the pages that are there, for a primary of VM `vm_id` to build a resync upon: NULL when there are none, none of
 * that VM, or a resync has shown that they are not what their hashes say. */
const struct rp_digest *rp_image_pages(const struct rp_image *img, const uint8_t vm_id[16]);
uint64_t rp_image_staged_bytes(const struct rp_image *img);

#endif
