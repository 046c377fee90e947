/* `reprise history` and `reprise explain`: what happened to a VM, on whichever hosts, and why (INV-7). */
#include "tools/client.h"
#include "tools/event_names.h"
#include "tools/json.h"
#include "tools/verbs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct history_opts {
    unsigned max;
    bool json;
};

static const struct history_opts history_defaults = {.max = 512};
static const struct history_opts explain_defaults = {.max = 10};

#define AT(member) .offset = offsetof(struct history_opts, member)
static const struct rp_opt history_options[] = {
    {.name = "max", .arg = "N", .kind = RP_OPT_UINT, AT(max), .min = 1, .max = 512, .help = "At most the N newest; history: 512, explain: 10."},
    {.name = "json", .kind = RP_OPT_FLAG, AT(json), .help = "Print JSON for programs."},
};

/* What a decision's sentence begins with; NULL: it is none. */
static const char *says(const char *name)
{
    for (const struct rp_event_name *e = rp_event_names; e->name; e++)
        if (strcmp(e->name, name) == 0)
            return e->says;
    return NULL;
}

static void print_when(const json_t *e)
{
    json_int_t ns = json_integer_value(json_object_get(e, "wall-ns"));
    time_t s = (time_t)(ns / 1000000000);
    struct tm tm;
    char text[32] = "?";
    if (localtime_r(&s, &tm))
        strftime(text, sizeof(text), "%F %T", &tm);
    printf("%s.%03d  %-10s", text, (int)(ns / 1000000 % 1000), rp_json_str(e, "host"));
}

static void print_data(json_t *data, bool reason_last)
{
    const char *key;
    json_t *v;
    json_object_foreach(data, key, v) {
        if (reason_last && strcmp(key, "reason") == 0)
            continue;
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        printf(" %s=%s", key, json_is_string(v) ? json_string_value(v) : text ? text : "?");
        free(text);
    }
}

static void print_event(const json_t *e)
{
    print_when(e);
    printf("%8lld  %-20s", (long long)json_integer_value(json_object_get(e, "epoch")), rp_json_str(e, "name"));
    print_data(json_object_get(e, "data"), false);
    putchar('\n');
}

/* "copy-on-write off": what a decision between strategies was for. */
static void print_strategy(const json_t *data)
{
    const json_t *on = json_object_get(data, "on");
    if (*rp_json_str(data, "strategy"))
        printf(": %s%s", rp_json_str(data, "strategy"), on ? json_is_true(on) ? " on" : " off" : "");
}

/* One sentence: what was decided, and the reason that was kept with it. */
static void print_decision(const json_t *e)
{
    json_t *data = json_object_get(e, "data");
    const char *reason = rp_json_str(data, "reason"), *then = rp_json_str(data, "then");
    print_when(e);
    printf("  %s", says(rp_json_str(e, "name")));
    print_strategy(data);
    printf("%s%s%s%s", *reason ? ", because " : "", reason, *then ? "; then: " : "", then);
    if (!*reason && json_object_size(data)) {
        printf(" (");
        print_data(data, true);
        printf(" )");
    }
    putchar('\n');
}

/* The newest `max` that `wanted` accepts, "event" renamed to "name" as the other verbs have it. */
static json_t *pick(json_t *all, unsigned max, bool decisions_only)
{
    json_t *out = json_array();
    for (size_t i = json_array_size(all); i-- > 0 && json_array_size(out) < max;) {
        json_t *e = json_array_get(all, i);
        if (decisions_only && !says(rp_json_str(e, "event")))
            continue;
        json_t *copy = json_copy(e);
        json_object_set(copy, "name", json_object_get(e, "event"));
        json_object_del(copy, "event");
        json_array_insert_new(out, 0, copy);
    }
    return out;
}

static int run(const struct rp_verb *v, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)n;
    const struct history_opts *o = opts;
    bool explain = v == &rp_verb_explain;
    struct rp_client *c = NULL;
    json_t *all = NULL, *e;
    size_t i;
    int rc = rp_client_open(operands[0], &c, err);
    if (rc == 0)
        rc = rp_client_call(c, "query-history", NULL, &all, err);
    rp_client_close(c);
    if (rc < 0)
        return rc;
    json_t *list = pick(all, o->max, explain);
    if (o->json) {
        rc = json_dumpf(list, stdout, JSON_INDENT(2)) < 0 ? rp_error_set(err, EIO, "standard output: the JSON could not be written") : 0;
        putchar('\n');
    } else {
        json_array_foreach(list, i, e)
            (explain ? print_decision : print_event)(e);
    }
    json_decref(list);
    json_decref(all);
    return rc < 0 ? rc : RP_EXIT_DONE;
}

const struct rp_verb rp_verb_history = {
    .name = "history", .operands = "NAME", .min_operands = 1, .max_operands = 1,
    .summary = "Show what happened to a VM, oldest first; its history travels with it from host to host.",
    .groups = {RP_OPT_GROUP("Options", history_options)},
    .opts_size = sizeof(struct history_opts), .defaults = &history_defaults, .run = run,
};
const struct rp_verb rp_verb_explain = {
    .name = "explain", .operands = "NAME", .min_operands = 1, .max_operands = 1,
    .summary = "Show the newest decisions about a VM, each with its reason.",
    .groups = {RP_OPT_GROUP("Options", history_options)},
    .opts_size = sizeof(struct history_opts), .defaults = &explain_defaults, .run = run,
};
