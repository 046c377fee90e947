#include "replicator/governor.h"

#include <stdarg.h>
#include <stdio.h>

#define MS 1000000ull
#define LONGEST_EPOCHS 16u          /* an epoch gets at most so many times as long as asked for, */
#define LONGEST_NS (1000 * MS)      /* or this */
#define STEP_UP 60u                 /* percent of the time left to the vCPUs that a step leaves them: 0, 40, 64, 79, 88 … */
#define STEP_UP_MOST 25u            /* … when far more is dirty than fits */
#define STEP_UP_NS (200 * MS)       /* not more often than this: what a step does shows in the next epochs */
#define STEP_DOWN 150u              /* … that a step back gives them */
#define STEP_DOWN_NS (500 * MS)     /* without pressure for so long: a step down */
#define STUCK_NS (500 * MS)         /* a sink that has taken nothing for so long is not helped by a slower guest */
#define BRAKE(pages) ((pages) * 5 / 8)  /* of the largest epoch: what comes before a brake works has to fit, too */
#define UNBRAKE(pages) ((pages) / 4)
#define FULL(slots) ((slots) - (slots) / 4)     /* dirty pages that the next cut may not be able to take */

const char *rp_pressure_name(enum rp_pressure p)
{
    static const char *const names[] = {"calm", "longer-epochs", "throttled", "lost"};
    return (unsigned)p < sizeof(names) / sizeof(names[0]) ? names[p] : "?";
}

void rp_governor_init(struct rp_governor *g, const struct rp_goal *goal, uint64_t now_ns)
{
    *g = (struct rp_governor){.goal = *goal, .progress_ns = now_ns, .cut_ns = now_ns, .gap_ns = RP_POLICY_GAP_NS};
    rp_goal_defaults(&g->goal);
    g->epoch_ns = g->goal.epoch_ns;
    g->last.now_ns = now_ns;
}

static uint64_t longest(const struct rp_governor *g)
{
    uint64_t most = g->goal.epoch_ns * LONGEST_EPOCHS;
    most = most < LONGEST_NS ? most : LONGEST_NS;
    return most > g->goal.epoch_ns ? most : g->goal.epoch_ns;
}

/* Outputs may be gathered for as long as an epoch, but for no longer than half of the latency allowed. */
static uint64_t longest_gap(const struct rp_governor *g)
{
    uint64_t most = g->goal.latency_ns ? g->goal.latency_ns / 2 : longest(g);
    return most > RP_POLICY_GAP_NS ? most : RP_POLICY_GAP_NS;
}

static void scale(uint64_t *ns, double by, uint64_t least, uint64_t most)
{
    double v = (double)*ns * by;
    *ns = v <= (double)least ? least : v >= (double)most ? most : (uint64_t)v;
}

__attribute__((format(printf, 2, 3))) static void say(char why[96], const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, 96, fmt, ap);
    va_end(ap);
}

/* The CPU goal: cuts further apart cost less. True when it is exceeded and nothing can be further apart. */
static bool keep_to_cpu(struct rp_governor *g)
{
    double allowed = g->goal.cpu_percent / 100.0;
    if (!g->goal.cpu_percent)
        return false;
    if (g->cpu > allowed * 1.05) {
        double by = g->cpu / allowed < 2 ? g->cpu / allowed : 2;
        bool spent = g->epoch_ns >= longest(g) && g->gap_ns >= longest_gap(g);
        scale(&g->epoch_ns, by, g->goal.epoch_ns, longest(g));
        scale(&g->gap_ns, by, RP_POLICY_GAP_NS, longest_gap(g));
        say(g->why_epoch, "the engine uses %.0f %% of a core, %u %% are allowed", g->cpu * 100, g->goal.cpu_percent);
        return spent;
    }
    if (g->cpu < allowed * 0.8) {
        if (g->epoch_ns > g->goal.epoch_ns || g->gap_ns > RP_POLICY_GAP_NS)
            say(g->why_epoch, "the engine uses %.0f %% of a core, %u %% are allowed", g->cpu * 100, g->goal.cpu_percent);
        scale(&g->epoch_ns, 0.9, g->goal.epoch_ns, longest(g));
        scale(&g->gap_ns, 0.9, RP_POLICY_GAP_NS, longest_gap(g));
    }
    return false;
}

/* Epochs that wait for their commit: fewer of them. True when they wait although they are as long as may be. */
static bool keep_up(struct rp_governor *g, const struct rp_sample *s)
{
    uint64_t lag = s->oldest_cut_ns ? s->now_ns - s->oldest_cut_ns : 0;
    uint64_t much = g->epoch_ns * g->goal.depth > 100 * MS ? g->epoch_ns * g->goal.depth : 100 * MS;
    if (lag > much) {
        bool spent = g->epoch_ns >= longest(g);
        scale(&g->epoch_ns, 1.5, g->goal.epoch_ns, longest(g));
        say(g->why_epoch, "an epoch has waited %.0f ms for its commit", (double)lag / 1e6);
        return spent && lag > 4 * longest(g);
    }
    if (lag < much / 2 && !g->goal.cpu_percent && g->epoch_ns > g->goal.epoch_ns) {
        scale(&g->epoch_ns, 0.8, g->goal.epoch_ns, longest(g));
        say(g->why_epoch, "commits keep up again");
    }
    return false;
}

static unsigned most_throttle(const struct rp_governor *g)
{
    return g->goal.throttle_max >= 100 ? 0 : g->goal.throttle_max;
}

/* `fits`: percent of what is dirty that would have fitted; 100: that is not the reason. */
static void raise_throttle(struct rp_governor *g, const struct rp_sample *s, unsigned fits)
{
    uint64_t now_ns = s->now_ns;
    g->eased_ns = now_ns;
    g->pressed_cut = s->cut;
    if (now_ns - g->stepped_ns < STEP_UP_NS && g->stepped_ns)
        return;
    unsigned leave = fits > STEP_UP ? STEP_UP : fits < STEP_UP_MOST ? STEP_UP_MOST : fits;
    unsigned next = 100 - (100 - g->throttle) * leave / 100, most = most_throttle(g);
    g->stepped_ns = now_ns;
    g->throttle = next < most ? next : most;
}

static void lower_throttle(struct rp_governor *g, const struct rp_sample *s)
{
    uint64_t now_ns = s->now_ns;
    if (!g->throttle || now_ns - g->eased_ns < STEP_DOWN_NS || s->cut == g->pressed_cut)
        return;
    unsigned left = (100 - g->throttle) * STEP_DOWN / 100 + 1;
    g->eased_ns = now_ns;
    g->throttle = left < 100 ? 100 - left : 0;
    say(g->why_throttle, "the dirty set has fitted for %u ms", (unsigned)(STEP_DOWN_NS / MS));
}

/* An epoch that has grown so large, because those before it wait for their commit, cannot be taken back: there is no cut before room is
 * made, and what the sink cannot take whole would cost the protection. True while the vCPUs have to stand as good as still. */
static bool brake(struct rp_governor *g, const struct rp_sample *s, bool taking)
{
    bool was = g->braked;
    g->braked = s->epoch_pages && !s->syncing && taking && most_throttle(g) &&
                s->open_pages > (was ? UNBRAKE(s->epoch_pages) : BRAKE(s->epoch_pages));
    if (g->braked && !was) {
        g->unbraked = g->throttle;
        say(g->why_throttle, "the open epoch has %llu pages, the sink takes %llu as one", (unsigned long long)s->open_pages,
            (unsigned long long)s->epoch_pages);
    }
    if (!g->braked && was)
        say(g->why_throttle, "the epoch that was too large is cut");
    g->throttle = g->braked ? most_throttle(g) : was ? g->unbraked : g->throttle;
    return g->braked || was;
}

static void note_progress(struct rp_governor *g, const struct rp_sample *s)
{
    /* A resync may find gigabytes in a row that the sink holds. */
    bool equal = s->equal_pages != g->last.equal_pages;
    if (s->wire_bytes != g->last.wire_bytes || s->committed != g->last.committed || equal || !s->outstanding)
        g->progress_ns = s->now_ns;
    uint64_t ns = s->now_ns - g->last.now_ns;
    if (ns >= RP_GOVERNOR_NS / 2) {
        g->cpu += ((double)(s->cpu_ns - g->last.cpu_ns) / (double)ns - g->cpu) / 4;
        g->last = *s;
    } else {            /* asked ahead of time: the period goes on */
        g->last.wire_bytes = s->wire_bytes;
        g->last.equal_pages = s->equal_pages;
        g->last.committed = s->committed;
        g->last.put_off = s->put_off;
    }
}

static bool lost(struct rp_governor *g, const struct rp_sample *s, bool overflow)
{
    if (s->cut != g->cut || !overflow || g->throttle < most_throttle(g))
        g->cut_ns = s->now_ns;
    g->cut = s->cut;
    if (s->now_ns - g->progress_ns >= g->goal.stall_ns) {
        say(g->why_lost, "the sink has taken nothing for %.1f s (epoch %llu waits)", (double)(s->now_ns - g->progress_ns) / 1e9,
            (unsigned long long)s->committed + 1);
        return true;
    }
    if (s->now_ns - g->cut_ns < g->goal.stall_ns)
        return false;
    say(g->why_lost, "the VM dirties more than the link carries, at %u %% throttle: no cut for %.1f s", g->throttle,
        (double)(s->now_ns - g->cut_ns) / 1e9);
    return true;
}

void rp_governor_look(struct rp_governor *g, const struct rp_sample *s)
{
    bool taking = s->now_ns - g->progress_ns < STUCK_NS;
    bool overflow = s->put_off != g->last.put_off || (!s->syncing && s->dirty_pages > FULL(s->slots));
    bool period = s->now_ns - g->last.now_ns >= RP_GOVERNOR_NS / 2;
    note_progress(g, s);
    overflow = overflow && taking;
    bool cpu_spent = period && keep_to_cpu(g), late = period && keep_up(g, s);
    if (brake(g, s, taking)) {
        g->eased_ns = s->now_ns;
    } else if (overflow) {
        raise_throttle(g, s, s->dirty_pages > FULL(s->slots) ? (unsigned)(FULL(s->slots) * 100 / s->dirty_pages) : 100);
        say(g->why_throttle, "%llu pages are dirty before the cut, the arena has %llu slots", (unsigned long long)s->dirty_pages,
            (unsigned long long)s->slots);
    } else if ((late && taking) || cpu_spent) {
        raise_throttle(g, s, 100);
        say(g->why_throttle, "%s, and epochs are as long as they may be", cpu_spent ? "CPU is short" : "commits are late");
    } else {
        lower_throttle(g, s);
    }
    if (lost(g, s, overflow))
        g->pressure = RP_PRESSURE_LOST;
    else if (g->throttle)
        g->pressure = RP_PRESSURE_THROTTLED;
    else
        g->pressure = g->epoch_ns > g->goal.epoch_ns || g->gap_ns > RP_POLICY_GAP_NS ? RP_PRESSURE_LONGER : RP_PRESSURE_CALM;
}
