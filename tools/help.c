/* `reprise help`: the list of verbs, one verb's help, or its man page. */
#include "tools/verbs.h"

#include <errno.h>
#include <string.h>

struct help_opts { bool man; };

static const struct rp_opt help_options[] = {
    {.name = "man", .kind = RP_OPT_FLAG, .offset = offsetof(struct help_opts, man), .help = "Print a man page's source instead."},
};

static void list(FILE *out)
{
    fputs("reprise VERB [operands] [options]\n\nVirtual machines that outlive the host they run on.\n\n", out);
    for (const struct rp_verb *const *v = rp_verbs; *v; v++)
        fprintf(out, "  %-12s %s\n", (*v)->name, (*v)->summary);
    fputs("\n`reprise VERB --help` says more about one. A running VM is found by its name, through its control socket\n"
          "in $REPRISE_RUNTIME_DIR (default $XDG_RUNTIME_DIR/reprise, or /run/reprise; without it both are looked in).\n", out);
}

static void list_man(FILE *out)
{
    fputs(".TH REPRISE 1 \"\" \"Reprise\" \"Reprise\"\n.SH NAME\nreprise \\- virtual machines that outlive the host they run on\n"
          ".SH SYNOPSIS\n.B reprise\n.I VERB\n.RI [ operands ]\n.RI [ options ]\n.SH VERBS\n", out);
    for (const struct rp_verb *const *v = rp_verbs; *v; v++)
        fprintf(out, ".TP\n.BR reprise\\-%s (1)\n%s\n", (*v)->name, (*v)->summary);
    fputs(".SH ENVIRONMENT\n.TP\n.B REPRISE_RUNTIME_DIR\nWhere the control sockets of running VMs are\n"
          "(default $XDG_RUNTIME_DIR/reprise, or /run/reprise).\n"
          "Without it a VM that was made under the other default is found, too: that of a systemd unit from a login, and the other way round.\n"
          ".TP\n.B REPRISE_LOG\nerror, warn, notice (the default), info or debug: how much is said on standard error. notice: also that a VM is protected,\n"
          "was taken over, has its lease again; warn: only what is not as it should be.\n"
          ".SH EXIT STATUS\n"
          ".TP\n.B 0\nDone.\n.TP\n.B 1\nFailed.\n.TP\n.B 2\nWrong use.\n.TP\n.B 3\nNo such VM.\n"
          ".TP\n.B 4\nThe host lacks something; \\fBreprise doctor\\fP says what.\n"
          ".TP\n.B 5\nRefused by policy or lease.\n.TP\n.B 6\nDamaged or foreign data.\n.TP\n.B 130\nInterrupted.\n", out);
}

static int run(const struct rp_verb *self, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)self;
    const struct help_opts *o = opts;
    if (n == 0) {
        (o->man ? list_man : list)(stdout);
        return RP_EXIT_DONE;
    }
    const struct rp_verb *v = rp_verb_find(operands[0]);
    if (!v)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "\"%s\": no such verb; `reprise help` lists them", operands[0]);
    (o->man ? rp_args_man : rp_args_help)(v, stdout);
    return RP_EXIT_DONE;
}

const struct rp_verb rp_verb_help = {
    .name = "help", .operands = "[VERB]", .max_operands = 1,
    .summary = "Say how the command, or one verb, is used.",
    .groups = {RP_OPT_GROUP("Options", help_options)},
    .opts_size = sizeof(struct help_opts),
    .run = run,
};
