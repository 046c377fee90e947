#include "tools/pair_options.h"

#include "replicator/policy.h"
#include "tools/vm_options.h"

#include <errno.h>
#include <string.h>

static int parse_on_loss(void *field, char *value, struct rp_error *err)
{
    bool *pause = field;
    if (strcmp(value, "run") != 0 && strcmp(value, "pause") != 0)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--on-loss \"%s\": not one of run, pause", value);
    *pause = strcmp(value, "pause") == 0;
    return 0;
}

static int parse_capture(void *field, char *value, struct rp_error *err)
{
    enum rp_capture_choice choice;
    if (!rp_capture_choice_parse(value, &choice))
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--capture \"%s\": not one of auto, stop-and-copy, copy-on-write", value);
    *(const char **)field = value;
    return 0;
}

static int parse_then(void *field, char *value, struct rp_error *err)
{
    bool *stays = field;
    if (strcmp(value, "exit") != 0 && strcmp(value, "standby") != 0)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--then \"%s\": not one of exit, standby", value);
    *stays = strcmp(value, "standby") == 0;
    return 0;
}

#define AT(member) .offset = offsetof(struct rp_vm_options, pair.member)

const struct rp_opt rp_fence_options[RP_FENCE_OPTIONS] = {
    {.name = "lease", .arg = "file:DIR|etcd:HOST:PORT|none", .kind = RP_OPT_STRING, AT(lease),
     .help = "Who may run the VM, kept on storage or in an etcd that both hosts reach (docs/lease.md). none: nothing keeps two instances apart."},
    {.name = "lease-ttl", .arg = "DURATION", .kind = RP_OPT_DURATION, AT(lease_ttl_ns), .min = 50000000u, .max = 3600000000000u,
     .help = "How long a holder that is not heard of keeps it; 2s unless given."},
    {.name = "key", .arg = "F", .kind = RP_OPT_STRING, AT(key_path),
     .help = "The pair's pre-shared key, 16 to 64 bytes, readable by its owner only. Without it whoever reaches the standby may speak."},
};

const struct rp_opt rp_protect_options[RP_PROTECT_OPTIONS] = {
    {.name = "epoch", .arg = "DURATION", .kind = RP_OPT_DURATION, AT(epoch_ns), .min = 100000u, .max = 60000000000u,
     .help = "Length of an epoch when no output asks for an earlier one; 20ms unless given."},
    {.name = "latency", .arg = "DURATION", .kind = RP_OPT_DURATION, AT(latency_ns), .min = 100000u, .max = 60000000000u,
     .help = "How long an output may wait for its epoch."},
    {.name = "cpu", .arg = "PERCENT", .kind = RP_OPT_UINT, AT(cpu_percent), .min = 1, .max = 10000,
     .help = "How much of one core protection may use."},
    {.name = "bandwidth", .arg = "RATE", .kind = RP_OPT_RATE, AT(bandwidth_bytes_s), .help = "How much of the link it may use."},
    {.name = "streams", .arg = "N", .kind = RP_OPT_UINT, AT(lanes), .min = 1, .max = 16, .help = "Connections that carry memory; 1 unless given."},
    {.name = "heartbeat", .arg = "DURATION", .kind = RP_OPT_DURATION, AT(heartbeat_ns), .min = 1000000u, .max = 60000000000u,
     .help = "Time between heartbeats; after four that did not come the standby takes the primary for dead. 20ms unless given."},
    {.name = "capture", .arg = "auto|stop-and-copy|copy-on-write", .kind = RP_OPT_PARSE, AT(capture), .parse = parse_capture,
     .help = "How a cut's dirty pages are captured: as measured to be best (unless given), all copied in the pause, or all write-protected in "
             "it and copied after; the last for measurements."},
    {.name = "on-loss", .arg = "run|pause", .kind = RP_OPT_PARSE, AT(pause_on_loss), .parse = parse_on_loss,
     .help = "What the VM does while it has no standby: run unprotected (unless given), or stand still."},
};

const struct rp_opt rp_then_options[2] = {
    {.name = "listen", .arg = "URI", .kind = RP_OPT_STRING, AT(listen),
     .help = "Where a primary reaches this process as its standby: tcp://ADDRESS:PORT, rdma://ADDRESS:PORT or unix:PATH."},
    {.name = "then", .arg = "exit|standby", .kind = RP_OPT_PARSE, AT(stays), .parse = parse_then,
     .help = "What this process does once the VM has run here and runs elsewhere (handed over, or the lease was lost): end, unless "
             "standby is given: wait with the VM's memory, so that protecting it from there sends only what differs."},
};

const struct rp_opt rp_run_protect_option[1] = {
    {.name = "protect", .arg = "URI", .kind = RP_OPT_STRING, AT(protect),
     .help = "Protect the VM by the standby at tcp://HOST:PORT, rdma://HOST:PORT or unix:PATH, now and whenever it is there again."},
};

const struct rp_opt rp_next_protect_option[1] = {
    {.name = "protect", .arg = "URI", .kind = RP_OPT_STRING, AT(protect),
     .help = "Once the VM runs here, protect it by the standby at this URI, now and whenever it is there again. The old host can be it: "
             "`reprise run --then standby`, or `reprise standby` when it is back."},
};

const struct rp_opt *rp_pair_option(const char *name)
{
    for (const struct rp_opt *o = rp_fence_options; o < rp_fence_options + RP_FENCE_OPTIONS; o++)
        if (strcmp(o->name, name) == 0)
            return o;
    for (const struct rp_opt *o = rp_protect_options; o < rp_protect_options + RP_PROTECT_OPTIONS; o++)
        if (strcmp(o->name, name) == 0)
            return o;
    return NULL;
}
