/*
 * pair_options.h - the options of a protected VM: the lease (run, restore, standby, protect), and how it is to be
 * protected (run --protect, standby --protect, protect). The same words go through QMP to a VM that runs (qmp_protect.c).
 * Offsets are relative to struct rp_vm_options, of which this is a part. Strings point into argv.
 */
#ifndef RP_TOOLS_PAIR_OPTIONS_H
#define RP_TOOLS_PAIR_OPTIONS_H

#include "tools/args.h"

struct rp_pair_options {
    const char *lease;          /* file:DIRECTORY, etcd:HOST:PORT, none; NULL: not given */
    uint64_t lease_ttl_ns;      /* 0: 2 s */
    const char *key_path;       /* the pair's pre-shared key, or NULL */
    const char *protect;        /* URI, or NULL */
    uint64_t epoch_ns, latency_ns, bandwidth_bytes_s;   /* 0: not given */
    unsigned cpu_percent, lanes;
    uint64_t heartbeat_ns;
    const char *capture;        /* a word of rp_capture_choice_parse, or NULL */
    bool pause_on_loss;
    bool waits;                 /* set by standby: the lease is taken when the primary has lost it, not at the start */
    const char *listen;         /* standby, run --then standby: URI */
    bool stays;                 /* --then standby: once the VM runs elsewhere, this process is its standby (moved.h) */
};

#define RP_FENCE_OPTIONS 3u
#define RP_PROTECT_OPTIONS 8u
extern const struct rp_opt rp_fence_options[RP_FENCE_OPTIONS];
extern const struct rp_opt rp_protect_options[RP_PROTECT_OPTIONS];
extern const struct rp_opt rp_run_protect_option[1];    /* --protect URI */
extern const struct rp_opt rp_next_protect_option[1];   /* likewise, for a VM that has come here */
extern const struct rp_opt rp_then_options[2];          /* --then exit|standby, --listen URI */
/* The option of the first two tables that has this name (without "--"), or NULL. */
const struct rp_opt *rp_pair_option(const char *name);
#define RP_THEN_GROUP {.title = "Afterwards", .opts = rp_then_options, .nopts = 2}
#define RP_STANDBY_GROUP {.title = "Standby", .opts = rp_then_options, .nopts = 2}
#define RP_FENCE_GROUP {.title = "Lease", .opts = rp_fence_options, .nopts = RP_FENCE_OPTIONS}
#define RP_PROTECT_GROUP {.title = "Protection", .opts = rp_protect_options, .nopts = RP_PROTECT_OPTIONS}
#define RP_RUN_PROTECT_GROUP {.title = "Protected from the start", .opts = rp_run_protect_option, .nopts = 1}
#define RP_NEXT_PROTECT_GROUP {.title = "Protected again", .opts = rp_next_protect_option, .nopts = 1}

#endif
