/* Opening /dev/kvm; see kvm.h. */
#include "vmm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define KVM_API 12      /* "KVM_GET_API_VERSION ... applications should refuse to run if it returns other than 12" */

#define NEED(c, why) {.name = #c, .cap = c, .required = true, .purpose = why}
#define WANT(c, why) {.name = #c, .cap = c, .required = false, .purpose = why}
const struct rp_kvm_cap rp_kvm_caps[] = {
    NEED(KVM_CAP_USER_MEMORY, "guest RAM"),
    NEED(KVM_CAP_SET_TSS_ADDR, "real mode on older CPUs"),
    NEED(KVM_CAP_EXT_CPUID, "the CPU model"),
    NEED(KVM_CAP_IRQCHIP, "interrupt controllers in the kernel"),
    NEED(KVM_CAP_IRQ_ROUTING, "message-signalled interrupts"),
    NEED(KVM_CAP_SIGNAL_MSI, "message-signalled interrupts"),
    NEED(KVM_CAP_IRQFD, "interrupts from eventfds"),
    NEED(KVM_CAP_IOEVENTFD, "queue kicks without an exit"),
    NEED(KVM_CAP_PIT2, "the interval timer"),
    NEED(KVM_CAP_PIT_STATE2, "saving the interval timer"),
    NEED(KVM_CAP_MP_STATE, "saving vCPUs"),
    NEED(KVM_CAP_VCPU_EVENTS, "saving vCPUs"),
    NEED(KVM_CAP_DEBUGREGS, "saving vCPUs"),
    NEED(KVM_CAP_XSAVE, "saving vCPUs"),
    NEED(KVM_CAP_XCRS, "saving vCPUs"),
    NEED(KVM_CAP_ADJUST_CLOCK, "guest time across a cut"),
    NEED(KVM_CAP_IMMEDIATE_EXIT, "kicking vCPUs"),
    WANT(KVM_CAP_XSAVE2, "saving vCPUs with AMX state"),
    WANT(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "dirty log without write-protecting everything at once"),
    WANT(KVM_CAP_DIRTY_LOG_RING, "dirty ring"),
    WANT(KVM_CAP_TSC_DEADLINE_TIMER, "the guest's precise timer"),
    WANT(KVM_CAP_GET_TSC_KHZ, "guest time across hosts"),
    WANT(KVM_CAP_TSC_CONTROL, "moving between hosts of different TSC frequency"),
    WANT(KVM_CAP_KVMCLOCK_CTRL, "quiet soft-lockup watchdogs after a pause"),
    WANT(KVM_CAP_PMU_CAPABILITY, "switching the virtual PMU off"),
    WANT(KVM_CAP_X2APIC_API, "32-bit APIC ids"),
    {.name = NULL},
};

int rp_kvm_check(int fd, int cap)
{
    int rc = ioctl(fd, KVM_CHECK_EXTENSION, cap);

    return rc < 0 ? 0 : rc;
}

static int open_error(int e, struct rp_error *err)
{
    switch (e) {
    case ENOENT:
        return rp_error_exit(err, RP_EXIT_HOST, e, "/dev/kvm does not exist: enable virtualization in the firmware and "
                             "load kvm_intel or kvm_amd (in a VM: nested virtualization)");
    case EACCES:
    case EPERM:
        return rp_error_exit(err, RP_EXIT_HOST, e, "/dev/kvm: no permission: join its group (usually: adduser USER kvm, then log in again), or "
                             "give its group that (chgrp kvm /dev/kvm; chmod 660 /dev/kvm)");
    case ENODEV:
    case ENXIO:
        return rp_error_exit(err, RP_EXIT_HOST, e, "/dev/kvm is there but no KVM module serves it: load kvm_intel or kvm_amd");
    default:
        errno = e;
        return rp_error_exit(err, RP_EXIT_HOST, e, "/dev/kvm: %m");
    }
}

int rp_kvm_open(struct rp_error *err)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int rc;

    if (fd < 0)
        return open_error(errno, err);
    rc = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (rc != KVM_API) {
        close(fd);
        return rp_error_exit(err, RP_EXIT_HOST, EOPNOTSUPP, "/dev/kvm speaks API version %d, this program %d", rc, KVM_API);
    }
    for (const struct rp_kvm_cap *c = rp_kvm_caps; c->name; c++) {
        if (!c->required || rp_kvm_check(fd, c->cap) > 0)
            continue;
        close(fd);
        return rp_error_exit(err, RP_EXIT_HOST, EOPNOTSUPP, "this host's KVM lacks %s (%s)", c->name, c->purpose);
    }
    return fd;
}
