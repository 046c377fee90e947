/*
 * qmp_tables.h - which command tables a VM's QMP server has. A new group of commands is one function here, one file
 * and one line in qmp_tables.c; every table's ctx is the struct rp_vm.
 */
#ifndef RP_TOOLS_QMP_TABLES_H
#define RP_TOOLS_QMP_TABLES_H

#include "tools/vm.h"

struct rp_qmp_table rp_qmp_vm_table(void);          /* qmp_vm.c: the machine */
struct rp_qmp_table rp_qmp_info_table(void);        /* qmp_info.c: query-… */
struct rp_qmp_table rp_qmp_job_table(void);         /* qmp_job.c */
struct rp_qmp_table rp_qmp_checkpoint_table(void);  /* qmp_checkpoint.c */
struct rp_qmp_table rp_qmp_protect_table(void);     /* qmp_protect.c */

/* Adds all of them, in the order of query-commands. */
int rp_qmp_tables_add(struct rp_vm *vm, struct rp_error *err) RP_MUST_CHECK;

#endif
