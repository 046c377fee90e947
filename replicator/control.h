/*
 * control.h - messages of the control connection: 24 bytes, u32 type | u32 reserved | u64 a | u64 b.
 */
#ifndef RP_REPLICATOR_CONTROL_H
#define RP_REPLICATOR_CONTROL_H

#include "replicator/transport.h"

#include <pthread.h>

enum rp_control_type {
    RP_CTL_HEARTBEAT = 1,   /* a: the sender's clock, ns; b: the clock of the last heartbeat it got (for the round trip) */
    RP_CTL_ACK = 2,         /* a: every epoch up to it is held, whole and verified */
    RP_CTL_BYE = 3,         /* a: enum rp_bye, b: epoch */
    RP_CTL_RUNNING = 4,     /* the VM runs on the side that says so */
    RP_CTL_REFUSED = 5,     /* the standby refuses what came; a: errno; the connection then ends */
    RP_CTL_SWITCH = 6,      /* the source: a switchover follows in this session; the standby says it back */
    RP_CTL_FAILED = 7,      /* the standby could not enter the final epoch, and will not */
};

struct rp_control_msg {
    uint32_t type;
    uint64_t a, b;
};

/* A connection whose sends from several threads are whole. */
struct rp_control {
    struct rp_conn *conn;
    pthread_mutex_t send_lock;
};
int rp_control_send(struct rp_control *c, uint32_t type, uint64_t a, uint64_t b) RP_MUST_CHECK;
int rp_control_recv(struct rp_control *c, struct rp_control_msg *out, int timeout_ms) RP_MUST_CHECK;

#endif
