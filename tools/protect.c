/* `reprise protect` and `reprise unprotect`: a running VM gets a standby, or is without one again. */
#include "core/clock.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/verbs.h"
#include "tools/vm_options.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOOK_NS 100000000L
#define END_LOOK_NS 10000000L
#define END_NS 60000000000ull

struct protect_opts {
    struct rp_vm_options vm;        /* only its pair */
    bool no_wait, json, quiet;
};

static const struct protect_opts protect_defaults = {.vm.pair = {.heartbeat_ns = 20000000u, .lanes = 1}};

#define AT(member) .kind = RP_OPT_FLAG, .offset = offsetof(struct protect_opts, member)
static const struct rp_opt protect_options[] = {
    {.name = "no-wait", AT(no_wait), .help = "Return at once; a standby that is not there yet is waited for."},
    {.name = "json", AT(json), .help = "Print the result as JSON."},
    {.name = "quiet", AT(quiet), .help = "Show no progress."},
};

static void put(json_t *args, const char *key, uint64_t value)
{
    if (value)
        json_object_set_new(args, key, json_integer((json_int_t)value));
}

/* The VM's process has another working directory. */
static int put_path(json_t *args, const char *key, const char *path, struct rp_error *err)
{
    char full[PATH_MAX];
    if (!path)
        return 0;
    if (!realpath(path, full))
        return rp_error_exit(err, RP_EXIT_USAGE, errno, "--key %s: %s", path, strerror(errno));
    json_object_set_new(args, key, json_string(full));
    return 0;
}

static int arguments(const char *uri, const struct protect_opts *o, json_t **out, struct rp_error *err)
{
    const struct rp_pair_options *p = &o->vm.pair;
    json_t *a = json_pack("{s:s, s:s, s:b}", "uri", uri, "on-loss", p->pause_on_loss ? "pause" : "run", "patient", (int)o->no_wait);
    int rc = put_path(a, "key-file", p->key_path, err);
    if (p->lease)
        json_object_set_new(a, "lease", json_string(p->lease));
    if (p->capture)
        json_object_set_new(a, "capture", json_string(p->capture));
    put(a, "lease-ttl-ms", p->lease_ttl_ns / 1000000u);
    put(a, "epoch-us", p->epoch_ns / 1000u);
    put(a, "latency-us", p->latency_ns / 1000u);
    put(a, "bandwidth", p->bandwidth_bytes_s);
    put(a, "cpu", p->cpu_percent);
    put(a, "streams", p->lanes);
    put(a, "heartbeat-ms", (p->heartbeat_ns + 999999u) / 1000000u);
    if (rc < 0)
        json_decref(a);
    else
        *out = a;
    return rc;
}

static void draw(const json_t *st, uint64_t start_ns)
{
    const json_t *sync = json_object_get(st, "sync"), *eta = json_object_get(sync, "eta-ms");
    fprintf(stderr, "\r%s, %.1f s", rp_json_str(st, "state"), (double)(rp_clock_ns() - start_ns) / 1e9);
    if (json_object_get(sync, "percent"))
        fprintf(stderr, ", %.0f %%, %.1f MiB/s", json_real_value(json_object_get(sync, "percent")),
                (double)json_integer_value(json_object_get(sync, "bytes-per-second")) / (1 << 20));
    if (eta)
        fprintf(stderr, ", %.1f s to go", (double)json_integer_value(eta) / 1e3);
    fputs("\033[K", stderr);
}

/* 1: as far as we wait (the VM is protected; with --no-wait: its lease is held); 0: not yet. */
static int look(struct rp_client *c, bool no_wait, json_t **st, struct rp_error *err)
{
    int rc = rp_client_call(c, "query-protect", NULL, st, err);
    if (rc < 0)
        return rc;
    const char *state = rp_json_str(*st, "state");
    if (strcmp(state, "leasing") == 0)
        return 0;
    if (strcmp(state, "protected") == 0 || (no_wait && strcmp(state, "off") != 0))
        return 1;
    if (strcmp(state, "connecting") == 0 || strcmp(state, "syncing") == 0)
        return 0;
    json_int_t code = json_integer_value(json_object_get(*st, "exit"));
    return rp_error_exit(err, code ? (enum rp_exit)code : RP_EXIT_FAILED, EIO, "%s",
                         *rp_json_str(*st, "reason") ? rp_json_str(*st, "reason") : "protection has ended");
}

/* Ends the VM's protection and waits for that: the standby is told, and what waits for the lease may take its time. */
static int end_protection(struct rp_client *c, struct rp_error *err)
{
    struct timespec pause = {.tv_nsec = END_LOOK_NS};
    int rc = rp_client_call(c, "unprotect", NULL, NULL, err);
    uint64_t until = rp_clock_ns() + END_NS;
    while (rc == 0) {
        json_t *st = NULL;
        rc = rp_client_call(c, "query-protect", NULL, &st, err);
        bool over = rc == 0 && !json_object_get(st, "standby");
        json_decref(st);
        if (over)
            break;
        if (rc == 0 && rp_clock_ns() > until)
            return rp_error_set(err, ETIMEDOUT, "protection has not ended after %llu s: the lease's storage does not answer; `reprise status` "
                                "says why", END_NS / 1000000000u);
        nanosleep(&pause, NULL);
    }
    return rc;
}

static int wait_protected(struct rp_client *c, const struct protect_opts *o, struct rp_error *err)
{
    uint64_t start = rp_clock_ns();
    bool visible = !o->quiet && !o->json && isatty(STDERR_FILENO);
    json_t *st = NULL;
    int rc;
    while ((rc = look(c, o->no_wait, &st, err)) == 0) {
        if (visible)
            draw(st, start);
        json_decref(st);
        st = NULL;
        if (rp_client_interrupted(LOOK_NS)) {
            rc = rp_error_exit(err, RP_EXIT_INTERRUPTED, ECANCELED, "interrupted; the VM is not protected");
            break;
        }
    }
    if (visible)
        fputs("\r\033[K", stderr);
    if (rc < 0 && end_protection(c, NULL) < 0) {
        /* it has ended by itself */
    }
    if (rc == 1 && o->json && !o->no_wait)
        json_dumpf(st, stdout, JSON_INDENT(2));
    if (rc == 1 && !o->quiet && !o->no_wait)
        printf(o->json ? "\n" : "protected by %s after %.2f s\n", rp_json_str(st, "standby"), (double)(rp_clock_ns() - start) / 1e9);
    json_decref(st);
    return rc < 0 ? rc : RP_EXIT_DONE;
}

static int run_protect(const struct rp_verb *v, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)v, (void)n;
    const struct protect_opts *o = opts;
    struct rp_client *c = NULL;
    json_t *args = NULL;
    int rc = arguments(operands[1], o, &args, err);
    if (rc == 0)
        rc = rp_client_open(operands[0], &c, err);
    if (rc < 0) {
        json_decref(args);
        return rc;
    }
    rp_client_hold_interrupts();
    rc = rp_client_call(c, "protect", args, NULL, err);
    if (rc == 0)
        rc = wait_protected(c, o, err);
    rp_client_close(c);
    return rc;
}

static int run_unprotect(const struct rp_verb *v, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)v, (void)opts, (void)n;
    struct rp_client *c = NULL;
    int rc = rp_client_open(operands[0], &c, err);
    if (rc == 0)
        rc = end_protection(c, err);
    rp_client_close(c);
    return rc;
}

const struct rp_verb rp_verb_protect = {
    .name = "protect", .operands = "NAME URI", .min_operands = 2, .max_operands = 2,
    .summary = "Protect a running VM by the standby at URI (tcp://HOST:PORT, rdma://HOST:PORT, unix:PATH).",
    .details = "Returns when the VM is protected: from then on nothing leaves it before the standby holds the state that sent it, and it "
               "survives its host. A standby that is lost later is waited for; meanwhile the VM runs unprotected, and says so.",
    .groups = {RP_OPT_GROUP("Options", protect_options), RP_PROTECT_GROUP, RP_FENCE_GROUP},
    .opts_size = sizeof(struct protect_opts), .defaults = &protect_defaults,
    .run = run_protect,
};
const struct rp_verb rp_verb_unprotect = {
    .name = "unprotect", .operands = "NAME", .min_operands = 1, .max_operands = 1,
    .summary = "End a VM's protection; its standby forgets it.",
    .run = run_unprotect,
};
