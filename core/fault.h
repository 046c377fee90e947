/*
 * fault.h - numbered fault points. RP_FAULT=name:nth[:action] in the environment makes the nth visit of a point
 * fail (action: error, the default; kill = SIGKILL to itself; stall = sleep for a second).
 * One line per site: `if (rp_fault(RP_FAULT_SINK_WRITE)) return …;`. Numbers are stable; every point has a test
 * (tests/faults.mk lists them, make check compares). Cost when unset: one load and one branch. Any thread.
 */
#ifndef RP_CORE_FAULT_H
#define RP_CORE_FAULT_H

#include <stdbool.h>

#define RP_FAULT_LIST(X) \
    X(1, SINK_WRITE, "sink-write")           /* the fd sink's write fails */ \
    X(2, SINK_SYNC, "sink-sync")             /* its fdatasync fails */ \
    X(3, CUT, "cut")                         /* the source cannot be cut */ \
    X(4, IMAGE_APPLY, "image-apply")         /* applying a verified epoch fails before its first page */ \
    X(5, LOAD_SECTION, "load-section")       /* entering an epoch fails at a device */

enum rp_fault_point {
#define X(n, id, name) RP_FAULT_##id = n,
    RP_FAULT_LIST(X)
#undef X
};

bool rp_fault(enum rp_fault_point point);
/* Re-reads RP_FAULT (tests). */
void rp_fault_reload(void);

#endif
