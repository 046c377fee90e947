#include "replicator/policy.h"

#include "core/epoch.h"

#define MS 1000000ull
#define EARLY_ROUNDS 4u         /* each round leaves what was dirtied during the one before: it converges or never will */
#define EARLY_RETRY 64u         /* epochs until early capture is tried again after it did not pay */
#define QUIET_PAYS 0.5          /* below this share of quiet pages early copies are wasted work */
#define MIN_EPOCH_NS (MS / 2)   /* outputs never cut more often than this */

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
}

void rp_policy_init(struct rp_policy *p, const struct rp_goal *goal, uint64_t now_ns)
{
    *p = (struct rp_policy){.goal = *goal, .last_cut_ns = now_ns, .copy_ns_per_page = 1000, .stay_quiet = 1};
    rp_goal_defaults(&p->goal);
}

static void average(double *avg, double sample)
{
    *avg += (sample - *avg) / 8;
}

void rp_policy_learn_dirty(struct rp_policy *p, uint64_t pages, uint64_t length_ns)
{
    if (length_ns)
        average(&p->dirty_per_ns, (double)pages / (double)length_ns);
}

void rp_policy_learn_copy(struct rp_policy *p, uint64_t pages, uint64_t ns)
{
    if (pages >= 16)
        average(&p->copy_ns_per_page, (double)ns / (double)pages);
}

void rp_policy_learn_pause(struct rp_policy *p, uint64_t ns, uint64_t pages)
{
    double copy = (double)pages * p->copy_ns_per_page;
    average(&p->cut_ns, (double)ns > copy ? (double)ns - copy : 0);
}

void rp_policy_learn_early(struct rp_policy *p, uint64_t early, uint64_t again)
{
    if (early == 0) {
        p->early_skipped++;
        return;
    }
    p->early_skipped = 0;
    average(&p->stay_quiet, 1 - (double)again / (double)early);
}

/* When this epoch should be cut if nothing else happens. */
static uint64_t due(const struct rp_policy *p)
{
    return p->last_cut_ns + p->goal.epoch_ns;
}

static bool early_pays(const struct rp_policy *p)
{
    return p->stay_quiet >= QUIET_PAYS || p->early_skipped >= EARLY_RETRY;
}

static struct rp_decision wait_until(uint64_t until, const char *why)
{
    return (struct rp_decision){.action = RP_POLICY_WAIT, .until_ns = until, .why = why};
}

/*
 *  last cut                                  early   early        due
 *     |---------------------------------------|=======|==|--------|cut|
 *  Early capture begins so that it is just done when the cut is due; what is dirtied during it is little.
 */
struct rp_decision rp_policy_next(const struct rp_policy *p, uint64_t now_ns, uint64_t early_done_ns, unsigned rounds)
{
    if (p->in_flight >= p->goal.depth)
        return wait_until(now_ns + 100 * MS, "as many epochs as allowed wait for their commit");
    if (p->output_since_ns) {
        uint64_t earliest = p->last_cut_ns + MIN_EPOCH_NS;
        if (now_ns < earliest)
            return wait_until(earliest, "an output waits, but the last cut was a moment ago");
        return (struct rp_decision){.action = RP_POLICY_CUT, .reason = RP_CUT_OUTPUT, .why = "an output waits"};
    }
    uint64_t cut_at = due(p);
    double expect = p->dirty_per_ns * (double)(cut_at - p->last_cut_ns) * p->copy_ns_per_page;
    if (expect > (double)p->goal.pause_ns && early_pays(p) && rounds < EARLY_ROUNDS) {
        uint64_t lead = (uint64_t)(expect * 1.25) + MS / 4;
        if (rounds == 0) {
            if (now_ns + lead >= cut_at)
                return (struct rp_decision){.action = RP_POLICY_EARLY, .why = "the expected copy is longer than the pause aimed at"};
            return wait_until(cut_at - lead, "early capture is not due yet");
        }
        double since = p->dirty_per_ns * (double)(now_ns - early_done_ns) * p->copy_ns_per_page;
        if (now_ns >= cut_at && since > (double)p->goal.pause_ns)
            return (struct rp_decision){.action = RP_POLICY_EARLY, .why = "too much was dirtied since the last early capture"};
    }
    if (now_ns < cut_at)
        return wait_until(cut_at, "the epoch is not over");
    return (struct rp_decision){.action = RP_POLICY_CUT, .reason = RP_CUT_PERIOD, .why = "the epoch is over"};
}
