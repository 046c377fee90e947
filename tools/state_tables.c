#include "tools/state_tables.h"

#include "core/event.h"
#include "vmm/tables.h"

static const struct rp_state_table *const core_tables[] = {&rp_epoch_header_table, &rp_epoch_trailer_table, &rp_history_table};
#define NCORE (sizeof(core_tables) / sizeof(core_tables[0]))

const struct rp_state_table *rp_state_table_at(unsigned i)
{
    if (i < NCORE)
        return core_tables[i];
    for (unsigned k = 0; rp_vmm_tables[k]; k++)
        if (k == i - NCORE)
            return rp_vmm_tables[k];
    return NULL;
}

const struct rp_state_table *rp_state_table_find(const char *section)
{
    const struct rp_state_table *t;
    for (unsigned i = 0; (t = rp_state_table_at(i)); i++)
        if (strcmp(t->name, section) == 0)
            return t;
    return NULL;
}
