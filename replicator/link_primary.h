/*
 * link_primary.h - the primary's side of a session, as its two files share it (link.h is the contract).
 *
 *   link_sink.c     the sink: records into the bundle; acknowledgements, heartbeats, the end
 *   link_connect.c  connections: all of them at the beginning, lost ones again and again later
 *
 * Threads: the emitting thread; "link ctl" reads the control connection and looks after idle lanes; "link beat" sends
 * heartbeats; "link mend" connects again; one per lane (bundle.h).
 */
#ifndef RP_REPLICATOR_LINK_PRIMARY_H
#define RP_REPLICATOR_LINK_PRIMARY_H

#include "replicator/bundle.h"
#include "replicator/control.h"
#include "replicator/link.h"

#include <pthread.h>
#include <stdatomic.h>

#define SPARE_LANE (RP_LANES_MAX - 1)   /* the spare lane's number */

struct link_sink {
    struct rp_sink base;
    struct rp_sink_events events;
    struct rp_link_config cfg;          /* defaults filled in */
    struct rp_control control;
    struct rp_bundle *bundle;
    struct rp_disk_base disks;          /* of the WELCOME; constant once connected */
    struct rp_hash128 *held;            /* control thread: what the standby holds, until it is taken */
    const char *why_full;               /* control thread: held is NULL */
    struct rp_disk_sums sums;           /* control thread: what its disks hold, until they are taken */
    struct rp_hello hello;              /* what every connection of the session says; mend thread once started */
    pthread_t reader, beater, mender;
    bool started;
    _Atomic bool cancelled;
    _Atomic bool told;                  /* the session's end is known, or is no news; once set, `said` follows */
    _Atomic bool parting;               /* goodbye was said */
    _Atomic uint64_t rtt_ns, heard_ns, lanes_lost;
    _Atomic uint64_t epoch;             /* newest whose records were emitted */

    pthread_mutex_t lock;               /* everything below; a leaf */
    pthread_cond_t change;
    bool running, failed, prepared;     /* the standby has said so */
    char reason[RP_CONTROL_REASON];     /* why it refuses or has failed; "": it did not say */
    bool over;
    bool gone;                          /* the standby has closed, or was given the time to */
    bool said;                          /* the goodbye is on its way, and the engine has heard: */
    struct rp_error why;                /* for what reason; code 0: none */
    uint32_t missing_lanes;             /* bit: the lane's number */
    bool missing_path[2];               /* over uri, over the spare way */
    struct rp_conn *mending;            /* being connected: cancel shuts it down */
};

/* Opens the session. On error everything is closed. */
int rp_link_connect(struct link_sink *s, struct rp_welcome *w, struct rp_error *err) RP_MUST_CHECK;
/* A lane, or a path of the control connection, is gone: it is sought from now on. */
void rp_link_miss_lane(struct link_sink *s, unsigned lane);
void rp_link_miss_path(struct link_sink *s, unsigned which);
void *rp_link_mend_main(void *sink);

#endif
