/*
 * thread.h - how a thread is started, gives way and waits. docs/threads.md has a row for each; whoever starts one joins it.
 */
#ifndef RP_CORE_THREAD_H
#define RP_CORE_THREAD_H

#include "core/error.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Starts run(arg), joinable. `name`: what tools show for the thread, copied, at most 15 characters (TASK_COMM_LEN; a longer one is not
 * shown at all). All signals are blocked in it but those of its own faults (SIGSEGV, SIGBUS, SIGILL, SIGFPE), which a sanitizer reports:
 * signals are the control thread's, and who wants another (a vCPU's kick) unblocks it. It may run on the CPUs of the process's main thread
 * and is not patient, whatever its starter is; its nice is its starter's. `arg` stays the caller's. `*thread` is set before run begins, and
 * joined by the caller. Any thread. -errno of pthread_create: nothing runs, and *thread means nothing.
 */
int rp_thread_start(pthread_t *thread, const char *name, void *(*run)(void *arg), void *arg, struct rp_error *err) RP_MUST_CHECK;

/* Has the process been asked to end (SIGINT, SIGTERM), and nobody looked yet? The signals stay pending. For what takes long while a VM is being
 * made; they are blocked then. Any thread. */
bool rp_end_is_asked(void);

/* Waits, with `lock` held, until a time of rp_clock_ns at most. 0: woken, or for no reason; -ETIMEDOUT. */
int rp_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t until_ns);

/* For the calling thread, if it is not under a policy that somebody chose. Patient (SCHED_BATCH): when it is woken it waits for a CPU, it does
 * not take it from who runs there. */
void rp_thread_patient(bool on);
/* For the calling thread, once and for good (without privileges there is no way back): patient, and at nice 5. Threads that work on what was
 * captured give way to vCPUs and to whoever a vCPU waits for where cores are short (INV-5). */
void rp_thread_behind(void);

#endif
