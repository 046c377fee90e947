/*
 * devices.h - how a machine makes its virtio devices. Each create opens the host resource, plugs a PCI function into
 * `slot` and fills in *out for the machine's list; section = the device's table, instance = slot. On error nothing
 * stays. out->ops->destroy frees everything. Machine lock held, or before the threads run.
 */
#ifndef RP_VMM_DEVICES_H
#define RP_VMM_DEVICES_H

#include "core/event.h"
#include "vmm/device.h"
#include "vmm/gate.h"
#include "vmm/loop.h"
#include "vmm/machine.h"
#include "vmm/pci.h"

/* What a device borrows from its machine; must outlive the device. */
struct rp_device_env {
    struct rp_guest_ram *ram;
    struct rp_pci_bus *pci;
    struct rp_irqs *irqs;       /* NULL (tests): no ioeventfds, signals become pending bits */
    struct rp_loop *loop;
    struct rp_events *events;   /* may be NULL */
    struct rp_gate *gate;       /* outputs leave through it */
    struct rp_disks *disks;     /* disks stand behind its guards; NULL (tests): behind none */
    bool disks_later;           /* rp_virtio_blk_create opens none */
    unsigned vcpus;             /* for the default number of queues */
};

/* cfg is copied. A descriptor passed in is owned by the device on success. -EBUSY: the disk is locked by another VM. */
int rp_virtio_blk_create(const struct rp_device_env *env, unsigned slot, const struct rp_disk_config *cfg,
                         struct rp_device *out, struct rp_error *err) RP_MUST_CHECK;
/* Opens its disk, unless it is open: before it is started, and before an epoch with its state is entered. */
int rp_virtio_blk_open(const struct rp_device *d, const struct rp_disk_config *cfg, struct rp_error *err) RP_MUST_CHECK;
void rp_virtio_blk_info(const struct rp_device *d, struct rp_disk_info *out);

/* `mac`: the address to use (config's, or made from the VM id by the caller). */
int rp_virtio_net_create(const struct rp_device_env *env, unsigned slot, const struct rp_nic_config *cfg,
                         const uint8_t mac[6], struct rp_device *out, struct rp_error *err) RP_MUST_CHECK;
void rp_virtio_net_info(const struct rp_device *d, struct rp_nic_info *out);

int rp_virtio_rng_create(const struct rp_device_env *env, unsigned slot, struct rp_device *out,
                         struct rp_error *err) RP_MUST_CHECK;

int rp_virtio_console_create(const struct rp_device_env *env, unsigned slot, const struct rp_chardev_config *cfg,
                             struct rp_device *out, struct rp_error *err) RP_MUST_CHECK;

int rp_virtio_balloon_create(const struct rp_device_env *env, unsigned slot, struct rp_device *out,
                             struct rp_error *err) RP_MUST_CHECK;
/* How much RAM the guest should be left with. */
void rp_virtio_balloon_target(const struct rp_device *d, uint64_t ram_bytes);
uint64_t rp_virtio_balloon_actual(const struct rp_device *d);
/* Also asks the guest for fresh statistics, for the next call. False: no driver runs it. */
bool rp_virtio_balloon_info(const struct rp_device *d, struct rp_balloon_info *out);

/* The guest's stream sockets to the host (vsock.h). `path`: where the host connects; NULL: nobody is there. `cid`: the guest's
 * address, above 2. */
int rp_virtio_vsock_create(const struct rp_device_env *env, unsigned slot, const char *path, uint32_t cid, struct rp_device *out,
                           struct rp_error *err) RP_MUST_CHECK;

/* The guest's address out of the device's section, for whoever is about to make a machine for it. */
int rp_virtio_vsock_cid(const struct rp_section *sec, uint32_t *cid, struct rp_error *err) RP_MUST_CHECK;

extern const struct rp_state_table rp_virtio_blk_table, rp_virtio_net_table, rp_virtio_rng_table,
    rp_virtio_console_table, rp_virtio_balloon_table, rp_virtio_vsock_table;

#endif
