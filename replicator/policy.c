#include "replicator/policy.h"

#include "core/epoch.h"

#include <string.h>

#define MS 1000000ull
#define EARLY_ROUNDS 4u         /* each round leaves what was dirtied during the one before: it converges or never will */
#define EARLY_RETRY 64u         /* epochs until early capture is tried again after it did not pay */
#define QUIET_PAYS 0.5          /* below this share of quiet pages early copies are wasted work */
#define COW_RETRY 64u           /* cuts until copy-on-write is tried again after it did not pay */
#define COW_PROBE 256u          /* pages of such a try: it cannot hurt much */
#define COW_PROBE_RUN 32u
#define COW_LEARN 4u            /* tries until its figures count */
#define COW_RUN_PAGES 512u      /* pages a run on average: above, a protect says what a page costs, below, what a run does */
#define COW_GAP_MAX 512u
#define COW_SPARE 0.1           /* of the guest's time, outside of pauses, that shorter pauses are worth */
#define COST_STEP_NS 100.0      /* by how much more than four times itself one sample may say that a cost is */
#define IDLE_PAGES_S 500.0      /* a VM that dirties less and says nothing is idle */
#define IDLE_EPOCHS 16u         /* … and is cut after so many epochs' time, */
#define IDLE_MAX_NS (500 * MS)  /* or this */
#define LOOK_NS (25 * MS)       /* between two looks while epochs wait for their commit: how far the open one may grow unseen */

void rp_goal_defaults(struct rp_goal *g)
{
    if (!g->epoch_ns)
        g->epoch_ns = 20 * MS;
    if (!g->pause_ns)
        g->pause_ns = 3 * MS / 10;
    if (!g->downtime_ns)
        g->downtime_ns = 10 * MS;
    if (!g->depth)
        g->depth = 4;
    if (!g->throttle_max)
        g->throttle_max = 99;
    if (!g->stall_ns)
        g->stall_ns = 10000 * MS;
}

bool rp_capture_choice_parse(const char *word, enum rp_capture_choice *out)
{
    static const char *const words[] = {
        [RP_CHOOSE_BY_MEASURE] = "auto", [RP_CHOOSE_STOP] = "stop-and-copy", [RP_CHOOSE_COW] = "copy-on-write"};
    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcmp(word, words[i]) == 0) {
            *out = (enum rp_capture_choice)i;
            return true;
        }
    return false;
}

void rp_policy_init(struct rp_policy *p, const struct rp_goal *goal, uint64_t now_ns)
{
    *p = (struct rp_policy){.goal = *goal, .last_cut_ns = now_ns, .copy_ns_per_page = 1000, .stay_quiet = 1};
    rp_goal_defaults(&p->goal);
    rp_policy_limit(p, 0, 0);
}

void rp_policy_open(struct rp_policy *p)
{
    p->early_done_ns = p->looked_ns = p->looked_pages = 0;
    p->rounds = 0;
}

void rp_policy_limit(struct rp_policy *p, uint64_t epoch_ns, uint64_t gap_ns)
{
    p->epoch_ns = epoch_ns > p->goal.epoch_ns ? epoch_ns : p->goal.epoch_ns;
    p->gap_ns = gap_ns > RP_POLICY_GAP_NS ? gap_ns : RP_POLICY_GAP_NS;
}

/* --- learning --- */

static void average(double *avg, double sample)
{
    *avg += (sample - *avg) / 8;
}

/* Of a cost: a sample during which the thread was preempted says little. What really changed shows in the next ones, too. */
static void average_cost(double *avg, double sample)
{
    double most = 4 * *avg + COST_STEP_NS;
    average(avg, sample < most ? sample : most);
}

void rp_policy_learn_dirty(struct rp_policy *p, uint64_t pages, uint64_t length_ns)
{
    if (length_ns)
        average(&p->dirty_per_ns, (double)pages / (double)length_ns);
}

void rp_policy_learn_copy(struct rp_policy *p, uint64_t pages, uint64_t ns)
{
    if (pages >= 16)
        average_cost(&p->copy_ns_per_page, (double)ns / (double)pages);
}

void rp_policy_learn_pause(struct rp_policy *p, uint64_t ns, uint64_t pages)
{
    double copy = (double)pages * p->copy_ns_per_page;
    average(&p->cut_ns, (double)ns > copy ? (double)ns - copy : 0);
}

void rp_policy_learn_early(struct rp_policy *p, uint64_t early, uint64_t again)
{
    average(&p->early_share, early != 0);
    if (early == 0) {
        p->early_skipped++;
        return;
    }
    p->early_skipped = 0;
    average(&p->stay_quiet, 1 - (double)again / (double)early);
}

void rp_policy_learn_early_done(struct rp_policy *p, uint64_t now_ns)
{
    p->early_done_ns = now_ns;
    p->rounds++;
}

void rp_policy_learn_look(struct rp_policy *p, uint64_t now_ns, uint64_t pages)
{
    p->looked_ns = now_ns;
    p->looked_pages = pages;
}

void rp_policy_learn_protect(struct rp_policy *p, uint64_t runs, uint64_t pages, uint64_t ns)
{
    if (runs == 0)
        return;
    double by_runs = (double)ns - (double)pages * p->protect_page_ns, by_pages = (double)ns - (double)runs * p->protect_run_ns;
    if (pages / runs < COW_RUN_PAGES)
        average_cost(&p->protect_run_ns, by_runs > 0 ? by_runs / (double)runs : 0);
    else
        average_cost(&p->protect_page_ns, by_pages > 0 ? by_pages / (double)pages : 0);
}

void rp_policy_learn_cow(struct rp_policy *p, uint64_t pages, uint64_t held, uint64_t faults, double fault_ns)
{
    double copy = (double)pages * p->copy_ns_per_page;
    average(&p->cow_share, held != 0);
    if (held == 0) {
        p->cow_skipped += copy > (double)p->goal.pause_ns;
        return;
    }
    p->cow_skipped = 0;
    p->cow_cuts++;
    p->fault_ns = fault_ns;
    average(&p->fault_share, (double)faults / (double)held);
    if (held > COW_PROBE)
        average(&p->held, (double)held / (double)pages);
}

/* Small epochs say what an epoch takes, large ones what a page adds to that. */
void rp_policy_learn_commit(struct rp_policy *p, uint64_t ns, uint64_t pages)
{
    double took = (double)ns, fixed = p->commit_ns;
    if (pages < 64 || took < fixed)
        average(&p->commit_ns, took);
    else
        average(&p->commit_ns_per_page, (took - fixed) / (double)pages);
}

/* --- deciding --- */

/* A protected page, without its share of its run. */
static double cow_ns(const struct rp_policy *p)
{
    return p->protect_page_ns + p->fault_share * p->fault_ns;
}

/* How many pages may be protected in each epoch for what that costs the guest while it runs. */
static double cow_pages(const struct rp_policy *p)
{
    double ns = p->after_ns + p->fault_share * p->fault_ns;
    return (double)p->epoch_ns * COW_SPARE / (ns > 1 ? ns : 1);
}

bool rp_policy_cow_pays(const struct rp_policy *p)
{
    return p->cow_able && p->copy_ns_per_page - cow_ns(p) > p->copy_ns_per_page / 8 && cow_pages(p) >= COW_PROBE;
}

bool rp_policy_cow_wanted(const struct rp_policy *p)
{
    double pages = p->dirty_per_ns * (double)p->epoch_ns;
    return p->choice == RP_CHOOSE_COW ||
           (p->choice == RP_CHOOSE_BY_MEASURE && pages * p->copy_ns_per_page > (double)p->goal.pause_ns);
}

/* Would the cut cost less time if the pages that early capture would take were left to copy-on-write? */
static bool cow_beats_early(const struct rp_policy *p)
{
    double cow = (1 - p->held) * p->copy_ns_per_page + p->held * cow_ns(p), early = (1 - p->stay_quiet) * p->copy_ns_per_page;
    return p->cow_cuts >= COW_LEARN && rp_policy_cow_pays(p) && cow < early;
}

bool rp_policy_early_pays(const struct rp_policy *p)
{
    if (p->choice != RP_CHOOSE_BY_MEASURE)
        return false;
    return (p->stay_quiet >= QUIET_PAYS && !cow_beats_early(p)) || p->early_skipped >= EARLY_RETRY;
}

bool rp_policy_cow(const struct rp_policy *p, uint64_t pages, struct rp_cow_plan *out)
{
    if (!p->cow_able || p->choice == RP_CHOOSE_STOP)
        return false;
    if (p->choice == RP_CHOOSE_COW) {
        *out = (struct rp_cow_plan){.min_run = 1, .max_gap = 4, .max_pages = UINT64_MAX, .hot = true};
        return true;
    }
    if ((double)pages * p->copy_ns_per_page <= (double)p->goal.pause_ns)
        return false;
    if (p->cow_cuts < COW_LEARN || !rp_policy_cow_pays(p)) {
        *out = (struct rp_cow_plan){.min_run = COW_PROBE_RUN, .max_gap = 4, .max_pages = COW_PROBE};
        return p->cow_skipped >= COW_RETRY || (p->cow_cuts < COW_LEARN && rp_policy_cow_pays(p));
    }
    double gap = p->protect_run_ns / cow_ns(p);
    *out = (struct rp_cow_plan){.min_run = 1 + (uint64_t)(p->protect_run_ns / (p->copy_ns_per_page - cow_ns(p))), .max_pages = (uint64_t)cow_pages(p),
                                .max_gap = gap < COW_GAP_MAX ? (uint64_t)gap : COW_GAP_MAX};
    return true;
}

static struct rp_decision wait_until(uint64_t until, const char *why)
{
    return (struct rp_decision){.action = RP_POLICY_WAIT, .until_ns = until, .why = why};
}

static struct rp_decision act(enum rp_policy_action action, int reason, const char *why)
{
    return (struct rp_decision){.action = action, .reason = reason, .why = why};
}

/* When this epoch should be cut if no output waits. Under a latency goal it must not have grown so much that an output which
 * comes now could not be committed in half that time. */
static uint64_t due(const struct rp_policy *p)
{
    double length = (double)p->epoch_ns, per_ns = p->dirty_per_ns * p->commit_ns_per_page;
    double room = (double)p->goal.latency_ns / 2 - p->commit_ns;
    if (p->goal.latency_ns && per_ns > 0 && per_ns * length > room)
        length = room > 0 ? room / per_ns : 0;
    if (length < (double)p->gap_ns)
        length = (double)p->gap_ns < (double)p->epoch_ns ? (double)p->gap_ns : (double)p->epoch_ns;
    return p->last_cut_ns + (uint64_t)length;
}

/* An output waits: cut, unless the last cut was a moment ago, or a limit on resources asks to gather some more outputs first
 * and the latency goal leaves time for that. */
static struct rp_decision serve_output(const struct rp_policy *p, uint64_t now_ns)
{
    uint64_t at = p->last_cut_ns + p->gap_ns, least = p->last_cut_ns + RP_POLICY_GAP_NS;
    uint64_t commit = (uint64_t)(p->commit_ns + p->dirty_per_ns * (double)(now_ns - p->last_cut_ns) * p->commit_ns_per_page);
    if (p->goal.latency_ns) {
        uint64_t latest = p->output_since_ns + (commit < p->goal.latency_ns ? p->goal.latency_ns - commit : 0);
        at = latest < at ? latest : at;
    }
    at = at > least ? at : least;
    if (now_ns < at)
        return wait_until(at, "an output waits, but the last cut was a moment ago");
    return act(RP_POLICY_CUT, RP_CUT_OUTPUT, "an output waits");
}

/*
 *  last cut                                  early   early        due
 *     |---------------------------------------|=======|==|--------|cut|
 *  Early capture begins so that it is just done when the cut is due; what is dirtied during it is little.
 */
static bool early(const struct rp_policy *p, uint64_t now_ns, uint64_t cut_at, struct rp_decision *out)
{
    double expect = p->dirty_per_ns * (double)(cut_at - p->last_cut_ns) * p->copy_ns_per_page;
    if (expect <= (double)p->goal.pause_ns || !rp_policy_early_pays(p) || p->rounds >= EARLY_ROUNDS)
        return false;
    if (p->rounds == 0) {
        uint64_t lead = (uint64_t)(expect * 1.25) + MS / 4;
        *out = now_ns + lead >= cut_at ? act(RP_POLICY_EARLY, 0, "the expected copy is longer than the pause aimed at")
                                       : wait_until(cut_at - lead, "early capture is not due yet");
        return true;
    }
    double since = p->dirty_per_ns * (double)(now_ns - p->early_done_ns) * p->copy_ns_per_page;
    *out = act(RP_POLICY_EARLY, 0, "too much was dirtied since the last early capture");
    return now_ns >= cut_at && since > (double)p->goal.pause_ns;
}

/* The epoch is over, but a VM that does next to nothing need not be cut yet. */
static bool idle(const struct rp_policy *p, uint64_t now_ns, struct rp_decision *out)
{
    uint64_t most = p->epoch_ns * IDLE_EPOCHS < IDLE_MAX_NS ? p->epoch_ns * IDLE_EPOCHS : IDLE_MAX_NS;
    uint64_t end = p->last_cut_ns + (most > p->epoch_ns ? most : p->epoch_ns);
    if (now_ns >= end || p->dirty_per_ns * 1e9 >= IDLE_PAGES_S || p->rounds)
        return false;
    if (!p->looked_ns || now_ns - p->looked_ns >= p->epoch_ns) {
        *out = act(RP_POLICY_LOOK, 0, "the VM may be idle");
        return true;
    }
    uint64_t next = p->looked_ns + p->epoch_ns;
    *out = wait_until(next < end ? next : end, "the VM is idle");
    return (double)p->looked_pages * 1e9 < IDLE_PAGES_S * (double)(p->looked_ns - p->last_cut_ns);
}

struct rp_decision rp_policy_next(const struct rp_policy *p, uint64_t now_ns)
{
    struct rp_decision d;
    uint64_t cut_at = due(p);
    if (p->in_flight >= p->goal.depth) {
        if (now_ns >= cut_at + LOOK_NS && now_ns >= p->looked_ns + LOOK_NS)
            return act(RP_POLICY_LOOK, 0, "epochs wait for their commit: how much is dirty meanwhile?");
        return wait_until(now_ns + LOOK_NS, "as many epochs as allowed wait for their commit");
    }
    if (p->output_since_ns)
        return serve_output(p, now_ns);
    if (early(p, now_ns, cut_at, &d))
        return d;
    if (now_ns < cut_at)
        return wait_until(cut_at, "the epoch is not over");
    if (idle(p, now_ns, &d))
        return d;
    return act(RP_POLICY_CUT, RP_CUT_PERIOD, "the epoch is over");
}
