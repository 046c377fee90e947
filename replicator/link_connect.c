/* The primary's connections: all of them when a session opens, lost ones sought again while it goes on. */
#include "core/clock.h"
#include "core/thread.h"
#include "core/fault.h"
#include "replicator/link_primary.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MEND_FIRST_MS 1000u     /* after a loss; doubles with each attempt that brings nothing back … */
#define MEND_LAST_MS 15000u     /* … up to this */
#define MEND_CONNECT_MS 1000    /* a session that ends meanwhile waits for an attempt that is under way */

/* Remembers a connection whose handshake goes on, so that the session's end does not wait for it. False: it has ended. */
static bool set_mending(struct link_sink *s, struct rp_conn *c)
{
    pthread_mutex_lock(&s->lock);
    s->mending = c;
    bool go_on = !atomic_load(&s->cancelled) && !atomic_load(&s->told);
    pthread_mutex_unlock(&s->lock);
    return go_on;
}

/* Connects to `uri` and shakes hands in this role. */
static int join(struct link_sink *s, const struct rp_uri *uri, int connect_ms, enum rp_link_role role, unsigned number, struct rp_conn **out,
                struct rp_welcome *w, struct rp_error *err)
{
    struct rp_hello hello = s->hello;
    struct rp_conn *c;
    hello.role = role;
    hello.lanes = number;
    int rc = rp_connect(uri, connect_ms, &c, err);
    if (rc < 0)
        return rc;
    rc = set_mending(s, c) ? rp_handshake_connect(c, &s->cfg.key, &hello, w, err) : rp_error_set(err, ECANCELED, "the session is over");
    set_mending(s, NULL);
    if (rc < 0)
        rp_conn_close(c);
    else
        *out = c;
    return rc;
}

static int join_lane(struct link_sink *s, unsigned number, int connect_ms, struct rp_error *err)
{
    bool spare = number == SPARE_LANE;
    struct rp_welcome w;
    struct rp_conn *c;
    if (rp_fault(spare ? RP_FAULT_LINK_SPARE : RP_FAULT_LINK_LANE))
        return rp_error_set(err, EIO, "lane %u: fault point", number);
    int rc = join(s, spare ? &s->cfg.spare : &s->cfg.uri, connect_ms, RP_LINK_LANE, number, &c, &w, err);
    if (rc < 0) {
        rp_error_wrap(err, "lane %u", number);
        return rc;
    }
    return rp_bundle_add(s->bundle, c, number, spare, err);
}

static int join_path(struct link_sink *s, unsigned which, int connect_ms, struct rp_error *err)
{
    struct rp_welcome w;
    struct rp_conn *c;
    int rc = join(s, which ? &s->cfg.spare : &s->cfg.uri, connect_ms, RP_LINK_PATH, which, &c, &w, err);
    if (rc == 0 && (rc = rp_control_add(&s->control, c, (int)which)) < 0) {
        rp_conn_close(c);
        rp_error_set(err, rc, "path %u is taken", which);
    }
    return rc;
}

void rp_link_miss_lane(struct link_sink *s, unsigned lane)
{
    pthread_mutex_lock(&s->lock);
    s->missing_lanes |= 1u << lane;
    pthread_cond_broadcast(&s->change);
    pthread_mutex_unlock(&s->lock);
}

void rp_link_miss_path(struct link_sink *s, unsigned which)
{
    pthread_mutex_lock(&s->lock);
    s->missing_path[which] = true;
    pthread_cond_broadcast(&s->change);
    pthread_mutex_unlock(&s->lock);
}

/* --- at the beginning --- */

static const char *cannot_resync(const struct rp_link_config *cfg, const struct rp_held *held)
{
    if (!cfg->gfn_end)
        return "it was not asked for what it holds";
    if (!held->gfn_end)
        return "it holds nothing of this VM";
    return held->gfn_end == cfg->gfn_end ? NULL : "it holds RAM of another size";
}

/* What the standby holds, before anything else is said. On error the connection is closed. */
static int ask_held(struct link_sink *s, struct rp_conn *c, const struct rp_welcome *w, struct rp_error *err)
{
    s->why_full = cannot_resync(&s->cfg, &w->held);
    uint64_t size_bytes[RP_DISK_SUMS_DISKS] = {0};
    struct rp_held_ask ask = {.wanted = !s->why_full, .stale = s->cfg.stale};
    ask.sums = s->cfg.whole_disks && s->cfg.whole_disks(s->cfg.ctx, &w->disks, size_bytes);
    int rc = set_mending(s, c) ? rp_held_send_ask(c, &ask, err) : rp_error_set(err, ECANCELED, "the session is over");
    if (rc == 0 && ask.wanted)
        rc = rp_held_receive(c, &w->held, &s->held, err);
    if (rc == 0 && ask.sums)
        rc = rp_sums_receive(c, size_bytes, &s->sums, err);
    set_mending(s, NULL);
    if (rc < 0)
        rp_conn_close(c);
    return rc;
}

/* The control connection: over the address that was asked for, else over the spare way. */
static int open_control(struct link_sink *s, struct rp_welcome *w, struct rp_error *err)
{
    struct rp_conn *c;
    struct rp_error why = {0};
    unsigned path = 0;
    int rc = join(s, &s->cfg.uri, s->cfg.connect_ms, RP_LINK_CONTROL, s->cfg.lanes, &c, w, err);
    if (rc < 0 && s->cfg.have_spare && (!err || err->exit != RP_EXIT_REFUSED) &&
        join(s, &s->cfg.spare, s->cfg.connect_ms, RP_LINK_CONTROL, s->cfg.lanes, &c, w, &why) == 0) {
        if (err)
            rp_event_plain(err->text);
        rp_events_emit(s->cfg.events, 0, "TRANSPORT_DEGRADED", "{\"from\": \"rdma\", \"to\": \"tcp\", \"reason\": \"%.110s\"}", err ? err->text : "");
        rp_error_clear(err);
        rp_link_miss_path(s, 0);
        path = 1;
        rc = 0;
    }
    if (rc < 0 || (rc = ask_held(s, c, w, err)) < 0)
        return rc;
    return rp_control_add(&s->control, c, (int)path);
}

static void missing(struct link_sink *s, const char *event, unsigned number, struct rp_error *why)
{
    rp_event_plain(why->text);
    rp_events_emit(s->cfg.events, 0, event, "{\"number\": %u, \"reason\": \"%.120s\"}", number, why->text);
}

/* The way beside rdma. Its absence costs the session nothing until it is needed. */
static void open_spare(struct link_sink *s)
{
    struct rp_error why = {0};
    if (rp_control_living(&s->control) < 2 && !s->missing_path[0] && join_path(s, 1, s->cfg.connect_ms, &why) < 0)
        rp_link_miss_path(s, 1);
    if (why.code || join_lane(s, SPARE_LANE, s->cfg.connect_ms, &why) < 0) {
        rp_link_miss_lane(s, SPARE_LANE);
        missing(s, "SPARE_MISSING", SPARE_LANE, &why);
    }
}

int rp_link_connect(struct link_sink *s, struct rp_welcome *w, struct rp_error *err)
{
    s->hello = (struct rp_hello){.heartbeat_ms = s->cfg.heartbeat_ms, .term = s->cfg.term, .holder = s->cfg.holder};
    memcpy(s->hello.vm_id, s->cfg.vm_id, sizeof(s->hello.vm_id));
    memcpy(s->hello.vm_name, s->cfg.vm_name, sizeof(s->hello.vm_name));
    int rc = open_control(s, w, err);
    if (rc < 0)
        return rc;
    memcpy(s->hello.session, w->session, sizeof(s->hello.session));
    struct rp_error why = {0};
    unsigned joined = 0;
    for (unsigned i = 0; i < s->cfg.lanes; i++) {
        /* Where rdma could not be had for the control connection, its lanes are left to the mender. */
        if (!s->missing_path[0] && join_lane(s, i, s->cfg.connect_ms, &why) == 0) {
            joined++;
            continue;
        }
        rp_link_miss_lane(s, i);
        if (!s->missing_path[0])
            missing(s, "LANE_MISSING", i, &why);
    }
    if (s->cfg.have_spare)
        open_spare(s);
    struct rp_bundle_stats b;
    rp_bundle_stats(s->bundle, &b);
    if (b.lanes > 0)
        return 0;
    return why.code ? rp_error_set(err, why.code, "%s", why.text) : rp_error_set(err, EPIPE, "no lane could be opened");
}

/* --- later --- */

/* An attempt that ends with a dead standby is one that its loss has to wait for: try while it is heard. */
static bool heard_lately(struct link_sink *s)
{
    return rp_clock_ns() - atomic_load(&s->heard_ns) < (uint64_t)s->cfg.heartbeat_ms * 3000000u;
}

static void lane_is_back(struct link_sink *s, unsigned lane)
{
    struct rp_bundle_stats b;
    rp_bundle_stats(s->bundle, &b);
    rp_events_emit(s->cfg.events, atomic_load(&s->epoch), "LANE_BACK", "{\"lane\": %u, \"transport\": \"%s\", \"lanes\": %u}", lane,
                   lane == SPARE_LANE ? "tcp" : b.transport, b.lanes);
}

/* It is sought now. Not when it is there: it may be lost again before anybody could say so, and that is to stand. */
static void take_lane(struct link_sink *s, unsigned lane)
{
    pthread_mutex_lock(&s->lock);
    s->missing_lanes &= ~(1u << lane);
    pthread_mutex_unlock(&s->lock);
}

static void take_path(struct link_sink *s, unsigned which)
{
    pthread_mutex_lock(&s->lock);
    s->missing_path[which] = false;
    pthread_mutex_unlock(&s->lock);
}

/* One attempt at everything that is missing; the first failure on a way ends the attempts on it. True: nothing is missing. */
static bool mend(struct link_sink *s, uint32_t lanes, const bool paths[2])
{
    bool failed[2] = {false, false};
    struct rp_error why = {0};
    for (unsigned i = 0; i < 2; i++) {
        if (!paths[i])
            continue;
        take_path(s, i);
        failed[i] = join_path(s, i, MEND_CONNECT_MS, &why) < 0;
        if (failed[i])
            rp_link_miss_path(s, i);
        else
            rp_events_emit(s->cfg.events, atomic_load(&s->epoch), "PATH_BACK", "{\"path\": %u}", i);
    }
    for (unsigned i = 0; i < RP_LANES_MAX; i++) {
        unsigned way = i == SPARE_LANE;
        if (!(lanes & 1u << i) || failed[way])
            continue;
        take_lane(s, i);
        failed[way] = join_lane(s, i, MEND_CONNECT_MS, &why) < 0;
        if (failed[way])
            rp_link_miss_lane(s, i);
        else
            lane_is_back(s, i);
    }
    return !failed[0] && !failed[1];
}

void *rp_link_mend_main(void *arg)
{
    struct link_sink *s = arg;
    unsigned pause_ms = MEND_FIRST_MS;
    pthread_mutex_lock(&s->lock);
    while (!atomic_load(&s->cancelled) && !s->over) {
        bool paths[2] = {s->missing_path[0], s->missing_path[1]};
        uint32_t lanes = s->missing_lanes;
        if (!lanes && !paths[0] && !paths[1]) {
            pthread_cond_wait(&s->change, &s->lock);
            continue;
        }
        uint64_t until = rp_clock_ns() + pause_ms * 1000000ull;
        while (!atomic_load(&s->cancelled) && !s->over && rp_cond_wait_until(&s->change, &s->lock, until) == 0)
            ;
        if (atomic_load(&s->cancelled) || s->over)
            break;
        pthread_mutex_unlock(&s->lock);
        bool whole = heard_lately(s) && mend(s, lanes, paths);
        pause_ms = whole ? MEND_FIRST_MS : pause_ms * 2 < MEND_LAST_MS ? pause_ms * 2 : MEND_LAST_MS;
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}
