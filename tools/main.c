/* The `reprise` command: finds the verb in a const table, parses its options, runs it, prints its one sentence when it fails. */
#include "tools/verbs.h"
#include "tools/version.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct rp_verb *const rp_verbs[] = {
    &rp_verb_run,
    &rp_verb_restore,
    &rp_verb_checkpoint,
    &rp_verb_inspect,
    &rp_verb_standby,
    &rp_verb_protect,
    &rp_verb_unprotect,
    &rp_verb_failover,
    &rp_verb_status,
    &rp_verb_top,
    &rp_verb_history,
    &rp_verb_explain,
    &rp_verb_pause,
    &rp_verb_resume,
    &rp_verb_powerdown,
    &rp_verb_reset,
    &rp_verb_quit,
    &rp_verb_doctor,
    &rp_verb_help,
    NULL,
};

const struct rp_verb *rp_verb_find(const char *name)
{
    for (const struct rp_verb *const *v = rp_verbs; *v; v++)
        if (strcmp((*v)->name, name) == 0)
            return *v;
    return NULL;
}

static int run_verb(const struct rp_verb *v, int argc, char **argv)
{
    struct rp_error err = {.exit = RP_EXIT_FAILED};
    void *opts = calloc(1, v->opts_size + 1);
    if (!opts) {
        fputs("reprise: out of memory\n", stderr);
        return RP_EXIT_FAILED;
    }
    if (v->defaults)
        memcpy(opts, v->defaults, v->opts_size);
    char **operands = NULL;
    unsigned n = 0;
    int rc = rp_args_parse(v, argc, argv, opts, &operands, &n, &err);
    if (rc == 0)
        rc = v->run(v, opts, n, operands, &err);
    else if (rc > 0)
        rc = RP_EXIT_DONE;
    if (rc < 0)
        fprintf(stderr, "reprise %s: %s\n", v->name, err.text[0] ? err.text : strerror(-rc));
    free(opts);
    if (rc >= 0 && fflush(stdout) != 0) {
        fprintf(stderr, "reprise %s: standard output: %s\n", v->name, strerror(errno));
        return RP_EXIT_FAILED;
    }
    return rc >= 0 ? rc : err.exit != RP_EXIT_DONE ? (int)err.exit : RP_EXIT_FAILED;
}

/* A standard stream that was closed stays one that fails: else the next descriptor has its number, and what is said is written there, be it guest RAM. */
static void keep_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0)
            _exit(RP_EXIT_HOST);
}

int main(int argc, char **argv)
{
    keep_streams();
    /* By default every few threads have an arena of their own, which keeps what is freed in it: 10 MiB and more in a process that lives long. */
    (void)mallopt(M_ARENA_MAX, 2);
    /* A file that would be longer than `ulimit -f` is an error (EFBIG) with a sentence, not the end of a VM. */
    signal(SIGXFSZ, SIG_IGN);
    if (argc < 2) {
        fputs("reprise: which verb? `reprise help` lists them\n", stderr);
        return RP_EXIT_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        return run_verb(&rp_verb_help, 1, argv);
    if (strcmp(name, "--version") == 0) {
        puts("reprise " RP_VERSION_TEXT);
        return RP_EXIT_DONE;
    }
    const struct rp_verb *v = rp_verb_find(name);
    if (!v) {
        fprintf(stderr, "reprise: \"%s\": no such verb; `reprise help` lists them\n", name);
        return RP_EXIT_USAGE;
    }
    return run_verb(v, argc - 1, argv + 1);
}
