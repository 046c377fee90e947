/*
 * qmp_command.h - QMP commands as const tables: a name, the arguments it takes, the function that runs it. Commands of
 * several owners stand side by side, each table with its owner's ctx. Thread: the control thread, everywhere.
 */
#ifndef RP_TOOLS_QMP_COMMAND_H
#define RP_TOOLS_QMP_COMMAND_H

#include "core/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define RP_QMP_TABLES_MAX 16u

enum rp_qmp_type { RP_QMP_STR, RP_QMP_BOOL, RP_QMP_INT, RP_QMP_SIZE, RP_QMP_ANY };  /* SIZE: not negative */
struct rp_qmp_arg {
    const char *name;
    uint8_t type;       /* enum rp_qmp_type */
    bool optional;
};

struct rp_qmp_call {
    void *ctx;          /* of the table */
    json_t *args;       /* borrowed; an object that agrees with the command's argument table */
    json_t *result;     /* out: the answer; NULL stands for {} */
};
struct rp_qmp_command {
    const char *name;
    /* 0, or -errno with the sentence that becomes the error's "desc" (class GenericError; DeviceNotFound for ENODEV). It does not name
     * the VM: who asks knows, and the command's side puts the name in front (client.h). */
    int (*run)(struct rp_qmp_call *call, struct rp_error *err);
    const struct rp_qmp_arg *args;  /* ends with name == NULL; NULL: takes none */
    bool early;         /* also while there is a `why_not`: needs no machine */
};

struct rp_qmp_table { const struct rp_qmp_command *commands; unsigned n; };

struct rp_qmp_commands {    /* embedded; zeroed it has none */
    struct rp_qmp_table tables[RP_QMP_TABLES_MAX];
    void *ctx[RP_QMP_TABLES_MAX];
    unsigned ntables;
    const char *why_not;    /* borrowed: only early commands run, the others are refused with it; NULL: all run */
};

/* Borrows the commands. -EOVERFLOW: more than RP_QMP_TABLES_MAX. */
int rp_qmp_commands_add(struct rp_qmp_commands *c, struct rp_qmp_table table, void *ctx, struct rp_error *err) RP_MUST_CHECK;
/* Runs what `message` (borrowed; "execute" is a string in it) asks for, after its arguments were checked against the
 * command's table. The answer, return or error, as text (qmp_message.h); NULL: no memory. */
char *rp_qmp_commands_run(const struct rp_qmp_commands *c, json_t *message);
/* {"name": …} for each command of every table. */
json_t *rp_qmp_commands_list(const struct rp_qmp_commands *c);

#endif
