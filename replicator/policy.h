/*
 * policy.h - when to cut, and what to do before: pure decisions from a goal and from what was measured.
 *
 * A goal says what the user wants ("an epoch every 20 ms", "at most 5 ms added latency"), not how. Every decision
 * carries its reason. No clock and no I/O in here: time comes in as an argument, so tests own it.
 * How long an epoch may get when resources are short is the governor's to say (governor.h).
 */
#ifndef RP_REPLICATOR_POLICY_H
#define RP_REPLICATOR_POLICY_H

#include <stdbool.h>
#include <stdint.h>

struct rp_goal {
    uint64_t epoch_ns;          /* length of an epoch when nothing else asks for a cut; 0: 20 ms */
    uint64_t latency_ns;        /* > 0: an output may wait about this long, from when it begins until it leaves; 0: cuts
                                   follow outputs as closely as the other goals allow */
    uint64_t pause_ns;          /* pause aimed at: pages beyond it are captured before the cut; 0: 0.3 ms */
    uint64_t bandwidth_bytes_s; /* 0: unlimited */
    unsigned cpu_percent;       /* of one core for the engine; 0: unlimited */
    uint64_t downtime_ns;       /* migration: longest final pause; 0: 10 ms */
    unsigned depth;             /* epochs cut but not committed; 0: 4 */
    unsigned throttle_max;      /* percent of the vCPUs' time that may be taken (INV-5); 0: 99; 100: none, never */
    uint64_t stall_ns;          /* no progress for so long, and the sink is given up; 0: 10 s; UINT64_MAX: never */
};
void rp_goal_defaults(struct rp_goal *g);

/* How a cut's pages may be captured. */
enum rp_capture_choice {
    RP_CHOOSE_BY_MEASURE,
    RP_CHOOSE_STOP,     /* all of them copied in the pause */
    RP_CHOOSE_COW,      /* all of them write-protected in the pause, whatever that costs: for tests and measurements */
};

/* "auto", "stop-and-copy", "copy-on-write". False: none of them. */
bool rp_capture_choice_parse(const char *word, enum rp_capture_choice *out);

/* Which pages copy-on-write takes at a cut (cold.h). */
struct rp_cow_plan {
    uint64_t min_run;   /* pages in a row, less are copied */
    uint64_t max_gap;   /* clean pages between two of a run */
    uint64_t max_pages;
    bool hot;           /* pages that are written in every epoch, too */
};

#define RP_POLICY_GAP_NS 500000u    /* outputs never cut more often than this */

struct rp_policy {
    struct rp_goal goal;
    uint64_t epoch_ns, gap_ns;  /* in force: the goal's, or longer (rp_policy_limit) */
    uint64_t last_cut_ns;
    /* moving averages */
    double dirty_per_ns;        /* pages dirtied per ns */
    double copy_ns_per_page;    /* capture of one page */
    double cut_ns;              /* what a pause costs without any page */
    double stay_quiet;          /* share of pages captured early that were still clean at the cut */
    double commit_ns, commit_ns_per_page;   /* cut to commit: of an epoch, and what a page adds */
    double early_share;         /* share of epochs with early capture */
    unsigned early_skipped;     /* epochs since early capture was last tried, while it does not pay */
    enum rp_capture_choice choice;
    bool cow_able;              /* copy-on-write works here */
    double protect_run_ns, protect_page_ns;     /* write-protecting a run; each page of it */
    double fault_ns, fault_share;   /* a write fault, as the guest sees it; share of the protected pages that get one */
    double after_ns;            /* what the next write to a page costs more because it was protected */
    double held;                /* share of a cut's pages that could be protected, when that was tried */
    double cow_share;           /* share of the last cuts with copy-on-write */
    unsigned cow_cuts;          /* with copy-on-write, since the start */
    unsigned cow_skipped;       /* cuts since it was last tried, while it does not pay */
    unsigned in_flight;         /* cut and not committed */
    uint64_t output_since_ns;   /* when an output began to wait, 0: none waits */
    /* of the epoch that is open */
    uint64_t early_done_ns;     /* when early capture last ended, 0: not yet */
    unsigned rounds;            /* how often it was done */
    uint64_t looked_ns, looked_pages;   /* when somebody last looked how much is dirty, and what was found */
};

void rp_policy_init(struct rp_policy *p, const struct rp_goal *goal, uint64_t now_ns);
void rp_policy_open(struct rp_policy *p);   /* an epoch begins */
/* Epochs of at least `epoch_ns`, outputs' cuts at least `gap_ns` apart. */
void rp_policy_limit(struct rp_policy *p, uint64_t epoch_ns, uint64_t gap_ns);

enum rp_policy_action {
    RP_POLICY_WAIT,     /* until until_ns, or something happens */
    RP_POLICY_LOOK,     /* harvest, and tell what is pending (rp_policy_learn_look) */
    RP_POLICY_EARLY,    /* capture what is dirty while the guest runs */
    RP_POLICY_CUT,
};
struct rp_decision {
    enum rp_policy_action action;
    uint64_t until_ns;      /* WAIT: look again then (or when something happens) */
    int reason;             /* CUT: enum rp_epoch_reason */
    const char *why;
};
struct rp_decision rp_policy_next(const struct rp_policy *p, uint64_t now_ns);
/* Does capturing before the cut pay now? */
bool rp_policy_early_pays(const struct rp_policy *p);
/* A cut found `pages` to be copied: should cold ones be write-protected instead? Until enough is known about the guest's writes,
 * and while it does not pay, a few are tried now and then. */
bool rp_policy_cow(const struct rp_policy *p, uint64_t pages, struct rp_cow_plan *out);
/* Does it pay: does a page that is protected cost less time than one that is copied, the faults it brings included, and may enough
 * pages be protected before what their next writes cost is more than a tenth of the guest's time? */
bool rp_policy_cow_pays(const struct rp_policy *p);
/* What is known says that pauses may get longer than aimed at: copy-on-write may be wanted. */
bool rp_policy_cow_wanted(const struct rp_policy *p);

/* What was learnt: an epoch of `length_ns` dirtied `pages` in all. */
void rp_policy_learn_dirty(struct rp_policy *p, uint64_t pages, uint64_t length_ns);
void rp_policy_learn_copy(struct rp_policy *p, uint64_t pages, uint64_t ns);
void rp_policy_learn_pause(struct rp_policy *p, uint64_t ns, uint64_t pages);
/* Of `early` pages captured before the cut, `again` had to be copied again. */
void rp_policy_learn_early(struct rp_policy *p, uint64_t early, uint64_t again);
void rp_policy_learn_early_done(struct rp_policy *p, uint64_t now_ns);
void rp_policy_learn_look(struct rp_policy *p, uint64_t now_ns, uint64_t pages);
/* Write-protecting `pages` in `runs` took `ns`. */
void rp_policy_learn_protect(struct rp_policy *p, uint64_t runs, uint64_t pages, uint64_t ns);
/* A cut of `pages`: `held` of them were protected, which brought `faults` of about `fault_ns`. */
void rp_policy_learn_cow(struct rp_policy *p, uint64_t pages, uint64_t held, uint64_t faults, double fault_ns);
/* An epoch of `pages` took `ns` from its cut to its commit. */
void rp_policy_learn_commit(struct rp_policy *p, uint64_t ns, uint64_t pages);

#endif
