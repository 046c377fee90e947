/* The process of one VM: opening, the control loop, closing. */
#include "tools/vm.h"

#include "core/clock.h"
#include "core/log.h"
#include "tools/event_lines.h"
#include "tools/protection.h"
#include "tools/qmp_tables.h"
#include "tools/standby.h"
#include "tools/vm_fence.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define EVENTS_KEPT 512u
#define FIXED 4u            /* descriptors that the loop waits for besides those that were asked for */

static int signals_open(struct rp_vm *vm, struct rp_error *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    vm->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return vm->signal_fd < 0 ? rp_error_set(err, errno, "signalfd: %s", strerror(errno)) : 0;
}

static int listen_at(struct rp_vm *vm, const char *path, const char *what, char kept[RP_RUNTIME_PATH_MAX], struct rp_error *err)
{
    int fd = -1;
    int rc = rp_runtime_listen(path, what, &fd, err);
    if (rc < 0)
        return rc;
    snprintf(kept, RP_RUNTIME_PATH_MAX, "%s", path);
    rc = rp_qmp_listen(vm->qmp, fd, err);
    if (rc < 0)
        close(fd);
    return rc;
}

static int sockets_open(struct rp_vm *vm, const char *qmp_path, struct rp_error *err)
{
    char path[RP_RUNTIME_PATH_MAX], what[RP_VM_NAME_MAX + 16];
    int rc = rp_runtime_socket(vm->name, true, path, err);
    if (rc < 0)
        return rc;
    snprintf(what, sizeof(what), "the name \"%s\"", vm->name);
    rc = listen_at(vm, path, what, vm->socket_path, err);
    if (rc == 0 && qmp_path)
        rc = listen_at(vm, qmp_path, "--qmp", vm->qmp_path, err);
    return rc;
}

int rp_vm_open(struct rp_vm *vm, const char *name, const char *qmp_path, struct rp_error *err)
{
    memset(vm, 0, sizeof(*vm));
    vm->signal_fd = -1;
    vm->stop_timeout_ns = 60u * 1000000000ull;
    vm->started_wall_ns = rp_wall_ns();
    int rc = rp_runtime_name_check(name, err);
    if (rc < 0)
        return rc;
    snprintf(vm->name, sizeof(vm->name), "%s", name);
    rc = signals_open(vm, err);
    if (rc == 0 && rp_events_create(EVENTS_KEPT, &vm->events) < 0)
        rc = rp_error_set(err, ENOMEM, "out of memory");
    if (rc == 0)
        rc = rp_event_lines_create(vm->events, vm->name, &vm->lines, err);
    if (rc == 0)
        rc = rp_jobs_create(vm->events, &vm->jobs, err);
    if (rc == 0)
        rc = rp_qmp_create(vm->events, &vm->qmp, err);
    if (rc == 0)
        rc = sockets_open(vm, qmp_path, err);
    if (rc == 0)
        rc = rp_qmp_tables_add(vm, err);
    return rc;
}

int rp_vm_serve(struct rp_vm *vm, struct rp_error *err)
{
    return rp_qmp_start(vm->qmp, err);
}

int rp_vm_watch(struct rp_vm *vm, int fd, void (*fn)(void *ctx), void *ctx, struct rp_error *err)
{
    if (vm->nwatches == RP_VM_WATCHES_MAX)
        return rp_error_set(err, EOVERFLOW, "control loop: more than %u descriptors", RP_VM_WATCHES_MAX);
    vm->watches[vm->nwatches].fd = fd;
    vm->watches[vm->nwatches].fn = fn;
    vm->watches[vm->nwatches++].ctx = ctx;
    return 0;
}

void rp_vm_unwatch_close(struct rp_vm *vm, int fd)
{
    for (unsigned i = 0; i < vm->nwatches; i++)
        if (vm->watches[i].fd == fd) {
            vm->watches[i] = vm->watches[--vm->nwatches];
            break;
        }
    if (fd >= 0)
        close(fd);
}

void rp_vm_leave(struct rp_vm *vm, int exit_code)
{
    vm->leaving = true;
    vm->leave_code = exit_code;
}

void rp_vm_leave_because(struct rp_vm *vm, const struct rp_error *why)
{
    if (!vm->leaving)
        vm->leave_why = *why;
    vm->leaving = true;
}

/* --- the loop --- */

static void on_signals(struct rp_vm *vm)
{
    struct signalfd_siginfo si;
    while (read(vm->signal_fd, &si, sizeof(si)) == (ssize_t)sizeof(si)) {
        if (si.ssi_signo == SIGHUP)
            continue;   /* a terminal that went away is no reason to end a VM */
        if (!vm->machine) {     /* a standby that waits, a start that does: ending it costs nobody anything */
            rp_vm_leave(vm, si.ssi_signo == SIGINT ? RP_EXIT_INTERRUPTED : RP_EXIT_DONE);
            continue;
        }
        bool again = vm->stop_deadline_ns != 0;
        /* A guest that its user has paused notices no button; one that waits for its lease or its standby goes on by itself, and does then. */
        if (si.ssi_signo == SIGTERM && !again && !(rp_machine_paused(vm->machine) & RP_PAUSE_USER)) {
            vm->stop_deadline_ns = rp_clock_ns() + vm->stop_timeout_ns;
            rp_machine_powerdown(vm->machine);
            continue;
        }
        vm->interrupted = si.ssi_signo == SIGINT;
        rp_machine_quit(vm->machine);
    }
}

bool rp_vm_signalled(struct rp_vm *vm)
{
    on_signals(vm);
    return vm->leaving;
}

/* ms until the guest's time to power off is over; -1: nobody asked it to,
 * or it is over and the VM is being ended. */
static int timeout_ms(const struct rp_vm *vm)
{
    if (!vm->stop_deadline_ns || vm->stop_deadline_ns == UINT64_MAX)
        return -1;
    uint64_t now = rp_clock_ns();
    return now >= vm->stop_deadline_ns ? 0 : (int)((vm->stop_deadline_ns - now) / 1000000u) + 1;
}

static void on_watches(struct rp_vm *vm, const struct pollfd *fds, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        for (unsigned w = 0; fds[i].revents && w < vm->nwatches; w++)   /* looked up again: a watch may remove another */
            if (vm->watches[w].fd == fds[i].fd) {
                vm->watches[w].fn(vm->watches[w].ctx);
                break;
            }
}

static int end_code(struct rp_vm *vm, struct rp_error *err)
{
    if (rp_machine_state(vm->machine) == RP_VM_FAILED)
        return rp_error_set(err, EIO, "VM \"%s\" failed: %s", vm->name, rp_machine_failure(vm->machine));
    return vm->interrupted ? RP_EXIT_INTERRUPTED : RP_EXIT_DONE;
}

int rp_vm_loop(struct rp_vm *vm, struct rp_error *err)
{
    while (!vm->leaving) {
        struct pollfd fds[FIXED + RP_VM_WATCHES_MAX] = {
            {.fd = vm->machine ? rp_machine_end_fd(vm->machine) : -1, .events = POLLIN},
            {.fd = vm->signal_fd, .events = POLLIN},
            {.fd = rp_qmp_request_fd(vm->qmp), .events = POLLIN},
            {.fd = rp_event_lines_fd(vm->lines), .events = POLLIN},
        };
        unsigned n = vm->nwatches;
        for (unsigned i = 0; i < n; i++)
            fds[FIXED + i] = (struct pollfd){.fd = vm->watches[i].fd, .events = POLLIN};
        int rc = poll(fds, FIXED + n, timeout_ms(vm));
        if (rc < 0 && errno != EINTR)
            return rp_error_set(err, errno, "poll: %s", strerror(errno));
        if (rc == 0) {
            rp_log(RP_LOG_WARN, "VM \"%s\" did not power off within %g s; it is ended", vm->name, (double)vm->stop_timeout_ns / 1e9);
            vm->stop_deadline_ns = UINT64_MAX;
            rp_machine_quit(vm->machine);
            continue;
        }
        if (rc < 0)
            continue;
        if (fds[1].revents)
            on_signals(vm);
        if (fds[2].revents)
            rp_qmp_dispatch(vm->qmp);
        if (fds[3].revents)
            rp_event_lines_say(vm->lines);
        on_watches(vm, fds + FIXED, n);
        if (fds[0].revents && vm->machine)      /* it may have been taken apart just now (moved.h) */
            return end_code(vm, err);
    }
    if (vm->leave_why.code && err)
        *err = vm->leave_why;
    return vm->leave_why.code ? vm->leave_why.code : vm->leave_code;
}

/* Protection and lease at the end. A VM that ended for good takes its standby along; one that failed here is the standby's. */
static void unpair(struct rp_vm *vm)
{
    bool ended = vm->machine && rp_machine_state(vm->machine) == RP_VM_SHUTDOWN;
    rp_standby_stop(vm);
    rp_protection_part(vm, ended);
    rp_jobs_destroy(vm->jobs);      /* one may wait for a switchover, or be about to ask for it */
    vm->jobs = NULL;
    rp_protection_stop(vm, ended);
    if (ended && (!vm->fence || rp_fence_state(vm->fence) == RP_FENCE_HELD))
        rp_machine_disks_ended(vm->machine);
    rp_vm_fence_close(vm);
}

void rp_vm_close(struct rp_vm *vm)
{
    if (vm->socket_path[0])
        unlink(vm->socket_path);
    if (vm->qmp_path[0])
        unlink(vm->qmp_path);
    unpair(vm);
    if (vm->machine)
        rp_machine_destroy(vm->machine);    /* before clients are hung up on: who waits for the end may want its disks and interfaces */
    rp_qmp_destroy(vm->qmp);
    rp_event_lines_destroy(vm->lines);
    rp_events_destroy(vm->events);
    if (vm->signal_fd >= 0)
        close(vm->signal_fd);
}
