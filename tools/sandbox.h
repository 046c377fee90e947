/*
 * sandbox.h - a VM's process gives up what it does not need: from here on only the listed system calls work, for every
 * thread there is and will be. A guest that broke out of the device models finds no exec, no ptrace, no mount, no
 * module loading, no new privileges (seccomp(2), through libseccomp).
 *
 * What is refused fails with EPERM: the VM comes first (INV-5), a call that a new libc makes does not kill it.
 * RP_SANDBOX_LOG refuses nothing; the kernel's audit log names what would have been.
 */
#ifndef RP_TOOLS_SANDBOX_H
#define RP_TOOLS_SANDBOX_H

#include "tools/vm_options.h"

/* Thread: control; others may run already. RP_EXIT_HOST: the kernel has no filters. */
/* `machine_comes`: a machine is made later (a standby), so its disks' rings are, too. */
int rp_sandbox_enter(enum rp_sandbox_mode mode, bool machine_comes, struct rp_error *err) RP_MUST_CHECK;

#endif
