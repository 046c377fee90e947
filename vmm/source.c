/* The machine as a source of epochs (core/source.h). Calls come from the engine's thread. */
#include "vmm/machine_internal.h"

#include "core/clock.h"
#include "core/fault.h"

#include <errno.h>
#include <stdlib.h>

static struct rp_machine *machine_of(struct rp_source *s)
{
    return (struct rp_machine *)((char *)s - offsetof(struct rp_machine, source));
}

static int describe(struct rp_source *s, struct rp_source_info *out, struct rp_error *err)
{
    struct rp_machine *m = machine_of(s);

    (void)err;
    memset(out, 0, sizeof *out);
    memcpy(out->vm_id, m->st.vm_id, sizeof out->vm_id);
    memcpy(out->name, m->cfg.name, sizeof out->name);
    out->ram = m->ram->view;
    out->cpus = m->cfg.vcpus;
    return 0;
}

static int track_start(struct rp_source *s, bool all, struct rp_error *err)
{
    struct rp_machine *m = machine_of(s);

    if (all)
        m->history_saved = 0;
    return rp_dirty_start(m->dirty, all, err);
}

static void track_stop(struct rp_source *s)
{
    rp_dirty_stop(machine_of(s)->dirty);
}

static int harvest(struct rp_source *s, struct rp_pageset *dirty, struct rp_error *err)
{
    return rp_dirty_harvest(machine_of(s)->dirty, dirty, err);
}

static void keep(struct rp_source *s, bool on)
{
    struct rp_machine *m = machine_of(s);

    rp_loop_lock(m->loop);
    rp_ram_keep(m->ram, on);
    rp_loop_unlock(m->loop);
}

static void uncut(struct rp_machine *m)
{
    m->cut = false;
    rp_loop_lock(m->loop);
    rp_disks_resume(m->disks);
    rp_loop_unlock(m->loop);
    pthread_cond_broadcast(&m->uncut);
    rp_machine_run(m);
}

/* INV-7: the history travels with the VM, in the first epoch and in each one that has news. */
static int save_history(struct rp_machine *m, uint64_t epoch, struct rp_sections *out, struct rp_error *err)
{
    uint64_t count = m->events ? rp_events_count(m->events) + 1 : 0;
    int rc = 0;

    if (m->events && (count != m->history_saved || epoch == m->history_epoch)) {     /* a cut that was put off comes again */
        rc = rp_events_save(m->events, out, err);
        m->history_epoch = epoch;
    }
    m->history_saved = count;
    return rc;
}

static int cut(struct rp_source *s, struct rp_cut *c, struct rp_error *err)
{
    struct rp_machine *m = machine_of(s);
    int rc = 0;

    if (rp_fault(RP_FAULT_CUT))
        return rp_error_set(err, EIO, "fault point cut");
    pthread_mutex_lock(&m->control);
    if (m->cut || rp_machine_state(m) == RP_VM_SHUTDOWN || rp_machine_state(m) == RP_VM_FAILED) {
        pthread_mutex_unlock(&m->control);
        return rp_error_exit(err, RP_EXIT_REFUSED, m->cut ? EBUSY : ESHUTDOWN, "the VM %s", m->cut ? "is being cut already" : "has ended");
    }
    m->cut = true;
    c->pause_start_ns = rp_clock_ns();
    rp_machine_stand_still(m, true);
    rp_loop_lock(m->loop);
    c->wall_ns = rp_wall_ns();
    rc = rp_machine_save(m, c->sections, &c->guest_ns, err);
    if (rc == 0)
        rc = save_history(m, c->epoch, c->sections, err);
    if (rc == 0)
        rc = rp_dirty_harvest(m->dirty, c->dirty, err);
    if (rc == 0)
        rc = rp_disks_cut(m->disks, c->epoch, c->disk, err);
    if (rc == 0)
        rp_gate_cut(m->gate, c->epoch);
    rp_loop_unlock(m->loop);
    if (rc == 0)
        m->newest_epoch = c->epoch;
    else
        uncut(m);
    pthread_mutex_unlock(&m->control);
    return rc;
}

static int resume(struct rp_source *s, struct rp_error *err)
{
    struct rp_machine *m = machine_of(s);

    (void)err;
    pthread_mutex_lock(&m->control);
    if (m->cut)
        uncut(m);
    pthread_mutex_unlock(&m->control);
    return 0;
}

static void release(struct rp_source *s, uint64_t epoch)
{
    rp_gate_release(machine_of(s)->gate, epoch);
    rp_disks_release(machine_of(s)->disks, epoch);
}

static void gate(struct rp_source *s, bool hold)
{
    rp_gate_hold(machine_of(s)->gate, hold);
    rp_disks_hold(machine_of(s)->disks, hold);
}

static int output_fd(struct rp_source *s)
{
    return rp_gate_fd(machine_of(s)->gate);
}

static void throttle(struct rp_source *s, unsigned percent)
{
    struct rp_machine *m = machine_of(s);

    pthread_mutex_lock(&m->control);
    (void)!rp_vcpus_throttle(m->vcpus, percent, NULL);
    pthread_mutex_unlock(&m->control);
}

static void running_on(struct rp_source *s, cpu_set_t *cpus)
{
    rp_vcpus_running_on(machine_of(s)->vcpus, cpus);
}

static int disk_start(struct rp_source *s, const struct rp_disk_run *run, struct rp_error *err)
{
    struct rp_machine *m = machine_of(s);

    return rp_disks_start(m->disks, run, m->st.vm_id, m->cfg.name, err);
}

static void disk_stop(struct rp_source *s)
{
    rp_disks_stop(machine_of(s)->disks);
}

static int disk_pull(struct rp_source *s, struct rp_buf *out, size_t max_bytes, struct rp_error *err)
{
    return rp_disks_pull(machine_of(s)->disks, out, max_bytes, err);
}

static bool disk_whole(struct rp_source *s, const struct rp_disk_base *have, uint64_t size_bytes[RP_DISK_SUMS_DISKS])
{
    return rp_disks_whole(machine_of(s)->disks, have, size_bytes);
}

static void disk_progress(struct rp_source *s, struct rp_disk_progress *out)
{
    rp_disks_progress(machine_of(s)->disks, out);
}

static int storage(struct rp_source *s, bool hold, struct rp_error *err)
{
    return rp_disks_storage(machine_of(s)->disks, hold, err);
}

static const struct rp_source_ops ops = {
    .name = "machine", .describe = describe, .track_start = track_start, .track_stop = track_stop, .harvest = harvest,
    .keep = keep, .cut = cut, .resume = resume, .release = release, .gate = gate, .output_fd = output_fd, .throttle = throttle,
    .running_on = running_on,
    .disk_start = disk_start, .disk_stop = disk_stop, .disk_whole = disk_whole, .disk_pull = disk_pull, .disk_progress = disk_progress, .storage = storage};

void rp_machine_source_init(struct rp_machine *m)
{
    m->source.ops = &ops;
}

struct rp_source *rp_machine_source(struct rp_machine *m)
{
    return &m->source;
}
