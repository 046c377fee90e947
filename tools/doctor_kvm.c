/* Checks of KVM itself. */
#include "tools/doctor.h"

#include "vmm/kvm.h"

#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

void rp_check_kvm(struct rp_finding *f)
{
    struct rp_error err = {0};
    int fd = rp_kvm_open(&err);
    if (fd < 0) {
        rp_finding_set(f, RP_FIND_MISSING, "no VM can run", NULL, "%s", err.text);
        return;
    }
    rp_finding_set(f, RP_FIND_OK, NULL, NULL, "/dev/kvm, up to %d vCPUs", rp_kvm_check(fd, KVM_CAP_MAX_VCPUS));
    close(fd);
}

/* Names of the lacking ones; returns how many. */
static unsigned lacking(int fd, bool required, char *out, size_t size)
{
    unsigned n = 0;
    out[0] = '\0';
    for (const struct rp_kvm_cap *c = rp_kvm_caps; c->name; c++) {
        if (c->required != required || rp_kvm_check(fd, c->cap) > 0)
            continue;
        size_t used = strlen(out);
        snprintf(out + used, size - used, "%s%s (%s)", n++ ? ", " : "", c->name + strlen("KVM_CAP_"), c->purpose);
    }
    return n;
}

void rp_check_kvm_caps(struct rp_finding *f)
{
    char names[224];
    int fd = rp_kvm_open(NULL);
    if (fd < 0)
        rp_finding_set(f, RP_FIND_LESS, "unknown without /dev/kvm", NULL, "not looked at");
    else if (lacking(fd, true, names, sizeof(names)))
        rp_finding_set(f, RP_FIND_MISSING, "no VM can run", "boot a newer kernel; in a VM, ask its host for nested virtualization",
                       "lacks %s", names);
    else if (lacking(fd, false, names, sizeof(names)))
        rp_finding_set(f, RP_FIND_LESS, "what stands in brackets is not to be had", NULL, "lacks %s", names);
    else
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "everything that is used");
    if (fd >= 0)
        close(fd);
}

void rp_check_dirty_ring(struct rp_finding *f)
{
    int fd = rp_kvm_open(NULL);
    int bytes = fd < 0 ? 0 : rp_kvm_check(fd, KVM_CAP_DIRTY_LOG_RING);
    int log = fd < 0 ? 0 : rp_kvm_check(fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    if (fd < 0)
        rp_finding_set(f, RP_FIND_LESS, "unknown without /dev/kvm", NULL, "not looked at");
    else if (bytes > 0)
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "%d entries per vCPU", bytes / (int)sizeof(struct kvm_dirty_gfn));
    else
        rp_finding_set(f, RP_FIND_LESS, "--dirty ring is refused; finding changed pages takes time in proportion to RAM",
                       "boot Linux 5.11 or newer", "none; dirty log %s", log & KVM_DIRTY_LOG_INITIALLY_SET ? "with manual protection"
                       : log ? "with manual protection, not initially set" : "only as a whole");
    if (fd >= 0)
        close(fd);
}

void rp_check_tsc(struct rp_finding *f)
{
    char source[64] = "";
    FILE *file = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "re");
    if (!file || !fgets(source, sizeof(source), file))
        source[0] = '\0';
    if (file)
        fclose(file);
    source[strcspn(source, "\n")] = '\0';
    int fd = rp_kvm_open(NULL);
    int control = fd < 0 ? 0 : rp_kvm_check(fd, KVM_CAP_TSC_CONTROL);
    if (strcmp(source, "tsc") != 0)
        rp_finding_set(f, RP_FIND_LESS, "guests read kvmclock through an exit, which is slow", "look in dmesg why the TSC was given up",
                       "clock source %s, TSC scaling %s", source[0] ? source : "unknown", control ? "yes" : "no");
    else if (fd < 0)
        rp_finding_set(f, RP_FIND_LESS, "TSC scaling is unknown without /dev/kvm", NULL, "clock source tsc");
    else if (!control)
        rp_finding_set(f, RP_FIND_LESS, "a VM moves only between hosts whose TSC runs at the same frequency", NULL,
                       "clock source tsc, no TSC scaling");
    else
        rp_finding_set(f, RP_FIND_OK, NULL, NULL, "clock source tsc, TSC scaling");
    if (fd >= 0)
        close(fd);
}
