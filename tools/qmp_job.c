/* QMP commands about jobs (QEMU's qapi/job.json). */
#include "tools/qmp_tables.h"

#include <errno.h>

static int query_jobs(struct rp_qmp_call *call, struct rp_error *err)
{
    call->result = rp_jobs_query(((struct rp_vm *)call->ctx)->jobs);
    return call->result ? 0 : rp_error_set(err, ENOMEM, "out of memory");
}

static int job_cancel(struct rp_qmp_call *call, struct rp_error *err)
{
    return rp_job_cancel(((struct rp_vm *)call->ctx)->jobs, json_string_value(json_object_get(call->args, "id")), err);
}

static const struct rp_qmp_arg id_args[] = {{"id", RP_QMP_STR, false}, {.name = NULL}};

static const struct rp_qmp_command commands[] = {
    {.name = "query-jobs", .run = query_jobs, .early = true},
    {.name = "job-cancel", .run = job_cancel, .args = id_args},
};

struct rp_qmp_table rp_qmp_job_table(void)
{
    return (struct rp_qmp_table){commands, sizeof(commands) / sizeof(commands[0])};
}
