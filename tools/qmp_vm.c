/* QMP commands that act on the machine. Names and meaning are QEMU's (qapi/misc.json, run-state.json). */
#include "tools/protection.h"
#include "tools/qmp_tables.h"

#include <errno.h>

static int cmd_stop(struct rp_qmp_call *call, struct rp_error *err)
{
    struct rp_vm *vm = call->ctx;
    return rp_machine_pause(vm->machine, RP_PAUSE_USER, err);
}

static int cmd_cont(struct rp_qmp_call *call, struct rp_error *err)
{
    struct rp_vm *vm = call->ctx;
    int rc = rp_machine_resume(vm->machine, RP_PAUSE_USER, err);
    unsigned still = rc == 0 ? rp_machine_paused(vm->machine) : 0;
    if (still & RP_PAUSE_LEASE)
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "it stands still because its lease was lost; it goes on by itself when nobody "
                             "has run it since");
    if (still & RP_PAUSE_STANDBY)
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "it stands still because it has no standby (--on-loss pause); it goes on when "
                             "it is protected again, or unprotect it first");
    return rc;
}

static int cmd_powerdown(struct rp_qmp_call *call, struct rp_error *err)
{
    struct rp_vm *vm = call->ctx;
    if (rp_machine_state(vm->machine) == RP_VM_PAUSED)
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "it is paused and cannot notice its power button; resume it first, or quit");
    rp_machine_powerdown(vm->machine);
    return 0;
}

static int cmd_reset(struct rp_qmp_call *call, struct rp_error *err)
{
    return rp_machine_reset(((struct rp_vm *)call->ctx)->machine, err);
}

static int cmd_quit(struct rp_qmp_call *call, struct rp_error *err)
{
    (void)err;
    struct rp_vm *vm = call->ctx;
    if (vm->machine)
        rp_machine_quit(vm->machine);
    else
        rp_vm_leave(vm, RP_EXIT_DONE);
    return 0;
}

static int cmd_balloon(struct rp_qmp_call *call, struct rp_error *err)
{
    json_int_t bytes = json_integer_value(json_object_get(call->args, "value"));
    if (bytes == 0)
        return rp_error_set(err, EINVAL, "\"value\" is the RAM in bytes that the guest shall have: more than 0");
    return rp_machine_balloon_set(((struct rp_vm *)call->ctx)->machine, (uint64_t)bytes, err);
}

static const struct rp_qmp_arg balloon_args[] = {{"value", RP_QMP_SIZE, false}, {.name = NULL}};

static const struct rp_qmp_command commands[] = {
    {.name = "stop", .run = cmd_stop},
    {.name = "cont", .run = cmd_cont},
    {.name = "system_powerdown", .run = cmd_powerdown},
    {.name = "system_reset", .run = cmd_reset},
    {.name = "quit", .run = cmd_quit, .early = true},
    {.name = "balloon", .run = cmd_balloon, .args = balloon_args},
};

struct rp_qmp_table rp_qmp_vm_table(void)
{
    return (struct rp_qmp_table){commands, sizeof(commands) / sizeof(commands[0])};
}
