/*
 * machine.h - one virtual machine: made from a config, driven by a control thread.
 *
 * States:  CREATED ─start─► RUNNING ◄─resume/pause─► PAUSED ─► (any) STOPPED (guest powered off, quit)
 *          CREATED ─rp_machine_enter(image)─► PAUSED (an epoch's state) ─start─► RUNNING
 *
 * Once started it runs as long as there is no reason to stand still. The reasons are a set: each is set and dropped by whom it concerns,
 * and the administrator's travels in the epoch.
 *
 * Threads: "main" (control: these calls), "io" (vmm/loop.h), "vcpu N". The machine lock guards devices; lock order
 * is control lock > machine lock (docs/threads.md). vCPU threads never block on I/O or on a peer.
 *
 * rp_machine_quiesce is the one way to stop the vCPUs. After it: every vCPU thread is outside KVM_RUN with its
 * last exit completed, the io thread is outside of callbacks, no device touches guest RAM.
 */
#ifndef RP_VMM_MACHINE_H
#define RP_VMM_MACHINE_H

#include "core/event.h"
#include "core/image.h"
#include "core/source.h"
#include "vmm/guest_ram.h"

#define RP_VCPUS_MAX 32
#define RP_DISKS_MAX 8
#define RP_NICS_MAX 8

enum rp_serial_kind { RP_SERIAL_NULL, RP_SERIAL_STDIO, RP_SERIAL_FILE, RP_SERIAL_UNIX };
struct rp_chardev_config { enum rp_serial_kind kind; const char *path; };

struct rp_disk_config {
    const char *path;           /* raw file or block device, nbd://… ; NULL with fd */
    int fd;                     /* descriptor passed in, or -1 */
    bool readonly;
    bool shared;                /* storage that another host may take over: docs/disks.md (nbd is that always) */
    bool take;                  /* whatever its mark says, this is the VM's disk */
    bool overwrite;             /* a standby's: whatever it holds, the VM's disk may be copied over it */
    const char *state;          /* where its mark is, NULL: beside the file */
    char serial[21];            /* VIRTIO_BLK_ID, NUL-terminated */
    unsigned queues;            /* 0: one per vCPU up to 4 */
};
enum rp_nic_kind { RP_NIC_TAP, RP_NIC_UNIX, RP_NIC_FD };
struct rp_nic_config {
    enum rp_nic_kind kind;
    const char *name;           /* tap interface or socket path */
    int fd;
    uint8_t mac[6];             /* all zero: made from the VM id */
    bool has_mac;
    unsigned queues;            /* queue pairs, 0: 1 */
};

struct rp_vsock_config {
    uint32_t cid;               /* the guest's address; 0: no such device */
    const char *path;           /* unix socket of the host's side; NULL: nobody is there */
};

struct rp_machine_config {
    char name[RP_VM_NAME_MAX];
    uint8_t vm_id[16];          /* all zero: random */
    unsigned vcpus;
    struct rp_ram_config ram;
    struct rp_guest_ram *adopt; /* RAM that is there already (an image was loaded into it); the machine owns it from then on
                                   (when it cannot be made, it stays here), and `ram` is ignored. NULL: made from `ram` */
    const char *kernel, *initrd, *cmdline;  /* kernel may be NULL when an epoch will be entered: it cannot be reset then */
    struct rp_chardev_config serial, console;   /* console: virtio-console */
    bool has_console, rng, balloon;
    struct rp_vsock_config vsock;
    unsigned ndisks, nnics;
    bool disks_later;           /* they are opened by rp_machine_open_disks: somebody else has them still */
    struct rp_disk_config disks[RP_DISKS_MAX];
    struct rp_nic_config nics[RP_NICS_MAX];
    enum { RP_DIRTY_AUTO, RP_DIRTY_LOG, RP_DIRTY_RING } dirty;
    bool wall_clock_follows;    /* restore: guest wall clock follows the host (default) or stays */
};

/* Fills in what an epoch fixes (vcpus, which devices in which slots, disk and nic counts, MACs, queue counts) from its
 * "machine" section; host-side options (paths, descriptors) are the caller's and stay. -EBADMSG when cfg's host-side
 * options cannot serve it (fewer disks or nics than the epoch has: says which). */
int rp_machine_config_from(const struct rp_sections *s, struct rp_machine_config *cfg, struct rp_error *err) RP_MUST_CHECK;

enum rp_run_state { RP_VM_CREATED, RP_VM_RUNNING, RP_VM_PAUSED, RP_VM_SHUTDOWN, RP_VM_FAILED };

struct rp_machine;

/* Opens /dev/kvm, makes RAM, vCPUs and devices; loads the kernel when one is given. Errors carry the exit class
 * (RP_EXIT_HOST for a missing /dev/kvm, permission, RAM the host lacks …). */
int rp_machine_create(const struct rp_machine_config *cfg, struct rp_events *events, struct rp_machine **out,
                      struct rp_error *err) RP_MUST_CHECK;
void rp_machine_destroy(struct rp_machine *m);  /* drains disks, joins all threads, frees */
/* The same, but its RAM is left in *ram, the caller's from then on (rp_guest_ram_fini, or another machine's `adopt`). */
void rp_machine_dissolve(struct rp_machine *m, struct rp_guest_ram *ram);

/* Why it stands still; bits. */
enum rp_pause {
    RP_PAUSE_USER = 1,          /* the administrator asked for it */
    RP_PAUSE_LEASE = 2,         /* its lease is lost */
    RP_PAUSE_STANDBY = 4,       /* it has no standby, and is not to run without (--on-loss pause) */
};
/* After creation or entering, once: from now on it runs, or waits for the end of what it stands still for. */
int rp_machine_start(struct rp_machine *m, struct rp_error *err) RP_MUST_CHECK;
/* One more reason to stand still, in any state; event STOP when it ran. */
int rp_machine_pause(struct rp_machine *m, enum rp_pause why, struct rp_error *err) RP_MUST_CHECK;
/* One less; it runs when that was the last, event RESUME. */
int rp_machine_resume(struct rp_machine *m, enum rp_pause why, struct rp_error *err) RP_MUST_CHECK;
unsigned rp_machine_paused(const struct rp_machine *m);     /* the reasons that there are: enum rp_pause. Any thread */
void rp_machine_powerdown(struct rp_machine *m);    /* ACPI power button; event POWERDOWN */
/* Event RESET; kernel loaded again. Without a kernel and initrd that are there it is refused and the VM runs on; should loading them fail
 * all the same, the VM has failed. */
int rp_machine_reset(struct rp_machine *m, struct rp_error *err) RP_MUST_CHECK;
void rp_machine_quit(struct rp_machine *m);         /* asks rp_machine_wait to return */
/* Blocks the control thread until the VM ended (guest power-off, quit, failure); an fd for poll users. */
enum rp_run_state rp_machine_state(const struct rp_machine *m);
const char *rp_machine_failure(const struct rp_machine *m);     /* why RP_VM_FAILED; "" otherwise */
int rp_machine_end_fd(const struct rp_machine *m);  /* eventfd, readable once the VM has ended */

/* The machine as a source of epochs (core/source.h). Borrowed; lives as long as the machine. */
struct rp_source *rp_machine_source(struct rp_machine *m);

#define RP_OUTPUTS_SHUT 1u      /* a deadline long ago */
/* Past this instant (CLOCK_BOOTTIME; 0: none) no output leaves (GATE-3, INV-3). Any thread, at once, in
 * any state. */
void rp_machine_output_deadline(struct rp_machine *m, uint64_t deadline_ns);
/* What left and what waits (vmm/gate.h). Any thread. */
struct rp_gate_stats;
void rp_machine_output_stats(struct rp_machine *m, struct rp_gate_stats *out);

/* The machine's RAM, for an image that is loaded straight into it. */
struct rp_guest_ram *rp_machine_ram(struct rp_machine *m);
/* Opens the disks that were left out, in their order; whatever their marks say, they are this VM's. Before it runs and before it enters. On
 * error those that are open stay so: it may be called again. */
int rp_machine_open_disks(struct rp_machine *m, struct rp_error *err) RP_MUST_CHECK;
/* Could it enter that? Everything is loaded as by rp_machine_enter and taken back, RAM is not touched; it is CREATED before and after. Disks
 * that were left out are taken for suitable. On error it is to be destroyed. */
int rp_machine_rehearse(struct rp_machine *m, const struct rp_sections *s, struct rp_error *err) RP_MUST_CHECK;
/* Loads every section into vCPUs and devices (order and reasons: docs/state.md). RAM holds the epoch already. The
 * machine is then PAUSED. On error it is to be destroyed. `moved`: a new generation id, and addresses are announced when it runs. */
int rp_machine_enter(struct rp_machine *m, const struct rp_sections *s, const struct rp_epoch_trailer *t,
                     bool moved, struct rp_error *err) RP_MUST_CHECK;

/* --- what QMP and status ask --- */
struct rp_vcpu_info { unsigned index; int thread_id; bool halted; };
struct rp_disk_info { const char *path; bool readonly; uint64_t size_bytes; uint64_t rd_ops, wr_ops, rd_bytes, wr_bytes, flush_ops; };
struct rp_nic_info { char mac[18]; const char *kind, *name; uint64_t rx_frames, tx_frames, rx_bytes, tx_bytes; };
#define RP_BALLOON_STATS 10u    /* VIRTIO_BALLOON_S_… */
struct rp_balloon_info {
    uint64_t target_bytes, actual_bytes;    /* RAM that the guest shall have, and has */
    uint64_t stats_age_ns;                  /* UINT64_MAX: none came yet */
    uint64_t stats[RP_BALLOON_STATS];       /* all ones: the guest did not say */
};
const struct rp_machine_config *rp_machine_cfg(const struct rp_machine *m);
unsigned rp_machine_vcpus(struct rp_machine *m, struct rp_vcpu_info *out, unsigned max);
unsigned rp_machine_disks(struct rp_machine *m, struct rp_disk_info *out, unsigned max);
/* The VM has ended, here and everywhere: nobody will go on from an epoch of it, and its private disks are ordinary ones again. */
void rp_machine_disks_ended(struct rp_machine *m);
unsigned rp_machine_nics(struct rp_machine *m, struct rp_nic_info *out, unsigned max);
/* -ENODEV: no balloon, or no driver that runs it. The statistics are those of the last call's asking. */
int rp_machine_balloon(struct rp_machine *m, struct rp_balloon_info *out, struct rp_error *err) RP_MUST_CHECK;
/* Asks the guest to make do with `ram_bytes`; it comes by and by, if at all. */
int rp_machine_balloon_set(struct rp_machine *m, uint64_t ram_bytes, struct rp_error *err) RP_MUST_CHECK;

#endif
