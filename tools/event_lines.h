/*
 * event_lines.h - what happens to a VM, as lines on standard error: whoever reads the journal of a unit has neither QMP nor `reprise history`.
 * Which events, and how loud, stands in event_names.c.
 *
 *     any thread: event ─► bounded ring ─► control thread: rp_event_lines_say ─► rp_log
 *
 * Emitting never waits for standard error; when more come than are said, the oldest go, and that is said.
 */
#ifndef RP_TOOLS_EVENT_LINES_H
#define RP_TOOLS_EVENT_LINES_H

#include "core/event.h"

struct rp_event_lines;
/* Borrows both. */
int rp_event_lines_create(struct rp_events *events, const char *vm_name, struct rp_event_lines **out, struct rp_error *err) RP_MUST_CHECK;
/* Says what is left. NULL: nothing. */
void rp_event_lines_destroy(struct rp_event_lines *l);
/* Readable while something is to be said. */
int rp_event_lines_fd(const struct rp_event_lines *l);
void rp_event_lines_say(struct rp_event_lines *l);

/* `TAKEN_OVER at epoch 91: taken over from a primary that was lost (term 2, …)`: an event as the text of a line. */
void rp_event_line(const struct rp_event *e, char *out, size_t size);

#endif
