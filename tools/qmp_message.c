/* What a QMP server says; the contract is in qmp_message.h. */
#include "tools/qmp_message.h"

#include "tools/json.h"
#include "tools/version.h"

/* Steals msg. */
static char *dump(json_t *msg)
{
    char *text = msg ? json_dumps(msg, JSON_COMPACT) : NULL;
    json_decref(msg);
    return text;
}

/* Steals value. */
static char *answer(const char *kind, json_t *value, json_t *id)
{
    json_t *m = json_object();
    json_object_set_new(m, kind, value);
    if (id)
        json_object_set(m, "id", id);
    return dump(m);
}

char *rp_qmp_greeting_text(void)
{
    return dump(json_pack("{s:{s:{s:{s:i,s:i,s:i},s:s},s:[]}}", "QMP", "version", "qemu", "major", RP_VERSION_MAJOR, "minor",
                          RP_VERSION_MINOR, "micro", RP_VERSION_MICRO, "package", "reprise", "capabilities"));
}

char *rp_qmp_return_text(json_t *result, json_t *id)
{
    return answer("return", result ? result : json_object(), id);
}

char *rp_qmp_error_text(const char *class, const struct rp_error *err, json_t *id)
{
    json_t *e = json_pack("{s:s, s:o}", "class", class, "desc", rp_json_readable(err->text));
    if (e && err->exit != RP_EXIT_FAILED && err->exit != RP_EXIT_DONE)
        json_object_set_new(e, "exit", json_integer(err->exit));    /* ours: the exit code a command should give */
    return answer("error", e, id);
}

char *rp_qmp_event_text(const struct rp_event *e, unsigned lost)
{
    json_t *data = json_loads(e->data, 0, NULL);
    if (!data)
        data = json_pack("{s:s}", "text", e->data);
    if (lost)
        json_object_set_new(data, "events-lost", json_integer(lost));
    return dump(json_pack("{s:{s:I,s:I}, s:s, s:o}", "timestamp", "seconds", (json_int_t)(e->wall_ns / 1000000000u), "microseconds",
                          (json_int_t)(e->wall_ns % 1000000000u / 1000u), "event", e->name, "data", data ? data : json_object()));
}
