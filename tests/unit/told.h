/* told.h - how often an event stands in a VM's history. */
#ifndef RP_TESTS_UNIT_TOLD_H
#define RP_TESTS_UNIT_TOLD_H

#include "core/event.h"

#include <string.h>

static inline unsigned told(struct rp_events *events, const char *name)
{
    struct rp_event e[128];
    unsigned n = rp_events_copy(events, e, 128), found = 0;
    for (unsigned i = 0; i < n; i++)
        found += strcmp(e[i].name, name) == 0;
    return found;
}

#endif
