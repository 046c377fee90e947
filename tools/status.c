/* `reprise status`: one VM in detail, or all in a table. */
#include "tools/client.h"
#include "tools/json.h"
#include "tools/protect_text.h"
#include "tools/runtime.h"
#include "tools/verbs.h"

#include <errno.h>
#include <stdlib.h>

struct status_opts { bool json; };

static const struct rp_opt status_options[] = {
    {.name = "json", .kind = RP_OPT_FLAG, .offset = offsetof(struct status_opts, json), .help = "Print JSON for programs."},
};

/* Optional parts: what this VM's version does not know is left out. Other failures are kept in rc. */
static void add(struct rp_client *c, json_t *into, const char *key, const char *command, int *rc, struct rp_error *err)
{
    json_t *part = NULL;
    if (*rc < 0)
        return;
    int got = rp_client_call(c, command, NULL, &part, err);
    if (got == 0)
        json_object_set_new(into, key, part);
    else if (got == -ENOSYS)
        rp_error_clear(err);
    else
        *rc = got;
}

static int collect(const char *name, json_t **out, struct rp_error *err)
{
    struct rp_client *c = NULL;
    json_t *vm = NULL;
    int rc = rp_client_open(name, &c, err);
    if (rc == 0)
        rc = rp_client_call(c, "query-vm", NULL, &vm, err);
    if (rc == 0 && !json_object_get(vm, "standby")) {
        add(c, vm, "disk", "query-blockstats", &rc, err);
        add(c, vm, "net", "query-nics", &rc, err);
        add(c, vm, "jobs", "query-jobs", &rc, err);
        add(c, vm, "protect", "query-protect", &rc, err);
    }
    rp_client_close(c);
    if (rc < 0)
        json_decref(vm);
    else
        *out = vm;
    return rc;
}

static void print_one(json_t *vm)
{
    size_t i;
    json_t *v;
    printf("%s: %s", rp_json_str(vm, "name"), rp_json_str(vm, "status"));
    json_array_foreach(json_object_get(vm, "paused-by"), i, v)
        printf("%s %s", i ? "," : " by", json_string_value(v));
    printf("%s%s\n", *rp_json_str(vm, "failure") ? ": " : "", rp_json_str(vm, "failure"));
    if (json_object_get(vm, "standby")) {
        printf("  %-24s %lld\n", "pid", rp_json_num(vm, "pid"));
        rp_standby_print(json_object_get(vm, "standby"));
        return;
    }
    printf("  %-24s %s\n  %-24s %lld\n", "uuid", rp_json_str(vm, "uuid"), "pid", rp_json_num(vm, "pid"));
    printf("  %-24s %lld vCPUs, %lld MiB, up %.1f s\n", "machine", rp_json_num(vm, "vcpus"), rp_json_num(vm, "memory-bytes") >> 20,
           (double)rp_json_num(vm, "uptime-ms") / 1e3);
    json_array_foreach(json_object_get(vm, "disk"), i, v) {
        json_t *s = json_object_get(v, "stats");
        printf("  %-24s %lld reads (%lld KiB), %lld writes (%lld KiB), %lld flushes\n", rp_json_str(v, "device"), rp_json_num(s, "rd_operations"),
               rp_json_num(s, "rd_bytes") >> 10, rp_json_num(s, "wr_operations"), rp_json_num(s, "wr_bytes") >> 10, rp_json_num(s, "flush_operations"));
    }
    json_array_foreach(json_object_get(vm, "net"), i, v)
        printf("  %-24s %s:%s, in %lld frames (%lld KiB), out %lld frames (%lld KiB)\n", rp_json_str(v, "mac"), rp_json_str(v, "backend"), rp_json_str(v, "name"),
               rp_json_num(v, "rx-frames"), rp_json_num(v, "rx-bytes") >> 10, rp_json_num(v, "tx-frames"), rp_json_num(v, "tx-bytes") >> 10);
    json_array_foreach(json_object_get(vm, "jobs"), i, v)
        printf("  %-24s %s%s%s\n", rp_json_str(v, "id"), rp_json_str(v, "status"), *rp_json_str(v, "error") ? ": " : "", rp_json_str(v, "error"));
    if (json_object_get(vm, "protect"))
        rp_protect_print(json_object_get(vm, "protect"));
}

static int print_json(json_t *j, struct rp_error *err)
{
    if (json_dumpf(j, stdout, JSON_INDENT(2)) < 0)
        return rp_error_set(err, EIO, "standard output: the JSON could not be written");
    putchar('\n');
    return RP_EXIT_DONE;
}

static void print_row(const json_t *vm)
{
    const json_t *standby = json_object_get(vm, "standby");
    char text[600];
    if (standby)
        rp_standby_summary(standby, text, sizeof(text));
    else
        rp_protect_summary(json_object_get(vm, "protect"), text, sizeof(text));
    printf("%-20s %-14s %8lld %6lld %6lld MiB %8lld s  %s%s\n", rp_json_str(vm, "name"), rp_json_str(vm, "status"), rp_json_num(vm, "pid"), rp_json_num(vm, "vcpus"),
           rp_json_num(vm, "memory-bytes") >> 20, rp_json_num(vm, "uptime-ms") / 1000, standby ? "standby: " : "", text);
}

static int status_all(bool json, struct rp_error *err)
{
    char **paths = NULL;
    unsigned n = 0;
    int rc = rp_runtime_list(&paths, &n, err);
    if (rc < 0)
        return rc;
    json_t *list = json_array();
    for (unsigned i = 0; i < n; i++) {
        json_t *vm = NULL;
        struct rp_error why = {0};
        size_t len = 0;
        const char *name = rp_runtime_name(paths[i], &len);
        rc = collect(paths[i], &vm, &why);
        if (rc < 0 && why.exit == RP_EXIT_NO_VM)
            continue;   /* a socket left by a VM that was killed */
        if (rc < 0)
            vm = json_pack("{s:s%, s:s, s:s}", "name", name, len, "status", "unknown", "failure", why.text);
        json_array_append_new(list, vm);
    }
    rp_runtime_list_free(paths, n);
    if (json) {
        rc = print_json(list, err);
    } else {
        size_t i;
        json_t *vm;
        rc = RP_EXIT_DONE;
        printf("%-20s %-14s %8s %6s %10s %10s  %s\n", "NAME", "STATUS", "PID", "VCPUS", "MEMORY", "UPTIME", "PROTECTED");
        json_array_foreach(list, i, vm)
            print_row(vm);
    }
    json_decref(list);
    return rc;
}

static int run(const struct rp_verb *v, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)v;
    const struct status_opts *o = opts;
    if (n == 0)
        return status_all(o->json, err);
    json_t *vm = NULL;
    int rc = collect(operands[0], &vm, err);
    if (rc < 0)
        return rc;
    if (o->json)
        rc = print_json(vm, err);
    else
        print_one(vm);
    json_decref(vm);
    return rc;
}

const struct rp_verb rp_verb_status = {
    .name = "status", .operands = "[NAME]", .max_operands = 1,
    .summary = "Show a VM's state, or all VMs that run or stand by here.",
    .details = "Of all VMs a table, whose last column says by whom each is protected (-: nobody has asked for it), or what a standby waits for. Of one VM "
               "also its protection: the goal that was set, how far a sync is, epochs and how far they lag, pauses, how long outputs waited, pages and "
               "bytes by codec, and the lease. Programs read --json; the text may change.",
    .groups = {RP_OPT_GROUP("Options", status_options)},
    .opts_size = sizeof(struct status_opts),
    .run = run,
};
