/* `reprise failover`: a planned switchover: the standby goes on with the VM, nothing is lost, and this process ends. */
#include "core/clock.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/verbs.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define LOOK_MS 20

struct failover_opts {
    uint64_t timeout_ns;
    bool force, json;
};

static const struct failover_opts failover_defaults = {.timeout_ns = 60000000000u};

#define AT(member) .offset = offsetof(struct failover_opts, member)
static const struct rp_opt failover_options[] = {
    {.name = "timeout", .arg = "DURATION", .kind = RP_OPT_DURATION, AT(timeout_ns), .help = "How long it may take; 60s unless given."},
    {.name = "force", .kind = RP_OPT_FLAG, AT(force), .help = "Of a standby whose primary is gone: go on from the epoch that it holds although the VM has run without "
     "it since. What it did then is lost. As soon as nobody holds the lease."},
    {.name = "json", .kind = RP_OPT_FLAG, AT(json), .help = "Print the result as JSON."},
};

static int switch_over(struct rp_client *c, const struct failover_opts *o, json_t **result, struct rp_error *err)
{
    json_t *job = NULL;
    int rc = rp_client_call(c, "failover", json_pack("{s:I}", "timeout-ms", (json_int_t)(o->timeout_ns / 1000000u)), &job, err);
    if (rc < 0)
        return rc;
    rp_client_timeout(c, RP_CLIENT_END_NS);     /* once the standby has it, this VM ends, and may not answer any more */
    rc = rp_client_wait_job(c, json_string_value(json_object_get(job, "job-id")), NULL, NULL, NULL, err);
    if (rc == -EPIPE) {         /* the VM's process ends once the standby has it */
        rp_error_clear(err);
        rc = 0;
    }
    *result = job;
    return rc;
}

/* Until the standby is the VM, or the time is over. */
static int force(struct rp_client *c, const struct failover_opts *o, struct rp_error *err)
{
    uint64_t until = rp_clock_ns() + o->timeout_ns;
    int rc = rp_client_call(c, "failover", json_pack("{s:b}", "force", 1), NULL, err);
    for (bool there = false; rc == 0 && !there; nanosleep(&(struct timespec){.tv_nsec = LOOK_MS * 1000000}, NULL)) {
        json_t *status = NULL;
        rc = rp_client_call(c, "query-status", NULL, &status, err);
        there = rc == 0 && strcmp(json_string_value(json_object_get(status, "status")), "inmigrate") != 0;
        json_decref(status);
        if (rc == 0 && !there && rp_clock_ns() > until)
            rc = rp_error_exit(err, RP_EXIT_REFUSED, ETIMEDOUT, "it does not run here yet: the lease is held, or cannot be had (`reprise status` says "
                               "by whom, or why); the standby goes on trying");
    }
    return rc;
}

static int run(const struct rp_verb *v, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)v, (void)n;
    const struct failover_opts *o = opts;
    struct rp_client *c = NULL;
    json_t *job = NULL;
    uint64_t start = rp_clock_ns();
    int rc = rp_client_open(operands[0], &c, err);
    if (rc == 0)
        rc = o->force ? force(c, o, err) : switch_over(c, o, &job, err);
    rp_client_close(c);
    const char *to = json_string_value(json_object_get(job, "standby"));
    double s = (double)(rp_clock_ns() - start) / 1e9;
    if (rc == 0 && o->json)
        rp_json_print(json_pack("{s:o, s:f}", "standby", rp_json_readable(to ? to : o->force ? "" : "the standby"), "seconds", s));
    else if (rc == 0 && o->force)
        printf("it runs here now (%.2f s)\n", s);
    else if (rc == 0)
        printf("%s runs it now (%.2f s)\n", to ? to : "the standby", s);
    json_decref(job);
    return rc;
}

const struct rp_verb rp_verb_failover = {
    .name = "failover", .operands = "NAME", .min_operands = 1, .max_operands = 1,
    .summary = "Hand a protected VM over to its standby, on purpose and without loss.",
    .details = "The VM stands still for its last epoch, the lease is handed over, the standby goes on, and the VM's process here ends with exit "
               "code 0 (or is its next standby: `reprise run --then standby`). When the standby cannot, the VM goes on here. After the death of a host nothing has to be done: the standby takes over by itself.",
    .groups = {RP_OPT_GROUP("Options", failover_options)},
    .opts_size = sizeof(struct failover_opts), .defaults = &failover_defaults,
    .run = run,
};
