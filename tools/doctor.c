/* `reprise doctor`: runs the checks and prints what they found. */
#include "tools/doctor.h"

#include "tools/verbs.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct rp_check rp_checks[] = {
    {"kernel", rp_check_kernel},
    {"kvm", rp_check_kvm},
    {"kvm-features", rp_check_kvm_caps},
    {"dirty-ring", rp_check_dirty_ring},
    {"clock", rp_check_tsc},
    {"memory", rp_check_memory},
    {"transparent-huge-pages", rp_check_thp},
    {"reserved-huge-pages", rp_check_hugepages},
    {"userfaultfd", rp_check_userfaultfd},
    {"io_uring", rp_check_io_uring},
    {"seccomp", rp_check_seccomp},
    {"tap", rp_check_tun},
    {"rdma", rp_check_rdma},
    {"locked-memory", rp_check_memlock},
    {"open-files", rp_check_files},
    {"runtime-directory", rp_check_runtime_dir},
    {NULL, NULL},
};

void rp_finding_set(struct rp_finding *f, enum rp_finding_state state, const char *so, const char *mend, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->found, sizeof(f->found), fmt, ap);
    va_end(ap);
    f->state = state;
    f->so = so;
    f->mend = mend;
}

struct doctor_opts { bool json; };

static const struct rp_opt options[] = {
    {.name = "json", .kind = RP_OPT_FLAG, .offset = offsetof(struct doctor_opts, json), .help = "Print JSON."},
};

static const char *const state_names[] = {[RP_FIND_OK] = "ok", [RP_FIND_LESS] = "less", [RP_FIND_MISSING] = "missing"};

static void print_finding(const struct rp_finding *f, bool colour)
{
    static const char *const colours[] = {[RP_FIND_OK] = "\033[32m", [RP_FIND_LESS] = "\033[33m", [RP_FIND_MISSING] = "\033[31m"};
    printf("%s%-7s%s %-23s %s\n", colour ? colours[f->state] : "", state_names[f->state], colour ? "\033[0m" : "", f->name, f->found);
    if (f->so)
        printf("%31s so: %s\n", "", f->so);
    if (f->mend)
        printf("%31s mend: %s\n", "", f->mend);
}

static int print_json(const struct rp_finding *all, unsigned n, bool able, struct rp_error *err)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < n; i++) {
        json_t *o = json_pack("{s:s,s:s,s:s}", "name", all[i].name, "state", state_names[all[i].state], "found", all[i].found);
        if (o && all[i].so)
            json_object_set_new(o, "consequence", json_string(all[i].so));
        if (o && all[i].mend)
            json_object_set_new(o, "mend", json_string(all[i].mend));
        json_array_append_new(list, o);
    }
    json_t *top = json_pack("{s:b,s:o}", "able", able, "checks", list);
    char *text = top ? json_dumps(top, JSON_INDENT(2)) : NULL;
    json_decref(top);
    if (!text)
        return rp_error_set(err, ENOMEM, "no memory for the report");
    puts(text);
    free(text);
    return 0;
}

static int run(const struct rp_verb *self, void *opts, unsigned n, char **operands, struct rp_error *err)
{
    (void)self, (void)n, (void)operands;
    const struct doctor_opts *o = opts;
    struct rp_finding all[sizeof(rp_checks) / sizeof(rp_checks[0])] = {0};
    unsigned count = 0;
    bool able = true, colour = isatty(STDOUT_FILENO);
    for (const struct rp_check *c = rp_checks; c->name; c++) {
        struct rp_finding *f = &all[count++];
        f->name = c->name;
        c->fn(f);
        able &= f->state != RP_FIND_MISSING;
        if (!o->json)
            print_finding(f, colour);
    }
    int rc = 0;
    if (o->json)
        rc = print_json(all, count, able, err);
    else
        printf("\n%s\n", able ? "This host can run VMs." : "This host cannot run VMs: see what is missing above.");
    return rc < 0 ? rc : able ? RP_EXIT_DONE : RP_EXIT_HOST;
}

const struct rp_verb rp_verb_doctor = {
    .name = "doctor", .operands = "",
    .summary = "Say what this host can and cannot do, what follows, and how to mend it.",
    .details = "Looks at the kernel, KVM, memory, userfaultfd, io_uring, RDMA, taps and limits as the user who calls it. Changes nothing. "
               "Exit code 4 when no VM can run here.",
    .groups = {RP_OPT_GROUP("Options", options)},
    .opts_size = sizeof(struct doctor_opts),
    .run = run,
};
