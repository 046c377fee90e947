#include "replicator/aside.h"

#include "core/clock.h"

#include <unistd.h>

#define LOOK_NS 5000000u        /* a look costs 3 us per vCPU */

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

/* Those that the process may use. False where there are more than a cpu_set_t holds: then nobody is kept off any. */
static bool all_cpus(cpu_set_t *all)
{
    return sched_getaffinity(getpid(), sizeof(*all), all) == 0;
}

static void change(struct rp_aside *a, const cpu_set_t *free)
{
    pthread_mutex_lock(&a->lock);
    if (!atomic_load(&a->version) || !CPU_EQUAL(free, &a->free)) {
        a->free = *free;
        atomic_fetch_add(&a->version, 1);
    }
    pthread_mutex_unlock(&a->lock);
}

void rp_aside_look(struct rp_aside *a, struct rp_source *src)
{
    uint64_t now = rp_clock_ns();
    cpu_set_t all, taken, left;
    if (!src->ops->running_on || now < a->look_ns || !all_cpus(&all))
        return;
    a->look_ns = now + LOOK_NS;
    CPU_ZERO(&taken);
    src->ops->running_on(src, &taken);
    CPU_AND(&left, &all, &taken);
    CPU_XOR(&left, &all, &left);
    change(a, CPU_COUNT(&left) ? &left : &all);
}

void rp_aside_end(struct rp_aside *a)
{
    cpu_set_t all;
    a->look_ns = UINT64_MAX;
    if (atomic_load(&a->version) && all_cpus(&all))
        change(a, &all);
}

void rp_aside_step(struct rp_aside *a)
{
    if (atomic_load_explicit(&a->version, memory_order_relaxed) == followed)
        return;
    pthread_mutex_lock(&a->lock);
    cpu_set_t free = a->free;
    unsigned version = atomic_load(&a->version);
    pthread_mutex_unlock(&a->lock);
    if (sched_setaffinity(0, sizeof(free), &free) == 0)
        followed = version;
}

void rp_aside_leave(void)
{
    cpu_set_t all;
    if (followed && all_cpus(&all) && sched_setaffinity(0, sizeof(all), &all) == 0)
        followed = 0;
}

void rp_aside_once(struct rp_source *src)
{
    struct rp_aside a;
    rp_aside_init(&a);
    rp_aside_look(&a, src);
    rp_aside_step(&a);
    rp_aside_fini(&a);
}
