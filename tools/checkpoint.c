/* `reprise checkpoint`: asks a running VM for a checkpoint and shows how far it is. */
#include "core/clock.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/verbs.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct checkpoint_opts { bool pause, quit, json, quiet; };

#define AT(member) .kind = RP_OPT_FLAG, .offset = offsetof(struct checkpoint_opts, member)
static const struct rp_opt checkpoint_options[] = {
    {.name = "pause", AT(pause), .help = "The VM stands still from the cut on, until it is resumed."},
    {.name = "quit", AT(quit), .help = "The VM stands still from the cut on and ends once the checkpoint is safe; that is waited for."},
    {.name = "json", AT(json), .help = "Print the result as JSON."},
    {.name = "quiet", AT(quiet), .help = "Show no progress."},
};

struct progress {
    uint64_t start_ns;
    bool visible, shown, interrupted;
};

/* Looks for Ctrl-C, which means: cancel the job; and draws. */
static void look(void *ctx, uint64_t done, uint64_t total)
{
    struct progress *p = ctx;
    p->interrupted |= rp_client_interrupted(0);
    if (!total || !p->visible)
        return;
    double part = (double)done / (double)total, s = (double)(rp_clock_ns() - p->start_ns) / 1e9;
    fprintf(stderr, "\r%5.1f %%  %llu of %llu MiB looked at, %.1f s, %.1f s to go   ", part * 100, (unsigned long long)(done >> 20),
            (unsigned long long)(total >> 20), s, part > 0.01 ? s / part - s : 0.0);
    p->shown = true;
}

static void progress_init(struct progress *p, bool visible)
{
    *p = (struct progress){.start_ns = rp_clock_ns(), .visible = visible};
    rp_client_hold_interrupts();
}

/* file:F with F made absolute: the VM's process has another working directory. */
static int target_of(const char *operand, char out[PATH_MAX + 8], struct rp_error *err)
{
    if (strncmp(operand, "file:", 5) != 0 || !operand[5])
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "\"%s\": not a place for a checkpoint; give file:F", operand);
    char cwd[PATH_MAX] = "";
    if (operand[5] != '/' && !getcwd(cwd, sizeof(cwd)))
        return rp_error_set(err, errno, "working directory: %s", strerror(errno));
    if (snprintf(out, PATH_MAX + 8, "file:%s%s%s", cwd, *cwd ? "/" : "", operand + 5) >= PATH_MAX)
        return rp_error_exit(err, RP_EXIT_USAGE, ENAMETOOLONG, "%.80s...: the path is too long", operand);
    return 0;
}

/* What stands at a place; nothing: zeroes. */
static struct stat what_is_at(const char *path)
{
    struct stat st = {0};
    return lstat(path, &st) < 0 ? (struct stat){0} : st;
}

static int checkpoint(struct rp_client *c, const char *target, const struct checkpoint_opts *o, struct rp_error *err)
{
    json_t *started = NULL;
    struct stat before = what_is_at(target + 5), after;
    struct progress p;
    progress_init(&p, !o->quiet && !o->json && isatty(STDERR_FILENO));
    int rc = rp_client_call(c, "checkpoint", json_pack("{s:s, s:s}", "target", target, "then", o->quit ? "quit" : o->pause ? "pause" : "go-on"),
                            &started, err);
    if (rc < 0)
        return rc;
    if (o->quit)
        rp_client_timeout(c, RP_CLIENT_END_NS);     /* from here on no answer may mean that it is ending */
    rc = rp_client_wait_job(c, json_string_value(json_object_get(started, "job-id")), look, &p, &p.interrupted, err);
    if (p.shown)
        fputs("\r\033[K", stderr);
    after = what_is_at(target + 5);
    if (rc == 0 && o->quit) {
        if ((rc = rp_client_wait_end(c, err)) < 0)
            rp_error_wrap(err, "the checkpoint is whole, and its VM has not ended");
    } else if (rc == -EPIPE && o->quit && after.st_ino && (after.st_ino != before.st_ino || after.st_dev != before.st_dev)) {
        rc = 0;     /* it ended before the last look: that is what was asked for, and only a whole checkpoint becomes another file there */
    }
    double s = (double)(rp_clock_ns() - p.start_ns) / 1e9;
    json_int_t epoch = json_integer_value(json_object_get(started, "epoch"));
    if (rc == 0 && o->json)
        rp_json_print(json_pack("{s:o, s:I, s:f}", "target", rp_json_readable(target), "epoch", epoch, "seconds", s));
    else if (rc == 0 && !o->quiet)
        printf("epoch %lld is in %s (%.2f s)\n", (long long)epoch, target + 5, s);
    json_decref(started);
    return rc;
}

static int run(const struct rp_verb *v, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)v, (void)n;
    const struct checkpoint_opts *o = opts;
    char target[PATH_MAX + 8];
    int rc = target_of(operands[1], target, err);
    if (rc == 0 && o->pause && o->quit)
        rc = rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--pause and --quit: choose one");
    struct rp_client *c = NULL;
    if (rc == 0)
        rc = rp_client_open(operands[0], &c, err);
    if (rc < 0)
        return rc;
    rc = checkpoint(c, target, o, err);
    rp_client_close(c);
    return rc;
}

const struct rp_verb rp_verb_checkpoint = {
    .name = "checkpoint", .operands = "NAME file:F", .min_operands = 2, .max_operands = 2,
    .summary = "Write a running VM, as one self-contained epoch, to a file.",
    .details = "The guest runs on while its memory is written, and stands still only for the last pages. F appears when the "
               "checkpoint is whole and on the disk; until then it is F.partial. Ctrl-C and SIGTERM cancel. `reprise restore file:F` goes on from it.\n\n"
               "Disks are not part of it: a guest that goes on writing to them makes the checkpoint useless to restore. Use --pause or "
               "--quit, or copy the disks at the same moment.",
    .groups = {RP_OPT_GROUP("Options", checkpoint_options)},
    .opts_size = sizeof(struct checkpoint_opts),
    .run = run,
};
