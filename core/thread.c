#include "core/thread.h"

#include "core/clock.h"
#include "core/log.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define NICE_BEHIND 5

static _Thread_local bool patient;      /* by rp_thread_patient */

struct start { void *(*run)(void *arg); void *arg; bool patient; };

/* In the new thread. What is refused here (by a container, say) is no reason not to run. Where the CPUs are the same already nothing is said of
 * them: those that are asked for by name do not grow with the process's. */
static void *begin(void *arg)
{
    struct start s = *(struct start *)arg;
    cpu_set_t mine, all;
    free(arg);
    if (sched_getaffinity(0, sizeof(mine), &mine) == 0 && sched_getaffinity(getpid(), sizeof(all), &all) == 0 && !CPU_EQUAL(&mine, &all))
        (void)sched_setaffinity(0, sizeof(all), &all);
    patient = s.patient;
    rp_thread_patient(false);
    return s.run(s.arg);
}

int rp_thread_start(pthread_t *thread, const char *name, void *(*run)(void *arg), void *arg, struct rp_error *err)
{
    struct start *s = malloc(sizeof(*s));
    if (!s)
        return rp_error_set(err, ENOMEM, "no memory for the thread \"%s\"", name);
    *s = (struct start){.run = run, .arg = arg, .patient = patient};
    sigset_t blocked, old;
    sigfillset(&blocked);
    sigdelset(&blocked, SIGSEGV);
    sigdelset(&blocked, SIGBUS);
    sigdelset(&blocked, SIGILL);
    sigdelset(&blocked, SIGFPE);
    pthread_sigmask(SIG_SETMASK, &blocked, &old);       /* the new thread inherits it */
    int rc = pthread_create(thread, NULL, begin, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc) {
        free(s);
        return rp_error_set(err, rc, "cannot start the thread \"%s\": %s", name, strerror(rc));
    }
    pthread_setname_np(*thread, name);
    return 0;
}

/* A policy that somebody chose for the process is left alone. */
void rp_thread_patient(bool on)
{
    const struct sched_param none = {0};
    if (on == patient || (on && sched_getscheduler(0) != SCHED_OTHER))
        return;
    if (sched_setscheduler(0, on ? SCHED_BATCH : SCHED_OTHER, &none) == 0)     /* 0: this thread */
        patient = on;
    else
        rp_log(RP_LOG_DEBUG, "a thread cannot change its policy: %s", strerror(errno));
}

void rp_thread_behind(void)
{
    rp_thread_patient(true);
    if (setpriority(PRIO_PROCESS, 0, NICE_BEHIND) != 0)
        rp_log(RP_LOG_DEBUG, "a thread cannot give way: %s", strerror(errno));
}

bool rp_end_is_asked(void)
{
    sigset_t set;
    return sigpending(&set) == 0 && (sigismember(&set, SIGINT) || sigismember(&set, SIGTERM));
}

int rp_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t until_ns)
{
    struct timespec ts = rp_timespec(until_ns);
    return -pthread_cond_clockwait(cond, lock, CLOCK_MONOTONIC, &ts);
}
