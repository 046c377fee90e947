/* The list of QMP command tables. */
#include "tools/qmp_tables.h"

int rp_qmp_tables_add(struct rp_vm *vm, struct rp_error *err)
{
    static struct rp_qmp_table (*const tables[])(void) = {
        rp_qmp_vm_table,
        rp_qmp_info_table,
        rp_qmp_job_table,
        rp_qmp_checkpoint_table,
        rp_qmp_protect_table,
    };
    for (unsigned i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
        int rc = rp_qmp_add(vm->qmp, tables[i](), vm, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}
