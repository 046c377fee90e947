/* Command tables: finding, checking and running; the contract is in qmp_command.h. */
#include "tools/qmp_command.h"

#include "tools/qmp_message.h"

#include <errno.h>

static const struct rp_qmp_command *command_find(const struct rp_qmp_commands *c, const char *name, void **ctx)
{
    for (unsigned t = 0; t < c->ntables; t++)
        for (unsigned i = 0; i < c->tables[t].n; i++)
            if (strcmp(c->tables[t].commands[i].name, name) == 0) {
                *ctx = c->ctx[t];
                return &c->tables[t].commands[i];
            }
    return NULL;
}

static const struct rp_qmp_arg *arg_find(const struct rp_qmp_arg *args, const char *name)
{
    for (; args && args->name; args++)
        if (strcmp(args->name, name) == 0)
            return args;
    return NULL;
}

static int arg_check(const struct rp_qmp_arg *a, const json_t *value, struct rp_error *err)
{
    static const char *const kind[] = {[RP_QMP_STR] = "a string", [RP_QMP_BOOL] = "true or false", [RP_QMP_INT] = "a whole number",
                                       [RP_QMP_SIZE] = "a whole number, not negative", [RP_QMP_ANY] = "anything"};
    bool good = true;
    switch ((enum rp_qmp_type)a->type) {
    case RP_QMP_STR: good = json_is_string(value); break;
    case RP_QMP_BOOL: good = json_is_boolean(value); break;
    case RP_QMP_INT: good = json_is_integer(value); break;
    case RP_QMP_SIZE: good = json_is_integer(value) && json_integer_value(value) >= 0; break;
    case RP_QMP_ANY: break;
    }
    return good ? 0 : rp_error_set(err, EINVAL, "argument '%s' must be %s", a->name, kind[a->type]);
}

static int args_check(const struct rp_qmp_command *cmd, json_t *args, struct rp_error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach(args, key, value) {
        const struct rp_qmp_arg *a = arg_find(cmd->args, key);
        if (!a)
            return rp_error_set(err, EINVAL, "%s takes no argument '%.64s'", cmd->name, key);
        int rc = arg_check(a, value, err);
        if (rc < 0)
            return rc;
    }
    for (const struct rp_qmp_arg *a = cmd->args; a && a->name; a++)
        if (!a->optional && !json_object_get(args, a->name))
            return rp_error_set(err, EINVAL, "%s needs the argument '%s'", cmd->name, a->name);
    return 0;
}

char *rp_qmp_commands_run(const struct rp_qmp_commands *c, json_t *message)
{
    struct rp_error err = {0};
    json_t *id = json_object_get(message, "id");
    const char *name = json_string_value(json_object_get(message, "execute"));
    void *ctx = NULL;
    const struct rp_qmp_command *cmd = command_find(c, name, &ctx);
    if (!cmd) {
        rp_error_set(&err, ENOENT, "The command %.64s has not been found", name);
        return rp_qmp_error_text("CommandNotFound", &err, id);
    }
    json_t *args = json_object_get(message, "arguments");
    json_t *none = args ? NULL : json_object();
    struct rp_qmp_call call = {.ctx = ctx, .args = args ? args : none};
    int rc = json_is_object(call.args) ? args_check(cmd, call.args, &err)
                                       : rp_error_set(&err, EINVAL, "\"arguments\" must be an object");
    if (rc == 0 && c->why_not && !cmd->early)
        rc = rp_error_exit(&err, RP_EXIT_REFUSED, EAGAIN, "%s: %s", cmd->name, c->why_not);
    if (rc == 0)
        rc = cmd->run(&call, &err);
    json_decref(none);
    if (rc < 0) {
        json_decref(call.result);
        return rp_qmp_error_text(rc == -ENODEV ? "DeviceNotFound" : "GenericError", &err, id);
    }
    return rp_qmp_return_text(call.result, id);
}

json_t *rp_qmp_commands_list(const struct rp_qmp_commands *c)
{
    json_t *list = json_array();
    json_array_append_new(list, json_pack("{s:s}", "name", "qmp_capabilities"));
    for (unsigned t = 0; t < c->ntables; t++)
        for (unsigned i = 0; i < c->tables[t].n; i++)
            json_array_append_new(list, json_pack("{s:s}", "name", c->tables[t].commands[i].name));
    return list;
}

int rp_qmp_commands_add(struct rp_qmp_commands *c, struct rp_qmp_table table, void *ctx, struct rp_error *err)
{
    if (c->ntables == RP_QMP_TABLES_MAX)
        return rp_error_set(err, EOVERFLOW, "qmp: more than %u command tables", RP_QMP_TABLES_MAX);
    c->tables[c->ntables] = table;
    c->ctx[c->ntables++] = ctx;
    return 0;
}
