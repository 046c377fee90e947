/*
 * enter.h - from an epoch stream to a machine that goes on where the epoch was cut: restore, standby and migration
 * target share it.
 *
 *   rp_entry_create ─► rp_image_feed… (rp_entry_load does it for a whole stream; a link feeds the image itself)
 *                   ─► rp_entry_machine: config from the epoch, machine around the image's RAM, state entered; PAUSED
 *
 * Nothing of the machine exists before the epoch was verified whole (INV-2, INV-4): a refused stream leaves nothing.
 * Thread: one at a time.
 */
#ifndef RP_TOOLS_ENTER_H
#define RP_TOOLS_ENTER_H

#include "core/event.h"
#include "core/image.h"
#include "vmm/machine.h"

struct rp_entry;

/* Where an epoch's disk writes go: see struct rp_image_ops. */
struct rp_entry_disks {
    void *ctx;
    int (*disk)(void *ctx, const struct rp_epoch_header *h, const struct rp_record *r, struct rp_error *err);
    int (*disk_commit)(void *ctx, const struct rp_epoch_header *h, struct rp_error *err);
    void (*disk_drop)(void *ctx);
};

/* `how`: how guest memory is to be had (populate, thp, hugetlb; its size comes with the epoch). RP_IMAGE_STAGED: epochs are
 * staged in at most 64 MiB and a tenth of RAM. `disks`: NULL: epochs with disk writes are refused. */
int rp_entry_create(enum rp_image_mode mode, const struct rp_ram_config *how, const struct rp_entry_disks *disks, struct rp_entry **out,
                    struct rp_error *err) RP_MUST_CHECK;
void rp_entry_destroy(struct rp_entry *e);      /* also what no machine has taken over */
struct rp_image *rp_entry_image(struct rp_entry *e);
/* Guest memory that is there already, of VM `vm_id` and of no epoch: what comes first may be a resync that starts from it (image.h).
 * Takes *ram over, also on error. Before anything was fed. */
int rp_entry_adopt(struct rp_entry *e, struct rp_guest_ram *ram, const uint8_t vm_id[16], struct rp_error *err) RP_MUST_CHECK;

/* Opens a stream that a user has named, for reading. RP_EXIT_USAGE: there is none. */
int rp_entry_open(const char *path, int *fd, struct rp_error *err) RP_MUST_CHECK;
/* Feeds a whole stream from fd. RP_EXIT_DAMAGED: it is damaged, cut short, foreign, or holds no epoch. */
int rp_entry_load(struct rp_entry *e, int fd, struct rp_error *err) RP_MUST_CHECK;

/* Makes the machine that the newest epoch is of, around the image's RAM: CREATED, nothing of the epoch is in it yet, and the
 * image may go on taking epochs (RAM is the same; nothing of the machine runs). `cfg`: the host-side options; the rest is
 * filled in from the epoch, the name only when it is empty. The machine owns RAM from then on: it goes after the entry. On error
 * the image is as it was: it may be tried again. */
int rp_entry_make(struct rp_entry *e, struct rp_machine_config *cfg, struct rp_events *events, struct rp_machine **out,
                  struct rp_error *err) RP_MUST_CHECK;
/* Enters the newest epoch: PAUSED. Its history goes in front of what `events` holds. `moved`: other instances of this epoch
 * may have run (addresses are announced, the guest's generation id changes). On error the machine is to be destroyed. */
int rp_entry_enter(struct rp_entry *e, struct rp_machine *m, struct rp_events *events, bool moved, struct rp_error *err) RP_MUST_CHECK;
/* Both. The entry keeps nothing but the image's bookkeeping: destroy it. */
int rp_entry_machine(struct rp_entry *e, struct rp_machine_config *cfg, struct rp_events *events, bool moved,
                     struct rp_machine **out, struct rp_error *err) RP_MUST_CHECK;

#endif
