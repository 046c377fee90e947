/* Verbs that tell a running VM to do something: pause, resume, powerdown, reset, quit. */
#include "tools/client.h"
#include "tools/verbs.h"

struct control_opts {
    bool wait;
    uint64_t timeout_ns;
};

static const struct control_opts control_defaults = {.timeout_ns = RP_CLIENT_END_NS};

static const struct rp_opt wait_options[] = {
    {.name = "wait", .kind = RP_OPT_FLAG, .offset = offsetof(struct control_opts, wait), .help = "Return once the VM has ended."},
    {.name = "timeout", .arg = "DURATION", .kind = RP_OPT_DURATION, .offset = offsetof(struct control_opts, timeout_ns),
     .help = "How long to wait for that; 60s unless given, 0 for ever."},
};

static int control(const char *name, const char *command, bool wait, uint64_t timeout_ns, struct rp_error *err)
{
    struct rp_client *c = NULL;
    int rc = rp_client_open(name, &c, err);
    if (rc == 0)
        rc = rp_client_call(c, command, NULL, NULL, err);
    if (rc == 0 && wait) {
        rp_client_timeout(c, timeout_ns);
        rc = rp_client_wait_end(c, err);
    }
    rp_client_close(c);
    return rc;
}

/* The verb and its QMP command. */
static int run(const struct rp_verb *v, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)n;
    const struct control_opts *o = opts;
    const char *command = v == &rp_verb_pause ? "stop" : v == &rp_verb_resume ? "cont" : v == &rp_verb_reset ? "system_reset"
                        : v == &rp_verb_powerdown ? "system_powerdown" : "quit";
    bool wait = v == &rp_verb_quit || (v == &rp_verb_powerdown && o->wait);
    return control(operands[0], command, wait, v->opts_size ? o->timeout_ns : RP_CLIENT_END_NS, err);
}

#define ONE_VM .operands = "NAME", .min_operands = 1, .max_operands = 1, .run = run

const struct rp_verb rp_verb_pause = {.name = "pause", ONE_VM, .summary = "Stop a VM's vCPUs until it is resumed."};
const struct rp_verb rp_verb_resume = {.name = "resume", ONE_VM, .summary = "Let a paused VM run."};
const struct rp_verb rp_verb_reset = {.name = "reset", ONE_VM, .summary = "Reset a VM, as its reset button would."};
const struct rp_verb rp_verb_quit = {.name = "quit", ONE_VM, .summary = "End a VM's process at once, without asking the guest.",
    .details = "Returns once the VM has let go of its disks and interfaces."};
const struct rp_verb rp_verb_powerdown = {.name = "powerdown", ONE_VM, .summary = "Press a VM's power button: the guest shuts down.",
    .groups = {RP_OPT_GROUP("Options", wait_options)}, .opts_size = sizeof(struct control_opts), .defaults = &control_defaults};
