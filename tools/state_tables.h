/* state_tables.h - the one registry of everything that a stream holds as a state table: the epoch's own, the machine's. */
#ifndef RP_TOOLS_STATE_TABLES_H
#define RP_TOOLS_STATE_TABLES_H

#include "core/state.h"

/* The i-th table; NULL beyond the last. */
const struct rp_state_table *rp_state_table_at(unsigned i);
/* The table of the section with this name; NULL: this reprise knows none. */
const struct rp_state_table *rp_state_table_find(const char *section);

#endif
