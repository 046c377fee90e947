/* tables.h - every state table of the machine, for `reprise inspect` and the tests that walk them all. */
#ifndef RP_VMM_TABLES_H
#define RP_VMM_TABLES_H

#include "core/state.h"

extern const struct rp_state_table *const rp_vmm_tables[];  /* NULL-terminated */

#endif
