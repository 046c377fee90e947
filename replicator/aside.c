#include "replicator/aside.h"

#include "core/clock.h"

#include <unistd.h>

#define LOOK_NS 5000000u        /* a look costs 3 us per vCPU */

static _Atomic unsigned versions;
static _Thread_local unsigned followed;     /* the version by which this thread chose its CPUs */

void rp_aside_init(struct rp_aside *a)
{
    *a = (struct rp_aside){.version = 0};
    pthread_mutex_init(&a->lock, NULL);
}

void rp_aside_fini(struct rp_aside *a)
{
    pthread_mutex_destroy(&a->lock);
}

void rp_aside_look(struct rp_aside *a, struct rp_source *src)
{
    uint64_t now = rp_clock_ns();
    cpu_set_t all, taken, left;
    if (!src->ops->running_on || now < a->look_ns || sched_getaffinity(getpid(), sizeof(all), &all) != 0)
        return;
    a->look_ns = now + LOOK_NS;
    CPU_ZERO(&taken);
    src->ops->running_on(src, &taken);
    CPU_AND(&left, &all, &taken);
    CPU_XOR(&left, &all, &left);
    if (CPU_COUNT(&left) == 0)
        left = all;
    pthread_mutex_lock(&a->lock);
    if (!atomic_load(&a->version) || !CPU_EQUAL(&left, &a->free)) {
        a->free = left;
        atomic_store(&a->version, atomic_fetch_add(&versions, 1) + 1);
    }
    pthread_mutex_unlock(&a->lock);
    rp_aside_step(a);
}

void rp_aside_step(struct rp_aside *a)
{
    if (atomic_load_explicit(&a->version, memory_order_relaxed) == followed)
        return;
    pthread_mutex_lock(&a->lock);
    cpu_set_t free = a->free;
    followed = atomic_load(&a->version);
    pthread_mutex_unlock(&a->lock);
    if (followed && sched_setaffinity(0, sizeof(free), &free) != 0) {
        /* none of them is there any more: it stays where it is until the next look */
    }
}

void rp_aside_once(struct rp_source *src)
{
    struct rp_aside a;
    rp_aside_init(&a);
    rp_aside_look(&a, src);
    rp_aside_fini(&a);
}
