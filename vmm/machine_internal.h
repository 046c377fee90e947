/*
 * machine_internal.h - struct rp_machine, for the files that make up the machine (machine.c, machine_make.c,
 * machine_state.c, source.c). Nobody else includes it.
 *
 * Lock order: control > machine lock > gang lock (vcpu.h). rp_vcpus_hold is called without the machine lock (VCPU-2).
 */
#ifndef RP_VMM_MACHINE_INTERNAL_H
#define RP_VMM_MACHINE_INTERNAL_H

#include "vmm/boot.h"
#include "vmm/bus.h"
#include "vmm/cpuid.h"
#include "vmm/device.h"
#include "vmm/dirty.h"
#include "vmm/disks.h"
#include "vmm/gate.h"
#include "vmm/irq.h"
#include "vmm/loop.h"
#include "vmm/machine.h"
#include "vmm/pci.h"
#include "vmm/vcpu.h"

#include <pthread.h>
#include <stdatomic.h>

#define RP_DEVICES_MAX 48
#define RP_GATE_BOUND_BYTES (16u << 20)

/* What the guest asked for; bits, served by the thread "guest requests". */
enum { RP_ASK_RESET = 1, RP_ASK_OFF = 2, RP_ASK_FAILED = 4, RP_ASK_STOP = 8 };

/* Machine-wide state that is no device's. */
struct rp_machine_state {
    uint32_t vcpus, ndisks, nnics;
    uint32_t has_console, rng, balloon;
    uint64_t ram_bytes;
    uint8_t vm_id[16];
    uint8_t macs[RP_NICS_MAX][6];
    uint32_t disk_queues[RP_DISKS_MAX], nic_queues[RP_NICS_MAX];
    uint8_t disk_serials[RP_DISKS_MAX][24];
    uint32_t disk_readonly[RP_DISKS_MAX];
    struct rp_cpuid cpuid;
};
extern const struct rp_state_table rp_machine_table;

/* What the machine was about to do at a cut. */
struct rp_run {
    uint32_t paused;            /* by the administrator */
    uint32_t asked;             /* RP_ASK_RESET, RP_ASK_OFF: asked for by the guest, and not done yet */
};
extern const struct rp_state_table rp_run_table;

struct rp_machine {
    struct rp_machine_config cfg;       /* constant after creation; strings owned */
    struct rp_events *events;           /* borrowed, may be NULL */
    int kvmfd, vmfd;
    uint32_t host_tsc_khz;              /* constant after creation; 0: unknown, or KVM cannot have the processor scale it */
    struct rp_guest_ram *ram;           /* owned */
    struct rp_machine_state st;         /* constant after creation */
    struct rp_buf st_bytes;             /* control: st encoded, once */
    uint64_t rsdp_gpa;

    pthread_mutex_t lock;               /* the machine lock: devices, buses */
    struct rp_bus pio, mmio;            /* lock */
    struct rp_irqs *irqs;
    struct rp_loop *loop;
    struct rp_pci_bus *pci;
    struct rp_gate *gate;
    struct rp_disks *disks;
    struct rp_vcpus *vcpus;
    struct rp_vcpu_state *initial;      /* one per vCPU: as after power-on */
    struct rp_dirty *dirty;
    unsigned ndevices;                  /* constant after creation */
    struct rp_device devices[RP_DEVICES_MAX];
    int disk_at[RP_DISKS_MAX], nic_at[RP_NICS_MAX];    /* index in devices */
    struct rp_power *power;             /* in devices too */
    struct rp_vmgenid *vmgenid;         /* in devices too */

    pthread_mutex_t control;            /* who starts, stops, cuts, resets */
    pthread_cond_t uncut;               /* cut became false, or going true */
    _Atomic int state;                  /* enum rp_run_state; written with control held */
    _Atomic unsigned paused;            /* enum rp_pause; written with control held */
    bool may_run;                       /* control: rp_machine_start was called */
    bool started;                       /* control: threads are up */
    bool cut;                           /* control: between a source's cut and resume */
    bool going;                         /* control: it is being destroyed; a cut that is left open stays so */

    bool announce_due;                  /* control: it was entered elsewhere, and has not run yet */
    bool running;                       /* control: the vCPUs were told to go */
    char failure[192];                  /* written before state becomes FAILED */

    _Atomic unsigned asks;              /* RP_ASK_*; set by any thread, then ask_fd */
    unsigned serving;                   /* control: of them, what the thread is at; it takes them with control held, so that they are in the one or the other */
    int ask_fd, end_fd;
    pthread_t asker;
    bool asker_started;
    char ask_text[192];                 /* lock: why RP_ASK_FAILED */

    struct rp_source source;
    uint64_t newest_epoch;              /* control */
    uint64_t history_saved, history_epoch;  /* the source's thread: events there were when the history went into an epoch, and which that was */
};

/* machine_make.c */
int rp_machine_add(struct rp_machine *m, const struct rp_device *d, struct rp_error *err) RP_MUST_CHECK;
/* Loads the kernel and sets vCPU 0 to start it. vCPUs still. */
int rp_machine_boot(struct rp_machine *m, struct rp_error *err) RP_MUST_CHECK;

/* machine.c. Destroys; `ram` not NULL: guest memory goes there, if the machine had any yet. */
void rp_machine_unmake(struct rp_machine *m, struct rp_guest_ram *ram);
/* control held. */
void rp_machine_stand_still(struct rp_machine *m, bool save);
void rp_machine_run(struct rp_machine *m);
void rp_machine_ask(struct rp_machine *m, unsigned what);
/* Devices and vCPUs as after power-on. Machine lock held, too; vCPUs still. */
int rp_machine_power_on(struct rp_machine *m, struct rp_error *err) RP_MUST_CHECK;

/* machine_state.c; control and machine lock held, vCPUs still. */
int rp_machine_save(struct rp_machine *m, struct rp_sections *out, uint64_t *guest_ns, struct rp_error *err) RP_MUST_CHECK;

/* source.c */
void rp_machine_source_init(struct rp_machine *m);

#endif
