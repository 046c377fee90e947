/*
 * aside.h - work beside a running VM keeps off the CPUs that its vCPUs run on, as long as there are others.
 *
 * The scheduler may wake a helper on a vCPU's CPU though another one is idle; from there it takes a time slice (milliseconds), which the guest
 * feels as a gap. So whoever drives the work looks now and then where the vCPUs are (rp_aside_look), and each helper follows at places of its
 * choice (rp_aside_step). vCPUs go where the scheduler puts them. With a vCPU on each CPU nobody is kept off any; then a helper's policy
 * (core/thread.h) is all that protects a vCPU.
 *
 * What a helper starts does not inherit its CPUs (rp_thread_start). CPUs the process may not use are never used: its main thread's are asked for.
 * Where more CPUs are possible than a cpu_set_t holds (1,024) nobody is kept off any.
 */
#ifndef RP_REPLICATOR_ASIDE_H
#define RP_REPLICATOR_ASIDE_H

#include "core/source.h"

#include <pthread.h>
#include <stdatomic.h>

struct rp_aside {
    pthread_mutex_t lock;       /* a leaf: free */
    cpu_set_t free;             /* the CPUs for helpers */
    _Atomic unsigned version;   /* of free; 0: nobody looked yet */
    uint64_t look_ns;           /* who looks: when to look again */
};

void rp_aside_init(struct rp_aside *a);
void rp_aside_fini(struct rp_aside *a);
/* Looks where the source's vCPUs run, not more often than every few milliseconds. One thread at a time. */
void rp_aside_look(struct rp_aside *a, struct rp_source *src);
/* The vCPUs stand for good: all CPUs are for helpers, and nobody looks any more. Who looks. */
void rp_aside_end(struct rp_aside *a);
/* The calling thread goes where helpers may run, unless it is there. Any thread; costs nothing when nothing has changed. A thread follows one
 * aside. */
void rp_aside_step(struct rp_aside *a);
/* The calling thread may run anywhere again. */
void rp_aside_leave(void);
/* Looks once and steps aside: for a thread that does one thing beside the VM and ends. */
void rp_aside_once(struct rp_source *src);

#endif
