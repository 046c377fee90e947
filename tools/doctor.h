/*
 * doctor.h - what this host can do for a VM, what follows where it cannot, and how to mend it. Each check looks at one
 * thing, changes nothing, and adds one finding. Thread: main.
 */
#ifndef RP_TOOLS_DOCTOR_H
#define RP_TOOLS_DOCTOR_H

#include "core/error.h"

enum rp_finding_state {
    RP_FIND_OK,
    RP_FIND_LESS,       /* VMs run; something is slower or cannot be done */
    RP_FIND_MISSING,    /* no VM can run: exit code 4 */
};

struct rp_finding {
    const char *name;
    enum rp_finding_state state;
    char found[256];
    const char *so;     /* what follows; NULL when all is well */
    const char *mend;   /* what to do; NULL when there is nothing */
};

/* Fills in everything but the name. */
typedef void rp_check_fn(struct rp_finding *f);
struct rp_check {
    const char *name;
    rp_check_fn *fn;
};
/* Ends with a NULL name. */
extern const struct rp_check rp_checks[];

void rp_finding_set(struct rp_finding *f, enum rp_finding_state state, const char *so, const char *mend, const char *fmt, ...)
    RP_PRINTF(5, 6);

/* doctor_kvm.c */
rp_check_fn rp_check_kvm, rp_check_kvm_caps, rp_check_dirty_ring, rp_check_tsc;
/* doctor_host.c */
rp_check_fn rp_check_kernel, rp_check_memory, rp_check_thp, rp_check_hugepages, rp_check_memlock, rp_check_files,
    rp_check_userfaultfd, rp_check_io_uring, rp_check_seccomp, rp_check_tun, rp_check_rdma, rp_check_runtime_dir;

#endif
