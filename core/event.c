#include "core/event.h"

#include "core/clock.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define SUBSCRIBERS_MAX 64

struct subscriber {
    int id;     /* 0: free */
    void (*fn)(void *ctx, const struct rp_event *e);
    void *ctx;
};

struct rp_events {
    pthread_mutex_t lock;
    struct rp_event *ring;      /* lock */
    unsigned capacity, head, count; /* lock */
    uint64_t emitted;           /* lock */
    int next_id;                /* lock */
    struct subscriber subs[SUBSCRIBERS_MAX];    /* lock */
    char host[32];
};

int rp_events_create(unsigned capacity, struct rp_events **out)
{
    struct rp_events *ev = calloc(1, sizeof(*ev));
    if (!ev || !(ev->ring = calloc(capacity, sizeof(*ev->ring)))) {
        free(ev);
        return -ENOMEM;
    }
    ev->capacity = capacity;
    ev->next_id = 1;
    pthread_mutex_init(&ev->lock, NULL);
    if (gethostname(ev->host, sizeof(ev->host) - 1) < 0)
        snprintf(ev->host, sizeof(ev->host), "?");
    *out = ev;
    return 0;
}

void rp_events_destroy(struct rp_events *ev)
{
    if (!ev)
        return;
    pthread_mutex_destroy(&ev->lock);
    free(ev->ring);
    free(ev);
}

/* lock held */
static void append(struct rp_events *ev, const struct rp_event *e)
{
    if (ev->count == ev->capacity) {
        ev->head = (ev->head + 1) % ev->capacity;
        ev->count--;
    }
    ev->ring[(ev->head + ev->count++) % ev->capacity] = *e;
}

void rp_events_emit(struct rp_events *ev, uint64_t epoch, const char *name, const char *fmt, ...)
{
    if (!ev)
        return;
    struct rp_event e = {.wall_ns = rp_wall_ns(), .epoch = epoch};
    snprintf(e.name, sizeof(e.name), "%s", name);
    memcpy(e.host, ev->host, sizeof(e.host));
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(e.data, sizeof(e.data), fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof(e.data))
        snprintf(e.data, sizeof(e.data), "{\"truncated\": true}");
    pthread_mutex_lock(&ev->lock);
    append(ev, &e);
    ev->emitted++;
    for (int i = 0; i < SUBSCRIBERS_MAX; i++)
        if (ev->subs[i].id)
            ev->subs[i].fn(ev->subs[i].ctx, &e);
    pthread_mutex_unlock(&ev->lock);
}

static bool fits(char c)
{
    return c >= ' ' && c <= '~' && c != '"' && c != '\\';
}

void rp_event_plain(char *text)
{
    for (; *text; text++)
        if (!fits(*text))
            *text = '\'';
}

bool rp_event_is_plain(const char *text)
{
    while (*text && fits(*text))
        text++;
    return !*text;
}

bool rp_event_due(uint64_t *said_ns)
{
    uint64_t now = rp_clock_ns();
    if (*said_ns && now - *said_ns < 1000000000u)
        return false;
    *said_ns = now;
    return true;
}

int rp_events_subscribe(struct rp_events *ev, void (*fn)(void *ctx, const struct rp_event *e), void *ctx)
{
    int id = -ENOMEM;
    pthread_mutex_lock(&ev->lock);
    for (int i = 0; i < SUBSCRIBERS_MAX; i++)
        if (!ev->subs[i].id) {
            id = ev->next_id++;
            ev->subs[i] = (struct subscriber){.id = id, .fn = fn, .ctx = ctx};
            break;
        }
    pthread_mutex_unlock(&ev->lock);
    return id;
}

void rp_events_unsubscribe(struct rp_events *ev, int id)
{
    pthread_mutex_lock(&ev->lock);
    for (int i = 0; i < SUBSCRIBERS_MAX; i++)
        if (ev->subs[i].id == id)
            ev->subs[i].id = 0;
    pthread_mutex_unlock(&ev->lock);
}

unsigned rp_events_copy(struct rp_events *ev, struct rp_event *out, unsigned max)
{
    pthread_mutex_lock(&ev->lock);
    unsigned n = ev->count < max ? ev->count : max;
    for (unsigned i = 0; i < n; i++)
        out[i] = ev->ring[(ev->head + ev->count - n + i) % ev->capacity];
    pthread_mutex_unlock(&ev->lock);
    return n;
}

uint64_t rp_events_count(struct rp_events *ev)
{
    pthread_mutex_lock(&ev->lock);
    uint64_t n = ev->emitted;
    pthread_mutex_unlock(&ev->lock);
    return n;
}

/* --- the history as a section: as many of the newest events as fit --- */

#define HISTORY_MAX 256

struct history_state {
    uint32_t count;
    uint32_t pad;
    struct rp_event events[HISTORY_MAX];
};

RP_TABLE(rp_event_table, "event", 1, struct rp_event,
    RP_U64(struct rp_event, wall_ns, 1),
    RP_U64(struct rp_event, epoch, 2),
    RP_TEXT(struct rp_event, name, 3),
    RP_TEXT(struct rp_event, host, 4),
    RP_TEXT(struct rp_event, data, 5));

static int history_validate(const void *state, struct rp_error *err)
{
    const struct history_state *h = state;
    for (uint32_t i = 0; i < h->count; i++)
        if (!memchr(h->events[i].name, 0, sizeof(h->events[i].name)) || !memchr(h->events[i].host, 0, sizeof(h->events[i].host)) ||
            !memchr(h->events[i].data, 0, sizeof(h->events[i].data)))
            return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "history: event %u: a text has no end", i);
    return 0;
}

static const struct rp_field history_fields[] = {
    RP_U32(struct history_state, count, 1),
    RP_PAD(struct history_state, pad),
    RP_STRUCTS(struct history_state, events, 2, &rp_event_table, count),
};
const struct rp_state_table rp_history_table = {
    .name = "history", .version = 1, .size = sizeof(struct history_state), .fields = history_fields,
    .nfields = sizeof(history_fields) / sizeof(history_fields[0]), .validate = history_validate,
};

int rp_events_save(struct rp_events *ev, struct rp_sections *s, struct rp_error *err)
{
    struct history_state *h = calloc(1, sizeof(*h));
    if (!h)
        return rp_error_set(err, ENOMEM, "no memory for the history");
    h->count = rp_events_copy(ev, h->events, HISTORY_MAX);
    int rc = rp_sections_add(s, &rp_history_table, 0, h, err);
    free(h);
    return rc;
}

/* lock held */
static bool is_known(const struct rp_events *ev, const struct rp_event *e)
{
    for (unsigned i = 0; i < ev->count; i++) {
        const struct rp_event *own = &ev->ring[(ev->head + i) % ev->capacity];
        if (own->wall_ns == e->wall_ns && strcmp(own->name, e->name) == 0 && strcmp(own->host, e->host) == 0)
            return true;
    }
    return false;
}

/* lock held. What travelled takes its place in time; what came back is here already. Of what does not fit, the oldest goes. */
static int merge(struct rp_events *ev, struct rp_event *events, unsigned n)
{
    struct rp_event *all = malloc((ev->count + n + 1) * sizeof(*all));
    unsigned fresh = 0, total = 0, own = 0;
    if (!all)
        return -ENOMEM;
    for (unsigned i = 0; i < n; i++)
        if (!is_known(ev, &events[i]))
            events[fresh++] = events[i];
    for (unsigned i = 0; i < fresh || own < ev->count;) {
        const struct rp_event *here = &ev->ring[(ev->head + own) % ev->capacity];
        bool theirs = own == ev->count || (i < fresh && events[i].wall_ns <= here->wall_ns);
        all[total++] = theirs ? events[i++] : *here;
        own += !theirs;
    }
    ev->head = ev->count = 0;
    for (unsigned i = 0; i < total; i++)
        append(ev, &all[i]);
    free(all);
    return 0;
}

int rp_events_load(struct rp_events *ev, const struct rp_section *s, struct rp_error *err)
{
    struct history_state *h = calloc(1, sizeof(*h));
    if (!h)
        return rp_error_set(err, ENOMEM, "no memory for the history");
    int rc = rp_section_decode(&rp_history_table, s, h, err);
    if (rc == 0 && ev) {
        pthread_mutex_lock(&ev->lock);
        rc = merge(ev, h->events, h->count);
        pthread_mutex_unlock(&ev->lock);
        if (rc < 0)
            rp_error_set(err, rc, "no memory for the history");
    }
    free(h);
    return rc;
}
