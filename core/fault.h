/*
 * fault.h - numbered fault points. RP_FAULT=name:nth[:action] in the environment makes the nth visit of a point
 * fail (action: error, the default; kill = SIGKILL to itself; stall = sleep for a second).
 * It says so in the log. One line per site: `if (rp_fault(RP_FAULT_SINK_WRITE)) return …;`. Numbers are stable; every point has a test
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
    X(5, LOAD_SECTION, "load-section")       /* entering an epoch fails at a device */ \
    X(6, LINK_HELLO, "link-hello")           /* the link breaks before the first greeting */ \
    X(7, LINK_LANE, "link-lane")             /* a lane cannot join */ \
    X(8, LINK_RECORD, "link-record")         /* a lane breaks before a frame is sent on it */ \
    X(9, LINK_EPOCH_END, "link-epoch-end")   /* the link breaks before the bytes with an epoch's end are sent */ \
    X(10, LINK_ACK_SEND, "link-ack-send")    /* the standby holds the epoch but cannot say so */ \
    X(11, LINK_ACK_RECV, "link-ack-recv")    /* the acknowledgement arrives and is lost */ \
    X(12, LINK_HEARTBEAT, "link-heartbeat")  /* a heartbeat cannot be sent */ \
    X(13, LINK_FRAME, "link-frame")          /* a lane breaks at the standby, in the middle of a frame */ \
    X(14, LINK_PATH, "link-path")            /* the first path of the control connection breaks */ \
    X(15, LINK_SPARE, "link-spare")          /* the spare way cannot be had */ \
    X(17, LEASE_ACQUIRE, "lease-acquire")    /* the lease cannot be acquired */ \
    X(18, LEASE_RENEW, "lease-renew")        /* … renewed */ \
    X(19, LEASE_RELEASE, "lease-release")    /* … released */ \
    X(20, LEASE_ADVANCE, "lease-advance")    /* … moved to its next term */ \
    X(21, TAKEOVER_CLAIMED, "takeover-claimed")  /* the standby holds the lease and fails before it makes the machine */ \
    X(22, TAKEOVER_ENTERED, "takeover-entered")  /* … has entered the epoch and fails before the machine runs */ \
    X(23, TAKEOVER_RUNS, "takeover-runs")        /* … runs it and fails before it has told anybody */ \
    X(24, LINK_ASK, "link-ask")              /* the primary breaks off before it asks for the pages held */ \
    X(25, LINK_HELD, "link-held")            /* the standby breaks off in the middle of saying which pages it holds */ \
    X(26, IMAGE_SPILL, "image-spill")        /* a resync that does not fit the staging memory fails where it goes on in RAM */ \
    X(27, LINK_SUMS, "link-sums")            /* the standby breaks off in the middle of saying what its disks hold */ \
    X(28, GUEST_ASKS, "guest-asks")          /* what the guest asked for (off, reset) is served late: stall */ \
    X(40, JOURNAL_WRITE, "journal-write")    /* a write to the journal of a standby's disks */ \
    X(41, JOURNAL_SYNC, "journal-sync")      /* … its fdatasync, which makes an epoch's disk writes count */ \
    X(42, REPLICA_WRITE, "replica-write")    /* a write to a standby's disk */ \
    X(43, REPLICA_SYNC, "replica-sync")      /* … its fdatasync */ \
    X(44, DISK_MARK, "disk-mark")            /* a disk's mark cannot be written */ \
    X(50, COW_PROTECT, "cow-protect")        /* a run of cold pages cannot be write-protected */ \
    X(51, COW_FAULT, "cow-fault")            /* a write fault's page was copied and cannot be unprotected */ \
    X(52, COW_FINISH, "cow-finish")          /* a run that was copied cannot be unprotected */

enum rp_fault_point {
#define X(n, id, name) RP_FAULT_##id = n,
    RP_FAULT_LIST(X)
#undef X
};

bool rp_fault(enum rp_fault_point point);
/* Re-reads RP_FAULT (tests). */
void rp_fault_reload(void);
/* The armed point has failed (tests). */
bool rp_fault_fired(void);

#endif
