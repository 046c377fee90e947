/*
 * vm_options.h - the options that say what a VM is (run) and what of the host it uses (run, restore, standby): their
 * tables, and the words of --disk, --net and --serial. Thread: main, before any other.
 */
#ifndef RP_TOOLS_VM_OPTIONS_H
#define RP_TOOLS_VM_OPTIONS_H

#include "tools/args.h"
#include "tools/pair_options.h"
#include "vmm/machine.h"

enum rp_sandbox_mode { RP_SANDBOX_OFF, RP_SANDBOX_LOG, RP_SANDBOX_ON };

/* A verb's options begin with this one; the tables' offsets are relative to it. Strings point into argv. */
struct rp_vm_options {
    struct rp_machine_config machine;
    const char *qmp_path;           /* a second QMP socket beside the runtime one, or NULL */
    const char *pidfile;            /* or NULL */
    uint64_t stop_timeout_ns;       /* SIGTERM: how long the guest may take to power off */
    enum rp_sandbox_mode sandbox;
    bool paused;
    struct rp_pair_options pair;    /* pair_options.h */
};

extern const struct rp_vm_options rp_vm_options_defaults;

/* Groups for a verb's table. HOST: what the VM uses of this host. GUEST: what it is (an epoch brings that itself).
 * RP_VM_ENTER_GROUP: how an epoch is entered. */
#define RP_VM_HOST_OPTIONS 16u
#define RP_VM_GUEST_OPTIONS 5u
#define RP_VM_KERNEL_OPTIONS 3u
#define RP_VM_ENTER_OPTIONS 1u
extern const struct rp_opt rp_vm_host_options[RP_VM_HOST_OPTIONS];
extern const struct rp_opt rp_vm_guest_options[RP_VM_GUEST_OPTIONS];
extern const struct rp_opt rp_vm_kernel_options[RP_VM_KERNEL_OPTIONS];
extern const struct rp_opt rp_vm_enter_options[RP_VM_ENTER_OPTIONS];
#define RP_VM_HOST_GROUP {.title = "Host", .opts = rp_vm_host_options, .nopts = RP_VM_HOST_OPTIONS}
#define RP_VM_GUEST_GROUP {.title = "Guest", .opts = rp_vm_guest_options, .nopts = RP_VM_GUEST_OPTIONS}
#define RP_VM_KERNEL_GROUP {.title = "Booting", .opts = rp_vm_kernel_options, .nopts = RP_VM_KERNEL_OPTIONS}
#define RP_VM_ENTER_GROUP {.title = "Entering", .opts = rp_vm_enter_options, .nopts = RP_VM_ENTER_OPTIONS}

/* Parsers of one word; each may cut `text` and keeps pointing into it.
 * disk:    F[,ro][,shared][,serial=S][,queues=N][,state=F][,take][,overwrite]     F a path, nbd://… or fd:N; a comma in F is written twice
 * net:     tap:IF|unix:PATH|fd:N[,mac=M][,queues=N]
 * chardev: stdio | null | file:F | unix:F */
int rp_parse_disk(void *machine_config, char *text, struct rp_error *err);      /* appends */
int rp_parse_net(void *machine_config, char *text, struct rp_error *err);       /* appends */
int rp_parse_chardev(void *chardev_config, char *text, struct rp_error *err);

#endif
