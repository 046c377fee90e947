/*
 * event.h - the one event log (INV-7): whatever the engine or the machine decides, with its reason.
 *
 * Events go to a bounded ring, to every subscriber (QMP clients, `reprise top`), and travel with the VM as the
 * section "history". Name: QMP style, upper case ("RESUME", "PROTECT_LOST"). Data: one JSON object as text.
 * Any thread may emit; subscribers are called under the log's lock and must only hand the event on.
 */
#ifndef RP_CORE_EVENT_H
#define RP_CORE_EVENT_H

#include "core/epoch.h"

struct rp_event {
    uint64_t wall_ns;
    uint64_t epoch;             /* the VM's newest epoch then, 0: none */
    char name[32];
    char host[32];
    char data[192];             /* JSON object, "{}" at least; cut values are marked by the emitter */
};

extern const struct rp_state_table rp_history_table;

struct rp_events;
int rp_events_create(unsigned capacity, struct rp_events **out) RP_MUST_CHECK; /* -ENOMEM */
void rp_events_destroy(struct rp_events *ev);
/* fmt gives the JSON object's text. ev == NULL: nothing happens. */
void rp_events_emit(struct rp_events *ev, uint64_t epoch, const char *name, const char *fmt, ...) RP_PRINTF(4, 5);
/* Makes `text` fit to stand in such an object: what ends a JSON string, or cannot be in one, becomes an apostrophe. */
void rp_event_plain(char *text);
bool rp_event_is_plain(const char *text);     /* it is fit as it is */
/* For what a guest can cause as often as it likes: true once a second at most, *said_ns (0: never yet) keeps when. */
bool rp_event_due(uint64_t *said_ns);
/* fn is called for each event from now on. Returns an id for unsubscribe, or -ENOMEM. */
int rp_events_subscribe(struct rp_events *ev, void (*fn)(void *ctx, const struct rp_event *e), void *ctx);
void rp_events_unsubscribe(struct rp_events *ev, int id);
/* Copies up to max newest events, oldest first; returns how many. */
unsigned rp_events_copy(struct rp_events *ev, struct rp_event *out, unsigned max);
/* How many have been emitted here, ever: has anything been added since? */
uint64_t rp_events_count(struct rp_events *ev);
/* The history as a section, and back (hostile bytes refused; appended before what is there; ev == NULL: they are looked at only). */
int rp_events_save(struct rp_events *ev, struct rp_sections *s, struct rp_error *err) RP_MUST_CHECK; /* -ENOMEM */
int rp_events_load(struct rp_events *ev, const struct rp_section *s, struct rp_error *err) RP_MUST_CHECK;

#endif
