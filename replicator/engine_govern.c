/* What protection may cost: samples for the governor, its decisions carried out, and every change of any decision told (INV-7). */
#include "replicator/engine_internal.h"

#include "core/clock.h"

#include <errno.h>

#define TELL_NS 1000000000u     /* between two events of a kind: what changes faster is told by its outcome */

/* --- telling --- */

/* Has this decision changed, and is it time to say so? */
static bool news(struct rp_told *t, uint64_t value, uint64_t now_ns)
{
    if (t->value == value || (t->at_ns && now_ns - t->at_ns < TELL_NS))
        return false;
    t->value = value;
    t->at_ns = now_ns;
    return true;
}

static void tell_epoch(struct rp_engine *e, uint64_t now)
{
    const struct rp_governor *g = &e->governor;
    uint64_t was = e->told_epoch.value ? e->told_epoch.value : g->goal.epoch_ns, is = g->epoch_ns;
    bool much = is > was ? is - was > was / 4 : was - is > is / 4;
    if ((much || is == g->goal.epoch_ns) && is != was && news(&e->told_epoch, is, now))
        rp_events_emit(e->events, e->epoch, "EPOCH_LENGTH", "{\"from-ms\": %.1f, \"to-ms\": %.1f, \"reason\": \"%s\"}", (double)was / 1e6,
                       (double)is / 1e6, g->why_epoch);
}

static void tell_throttle(struct rp_engine *e, uint64_t now)
{
    uint64_t was = e->told_throttle.value;
    if (news(&e->told_throttle, e->throttled, now))
        rp_events_emit(e->events, e->epoch, "THROTTLE", "{\"from\": %u, \"to\": %u, \"reason\": \"%s\"}", (unsigned)was, e->throttled,
                       e->governor.why_throttle);
}

/* Which of the strategies most of the last epochs used; a change has to be clear. */
static enum rp_capture_strategy strategy(const struct rp_engine *e)
{
    const struct rp_policy *p = &e->policy;
    if (p->cow_able && p->cow_cuts && p->cow_share > (e->told_capture.value == RP_CAPTURE_COW ? 0.25 : 0.75))
        return RP_CAPTURE_COW;
    return p->early_share > (e->told_capture.value == RP_CAPTURE_EARLY ? 0.25 : 0.75) ? RP_CAPTURE_EARLY : RP_CAPTURE_STOP;
}

static void tell_capture(struct rp_engine *e, uint64_t now)
{
    const struct rp_policy *p = &e->policy;
    double pages = p->dirty_per_ns * (double)p->epoch_ns, copy_ms = pages * p->copy_ns_per_page / 1e6;
    enum rp_capture_strategy is = strategy(e);
    if (!e->told_capture.value)
        e->told_capture.value = RP_CAPTURE_STOP;
    if (!news(&e->told_capture, is, now))
        return;
    atomic_store(&e->strategy, is);
    if (is == RP_CAPTURE_COW)
        rp_events_emit(e->events, e->epoch, "CAPTURE", "{\"strategy\": \"copy-on-write\", \"reason\": \"copying %.0f pages takes %.2f ms; "
                       "protecting one %.0f ns, copying it %.0f ns, %.1f %% fault for %.0f us\"}", pages, copy_ms, p->protect_page_ns,
                       p->copy_ns_per_page, p->fault_share * 100, p->fault_ns / 1e3);
    else if (p->choice != RP_CHOOSE_BY_MEASURE)
        rp_events_emit(e->events, e->epoch, "CAPTURE", "{\"strategy\": \"stop-and-copy\", \"reason\": \"%s\"}",
                       p->choice == RP_CHOOSE_STOP ? "it was asked for" : "copy-on-write was asked for, and is off");
    else if (is == RP_CAPTURE_STOP && !rp_policy_early_pays(p))
        rp_events_emit(e->events, e->epoch, "CAPTURE", "{\"strategy\": \"stop-and-copy\", \"reason\": \"only %.0f %% of the pages captured "
                       "early stay clean until the cut\"}", p->stay_quiet * 100);
    else
        rp_events_emit(e->events, e->epoch, "CAPTURE", "{\"strategy\": \"%s\", \"reason\": \"copying %.0f pages takes %.2f ms, a pause of "
                       "%.2f ms is aimed at\"}", is == RP_CAPTURE_EARLY ? "early" : "stop-and-copy", pages, copy_ms,
                       (double)p->goal.pause_ns / 1e6);
}

/* Whether copy-on-write is worth it, once there are figures; that it is not able is told where that is found. */
static void tell_cow(struct rp_engine *e, uint64_t now)
{
    const struct rp_policy *p = &e->policy;
    bool pays = rp_policy_cow_pays(p);
    if (!e->told_cow.value)
        e->told_cow.value = 1;
    if (!p->cow_able || p->choice != RP_CHOOSE_BY_MEASURE || !news(&e->told_cow, pays ? 1 : 2, now))
        return;
    rp_events_emit(e->events, e->epoch, "CAPTURE", "{\"strategy\": \"copy-on-write\", \"on\": %s, \"reason\": \"a page: protecting it %.0f ns, copying "
                   "it %.0f ns, %.1f %% fault for %.0f us, next write %.1f us more\"}", pays ? "true" : "false", p->protect_page_ns,
                   p->copy_ns_per_page, p->fault_share * 100, p->fault_ns / 1e3, p->after_ns / 1e3);
}

static void tell_codec(struct rp_engine *e, uint8_t codec, uint64_t now)
{
    struct rp_codec_judgement j;
    rp_emitter_judged(e->emitter, codec, &j);
    if (news(&e->told_codec[codec], j.on ? 0 : 1, now))
        rp_events_emit(e->events, e->epoch, "CODEC",
                       "{\"codec\": \"%s\", \"on\": %s, \"reason\": \"it saves %.0f bytes a page for %.0f ns; a byte costs %.1f ns\"}",
                       rp_codec_name(codec), j.on ? "true" : "false", j.saved_bytes, j.cost_ns, j.price);
}

/* --- asking and carrying out --- */

static void sample(struct rp_engine *e, uint64_t now, struct rp_sample *s)
{
    uint64_t committed = atomic_load(&e->committed), cut = atomic_load(&e->cut);
    *s = (struct rp_sample){
        .now_ns = now, .wire_bytes = rp_emitter_bytes(e->emitter), .equal_pages = atomic_load(&rp_emitter_stats(e->emitter)->unchanged),
        .committed = committed, .put_off = atomic_load(&e->put_off),
        .cpu_ns = rp_clock_read(CLOCK_THREAD_CPUTIME_ID) + rp_emitter_cpu_ns(e->emitter) + rp_pool_cpu_ns(e->capture_pool) +
                  rp_engine_cow_cpu_ns(e),
        .outstanding = cut != committed || rp_emitter_pending(e->emitter) || atomic_load(&e->state) == RP_ENGINE_SYNCING,
        .dirty_pages = rp_pageset_count(&e->capture.pending), .slots = rp_arena_slots(e->arena)};
    if (cut != committed)
        s->oldest_cut_ns = atomic_load(&e->flight[(committed + 1) % RP_COMMIT_RING].cut_ns);
    s->syncing = atomic_load(&e->state) == RP_ENGINE_SYNCING;
    s->open_pages = s->dirty_pages + e->early + e->streamed;
    s->epoch_pages = e->epoch_pages;
    s->cut = cut;
}

static void carry_out(struct rp_engine *e)
{
    const struct rp_governor *g = &e->governor;
    rp_policy_limit(&e->policy, g->epoch_ns, g->gap_ns);
    if (g->throttle != e->throttled) {
        e->src->ops->throttle(e->src, g->throttle);
        e->throttled = g->throttle;
    }
    atomic_store(&e->pressure, g->pressure);
    atomic_store(&e->throttle, g->throttle);
    atomic_store(&e->epoch_ns, g->epoch_ns);
    atomic_store(&e->cpu_permille, (uint64_t)(g->cpu * 1000));
}

/* A single epoch, too: a guest that dirties more than its sink takes is slowed down until the cut fits. But nobody's outputs wait for
 * it, and so it may take as long as it takes. */
int rp_engine_govern(struct rp_engine *e, bool now, struct rp_error *err)
{
    struct rp_sample s;
    uint64_t t = rp_clock_ns();
    if (e->kind == RP_RUN_FINAL || (!now && t - e->governed_ns < RP_GOVERNOR_NS))
        return 0;
    e->governed_ns = t;
    sample(e, t, &s);
    rp_governor_look(&e->governor, &s);
    carry_out(e);
    tell_epoch(e, t);
    tell_throttle(e, t);
    tell_capture(e, t);
    tell_cow(e, t);
    tell_codec(e, RP_CODEC_LZ4, t);
    tell_codec(e, RP_CODEC_DELTA, t);
    if (e->governor.pressure != RP_PRESSURE_LOST || e->kind != RP_RUN_CONTINUOUS)
        return 0;
    return rp_error_set(err, ETIMEDOUT, "%s", e->governor.why_lost);
}

void rp_engine_ungovern(struct rp_engine *e)
{
    if (e->throttled) {
        e->src->ops->throttle(e->src, 0);
        rp_events_emit(e->events, e->epoch, "THROTTLE", "{\"from\": %u, \"to\": 0, \"reason\": \"the run is over\"}", e->throttled);
    }
    e->throttled = 0;
    atomic_store(&e->throttle, 0);
}
