/* Copy-on-write as the engine uses it (cow.h, cold.h): made when pauses ask for it, used at cuts where the policy finds that it pays,
 * and over before the epoch is handed over (E7). */
#include "replicator/engine_internal.h"

#include "core/clock.h"

#include <errno.h>
#include <stdlib.h>

#define TOLD 125        /* of a reason: what an event holds */

static void keep(struct rp_engine *e, bool on)
{
    if (e->src->ops->keep)
        e->src->ops->keep(e->src, on);
    e->kept = on;
}

/* For stats: what is known now. */
static void publish(struct rp_engine *e, const char *why)
{
    const struct rp_policy *p = &e->policy;
    pthread_mutex_lock(&e->result_lock);
    struct rp_cow_state *s = &e->cow_state;
    *s = (struct rp_cow_state){.able = p->cow_able, .pays = rp_policy_cow_pays(p), .cuts = p->cow_cuts, .pages = e->cow_pages,
                               .faults = e->cow_faults, .page_ns = p->protect_page_ns, .run_ns = p->protect_run_ns, .fault_ns = p->fault_ns,
                               .after_ns = p->after_ns};
    snprintf(s->why, sizeof(s->why), "%s", why);
    pthread_mutex_unlock(&e->result_lock);
}

static void unable(struct rp_engine *e, const char *why)
{
    e->policy.cow_able = false;
    publish(e, why);
    rp_events_emit(e->events, e->epoch, "CAPTURE", "{\"strategy\": \"copy-on-write\", \"on\": false, \"reason\": \"%.*s\"}",
                   TOLD, why);
}

static void make(struct rp_engine *e)
{
    struct rp_error err = {0};
    struct rp_cow_costs costs;
    e->cow_tried = true;
    int rc = rp_cow_create(&e->info.ram, e->arena, &e->cow, &err);
    if (rc == 0 && (rc = rp_cold_init(&e->cold, &e->capture, e->cow, &err)) < 0) {
        rp_cow_destroy(e->cow);
        e->cow = NULL;
    }
    if (rc < 0) {
        unable(e, err.text);
        return;
    }
    rp_cow_costs(e->cow, &costs);
    e->policy.cow_able = true;
    e->policy.protect_run_ns = costs.run_ns;
    e->policy.protect_page_ns = costs.page_ns;
    e->policy.fault_ns = costs.fault_ns;
    e->policy.after_ns = costs.after_ns;
    publish(e, "");
}

void rp_engine_cow_ready(struct rp_engine *e)
{
    if (!e->cow_tried && rp_policy_cow_wanted(&e->policy))
        make(e);
    struct rp_cow_plan plan;
    if (rp_policy_cow(&e->policy, UINT64_MAX, &plan))   /* however many pages the cut will find */
        keep(e, true);
}

uint64_t rp_engine_cow_protect(struct rp_engine *e, uint64_t pages)
{
    struct rp_cow_plan plan;
    if (!rp_policy_cow(&e->policy, pages, &plan))
        return 0;
    uint64_t held = rp_cold_protect(&e->cold, &plan);
    rp_policy_learn_protect(&e->policy, e->cold.nruns, e->cold.span, e->cold.protect_ns);
    return held;
}

void rp_engine_cow_withdraw(struct rp_engine *e)
{
    if (e->cow && e->cold.nruns) {
        rp_cold_withdraw(&e->cold);
        (void)rp_cow_end(e->cow);
    }
    if (e->kept)
        keep(e, false);
}

void rp_engine_cow_note(struct rp_engine *e)
{
    if (e->policy.cow_able)
        rp_cold_note(&e->cold);
}

int rp_engine_cow_hand(struct rp_engine *e, uint64_t pages, struct rp_error *err)
{
    struct rp_captured *part;
    struct rp_cow_costs costs = {0};
    uint64_t n = 0, held = e->cow ? e->cold.n : 0, faults = 0;
    int rc = 0;
    while (held) {      /* to the end, whatever becomes of the parts: E7 */
        int torn = rp_cold_collect(&e->cold, &part, &n, rc < 0 ? NULL : err);
        if (n == 0)
            break;
        if (rc == 0)
            rc = torn < 0 ? torn : rp_engine_hand_part(e, part, n, err);
        else
            free(part);
    }
    if (held) {
        faults = rp_cow_end(e->cow);
        e->cow_pages += held;
        e->cow_faults += faults;
        rp_cow_costs(e->cow, &costs);
        e->cold.n = e->cold.nruns = e->cold.collected = 0;
    }
    if (e->policy.cow_able) {
        rp_policy_learn_cow(&e->policy, pages, held, faults, costs.fault_ns);
        if (rp_cow_usable(e->cow))
            publish(e, "");
        else
            unable(e, "the kernel refused to protect a page or to let it go");
    }
    if (e->kept)
        keep(e, false);
    return rc;
}

uint64_t rp_engine_cow_cpu_ns(const struct rp_engine *e)
{
    return e->cow ? rp_cow_cpu_ns(e->cow) : 0;
}

void rp_engine_cow_end(struct rp_engine *e)
{
    if (!e->cow)
        return;
    rp_engine_cow_withdraw(e);
    rp_cow_destroy(e->cow);
    rp_cold_fini(&e->cold);
    e->cow = NULL;
    e->policy.cow_able = false;
}
