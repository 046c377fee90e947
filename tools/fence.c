#include "tools/fence.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/thread.h"
#include "core/xxh3.h"
#include "tools/json.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_MS_MIN 50u
#define RETRY_MS 100u           /* after the storage failed */
#define SEES_MS 200u            /* a term that is another one may have moved on just now: how long it is waited for */
#define NONE_TERMS 100000000000000000ull    /* from here on: a clock's ns, which is what a lease that is none has for a term (lease.c) */

struct rp_fence {
    struct rp_fence_config cfg;
    char where[256];
    bool none;
    pthread_t thread;
    pthread_mutex_t op;         /* the lease and the keeper; order: op > lock. Held while the storage is asked. */
    struct rp_lease *lease;     /* op */
    struct rp_lease_keeper *keeper; /* op; keeper_lock too for changes */
    pthread_mutex_t keeper_lock;    /* to look at the keeper without waiting for the storage; before lock, which its callbacks take */
    pthread_mutex_t lock;
    pthread_cond_t change;
    bool stop;                  /* lock */
    enum rp_fence_state state;  /* lock */
    uint64_t turn;              /* lock: grows with each change of state: "the same state" may be another one */
    uint64_t follow;            /* lock: WAITING: the term that has to precede ours; 0: any */
    uint64_t least;             /* lock: WAITING: ours is not below; follow + 1, and after a yield follow too: nobody need have had that */
    uint64_t term;              /* lock: ours when HELD, else the newest seen */
    uint64_t losses;            /* lock */
    uint64_t deadline_ns;       /* lock: of the outputs */
    struct rp_machine *machine; /* lock */
    char holder[64];            /* lock */
    struct rp_error why;        /* lock */
};

const char *rp_fence_state_name(enum rp_fence_state s)
{
    static const char *const names[] = {"idle", "watching", "waiting", "held", "lost", "behind"};
    return names[s];
}

/* lock held */
static void set_deadline(struct rp_fence *f, uint64_t deadline_ns)
{
    f->deadline_ns = deadline_ns;
    if (f->machine)
        rp_machine_output_deadline(f->machine, deadline_ns);
}

/* lock held. The owner is told by tell(), once the lock is free. */
static void set_state(struct rp_fence *f, enum rp_fence_state s)
{
    f->state = s;
    f->turn++;
    if (s != RP_FENCE_HELD)
        set_deadline(f, RP_OUTPUTS_SHUT);
    pthread_cond_broadcast(&f->change);
}

static void tell(struct rp_fence *f)
{
    if (f->cfg.changed)
        f->cfg.changed(f->cfg.ctx);
}

static void emit_reason(struct rp_fence *f, const char *name, const char *reason)
{
    char text[120];
    rp_events_emit(f->cfg.events, 0, name, "{\"lease\": \"%.40s\", \"reason\": \"%s\"}", f->where,
                   rp_json_escape(reason, text, sizeof(text)));
}

/* --- the keeper's callbacks --- */

static void on_renewed(void *ctx, uint64_t deadline_ns)
{
    struct rp_fence *f = ctx;
    pthread_mutex_lock(&f->lock);
    if (f->state == RP_FENCE_HELD)
        set_deadline(f, deadline_ns);
    pthread_mutex_unlock(&f->lock);
}

static void on_lost(void *ctx, const struct rp_error *why)
{
    struct rp_fence *f = ctx;
    pthread_mutex_lock(&f->lock);
    bool held = f->state == RP_FENCE_HELD;      /* not while it is being given up */
    if (held) {
        set_state(f, RP_FENCE_LOST);
        f->losses++;
        f->why = *why;
    }
    pthread_mutex_unlock(&f->lock);
    if (!held)
        return;
    emit_reason(f, "LEASE_LOST", why->text);
    tell(f);
}

/* --- asking the storage; op held --- */

static void note_holder(struct rp_fence *f, const struct rp_lease_holder *h)
{
    pthread_mutex_lock(&f->lock);
    snprintf(f->holder, sizeof(f->holder), "%s", h->held ? h->owner : "");
    if (f->state != RP_FENCE_HELD)
        f->term = h->term;
    pthread_mutex_unlock(&f->lock);
}

static void note_failure(struct rp_fence *f, const struct rp_error *why)
{
    pthread_mutex_lock(&f->lock);
    if (why)
        f->why = *why;
    else
        rp_error_clear(&f->why);
    pthread_mutex_unlock(&f->lock);
}

/* The lease was granted: it is kept from here on. */
static int keep(struct rp_fence *f, const struct rp_lease_grant *g, struct rp_error *err)
{
    struct rp_lease_keeper_config cfg = {.renewed = on_renewed, .lost = on_lost, .ctx = f};
    struct rp_lease_keeper *k;
    /* HELD first: the keeper may say at once that it is lost. */
    pthread_mutex_lock(&f->lock);
    set_state(f, RP_FENCE_HELD);
    f->term = g->term;
    snprintf(f->holder, sizeof(f->holder), "%s", f->lease->owner);
    rp_error_clear(&f->why);
    set_deadline(f, g->deadline_ns);
    pthread_mutex_unlock(&f->lock);
    int rc = rp_lease_keeper_start(f->lease, &cfg, &k, err);
    if (rc == 0) {
        pthread_mutex_lock(&f->keeper_lock);
        f->keeper = k;
        pthread_mutex_unlock(&f->keeper_lock);
    }
    pthread_mutex_lock(&f->lock);
    if (rc < 0)
        set_state(f, RP_FENCE_IDLE);
    pthread_cond_broadcast(&f->change);
    pthread_mutex_unlock(&f->lock);
    if (rc < 0 && rp_lease_release(f->lease, NULL) < 0) {
        /* it runs out by itself */
    }
    return rc;
}

/* The keeper goes; the lease is given up when `release` and it is still ours. */
static int unkeep(struct rp_fence *f, bool release, struct rp_error *err)
{
    struct rp_lease_keeper *k = f->keeper;
    pthread_mutex_lock(&f->keeper_lock);
    f->keeper = NULL;
    pthread_mutex_unlock(&f->keeper_lock);
    return k ? rp_lease_keeper_stop(k, release, err) : 0;
}

/* F2: has somebody else held the lease since term `follow`? A term that we have begun to claim is ours. */
static bool passed_by(const struct rp_fence *f, uint64_t follow, const struct rp_lease_holder *h)
{
    return !f->none && follow && (h->term > follow + 1 || (h->term == follow + 1 && strcmp(h->owner, f->lease->owner) != 0));
}

/* A term that we claimed before, and did not hear of or lost: nobody has run anything under it, so it is the one to follow. */
static uint64_t own_term(struct rp_fence *f, uint64_t follow, const struct rp_lease_holder *h)
{
    if (f->none || !follow || h->term <= follow)
        return follow;
    pthread_mutex_lock(&f->lock);
    f->follow = h->term;
    pthread_mutex_unlock(&f->lock);
    return h->term;
}

/* One attempt to follow. Returns the ms until the next; 0: decided. */
static unsigned try_once(struct rp_fence *f, uint64_t follow, uint64_t least)
{
    struct rp_lease_holder h;
    struct rp_lease_grant g;
    struct rp_error why = {0};
    uint64_t again_ns = 0;
    bool behind = false, other = false;     /* other: a lease that has never come to where the VM was */
    int rc = rp_lease_query(f->lease, &h, &why);
    if (rc == 0) {
        note_holder(f, &h);
        behind = passed_by(f, follow, &h);
        if (!behind)
            follow = own_term(f, follow, &h);
    }
    if (rc == 0 && !behind)
        rc = rp_lease_try(f->lease, &g, &again_ns, &why);
    if (rc == 0 && !behind && !f->none && follow && (g.term > follow + 1 || g.term < least)) {
        behind = true;
        other = g.term < least;
        if (rp_lease_release(f->lease, NULL) < 0) {
            /* it runs out by itself */
        }
    }
    if (behind) {
        pthread_mutex_lock(&f->lock);
        if (f->state == RP_FENCE_WAITING) {
            rp_error_exit(&f->why, RP_EXIT_REFUSED, ESTALE, other ? "this is not the VM's lease: %s had it at term %llu, the VM ran under %llu"
                                                                  : "%s has held the lease since (term %llu after our %llu)",
                          h.owner[0] ? h.owner : "somebody else", (unsigned long long)h.term, (unsigned long long)follow);
            set_state(f, RP_FENCE_BEHIND);
        }
        pthread_mutex_unlock(&f->lock);
        return 0;
    }
    if (rc == 0)
        rc = keep(f, &g, &why);
    if (rc == 0)
        return 0;
    if (rc != -EBUSY) {
        note_failure(f, &why);
        return RETRY_MS;
    }
    unsigned ms = (unsigned)(again_ns / 1000000u) + 1;
    return ms > f->lease->ops->poll_ms ? f->lease->ops->poll_ms : ms;
}

static unsigned look_once(struct rp_fence *f)
{
    struct rp_lease_holder h;
    struct rp_error why = {0};
    int rc = rp_lease_query(f->lease, &h, &why);
    if (rc == 0)
        note_holder(f, &h);
    note_failure(f, rc < 0 ? &why : NULL);
    unsigned ms = (unsigned)(f->lease->ttl_ms / 16);
    return ms < LOOK_MS_MIN ? LOOK_MS_MIN : ms;
}

/* 0, or what the storage failed with. */
static int query(struct rp_fence *f, struct rp_lease_holder *h, struct rp_error *err)
{
    pthread_mutex_lock(&f->op);
    int rc = rp_lease_query(f->lease, h, err);
    pthread_mutex_unlock(&f->op);
    return rc;
}

static uint64_t hash_of(const char *owner)
{
    return rp_xxh3_64(owner, strlen(owner), 0);
}

uint64_t rp_fence_holder(const struct rp_fence *f)
{
    return hash_of(f->lease->owner);
}

/* Its state a moment ago may be what is seen. */
static int query_until(struct rp_fence *f, uint64_t term, struct rp_lease_holder *h, struct rp_error *err)
{
    int rc = query(f, h, err);
    if (rc < 0 || h->term == term)
        return rc;
    nanosleep(&(struct timespec){.tv_nsec = SEES_MS * 1000000}, NULL);
    return query(f, h, err);
}

int rp_fence_sees(struct rp_fence *f, uint64_t term, uint64_t holder, struct rp_error *err)
{
    struct rp_lease_holder h = {0};
    struct rp_error why = {0};
    if (f->none != (term >= NONE_TERMS))
        return rp_error_exit(err, RP_EXIT_REFUSED, EINVAL, "--lease none on one side only: this one has %s", f->where);
    if (f->none)
        return 0;
    if (query_until(f, term, &h, &why) < 0) {
        rp_log(RP_LOG_WARN, "whether the primary's lease is the one here cannot be seen: %s", why.text);
        return 0;
    }
    if (h.term != term)
        return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "the lease here is at term %llu, the primary's at %llu: not the same storage?",
                             (unsigned long long)h.term, (unsigned long long)term);
    if (holder && holder != hash_of(h.owner))
        return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "the lease here is held by %.60s, not by the primary: not the same storage?",
                             h.owner[0] ? h.owner : "nobody");
    return 0;
}

/* --- the thread --- */

/* lock held */
static void sleep_ms(struct rp_fence *f, unsigned ms)
{
    rp_cond_wait_until(&f->change, &f->lock, rp_clock_ns() + (uint64_t)ms * 1000000u);
}

/* One step for the state there is; returns the ms until the next, UINT_MAX: when something changes. */
static unsigned step(struct rp_fence *f)
{
    pthread_mutex_lock(&f->op);
    pthread_mutex_lock(&f->lock);
    enum rp_fence_state s = f->state;
    if (s == RP_FENCE_LOST) {           /* on_lost came from within the keeper: it is ended from here */
        f->follow = f->term;
        f->least = f->term + 1;
    }
    uint64_t follow = f->follow, least = f->least;
    pthread_mutex_unlock(&f->lock);
    unsigned ms = UINT32_MAX;
    bool decided = false;
    if (s == RP_FENCE_LOST) {
        if (unkeep(f, false, NULL) < 0) {
            /* nothing is released */
        }
        rp_lease_forget(f->lease);      /* a moment of it may be left; not enough to begin anything */
        pthread_mutex_lock(&f->lock);
        if (f->state == RP_FENCE_LOST)
            set_state(f, RP_FENCE_WAITING);
        pthread_mutex_unlock(&f->lock);
        ms = 1;
    } else if (s == RP_FENCE_WAITING) {
        ms = try_once(f, follow, least);
        decided = ms == 0;
        ms = decided ? UINT32_MAX : ms;
    } else if (s == RP_FENCE_WATCHING) {
        ms = look_once(f);
    }
    pthread_mutex_unlock(&f->op);
    if (decided)
        tell(f);
    return ms;
}

static void *fence_main(void *arg)
{
    struct rp_fence *f = arg;
    pthread_mutex_lock(&f->lock);
    while (!f->stop) {
        uint64_t before = f->turn;
        pthread_mutex_unlock(&f->lock);
        unsigned ms = step(f);
        pthread_mutex_lock(&f->lock);
        if (!f->stop && f->turn == before)
            sleep_ms(f, ms);
    }
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

/* --- the public calls --- */

int rp_fence_open(const struct rp_fence_config *cfg, struct rp_fence **out, struct rp_error *err)
{
    struct rp_fence *f = calloc(1, sizeof(*f));
    if (!f)
        return rp_error_set(err, ENOMEM, "no memory for a lease");
    f->cfg = *cfg;
    f->deadline_ns = RP_OUTPUTS_SHUT;
    snprintf(f->where, sizeof(f->where), "%s", cfg->lease.where);
    int rc = rp_lease_open(&cfg->lease, &f->lease, err);
    if (rc < 0) {
        free(f);
        return rc;
    }
    f->none = strcmp(f->lease->ops->name, "none") == 0;
    pthread_mutex_init(&f->op, NULL);
    pthread_mutex_init(&f->keeper_lock, NULL);
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->change, NULL);
    rc = rp_thread_start(&f->thread, "fence", fence_main, f, err);
    if (rc < 0) {
        rp_lease_destroy(f->lease);
        free(f);
        return rc;
    }
    *out = f;
    return 0;
}

void rp_fence_close(struct rp_fence *f)
{
    if (!f)
        return;
    rp_fence_bind(f, NULL);
    pthread_mutex_lock(&f->lock);
    f->stop = true;
    pthread_cond_broadcast(&f->change);
    pthread_mutex_unlock(&f->lock);
    pthread_join(f->thread, NULL);
    if (unkeep(f, false, NULL) < 0) {
        /* nothing is released */
    }
    rp_lease_destroy(f->lease);
    pthread_cond_destroy(&f->change);
    pthread_mutex_destroy(&f->lock);
    pthread_mutex_destroy(&f->keeper_lock);
    pthread_mutex_destroy(&f->op);
    free(f);
}

int rp_fence_take(struct rp_fence *f, int timeout_ms, struct rp_error *err)
{
    struct rp_lease_grant g;
    pthread_mutex_lock(&f->op);
    int rc = f->keeper ? 0 : rp_lease_acquire(f->lease, timeout_ms, f->cfg.give_up, f->cfg.ctx, &g, err);
    if (rc == 0 && !f->keeper)
        rc = keep(f, &g, err);
    pthread_mutex_unlock(&f->op);
    return rc < 0 ? rp_error_wrap(err, "--lease %s", f->where) : 0;
}

void rp_fence_bind(struct rp_fence *f, struct rp_machine *m)
{
    pthread_mutex_lock(&f->lock);
    if (f->machine && f->machine != m)
        rp_machine_output_deadline(f->machine, RP_OUTPUTS_SHUT);
    f->machine = m;
    if (m)
        rp_machine_output_deadline(m, f->deadline_ns);
    pthread_mutex_unlock(&f->lock);
}

static void change_to(struct rp_fence *f, enum rp_fence_state s, uint64_t follow, uint64_t least)
{
    pthread_mutex_lock(&f->op);         /* what is being asked right now is waited for */
    pthread_mutex_lock(&f->lock);
    if (f->state != RP_FENCE_HELD && f->state != RP_FENCE_LOST) {
        f->follow = follow;
        f->least = least;
        set_state(f, s);
    }
    pthread_mutex_unlock(&f->lock);
    pthread_mutex_unlock(&f->op);
}

void rp_fence_watch(struct rp_fence *f)
{
    change_to(f, RP_FENCE_WATCHING, 0, 0);
}

void rp_fence_follow(struct rp_fence *f, uint64_t term)
{
    change_to(f, RP_FENCE_WAITING, term, term + 1);
}

void rp_fence_retake(struct rp_fence *f, uint64_t term)
{
    change_to(f, RP_FENCE_WAITING, term + 1, term + 1);
}

bool rp_fence_stand_back(struct rp_fence *f)
{
    pthread_mutex_lock(&f->op);
    pthread_mutex_lock(&f->lock);
    bool can = f->state != RP_FENCE_HELD && !f->lease->pending;
    if (can)
        set_state(f, RP_FENCE_WATCHING);
    pthread_mutex_unlock(&f->lock);
    pthread_mutex_unlock(&f->op);
    return can;
}

int rp_fence_wait(struct rp_fence *f, int timeout_ms, struct rp_error *err)
{
    uint64_t until = rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    pthread_mutex_lock(&f->lock);
    while ((f->state == RP_FENCE_WAITING || f->state == RP_FENCE_LOST) && rp_clock_ns() < until)
        sleep_ms(f, (unsigned)((until - rp_clock_ns()) / 1000000u) + 1);
    int rc = f->state == RP_FENCE_HELD ? 0 : f->state == RP_FENCE_BEHIND ? -ESTALE : -ETIMEDOUT;
    if (rc == -ESTALE && err)
        *err = f->why;
    else if (rc < 0)
        rp_error_exit(err, RP_EXIT_REFUSED, ETIMEDOUT, "the lease is held by %s%s%s", f->holder[0] ? f->holder : "nobody that is known",
                      f->why.code ? ": " : "", f->why.text);
    pthread_mutex_unlock(&f->lock);
    return rc;
}

int rp_fence_disown(struct rp_fence *f, struct rp_error *err)
{
    uint64_t term;
    pthread_mutex_lock(&f->op);
    int rc = f->keeper ? rp_lease_keeper_advance(f->keeper, &term, err)
                       : rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "the lease is not held");
    if (rc == 0) {
        pthread_mutex_lock(&f->lock);
        f->term = term;
        pthread_mutex_unlock(&f->lock);
    }
    pthread_mutex_unlock(&f->op);
    return rc == -EBUSY ? -ESTALE : rc;
}

int rp_fence_yield(struct rp_fence *f, struct rp_error *err)
{
    pthread_mutex_lock(&f->op);
    pthread_mutex_lock(&f->lock);
    bool held = f->state == RP_FENCE_HELD;
    if (held)
        set_state(f, RP_FENCE_IDLE);
    pthread_mutex_unlock(&f->lock);
    int rc = unkeep(f, held, err);
    pthread_mutex_unlock(&f->op);
    return held ? rc : rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "the lease is not held");
}

enum rp_fence_state rp_fence_state(struct rp_fence *f)
{
    pthread_mutex_lock(&f->lock);
    enum rp_fence_state s = f->state;
    pthread_mutex_unlock(&f->lock);
    return s;
}

uint64_t rp_fence_term(struct rp_fence *f)
{
    pthread_mutex_lock(&f->lock);
    uint64_t term = f->state == RP_FENCE_HELD ? f->term : 0;
    pthread_mutex_unlock(&f->lock);
    return term;
}

uint64_t rp_fence_losses(struct rp_fence *f)
{
    pthread_mutex_lock(&f->lock);
    uint64_t losses = f->losses;
    pthread_mutex_unlock(&f->lock);
    return losses;
}

bool rp_fence_is_none(const struct rp_fence *f)
{
    return f->none;
}

void rp_fence_info(struct rp_fence *f, struct rp_fence_info *out)
{
    memset(out, 0, sizeof(*out));
    pthread_mutex_lock(&f->lock);
    out->state = f->state;
    out->term = f->term;
    out->ttl_ms = f->lease->ttl_ms;
    memcpy(out->where, f->where, sizeof(out->where));
    memcpy(out->holder, f->holder, sizeof(out->holder));
    if (f->why.code)
        snprintf(out->why, sizeof(out->why), "%s", f->why.text);
    pthread_mutex_unlock(&f->lock);
    pthread_mutex_lock(&f->keeper_lock);
    if (f->keeper)
        rp_lease_keeper_stats(f->keeper, &out->keeper);
    pthread_mutex_unlock(&f->keeper_lock);
}
