/* aside.h: helpers keep off the CPUs of vCPUs, and vmm/vcpu_place.c says which these are. */
#include "core/thread.h"
#include "replicator/aside.h"
#include "vmm/vcpu.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static cpu_set_t busy, all;

static void running_on(struct rp_source *s, cpu_set_t *cpus)
{
    (void)s;
    CPU_OR(cpus, cpus, &busy);
}

static const struct rp_source_ops ops = {.name = "busy", .running_on = running_on};
static struct rp_source source = {.ops = &ops};
static struct rp_aside aside;

static void start(void)
{
    cr_assert_eq(sched_getaffinity(0, sizeof(all), &all), 0);
    CPU_ZERO(&busy);
    rp_aside_init(&aside);
}

static void end(void)
{
    rp_aside_fini(&aside);
}

static unsigned first_cpu(const cpu_set_t *set)
{
    for (unsigned i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, set))
            return i;
    return CPU_SETSIZE;
}

static cpu_set_t mine(void)
{
    cpu_set_t set;
    cr_assert_eq(sched_getaffinity(0, sizeof(set), &set), 0);
    return set;
}

static void look(void)
{
    aside.look_ns = 0;      /* not so soon again, otherwise */
    rp_aside_look(&aside, &source);
    rp_aside_step(&aside);
}

static bool off(unsigned cpu)
{
    cpu_set_t set = mine();
    return !CPU_ISSET(cpu, &set) && CPU_COUNT(&set) == CPU_COUNT(&all) - 1;
}

static bool everywhere(void)
{
    cpu_set_t set = mine();
    return CPU_EQUAL(&set, &all);
}

static void *run_off(void *arg)
{
    bool *ok = arg;
    ok[0] = everywhere();       /* its starter's CPUs are not its own */
    rp_aside_step(&aside);
    ok[1] = off(first_cpu(&busy));
    return NULL;
}

/* On a thread of its own: the main thread's CPUs are those that the process may use. */
static void *keep_off(void *arg)
{
    (void)arg;
    unsigned cpu = first_cpu(&all);
    pthread_t thread;
    bool ok[2] = {false, false};
    CPU_SET(cpu, &busy);
    look();
    cr_assert(off(cpu));
    cr_assert_eq(rp_thread_start(&thread, "helper", run_off, ok, NULL), 0);
    pthread_join(thread, NULL);
    cr_assert(ok[0], "it began where its starter was");
    cr_assert(ok[1], "it did not follow");
    CPU_ZERO(&busy);        /* the vCPU waits: its CPU may be used */
    look();
    cr_assert(everywhere());
    busy = all;             /* one on each */
    look();
    cr_assert(everywhere());
    CPU_ZERO(&busy);
    CPU_SET(cpu, &busy);
    look();
    cr_assert(off(cpu));
    rp_aside_leave();       /* for a moment */
    cr_assert(everywhere());
    rp_aside_step(&aside);
    cr_assert(off(cpu));
    rp_aside_end(&aside);
    rp_aside_step(&aside);
    cr_assert(everywhere());
    return NULL;
}

Test(aside, helpers_keep_off_the_cpus_of_vcpus, .init = start, .fini = end)
{
    pthread_t thread;
    if (CPU_COUNT(&all) < 2)
        cr_skip("one CPU: there is none to go to");
    cr_assert_eq(rp_thread_start(&thread, "engine", keep_off, NULL, NULL), 0);
    pthread_join(thread, NULL);
}

Test(aside, what_nobody_looked_at_changes_nothing, .init = start, .fini = end)
{
    CPU_SET(first_cpu(&all), &aside.free);
    if (CPU_COUNT(&all) < 2)
        cr_skip("one CPU: there is none to go to");
    rp_aside_step(&aside);
    cr_assert(everywhere());
}

/* --- policies --- */

static void *its_policy(void *arg)
{
    *(int *)arg = sched_getscheduler(0);
    return NULL;
}

static int policy_of_a_new_thread(void)
{
    pthread_t thread;
    int policy = -1;
    cr_assert_eq(rp_thread_start(&thread, "new", its_policy, &policy, NULL), 0);
    pthread_join(thread, NULL);
    return policy;
}

Test(aside, who_is_patient_starts_threads_that_are_not)
{
    rp_thread_patient(true);
    cr_assert_eq(sched_getscheduler(0), SCHED_BATCH);
    cr_assert_eq(policy_of_a_new_thread(), SCHED_OTHER);
    rp_thread_patient(false);
    cr_assert_eq(sched_getscheduler(0), SCHED_OTHER);
}

Test(aside, a_policy_that_somebody_chose_stays)
{
    const struct sched_param none = {0};
    cr_assert_eq(sched_setscheduler(0, SCHED_IDLE, &none), 0);
    rp_thread_patient(true);
    cr_assert_eq(sched_getscheduler(0), SCHED_IDLE);
    rp_thread_patient(false);
    cr_assert_eq(sched_getscheduler(0), SCHED_IDLE);
    cr_assert_eq(policy_of_a_new_thread(), SCHED_IDLE);
}

/* --- where threads are --- */

static _Atomic int stat_fd = -1;
static _Atomic bool stop;

static void *spin(void *arg)
{
    cpu_set_t *on = arg;
    cr_assert_eq(sched_setaffinity(0, sizeof(*on), on), 0);
    pthread_setname_np(pthread_self(), "a) S 1 2 (b");
    atomic_store(&stat_fd, open("/proc/thread-self/stat", O_RDONLY));
    while (!atomic_load(&stop))
        ;
    return NULL;
}

Test(aside, a_thread_that_runs_is_found_where_it_runs, .init = start, .fini = end)
{
    struct rp_vcpus *g = calloc(1, sizeof(*g));
    cpu_set_t on, found;
    pthread_t thread;
    cr_assert_not_null(g);
    CPU_ZERO(&on);
    CPU_SET(first_cpu(&all), &on);
    cr_assert_eq(rp_thread_start(&thread, "spin", spin, &on, NULL), 0);
    while (atomic_load(&stat_fd) < 0)
        usleep(100);
    g->n = 2;
    g->v[0].stat_fd = atomic_load(&stat_fd);
    g->v[1].stat_fd = -1;       /* nobody knows of this one */
    CPU_ZERO(&found);
    rp_vcpus_running_on(g, &found);
    cr_assert(CPU_EQUAL(&found, &on));
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    unsigned ms = 0;
    do {                        /* the descriptor of a thread that is gone; it may be leaving still when it was joined */
        CPU_ZERO(&found);
        rp_vcpus_running_on(g, &found);
    } while (CPU_COUNT(&found) && ms++ < 5000 && usleep(1000) == 0);
    cr_assert_eq(CPU_COUNT(&found), 0);
    close(atomic_load(&stat_fd));
    free(g);
}
