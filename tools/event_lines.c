#include "tools/event_lines.h"

#include "core/log.h"
#include "tools/event_names.h"

#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RING 64u

struct rp_event_lines {
    struct rp_events *events;
    const char *vm_name;
    int subscription, fd;
    pthread_mutex_t lock;           /* leaf; taken under the event log's */
    struct rp_event ring[RING];     /* lock */
    unsigned head, count, lost;     /* lock */
};

static const struct rp_event_name *known(const char *name)
{
    const struct rp_event_name *e = rp_event_names;
    while (e->name && strcmp(e->name, name) != 0)
        e++;
    return e;       /* the last one has no name, and is quiet */
}

/* Any thread, under the event log's lock. */
static void on_event(void *ctx, const struct rp_event *e)
{
    struct rp_event_lines *l = ctx;
    if (known(e->name)->line == RP_LINE_NONE)
        return;
    pthread_mutex_lock(&l->lock);
    if (l->count == RING) {
        l->head = (l->head + 1) % RING;
        l->count--;
        l->lost++;
    }
    l->ring[(l->head + l->count++) % RING] = *e;
    pthread_mutex_unlock(&l->lock);
    (void)eventfd_write(l->fd, 1);
}

static bool next(struct rp_event_lines *l, struct rp_event *e, unsigned *lost)
{
    pthread_mutex_lock(&l->lock);
    bool any = l->count > 0;
    *lost = l->lost;
    l->lost = 0;
    if (any) {
        *e = l->ring[l->head];
        l->head = (l->head + 1) % RING;
        l->count--;
    }
    pthread_mutex_unlock(&l->lock);
    return any;
}

static void add(char *out, size_t size, const char *fmt, ...) RP_PRINTF(3, 4);
static void add(char *out, size_t size, const char *fmt, ...)
{
    size_t used = strlen(out);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(out + used, size - used, fmt, ap);
    va_end(ap);
}

/* " (term 2, run-us 310)": what is neither the reason nor what follows from it. */
static void add_data(char *out, size_t size, json_t *data)
{
    const char *key, *before = " (";
    json_t *v;
    json_object_foreach(data, key, v) {
        if (strcmp(key, "reason") == 0 || strcmp(key, "then") == 0 || strcmp(key, "epoch") == 0)
            continue;
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        add(out, size, "%s%s %s", before, key, json_is_string(v) ? json_string_value(v) : text ? text : "?");
        before = ", ";
        free(text);
    }
    if (before[0] == ',')
        add(out, size, ")");
}

void rp_event_line(const struct rp_event *e, char *out, size_t size)
{
    json_t *data = json_loads(e->data, 0, NULL);
    const char *says = known(e->name)->says, *reason = json_string_value(json_object_get(data, "reason")),
               *then = json_string_value(json_object_get(data, "then"));
    snprintf(out, size, "%s", e->name);
    if (e->epoch)
        add(out, size, " at epoch %llu", (unsigned long long)e->epoch);
    if (says)
        add(out, size, ": %s", says);
    add_data(out, size, data);
    if (reason && reason[0])
        add(out, size, ": %s", reason);
    if (then)
        add(out, size, "; then: %s", then);
    json_decref(data);
}

void rp_event_lines_say(struct rp_event_lines *l)
{
    static const enum rp_log_level levels[] = {[RP_LINE_WARN] = RP_LOG_WARN, [RP_LINE_NOTICE] = RP_LOG_NOTICE, [RP_LINE_INFO] = RP_LOG_INFO};
    struct rp_event e;
    eventfd_t n;
    unsigned lost;
    char line[512];
    (void)eventfd_read(l->fd, &n);
    while (next(l, &e, &lost)) {
        if (lost)
            rp_log(RP_LOG_WARN, "VM \"%s\": %u events are not told here; `reprise history` has them", l->vm_name, lost);
        rp_event_line(&e, line, sizeof(line));
        rp_log(levels[known(e.name)->line], "VM \"%s\": %s", l->vm_name, line);
    }
}

int rp_event_lines_fd(const struct rp_event_lines *l)
{
    return l->fd;
}

int rp_event_lines_create(struct rp_events *events, const char *vm_name, struct rp_event_lines **out, struct rp_error *err)
{
    struct rp_event_lines *l = calloc(1, sizeof(*l));
    if (!l)
        return rp_error_set(err, ENOMEM, "out of memory");
    l->events = events;
    l->vm_name = vm_name;
    pthread_mutex_init(&l->lock, NULL);
    l->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    l->subscription = l->fd < 0 ? -errno : rp_events_subscribe(events, on_event, l);
    if (l->subscription < 0) {
        int rc = rp_error_set(err, l->subscription, "events cannot be told on standard error: %s", strerror(-l->subscription));
        if (l->fd >= 0)
            close(l->fd);
        pthread_mutex_destroy(&l->lock);
        free(l);
        return rc;
    }
    *out = l;
    return 0;
}

void rp_event_lines_destroy(struct rp_event_lines *l)
{
    if (!l)
        return;
    rp_events_unsubscribe(l->events, l->subscription);
    rp_event_lines_say(l);
    close(l->fd);
    pthread_mutex_destroy(&l->lock);
    free(l);
}
