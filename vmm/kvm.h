/*
 * kvm.h - /dev/kvm: opening it with an answer a person can act on, and what this host's KVM can do.
 * Thread: any. Source: Documentation/virt/kvm/api.rst of the Linux kernel.
 */
#ifndef RP_VMM_KVM_H
#define RP_VMM_KVM_H

#include "core/error.h"

#include <stdbool.h>

struct rp_kvm_cap {
    const char *name;       /* "KVM_CAP_IRQFD" */
    int cap;
    bool required;          /* without it no machine can be made */
    const char *purpose;    /* one phrase for `reprise doctor` */
};
/* Every capability this program asks for; ends with name == NULL. */
extern const struct rp_kvm_cap rp_kvm_caps[];

/* Opens /dev/kvm and checks the API version and the required capabilities. Returns the descriptor, or -errno with
 * exit class RP_EXIT_HOST: -ENOENT (no such device: what to load), -EACCES (whose group), -EOPNOTSUPP (names what lacks). */
int rp_kvm_open(struct rp_error *err) RP_MUST_CHECK;
/* KVM_CHECK_EXTENSION on a system or VM descriptor: 0 absent, else the capability's value. */
int rp_kvm_check(int fd, int cap);

#endif
