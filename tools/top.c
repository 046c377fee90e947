/* `reprise top`: the VMs of this host, redrawn every second. */
#include "core/clock.h"
#include "tools/client.h"
#include "tools/protect_text.h"
#include "tools/runtime.h"
#include "tools/verbs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct top_opts {
    uint64_t every_ns;
    unsigned rounds;
    bool json;
};

static const struct top_opts top_defaults = {.every_ns = 1000000000u};

#define AT(member) .offset = offsetof(struct top_opts, member)
static const struct rp_opt top_options[] = {
    {.name = "every", .arg = "DURATION", .kind = RP_OPT_DURATION, AT(every_ns), .min = 10000000u, .max = 3600000000000u,
     .help = "Time between two looks; 1s unless given."},
    {.name = "rounds", .arg = "N", .kind = RP_OPT_UINT, AT(rounds), .min = 1, .max = 1000000, .help = "Stop after N looks; until Ctrl-C unless given."},
    {.name = "json", .kind = RP_OPT_FLAG, AT(json), .help = "Look once and print JSON for programs."},
};

static json_t *look_at(const char *name, struct rp_error *err)
{
    struct rp_client *c = NULL;
    json_t *vm = NULL, *protect = NULL;
    if (rp_client_open(name, &c, err) < 0)
        return NULL;            /* a socket left by a VM that was killed, or it ends just now */
    int rc = rp_client_call(c, "query-vm", NULL, &vm, err);
    if (rc == 0 && !json_object_get(vm, "standby") && rp_client_call(c, "query-protect", NULL, &protect, err) == 0)
        json_object_set_new(vm, "protect", protect);
    rp_client_close(c);
    return vm;
}

static int look(const char *only, json_t **out, struct rp_error *err)
{
    char **paths = NULL;
    unsigned n = 0;
    int rc = only ? 0 : rp_runtime_list(&paths, &n, err);
    if (rc < 0)
        return rc;
    *out = json_array();
    for (unsigned i = 0; i < (only ? 1 : n); i++) {
        json_t *vm = look_at(only ? only : paths[i], err);
        if (vm)
            json_array_append_new(*out, vm);
    }
    rp_runtime_list_free(paths, n);
    if (only && !json_array_size(*out))
        return err->code;
    rp_error_clear(err);
    return 0;
}

static void draw(const json_t *vms, bool terminal)
{
    size_t i;
    json_t *vm;
    time_t now = time(NULL);
    struct tm tm;
    char text[32] = "";
    if (localtime_r(&now, &tm))
        strftime(text, sizeof(text), "%T", &tm);
    printf("%s%s  %zu VM%s\n", terminal ? "\033[H\033[2J" : "", text, json_array_size(vms), json_array_size(vms) == 1 ? "" : "s");
    json_array_foreach(vms, i, vm) {
        printf("\n%s: %s, pid %lld\n", json_string_value(json_object_get(vm, "name")), json_string_value(json_object_get(vm, "status")),
               (long long)json_integer_value(json_object_get(vm, "pid")));
        if (json_object_get(vm, "standby"))
            rp_standby_print(json_object_get(vm, "standby"));
        else if (json_object_get(vm, "protect"))
            rp_protect_print(json_object_get(vm, "protect"));
    }
    fflush(stdout);
}

static int run(const struct rp_verb *v, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)v;
    const struct top_opts *o = opts;
    rp_client_hold_interrupts();
    for (unsigned round = 1;; round++) {
        json_t *vms = NULL;
        int rc = look(n ? operands[0] : NULL, &vms, err);
        if (rc == 0 && o->json) {
            json_dumpf(vms, stdout, JSON_INDENT(2));
            putchar('\n');
        } else if (rc == 0) {
            draw(vms, isatty(STDOUT_FILENO));
        }
        json_decref(vms);
        if (rc < 0 || o->json || round == o->rounds)
            return rc < 0 ? rc : RP_EXIT_DONE;
        if (rp_client_interrupted(o->every_ns))
            return RP_EXIT_DONE;
    }
}

const struct rp_verb rp_verb_top = {
    .name = "top", .operands = "[NAME]", .max_operands = 1,
    .summary = "Watch a VM, or all VMs that run or wait here.",
    .groups = {RP_OPT_GROUP("Options", top_options)},
    .opts_size = sizeof(struct top_opts), .defaults = &top_defaults, .run = run,
};
