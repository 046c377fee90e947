/* QMP commands that only ask. Names and fields are those of QEMU where the meaning is the same (its qapi folder). */
#include "core/clock.h"
#include "tools/event_names.h"
#include "tools/qmp_tables.h"
#include "tools/standby.h"
#include "tools/version.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* Every answer is built with json_pack, which gives NULL when out of memory or when a string is no UTF-8. */
static int answer(struct rp_qmp_call *call, json_t *result, struct rp_error *err)
{
    call->result = result;
    return result ? 0 : rp_error_set(err, ENOMEM, "the answer cannot be put together: out of memory, or a name that is no UTF-8");
}

static const char *state_name(const struct rp_machine *m)
{
    if (!m)
        return "inmigrate";     /* QEMU's word for a machine that waits for its state */
    switch (rp_machine_state(m)) {
    case RP_VM_CREATED: return "prelaunch";
    case RP_VM_RUNNING: return "running";
    case RP_VM_PAUSED: return "paused";
    case RP_VM_SHUTDOWN: return "shutdown";
    case RP_VM_FAILED: return "internal-error";
    }
    return "internal-error";
}

static int query_status(struct rp_qmp_call *call, struct rp_error *err)
{
    struct rp_vm *vm = call->ctx;
    return answer(call, json_pack("{s:s, s:b, s:b}", "status", state_name(vm->machine), "running",
                                  vm->machine && rp_machine_state(vm->machine) == RP_VM_RUNNING, "singlestep", 0), err);
}

static int query_version(struct rp_qmp_call *call, struct rp_error *err)
{
    return answer(call, json_pack("{s:{s:i,s:i,s:i}, s:s}", "qemu", "major", RP_VERSION_MAJOR, "minor", RP_VERSION_MINOR, "micro",
                                  RP_VERSION_MICRO, "package", "reprise"), err);
}

static int query_name(struct rp_qmp_call *call, struct rp_error *err)
{
    return answer(call, json_pack("{s:s}", "name", ((struct rp_vm *)call->ctx)->name), err);
}

static void uuid_text(const uint8_t id[16], char out[37])
{
    char *p = out;
    for (unsigned i = 0; i < 16; i++)
        p += snprintf(p, (size_t)(out + 37 - p), "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", id[i]);
}

/* A standby has its VM's, once it knows. */
static bool known_uuid(struct rp_vm *vm, char uuid[37])
{
    uint8_t id[16];
    bool known = vm->machine || rp_standby_vm_id(vm, id);
    if (known)
        uuid_text(vm->machine ? rp_machine_cfg(vm->machine)->vm_id : id, uuid);
    return known;
}

static int query_uuid(struct rp_qmp_call *call, struct rp_error *err)
{
    char uuid[37];
    if (!known_uuid(call->ctx, uuid))
        return rp_error_exit(err, RP_EXIT_REFUSED, EAGAIN, "query-uuid: this is a standby that waits: the VM's UUID is known once a primary has connected");
    return answer(call, json_pack("{s:s}", "UUID", uuid), err);
}

static int query_kvm(struct rp_qmp_call *call, struct rp_error *err)
{
    return answer(call, json_pack("{s:b, s:b}", "enabled", 1, "present", 1), err);
}

static int query_commands(struct rp_qmp_call *call, struct rp_error *err)
{
    return answer(call, rp_qmp_command_list(((struct rp_vm *)call->ctx)->qmp), err);
}

static int query_events(struct rp_qmp_call *call, struct rp_error *err)
{
    json_t *list = json_array();
    for (const struct rp_event_name *e = rp_event_names; e->name; e++)
        json_array_append_new(list, json_pack("{s:s}", "name", e->name));
    return answer(call, list, err);
}

static uint64_t ram_bytes(struct rp_vm *vm)
{
    return rp_machine_ram(vm->machine)->size_bytes;
}

static int query_memory(struct rp_qmp_call *call, struct rp_error *err)
{
    return answer(call, json_pack("{s:I, s:i}", "base-memory", (json_int_t)ram_bytes(call->ctx), "plugged-memory", 0), err);
}

static int query_cpus(struct rp_qmp_call *call, struct rp_error *err)
{
    struct rp_vcpu_info v[RP_VCPUS_MAX];
    unsigned n = rp_machine_vcpus(((struct rp_vm *)call->ctx)->machine, v, RP_VCPUS_MAX);
    json_t *list = json_array();
    for (unsigned i = 0; i < n; i++) {
        char path[32];
        snprintf(path, sizeof(path), "/machine/cpu[%u]", v[i].index);
        json_array_append_new(list, json_pack("{s:i, s:i, s:s, s:s, s:{s:i}}", "cpu-index", (int)v[i].index, "thread-id", v[i].thread_id,
                                              "qom-path", path, "target", "x86_64", "props", "core-id", (int)v[i].index));
    }
    return answer(call, list, err);
}

static int query_block(struct rp_qmp_call *call, struct rp_error *err)
{
    struct rp_disk_info d[RP_DISKS_MAX];
    unsigned n = rp_machine_disks(((struct rp_vm *)call->ctx)->machine, d, RP_DISKS_MAX);
    json_t *list = json_array();
    for (unsigned i = 0; i < n; i++) {
        char name[16];
        snprintf(name, sizeof(name), "disk%u", i);
        const char *path = d[i].path ? d[i].path : "(descriptor)";
        json_array_append_new(list, json_pack("{s:s, s:s, s:b, s:b, s:{s:s, s:b, s:s, s:b, s:{s:s, s:s, s:I}}}", "device", name, "type",
                                              "unknown", "locked", 0, "removable", 0, "inserted", "file", path, "ro", (int)d[i].readonly,
                                              "drv", "raw", "encrypted", 0, "image", "filename", path, "format", "raw", "virtual-size",
                                              (json_int_t)d[i].size_bytes));
    }
    return answer(call, list, err);
}

static int query_blockstats(struct rp_qmp_call *call, struct rp_error *err)
{
    struct rp_disk_info d[RP_DISKS_MAX];
    unsigned n = rp_machine_disks(((struct rp_vm *)call->ctx)->machine, d, RP_DISKS_MAX);
    json_t *list = json_array();
    for (unsigned i = 0; i < n; i++) {
        char name[16];
        snprintf(name, sizeof(name), "disk%u", i);
        json_array_append_new(list, json_pack("{s:s, s:{s:I, s:I, s:I, s:I, s:I}}", "device", name, "stats", "rd_operations",
                                              (json_int_t)d[i].rd_ops, "wr_operations", (json_int_t)d[i].wr_ops, "rd_bytes",
                                              (json_int_t)d[i].rd_bytes, "wr_bytes", (json_int_t)d[i].wr_bytes, "flush_operations",
                                              (json_int_t)d[i].flush_ops));
    }
    return answer(call, list, err);
}

/* Ours: the network cards and what went through them. */
static int query_nics(struct rp_qmp_call *call, struct rp_error *err)
{
    struct rp_nic_info v[RP_NICS_MAX];
    unsigned n = rp_machine_nics(((struct rp_vm *)call->ctx)->machine, v, RP_NICS_MAX);
    json_t *list = json_array();
    for (unsigned i = 0; i < n; i++)
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I}", "mac", v[i].mac, "backend", v[i].kind ? v[i].kind : "",
                                              "name", v[i].name ? v[i].name : "", "rx-frames", (json_int_t)v[i].rx_frames, "tx-frames",
                                              (json_int_t)v[i].tx_frames, "rx-bytes", (json_int_t)v[i].rx_bytes, "tx-bytes",
                                              (json_int_t)v[i].tx_bytes));
    return answer(call, list, err);
}

/* "actual" is QEMU's; the rest is ours. Statistics are what the guest sent after the last call, as QEMU names them. */
static int query_balloon(struct rp_qmp_call *call, struct rp_error *err)
{
    static const char *const names[RP_BALLOON_STATS] = {
        "stat-swap-in", "stat-swap-out", "stat-major-faults", "stat-minor-faults", "stat-free-memory", "stat-total-memory",
        "stat-available-memory", "stat-disk-caches", "stat-htlb-pgalloc", "stat-htlb-pgfail"};
    struct rp_balloon_info b;
    int rc = rp_machine_balloon(((struct rp_vm *)call->ctx)->machine, &b, err);
    if (rc < 0)
        return rc;
    json_t *stats = json_object();
    for (unsigned i = 0; i < RP_BALLOON_STATS; i++)
        if (b.stats[i] <= INT64_MAX)
            json_object_set_new(stats, names[i], json_integer((json_int_t)b.stats[i]));
    return answer(call, json_pack("{s:I, s:I, s:o}", "actual", (json_int_t)b.actual_bytes, "target", (json_int_t)b.target_bytes,
                                  "stats", stats), err);
}

/* Ours: the VM's history (INV-7), oldest first. */
static int query_history(struct rp_qmp_call *call, struct rp_error *err)
{
    struct rp_vm *vm = call->ctx;
    json_int_t max = 512;
    json_t *arg = json_object_get(call->args, "max");
    if (arg && json_integer_value(arg) < max)
        max = json_integer_value(arg);
    struct rp_event *ev = calloc((size_t)max + 1, sizeof(*ev));
    if (!ev)
        return rp_error_set(err, ENOMEM, "out of memory");
    unsigned n = rp_events_copy(vm->events, ev, (unsigned)max);
    json_t *list = json_array();
    for (unsigned i = 0; i < n; i++) {
        json_t *data = json_loads(ev[i].data, 0, NULL);
        json_array_append_new(list, json_pack("{s:I, s:s, s:s, s:I, s:o}", "wall-ns", (json_int_t)ev[i].wall_ns, "event", ev[i].name, "host",
                                              ev[i].host, "epoch", (json_int_t)ev[i].epoch, "data", data ? data : json_object()));
    }
    free(ev);
    return answer(call, list, err);
}

/* Ours: what `reprise status` shows, in one answer. */
static json_t *paused_by(const struct rp_machine *m)
{
    static const struct { enum rp_pause why; const char *name; } names[] = {{RP_PAUSE_USER, "user"}, {RP_PAUSE_LEASE, "lease"}, {RP_PAUSE_STANDBY, "standby"}};
    json_t *all = json_array();
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (rp_machine_paused(m) & names[i].why)
            json_array_append_new(all, json_string(names[i].name));
    return all;
}

static int query_vm(struct rp_qmp_call *call, struct rp_error *err)
{
    struct rp_vm *vm = call->ctx;
    char uuid[37];
    bool known = known_uuid(vm, uuid);
    if (!vm->machine)
        return answer(call, json_pack("{s:s, s:s*, s:s, s:i, s:I, s:s, s:o}", "name", vm->name, "uuid", known ? uuid : NULL, "status", "inmigrate", "pid",
                                      (int)getpid(), "uptime-ms", (json_int_t)((rp_wall_ns() - vm->started_wall_ns) / 1000000u), "version",
                                      RP_VERSION_TEXT, "standby", rp_standby_query(vm)), err);
    const struct rp_machine_config *cfg = rp_machine_cfg(vm->machine);
    return answer(call, json_pack("{s:s, s:s, s:s, s:o, s:s, s:i, s:I, s:i, s:i, s:i, s:I, s:s}", "name", vm->name, "uuid", uuid, "status",
                                  state_name(vm->machine), "paused-by", paused_by(vm->machine), "failure", rp_machine_failure(vm->machine), "pid",
                                  (int)getpid(), "memory-bytes",
                                  (json_int_t)ram_bytes(vm), "vcpus", (int)cfg->vcpus, "disks", (int)cfg->ndisks, "nics", (int)cfg->nnics,
                                  "uptime-ms", (json_int_t)((rp_wall_ns() - vm->started_wall_ns) / 1000000u), "version", RP_VERSION_TEXT),
                  err);
}

static const struct rp_qmp_arg history_args[] = {{"max", RP_QMP_SIZE, true}, {.name = NULL}};

static const struct rp_qmp_command commands[] = {
    {.name = "query-status", .run = query_status, .early = true},
    {.name = "query-version", .run = query_version, .early = true},
    {.name = "query-name", .run = query_name, .early = true},
    {.name = "query-uuid", .run = query_uuid, .early = true},
    {.name = "query-kvm", .run = query_kvm, .early = true},
    {.name = "query-commands", .run = query_commands, .early = true},
    {.name = "query-events", .run = query_events, .early = true},
    {.name = "query-memory-size-summary", .run = query_memory},
    {.name = "query-cpus-fast", .run = query_cpus},
    {.name = "query-block", .run = query_block},
    {.name = "query-blockstats", .run = query_blockstats},
    {.name = "query-nics", .run = query_nics},
    {.name = "query-balloon", .run = query_balloon},
    {.name = "query-history", .run = query_history, .args = history_args, .early = true},
    {.name = "query-vm", .run = query_vm, .early = true},
};

struct rp_qmp_table rp_qmp_info_table(void)
{
    return (struct rp_qmp_table){commands, sizeof(commands) / sizeof(commands[0])};
}
