#include "core/thread.h"

#include "core/clock.h"
#include "core/log.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define NICE_BEHIND 5

int rp_thread_start(pthread_t *thread, const char *name, void *(*run)(void *arg), void *arg, struct rp_error *err)
{
    sigset_t blocked, old;
    sigfillset(&blocked);
    sigdelset(&blocked, SIGSEGV);
    sigdelset(&blocked, SIGBUS);
    sigdelset(&blocked, SIGILL);
    sigdelset(&blocked, SIGFPE);
    pthread_attr_t attr;
    cpu_set_t cpus;
    pthread_attr_init(&attr);
    if (sched_getaffinity(getpid(), sizeof(cpus), &cpus) == 0)
        pthread_attr_setaffinity_np(&attr, sizeof(cpus), &cpus);
    pthread_sigmask(SIG_SETMASK, &blocked, &old);       /* the new thread inherits it */
    int rc = pthread_create(thread, &attr, run, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (rc)
        return rp_error_set(err, rc, "cannot start the thread \"%s\": %s", name, strerror(rc));
    pthread_setname_np(*thread, name);
    return 0;
}

void rp_thread_patient(bool patient)
{
    const struct sched_param none = {0};
    if (sched_setscheduler(0, patient ? SCHED_BATCH : SCHED_OTHER, &none) != 0)     /* 0: this thread */
        rp_log(RP_LOG_DEBUG, "a thread cannot change its policy: %s", strerror(errno));
}

void rp_thread_behind(void)
{
    rp_thread_patient(true);
    if (setpriority(PRIO_PROCESS, 0, NICE_BEHIND) != 0)
        rp_log(RP_LOG_DEBUG, "a thread cannot give way: %s", strerror(errno));
}

int rp_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t until_ns)
{
    struct timespec ts = rp_timespec(until_ns);
    return -pthread_cond_clockwait(cond, lock, CLOCK_MONOTONIC, &ts);
}
