/*
 * governor.h - what protection may cost: from goals and measurements to the length of epochs and the throttle of vCPUs (INV-5).
 *
 *   CALM ──► LONGER epochs ──► THROTTLED vCPUs ──► LOST (the sink is given up: unprotected or paused, by the owner's policy)
 *     ▲         │ ▲               │
 *     └─────────┘ └───────────────┘   each step back when its reason is gone
 *
 *   LONGER      the engine uses more CPU than the goal allows, or epochs wait for their commit
 *   THROTTLED   the guest dirties more between two cuts than the arena can take, or longer epochs were not enough
 *               (never because of a sink that is stuck: a slower guest does not help it, and memory is bounded as it is)
 *               For a moment they are braked as far as may be: the open epoch nears what the sink can take as one
 *   LOST        for goal.stall_ns the sink has taken and committed nothing, and no page was found that it holds already, or more was
 *               dirty than fits into a cut although the throttle is at its end (epochs that wait for their commit but travel are
 *               waited for)
 *
 * Pure: time and measurements come in as arguments. The engine asks every RP_GOVERNOR_NS, and at once when a cut was put off.
 */
#ifndef RP_REPLICATOR_GOVERNOR_H
#define RP_REPLICATOR_GOVERNOR_H

#include "replicator/policy.h"

#define RP_GOVERNOR_NS 100000000u

enum rp_pressure { RP_PRESSURE_CALM, RP_PRESSURE_LONGER, RP_PRESSURE_THROTTLED, RP_PRESSURE_LOST };
const char *rp_pressure_name(enum rp_pressure p);

struct rp_sample {              /* counters are totals of the run */
    uint64_t now_ns;
    uint64_t cpu_ns;            /* of the engine's threads */
    uint64_t wire_bytes;
    uint64_t equal_pages;       /* looked at, and not sent: the sink holds them already */
    uint64_t committed;         /* epoch number */
    bool outstanding;           /* something was handed to the sink that is not committed */
    uint64_t put_off;           /* cuts that found more dirty pages than slots */
    uint64_t oldest_cut_ns;     /* when the oldest epoch that is not committed was cut; 0: there is none */
    uint64_t cut;               /* newest epoch cut */
    uint64_t dirty_pages;       /* dirty and not captured, as far as known */
    uint64_t slots;             /* pages the arena has */
    uint64_t open_pages;        /* pages that the epoch which is open would bring, cut now; those sent again may count twice */
    uint64_t epoch_pages;       /* an epoch that the sink can take has so many at most; 0: any */
    bool syncing;               /* the full epoch: all of RAM is dirty to begin with, which is no pressure */
};

struct rp_governor {
    struct rp_goal goal;
    enum rp_pressure pressure;
    uint64_t epoch_ns, gap_ns;  /* for rp_policy_limit */
    unsigned throttle;          /* percent of the vCPUs' time to take */
    bool braked;                /* for this epoch */
    unsigned unbraked;          /* what throttle is then */
    char why_epoch[96], why_throttle[96], why_lost[96];     /* the reason of the last change */

    struct rp_sample last;
    double cpu;                 /* share of one core, moving average */
    uint64_t progress_ns;       /* when the sink last took or committed something, or was found to hold it */
    uint64_t cut, pressed_cut;  /* newest epoch cut, as last seen; when the throttle was last pressed upon */
    uint64_t cut_ns;            /* when a cut last came about, or nothing stood in its way */
    uint64_t eased_ns, stepped_ns;  /* when the throttle was last lowered or pressed upon; raised */
};

void rp_governor_init(struct rp_governor *g, const struct rp_goal *goal, uint64_t now_ns);
/* Looks at a sample, decides anew. */
void rp_governor_look(struct rp_governor *g, const struct rp_sample *s);

#endif
