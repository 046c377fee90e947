/* `reprise inspect`: what a stream holds, and what differs between two. */
#include "tools/enter.h"
#include "tools/inspect.h"
#include "tools/verbs.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

struct inspect_opts { bool diff, json, brief, records; };

#define AT(member) .kind = RP_OPT_FLAG, .offset = offsetof(struct inspect_opts, member)
static const struct rp_opt inspect_options[] = {
    {.name = "diff", AT(diff), .help = "Print what differs between two epochs: fields of their devices, and pages."},
    {.name = "brief", AT(brief), .help = "Leave out the fields of the devices; with --diff, say how many differ."},
    {.name = "records", AT(records), .help = "Print each record with its place, too."},
    {.name = "json", AT(json), .help = "Print one JSON object."},
};

int rp_inspect_where(char *operand, struct rp_inspect_where *out, struct rp_error *err)
{
    char *path = strncmp(operand, "file:", 5) == 0 ? operand + 5 : operand;
    char *at = strrchr(path, '@');
    uint64_t epoch = 0;
    if (at && at[1] && strspn(at + 1, "0123456789") == strlen(at + 1) && access(path, F_OK) != 0) {
        int rc = rp_parse_uint("the epoch after @", at + 1, 1, UINT64_MAX, &epoch, err);
        if (rc < 0)
            return rc;
        *at = 0;
    }
    if (!*path)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "no file was named; give FILE, FILE@EPOCH or - for standard input");
    *out = (struct rp_inspect_where){.path = path, .epoch = epoch};
    return 0;
}

int rp_inspect_open(const struct rp_inspect_where *w, int *fd, struct rp_error *err)
{
    if (strcmp(w->path, "-") != 0)
        return rp_entry_open(w->path, fd, err);
    *fd = STDIN_FILENO;
    return 0;
}

static int print_one(const struct inspect_opts *o, char *operand, struct rp_error *err)
{
    struct rp_inspect_where w = {0};
    int fd = -1;
    int rc = rp_inspect_where(operand, &w, err);
    if (rc == 0)
        rc = rp_inspect_open(&w, &fd, err);
    if (rc < 0)
        return rc;
    struct rp_inspect_show show = {.json = o->json, .brief = o->brief, .records = o->records, .only_epoch = w.epoch};
    rc = rp_inspect_print(fd, &show, stdout, err);
    if (fd != STDIN_FILENO)
        close(fd);
    if (rc < 0) {
        fflush(stdout);     /* the sentence comes after what it is about */
        rp_error_wrap(err, "%s", w.path);
    }
    return rc < 0 ? rc : RP_EXIT_DONE;
}

/* Two streams, or one stream and two of its epochs. */
static int diff_two(const struct inspect_opts *o, unsigned n, char **operands, struct rp_error *err)
{
    struct rp_inspect_where a = {0}, b = {0};
    struct rp_inspect_show show = {.json = o->json, .brief = o->brief};
    uint64_t differ = 0;
    int rc = rp_inspect_where(operands[0], &a, err);
    b = a;
    if (rc == 0 && n == 2)
        rc = rp_inspect_where(operands[1], &b, err);
    if (rc == 0 && n == 3)
        rc = rp_parse_uint("the first epoch", operands[1], 1, UINT64_MAX, &a.epoch, err);
    if (rc == 0 && n == 3)
        rc = rp_parse_uint("the second epoch", operands[2], 1, UINT64_MAX, &b.epoch, err);
    if (rc == 0 && strcmp(a.path, "-") == 0 && strcmp(b.path, "-") == 0)
        rc = rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "standard input can be read once only; name a file");
    if (rc == 0)
        rc = rp_inspect_diff(&a, &b, &show, stdout, &differ, err);
    return rc < 0 ? rc : RP_EXIT_DONE;
}

static int run(const struct rp_verb *v, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)v;
    const struct inspect_opts *o = opts;
    if (o->diff ? n < 2 : n > 1)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%s", o->diff ? "--diff needs two epochs: two streams, or a stream and the numbers of "
                             "two of its epochs" : "one stream can be printed; --diff compares two");
    return o->diff ? diff_two(o, n, operands, err) : print_one(o, operands[0], err);
}

const struct rp_verb rp_verb_inspect = {
    .name = "inspect", .operands = "FILE", .min_operands = 1, .max_operands = 3,
    .summary = "Print what an epoch stream holds, and verify it.",
    .details = "FILE is a checkpoint or any other recorded stream (- for standard input); FILE@N means its epoch N only. Printed are the "
               "epochs with their devices field by field, how their pages are encoded, and their disk writes. Everything is verified on the way, "
               "as a restore would do it, in as much memory as the guest had in use. Damaged data end with the place and the "
               "reason, and exit status 6; what stands before the damage is printed.\n\n"
               "reprise inspect --diff A B compares the newest epochs of two streams (or A@N with B@M), reprise inspect --diff FILE N M two "
               "epochs of one stream.",
    .groups = {RP_OPT_GROUP("Options", inspect_options)},
    .opts_size = sizeof(struct inspect_opts),
    .run = run,
};
