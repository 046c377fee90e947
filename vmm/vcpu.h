/*
 * vcpu.h - the virtual CPUs of one machine: their KVM descriptors, their threads, and the one way to stop them.
 *
 *                     rp_vcpus_go
 *        ┌───────┐ ──────────────► ┌──────────┐
 *        │ STILL │                 │ IN GUEST │   exits are served on the vCPU's thread, devices under the machine lock
 *        └───────┘ ◄────────────── └──────────┘
 *         │     ▲   rp_vcpus_hold
 *         └─────┘ rp_vcpus_save: each thread takes its vCPU's state
 *
 * VCPU-1  When rp_vcpus_hold has returned, every vCPU thread is outside of KVM_RUN and its last exit is complete
 *         (the instruction that caused it has retired): KVM_RUN was entered after it, if need be with immediate_exit set.
 * VCPU-2  The caller of rp_vcpus_hold does not hold the machine lock: a vCPU may need it to complete its exit.
 * VCPU-3  A vCPU thread waits for nothing but the machine lock and the gang's own lock.
 * VCPU-4  What others send to a vCPU is taken when all vCPUs are still, and the devices: an interrupt that one of them sends to a vCPU
 *         whose LAPIC was read already would be in nobody's state.
 * VCPU-5  From rp_vcpus_save (from a brief rp_vcpus_hold) to rp_vcpus_collect the vCPUs' descriptors and states are their threads'.
 *
 * A cut is short, and to wake a thread that sleeps on an idle CPU takes as long as its whole work: where there is a CPU for each of them,
 * the threads that wait for each other in a cut watch for one another before they sleep.
 *
 * Threads: go, hold, throttle come from whoever holds the machine's control lock. The kick is a real-time signal that
 * only vCPU threads have unblocked; immediate_exit closes the race with entering KVM_RUN.
 * Source: Documentation/virt/kvm/api.rst, "KVM_RUN", "immediate_exit".
 */
#ifndef RP_VMM_VCPU_H
#define RP_VMM_VCPU_H

#include "core/error.h"
#include "vmm/bus.h"
#include "vmm/loop.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

struct rp_vcpu_state;
struct rp_vcpus;
struct rp_msr_list;

struct rp_vcpu {
    struct rp_vcpus *gang;
    unsigned index;
    int fd;
    struct kvm_run *run;        /* vCPU thread while in the guest, control thread while still; immediate_exit: atomic */
    size_t run_bytes;
    pthread_t thread;
    bool started;               /* control thread */
    _Atomic int tid;            /* set once by the thread */
    _Atomic int stat_fd;        /* of its /proc/…/stat, set once by the thread; -1: none */
    bool still;                 /* gang lock: outside of KVM_RUN, last exit complete */
    bool ended;                 /* gang lock: failed or shut down; does not go on before a reset */
    bool own_saved, saved;      /* gang lock: `state` was taken in this hold; the part of it that nobody else changes */
    int save_rc;                /* VCPU-5 */
    struct rp_error save_error; /* likewise */
    struct rp_vcpu_state *state;/* likewise */
};

struct rp_vcpu_ops {            /* called on vCPU threads, no lock held */
    void *ctx;
    void (*shutdown)(void *ctx, unsigned vcpu);                     /* triple fault; the vCPU stops */
    void (*failed)(void *ctx, unsigned vcpu, const char *why);      /* the vCPU stops */
    void (*ring_full)(void *ctx, unsigned vcpu);                    /* KVM_EXIT_DIRTY_RING_FULL */
};

struct rp_vcpus_config {
    int kvmfd, vmfd;            /* borrowed */
    unsigned n;
    struct rp_bus *pio, *mmio;
    struct rp_loop *loop;       /* has the machine lock */
    struct rp_vcpu_ops ops;
};

#define RP_VCPU_GANG_MAX 32
struct rp_vcpus {
    struct rp_vcpus_config cfg;
    unsigned n;
    struct rp_vcpu v[RP_VCPU_GANG_MAX];
    struct rp_msr_list *msrs;   /* which MSRs are state here: constant after creation */
    uint32_t xsave_bytes;       /* of KVM_GET_XSAVE2 */

    pthread_mutex_t lock;       /* the gang lock: a leaf */
    pthread_cond_t go, still;
    _Atomic enum rp_gang_want { RP_GANG_HOLD, RP_GANG_GO, RP_GANG_QUIT } want;   /* lock; watched without */
    _Atomic unsigned nstill, nsaved;    /* lock: how many are `still`, `saved`; watched without */
    _Atomic bool save;          /* lock: whoever has not `saved` does so; watched without */
    unsigned saving;            /* lock: threads that do so at the moment */
    bool brief;                 /* lock: a cut */
    bool watch;                 /* there is a CPU for each vCPU and for whoever holds them; constant */
    uint64_t nap_until_ns;      /* lock: throttled until then */

    pthread_t ticker;           /* throttle thread, while throttle > 0 */
    unsigned throttle;          /* control: percent */
    bool ticking;               /* control */
    _Atomic bool stop_ticking;
};

/* Makes the vCPUs; no threads yet. Capabilities that must precede vCPUs are set already. */
int rp_vcpus_create(const struct rp_vcpus_config *cfg, struct rp_vcpus **out, struct rp_error *err) RP_MUST_CHECK;
void rp_vcpus_destroy(struct rp_vcpus *g);      /* stops and joins first */
int rp_vcpus_start(struct rp_vcpus *g, struct rp_error *err) RP_MUST_CHECK;     /* threads "vcpu N", still */
void rp_vcpus_go(struct rp_vcpus *g);
/* Stops all (VCPU-1); `brief`: for a cut, and who is still begins to take its state. */
void rp_vcpus_hold(struct rp_vcpus *g, bool brief);
/* Each thread takes its vCPU's state, into v[i].state. While they are held, and the devices are still (VCPU-4). */
void rp_vcpus_save(struct rp_vcpus *g);
/* Waits for that; gives the first error. */
int rp_vcpus_collect(struct rp_vcpus *g, struct rp_error *err) RP_MUST_CHECK;
/* Ended vCPUs may run again (guest reset). While still. */
void rp_vcpus_revive(struct rp_vcpus *g);
/* Adds the CPUs on which vCPUs run at this moment; not those that wait. Any thread. */
void rp_vcpus_running_on(struct rp_vcpus *g, cpu_set_t *cpus);
/* Takes `percent` (0-99) of the vCPUs' time. */
int rp_vcpus_throttle(struct rp_vcpus *g, unsigned percent, struct rp_error *err) RP_MUST_CHECK;

#endif
