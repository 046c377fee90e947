/* QMP commands of protection: protect, unprotect, failover, query-protect, query-standby. */
#include "replicator/protect.h"
#include "tools/pair_options.h"
#include "tools/protection.h"
#include "tools/qmp_tables.h"
#include "tools/standby.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint64_t number(const json_t *args, const char *key, uint64_t otherwise)
{
    json_int_t n = json_integer_value(json_object_get(args, key));
    return n ? (uint64_t)n : otherwise;     /* 0: as if it were not given */
}

/* QMP's names and units for numbers that are options of the command, too; those say what is possible. */
static const struct number_arg { const char *key, *option; uint64_t unit; } numbers[] = {
    {"lease-ttl-ms", "lease-ttl", 1000000}, {"epoch-us", "epoch", 1000}, {"latency-us", "latency", 1000}, {"cpu", "cpu", 1},
    {"streams", "streams", 1}, {"heartbeat-ms", "heartbeat", 1000000},
};

static int check_number(const char *command, const json_t *args, const char *key, uint64_t min, uint64_t max, struct rp_error *err)
{
    json_int_t n = json_integer_value(json_object_get(args, key));
    if (!n || ((uint64_t)n >= min && (uint64_t)n <= max))
        return 0;
    return rp_error_exit(err, RP_EXIT_USAGE, ERANGE, "%s: %s %lld: out of range; between %llu and %llu can be had", command, key, (long long)n,
                         (unsigned long long)min, (unsigned long long)max);
}

/* What was multiplied, or put where it does not fit, is not used then. */
static int check_numbers(const json_t *args, struct rp_error *err)
{
    for (const struct number_arg *a = numbers; a < numbers + sizeof(numbers) / sizeof(numbers[0]); a++) {
        const struct rp_opt *o = rp_pair_option(a->option);
        int rc = check_number("protect", args, a->key, o->min / a->unit, o->max / a->unit, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static const char *text(const json_t *args, const char *key)
{
    return json_string_value(json_object_get(args, key));
}

static int cmd_protect(struct rp_qmp_call *call, struct rp_error *err)
{
    const json_t *a = call->args;
    const char *on_loss = text(a, "on-loss");
    struct rp_pair_options o = {
        .protect = text(a, "uri"), .lease = text(a, "lease"), .key_path = text(a, "key-file"),
        .lease_ttl_ns = number(a, "lease-ttl-ms", 0) * 1000000u, .epoch_ns = number(a, "epoch-us", 0) * 1000u,
        .latency_ns = number(a, "latency-us", 0) * 1000u, .bandwidth_bytes_s = number(a, "bandwidth", 0),
        .cpu_percent = (unsigned)number(a, "cpu", 0), .lanes = (unsigned)number(a, "streams", 1),
        .heartbeat_ns = number(a, "heartbeat-ms", 20) * 1000000u, .capture = text(a, "capture"),
    };
    int rc = check_numbers(a, err);
    if (rc < 0)
        return rc;
    if (on_loss && strcmp(on_loss, "run") != 0 && strcmp(on_loss, "pause") != 0)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "protect: on-loss \"%s\": not one of run, pause", on_loss);
    enum rp_capture_choice choice;
    if (o.capture && !rp_capture_choice_parse(o.capture, &choice))
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "protect: capture \"%s\": not one of auto, stop-and-copy, copy-on-write", o.capture);
    o.pause_on_loss = on_loss && strcmp(on_loss, "pause") == 0;
    return rp_protection_start(call->ctx, &o, json_is_true(json_object_get(a, "patient")), err);
}

static int cmd_unprotect(struct rp_qmp_call *call, struct rp_error *err)
{
    struct rp_vm *vm = call->ctx;
    if (!rp_protection_active(vm))
        return rp_error_exit(err, RP_EXIT_REFUSED, ENOENT, "it is not protected");
    if (rp_jobs_running(vm->jobs, "failover"))
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "it is being handed over");
    rp_protection_end(vm);
    return 0;
}

struct failover { struct rp_vm *vm; int timeout_ms; };

static int failover_run(struct rp_job *job, void *arg, struct rp_error *err)
{
    const struct failover *f = arg;
    (void)job;
    return rp_protection_switch(f->vm, f->timeout_ms, err);
}

static const struct rp_job_kind failover_kind = {.type = "failover", .run = failover_run, .free = free};

static int cmd_failover(struct rp_qmp_call *call, struct rp_error *err)
{
    struct rp_vm *vm = call->ctx;
    const char *id = NULL;
    int rc = check_number("failover", call->args, "timeout-ms", 1, INT32_MAX, err);
    if (rc < 0)
        return rc;
    if (json_is_true(json_object_get(call->args, "force")))
        return vm->standby ? rp_standby_force(vm, err) : rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "it runs here; \"force\" is for "
                                                                       "a standby whose primary is gone");
    if (vm->standby)
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "the VM does not run here: this is its standby, which takes over by itself when "
                             "its primary is dead; one that is behind does with --force, and loses what came later");
    if (!rp_protection_active(vm) || rp_protection_ending(vm))      /* a job holds on to it */
        return rp_error_exit(err, RP_EXIT_REFUSED, ENOENT, "it is not protected: there is no standby to go on with it");
    struct failover *f = calloc(1, sizeof(*f));
    if (!f)
        return rp_error_set(err, ENOMEM, "out of memory");
    *f = (struct failover){vm, (int)number(call->args, "timeout-ms", 60000)};
    rc = rp_job_start(vm->jobs, &failover_kind, NULL, true, f, &id, err);
    if (rc < 0)
        return rc;
    json_t *st = rp_protection_query(vm);
    const char *to = json_string_value(json_object_get(st, "standby"));
    call->result = json_pack("{s:s, s:s}", "job-id", id, "standby", to ? to : "");
    json_decref(st);
    return 0;
}

static int answer(struct rp_qmp_call *call, json_t *result, struct rp_error *err)
{
    call->result = result;
    return result ? 0 : rp_error_set(err, ENOMEM, "out of memory");
}

static int query_protect(struct rp_qmp_call *call, struct rp_error *err)
{
    return answer(call, rp_protection_query(call->ctx), err);
}

static int query_standby(struct rp_qmp_call *call, struct rp_error *err)
{
    return answer(call, rp_standby_query(call->ctx), err);
}

static const struct rp_qmp_arg protect_args[] = {
    {"uri", RP_QMP_STR, false}, {"lease", RP_QMP_STR, true}, {"lease-ttl-ms", RP_QMP_SIZE, true}, {"key-file", RP_QMP_STR, true},
    {"epoch-us", RP_QMP_SIZE, true}, {"latency-us", RP_QMP_SIZE, true}, {"bandwidth", RP_QMP_SIZE, true}, {"cpu", RP_QMP_SIZE, true},
    {"streams", RP_QMP_SIZE, true}, {"heartbeat-ms", RP_QMP_SIZE, true}, {"on-loss", RP_QMP_STR, true}, {"capture", RP_QMP_STR, true},
    {"patient", RP_QMP_BOOL, true},
    {.name = NULL},
};
static const struct rp_qmp_arg failover_args[] = {{"timeout-ms", RP_QMP_SIZE, true}, {"force", RP_QMP_BOOL, true}, {.name = NULL}};
static const struct rp_qmp_command commands[] = {
    {.name = "failover", .run = cmd_failover, .args = failover_args, .early = true},
    {.name = "protect", .run = cmd_protect, .args = protect_args},
    {.name = "unprotect", .run = cmd_unprotect},
    {.name = "query-protect", .run = query_protect},
    {.name = "query-standby", .run = query_standby, .early = true},
};

struct rp_qmp_table rp_qmp_protect_table(void)
{
    return (struct rp_qmp_table){commands, sizeof(commands) / sizeof(commands[0])};
}
