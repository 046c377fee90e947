/*
 * vm.h - the process of one VM: its machine, its event log, its QMP sockets, its jobs, and the control loop on the main
 * thread that waits for commands, signals and the machine's end.
 *
 *   rp_vm_open ─► machine is made or entered (run.c, restore.c, standby) ─► rp_vm_serve ─► rp_vm_loop ─► rp_vm_close
 *
 * The name is taken by rp_vm_open, before anything of the machine is made: a name in use costs nothing.
 */
#ifndef RP_TOOLS_VM_H
#define RP_TOOLS_VM_H

#include "tools/job.h"
#include "tools/qmp_server.h"
#include "tools/runtime.h"
#include "vmm/machine.h"

#include <poll.h>

#define RP_VM_WATCHES_MAX 8u

struct rp_event_lines;
struct rp_fence;
struct rp_protection;
struct rp_standby;
struct rp_vm_options;

struct rp_vm {                  /* control thread, constant after rp_vm_serve unless said */
    char name[RP_VM_NAME_MAX];
    struct rp_machine *machine; /* set by the verb; owned by the vm from then on. NULL while a standby waits */
    struct rp_events *events;
    struct rp_event_lines *lines;
    struct rp_jobs *jobs;
    struct rp_qmp *qmp;
    char socket_path[RP_RUNTIME_PATH_MAX], qmp_path[RP_RUNTIME_PATH_MAX];
    int signal_fd;
    uint64_t stop_timeout_ns;   /* SIGTERM: how long the guest may take to power off before it is ended */
    uint64_t stop_deadline_ns;  /* 0: not asked */
    uint64_t started_wall_ns;
    struct rp_vm_options *options;      /* borrowed */
    uint64_t epoch;             /* the newest number given to an epoch of this VM, 0: none */
    bool interrupted;           /* SIGINT ended it: exit code 130 */
    bool leaving;               /* rp_vm_leave was called */
    int leave_code;
    struct rp_error leave_why;  /* of rp_vm_leave_because */
    struct rp_fence *fence;     /* vm_fence.h; NULL: no lease */
    int fence_fd;
    _Atomic bool fence_taken;   /* the protect thread may take it, too */
    _Atomic bool fence_give_up; /* control: the protect thread shall not wait for it any more */
    uint64_t fence_losses;      /* of its losses, those that were seen to */
    struct rp_protection *protection;   /* protection.h; NULL: not protected */
    struct rp_standby *standby; /* standby.h; NULL: not waiting for anything */
    unsigned nwatches;
    struct { int fd; void (*fn)(void *ctx); void *ctx; } watches[RP_VM_WATCHES_MAX];
};

/* Takes the name (and the second socket), blocks SIGINT, SIGTERM, SIGHUP and SIGPIPE for all threads made later, adds the
 * commands that every VM has. qmp_path may be NULL. */
int rp_vm_open(struct rp_vm *vm, const char *name, const char *qmp_path, struct rp_error *err) RP_MUST_CHECK;
/* vm->machine is there: from here on clients are answered. */
int rp_vm_serve(struct rp_vm *vm, struct rp_error *err) RP_MUST_CHECK;
/* Has fn called on the control thread while `fd` is readable (a terminal, a link). Before the loop, or from within it. */
int rp_vm_watch(struct rp_vm *vm, int fd, void (*fn)(void *ctx), void *ctx, struct rp_error *err) RP_MUST_CHECK;
/* The end of that: `fd` is closed. -1, or one that nobody watches (yet): likewise. */
void rp_vm_unwatch_close(struct rp_vm *vm, int fd);
/* While there is no machine: has a signal come that ends the process? vm->leave_code is then what it ends with. */
bool rp_vm_signalled(struct rp_vm *vm);
/* Runs until the machine has ended. Returns the exit code, or -errno with the machine's failure. SIGTERM presses the power
 * button, a second one or the time limit ends the VM, and the first one if its user has paused it; SIGINT ends it at once. */
int rp_vm_loop(struct rp_vm *vm, struct rp_error *err);
/* Control thread: the loop ends with this exit code although the machine has not (it lives on elsewhere). */
void rp_vm_leave(struct rp_vm *vm, int exit_code);
/* Likewise, and the loop's result is this error. The first one counts. */
void rp_vm_leave_because(struct rp_vm *vm, const struct rp_error *why);
/* Ends protection, jobs, clients and machine, removes the sockets. Also after a failed open. */
void rp_vm_close(struct rp_vm *vm);

#endif
