/* The machine's life: start, pause, resume, reset, end; see machine.h. Making one is machine_make.c's. */
#include "vmm/machine_internal.h"

#include "core/clock.h"
#include "core/fault.h"
#include "core/log.h"
#include "core/thread.h"
#include "vmm/devices.h"
#include "vmm/power.h"
#include "vmm/vcpu_state.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define UNCUT_S 5               /* that a reset from outside waits for the end of a cut */

static void set_state(struct rp_machine *m, enum rp_run_state state)
{
    /* Pairs with rp_machine_state: `failure` is written before. */
    atomic_store_explicit(&m->state, (int)state, memory_order_release);
}

static bool ended(const struct rp_machine *m)
{
    int s = atomic_load(&m->state);

    return s == RP_VM_SHUTDOWN || s == RP_VM_FAILED;
}

/* --- standing still and running; control held --- */

void rp_machine_stand_still(struct rp_machine *m, bool save)
{
    rp_vcpus_hold(m->vcpus, save);
    if (!m->running)
        return;
    m->running = false;
    rp_loop_lock(m->loop);
    for (unsigned i = 0; i < m->ndevices; i++)
        if (m->devices[i].ops->stop)
            m->devices[i].ops->stop(m->devices[i].dev);
    rp_loop_unlock(m->loop);
}

/* Tells the guest's watchdogs that it was stopped: they restart their clocks instead of crying lockup. */
static void excuse_pause(struct rp_machine *m)
{
    for (unsigned i = 0; i < m->vcpus->n; i++)
        (void)ioctl(m->vcpus->v[i].fd, KVM_KVMCLOCK_CTRL, 0);  /* -EINVAL: this guest has no kvmclock */
}

void rp_machine_run(struct rp_machine *m)
{
    if (m->running || m->cut || atomic_load(&m->state) != RP_VM_RUNNING)
        return;
    rp_loop_lock(m->loop);
    for (unsigned i = 0; i < m->ndevices; i++)
        if (m->devices[i].ops->start)
            m->devices[i].ops->start(m->devices[i].dev);
    /* Not before it runs: until then somebody else may have its addresses. */
    for (unsigned i = 0; i < m->ndevices && m->announce_due; i++)
        if (m->devices[i].ops->announce)
            m->devices[i].ops->announce(m->devices[i].dev);
    m->announce_due = false;
    rp_loop_unlock(m->loop);
    m->running = true;
    rp_vcpus_go(m->vcpus);
}

static void end_machine(struct rp_machine *m, enum rp_run_state how)
{
    uint64_t one = 1;

    if (ended(m))
        return;
    if (m->started)
        rp_machine_stand_still(m, false);
    set_state(m, how);
    (void)!write(m->end_fd, &one, sizeof one);
}

/* Control held. */
static void end_failed(struct rp_machine *m, const char *why)
{
    char plain[sizeof m->failure];

    if (ended(m))
        return;
    snprintf(m->failure, sizeof m->failure, "%s", why);
    snprintf(plain, sizeof plain, "%.120s", why);
    rp_event_plain(plain);
    rp_events_emit(m->events, m->newest_epoch, "GUEST_FAILED", "{\"reason\":\"%s\"}", plain);
    end_machine(m, RP_VM_FAILED);
}

/* --- what the guest asks for --- */

void rp_machine_ask(struct rp_machine *m, unsigned what)
{
    uint64_t one = 1;

    atomic_fetch_or(&m->asks, what);
    (void)!write(m->ask_fd, &one, sizeof one);
}

static int reset(struct rp_machine *m, bool guest, struct rp_error *err);

static void serve_asks(struct rp_machine *m, unsigned asks)
{
    struct rp_error err = {0};
    char why[sizeof m->failure];
    int rc;

    if (asks & RP_ASK_FAILED) {
        pthread_mutex_lock(&m->control);
        rp_loop_lock(m->loop);
        memcpy(why, m->ask_text, sizeof why);
        rp_loop_unlock(m->loop);
        end_failed(m, why);
        pthread_mutex_unlock(&m->control);
    } else if (asks & RP_ASK_OFF) {
        pthread_mutex_lock(&m->control);
        rp_events_emit(m->events, m->newest_epoch, "SHUTDOWN", "{\"guest\":true,\"reason\":\"guest-shutdown\"}");
        end_machine(m, RP_VM_SHUTDOWN);
        pthread_mutex_unlock(&m->control);
    } else if (asks & RP_ASK_RESET) {
        rc = reset(m, true, &err);
        if (rc < 0 && rc != -EBUSY) {
            pthread_mutex_lock(&m->control);
            snprintf(why, sizeof why, "reset: %.180s", err.text);
            end_failed(m, why);
            pthread_mutex_unlock(&m->control);
        }
    }
}

static void *asker_main(void *arg)
{
    struct rp_machine *m = arg;
    uint64_t n;

    for (;;) {
        unsigned asks;
        if (read(m->ask_fd, &n, sizeof n) != sizeof n)
            continue;
        pthread_mutex_lock(&m->control);    /* or a reset comes in between, and what its guest asks for is taken for what was asked before */
        asks = atomic_load(&m->asks);
        m->serving = asks;
        atomic_fetch_and(&m->asks, ~asks);
        pthread_mutex_unlock(&m->control);
        if (asks & RP_ASK_STOP)
            return NULL;
        if (asks && rp_fault(RP_FAULT_GUEST_ASKS))
            rp_log(RP_LOG_WARN, "fault point: it takes \":stall\" to be late");
        serve_asks(m, asks);
    }
}

static int start_asker(struct rp_machine *m, struct rp_error *err)
{
    int rc = rp_thread_start(&m->asker, "guest requests", asker_main, m, err);

    m->asker_started = rc == 0;
    return rc;
}

/* --- the control thread's calls --- */

/* Threads up, everything still. Control held. */
static int bring_up(struct rp_machine *m, struct rp_error *err)
{
    int rc = 0;

    if (m->started)
        return 0;
    if (!m->asker_started)
        rc = start_asker(m, err);
    if (rc == 0 && atomic_load(&m->asks))
        rp_machine_ask(m, 0);           /* it came with the epoch */
    if (rc == 0)
        rc = rp_loop_start(m->loop, err);
    if (rc == 0)
        rc = rp_vcpus_start(m->vcpus, err);
    m->started = rc == 0;
    return rc;
}

/* Control held. */
static int run_unless_paused(struct rp_machine *m, struct rp_error *err)
{
    enum rp_run_state was = rp_machine_state(m);
    int rc = 0;

    if (!m->may_run || atomic_load(&m->paused) || was == RP_VM_RUNNING)
        return 0;
    rc = bring_up(m, err);
    if (rc < 0)
        return rc;
    excuse_pause(m);
    set_state(m, RP_VM_RUNNING);
    rp_machine_run(m);
    if (was == RP_VM_PAUSED)
        rp_events_emit(m->events, m->newest_epoch, "RESUME", "{}");
    return 0;
}

static int refuse_ended(struct rp_error *err)
{
    return rp_error_exit(err, RP_EXIT_REFUSED, EINVAL, "the VM has ended");
}

int rp_machine_start(struct rp_machine *m, struct rp_error *err)
{
    int rc = 0;

    pthread_mutex_lock(&m->control);
    if (m->may_run)
        rc = rp_error_exit(err, RP_EXIT_REFUSED, EINVAL, "the VM has been started already");
    else if (ended(m))
        rc = refuse_ended(err);
    m->may_run = true;
    if (rc == 0)
        rc = run_unless_paused(m, err);
    pthread_mutex_unlock(&m->control);
    return rc;
}

int rp_machine_pause(struct rp_machine *m, enum rp_pause why, struct rp_error *err)
{
    int rc = 0;

    pthread_mutex_lock(&m->control);
    atomic_fetch_or(&m->paused, (unsigned)why);
    if (ended(m)) {
        rc = refuse_ended(err);
    } else if (atomic_load(&m->state) == RP_VM_RUNNING) {
        rp_machine_stand_still(m, false);
        set_state(m, RP_VM_PAUSED);
        rp_events_emit(m->events, m->newest_epoch, "STOP", "{}");
    }
    pthread_mutex_unlock(&m->control);
    return rc;
}

int rp_machine_resume(struct rp_machine *m, enum rp_pause why, struct rp_error *err)
{
    int rc;

    pthread_mutex_lock(&m->control);
    atomic_fetch_and(&m->paused, ~(unsigned)why);
    rc = ended(m) ? refuse_ended(err) : run_unless_paused(m, err);
    pthread_mutex_unlock(&m->control);
    return rc;
}

unsigned rp_machine_paused(const struct rp_machine *m)
{
    return atomic_load(&m->paused);
}

void rp_machine_powerdown(struct rp_machine *m)
{
    rp_loop_lock(m->loop);
    rp_power_button(m->power);
    rp_loop_unlock(m->loop);
    rp_events_emit(m->events, m->newest_epoch, "POWERDOWN", "{}");
}

int rp_machine_power_on(struct rp_machine *m, struct rp_error *err)
{
    int rc = 0;

    for (unsigned i = 0; i < m->ndevices; i++)
        if (m->devices[i].ops->reset)
            m->devices[i].ops->reset(m->devices[i].dev);
    for (unsigned i = 0; i < m->vcpus->n && rc == 0; i++)
        rc = rp_vcpu_load(&m->vcpus->v[i], &m->initial[i], m->initial[i].tsc, err);
    return rc;
}

/* Control held. A cut is over in a moment, unless it is a switchover's: then nobody may ever resume. */
static int wait_uncut(struct rp_machine *m, bool patient, struct rp_error *err)
{
    uint64_t until = rp_clock_ns() + UNCUT_S * 1000000000ull;
    int late = 0;

    while (m->cut && !m->going && late == 0)
        late = patient ? pthread_cond_wait(&m->uncut, &m->control) : rp_cond_wait_until(&m->uncut, &m->control, until);
    return m->cut ? rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "the VM stands still: it is being handed over") : 0;
}

/* Control held. When this fails nothing of the guest is left that could go on. */
static int start_anew(struct rp_machine *m, bool guest, struct rp_error *err)
{
    char why[sizeof m->failure];
    int rc;

    if (m->started)
        rp_machine_stand_still(m, false);
    rp_loop_lock(m->loop);
    m->serving = 0;                 /* before it runs, and asks for the next: what was asked for until here is done by this */
    atomic_fetch_and(&m->asks, ~(unsigned)RP_ASK_RESET);
    rc = rp_machine_power_on(m, err);
    if (rc == 0)
        rc = rp_machine_boot(m, err);
    rp_loop_unlock(m->loop);
    rp_vcpus_revive(m->vcpus);
    rp_events_emit(m->events, m->newest_epoch, "RESET", "{\"guest\":%s,\"reason\":\"%s\",\"ok\":%s}", guest ? "true" : "false",
                   guest ? "guest-reset" : "host-qmp-system-reset", rc == 0 ? "true" : "false");
    if (rc < 0) {
        snprintf(why, sizeof why, "reset: %.180s", err ? err->text : "");
        end_failed(m, why);
    } else if (m->started) {
        rp_machine_run(m);
    }
    return rc;
}

/* `guest`: it asked for that, and a cut is waited for as long as it takes, but not longer than the machine is there. */
static int reset(struct rp_machine *m, bool guest, struct rp_error *err)
{
    int rc;

    pthread_mutex_lock(&m->control);
    rc = wait_uncut(m, guest, err);
    if (rc < 0 || (guest && !(m->serving & RP_ASK_RESET))) {
        /* who goes, or is handed over, is not reset; nor is who has been since it asked */
    } else if (ended(m)) {
        rc = rp_error_exit(err, RP_EXIT_REFUSED, EINVAL, "the VM has ended");
    } else if (!m->cfg.kernel) {
        rc = rp_error_exit(err, RP_EXIT_REFUSED, ENOENT, "no kernel was given to this process: it can go on, but not start anew");
    } else {
        rc = rp_boot_check(m->cfg.kernel, m->cfg.initrd, err);      /* while it runs still, and can go on */
        if (rc == 0)
            rc = start_anew(m, guest, err);
    }
    pthread_mutex_unlock(&m->control);
    return rc;
}

int rp_machine_reset(struct rp_machine *m, struct rp_error *err)
{
    return reset(m, false, err);
}

void rp_machine_quit(struct rp_machine *m)
{
    pthread_mutex_lock(&m->control);
    if (!ended(m))
        rp_events_emit(m->events, m->newest_epoch, "SHUTDOWN", "{\"guest\":false,\"reason\":\"host-qmp-quit\"}");
    end_machine(m, RP_VM_SHUTDOWN);
    pthread_mutex_unlock(&m->control);
}

enum rp_run_state rp_machine_state(const struct rp_machine *m)
{
    return (enum rp_run_state)atomic_load_explicit(&m->state, memory_order_acquire);
}

const char *rp_machine_failure(const struct rp_machine *m)
{
    return rp_machine_state(m) == RP_VM_FAILED ? m->failure : "";
}

int rp_machine_end_fd(const struct rp_machine *m)
{
    return m->end_fd;
}

static void drain(struct rp_machine *m)
{
    pthread_mutex_lock(&m->lock);
    for (unsigned i = 0; i < m->ndevices; i++)
        if (m->devices[i].ops->drain)
            (void)m->devices[i].ops->drain(m->devices[i].dev, NULL);
    pthread_mutex_unlock(&m->lock);
}

/* Everything that runs stops, in the reverse of bring_up. */
static void bring_down(struct rp_machine *m)
{
    pthread_mutex_lock(&m->control);
    m->going = true;
    pthread_cond_broadcast(&m->uncut);
    pthread_mutex_unlock(&m->control);
    if (m->asker_started) {
        rp_machine_ask(m, RP_ASK_STOP);
        pthread_join(m->asker, NULL);
    }
    if (m->vcpus)
        rp_vcpus_hold(m->vcpus, false);
    if (m->loop)
        rp_loop_stop(m->loop);
    drain(m);
}

static void free_config(struct rp_machine_config *c)
{
    union { const char *in; char *out; } s;     /* the copies are ours; the config's type is its caller's */
#define FREE(x) do { s.in = (x); free(s.out); } while (0)
    FREE(c->kernel);
    FREE(c->initrd);
    FREE(c->cmdline);
    FREE(c->serial.path);
    FREE(c->console.path);
    FREE(c->vsock.path);
    for (unsigned i = 0; i < c->ndisks; i++) {
        FREE(c->disks[i].path);
        FREE(c->disks[i].state);
    }
    for (unsigned i = 0; i < c->nnics; i++)
        FREE(c->nics[i].name);
#undef FREE
}

void rp_machine_unmake(struct rp_machine *m, struct rp_guest_ram *ram)
{
    bring_down(m);
    while (m->ndevices > 0) {
        struct rp_device *d = &m->devices[--m->ndevices];
        if (d->ops->destroy)
            d->ops->destroy(d->dev);
    }
    rp_pci_bus_destroy(m->pci);
    rp_disks_destroy(m->disks);
    rp_gate_destroy(m->gate);
    rp_dirty_destroy(m->dirty);
    rp_vcpus_destroy(m->vcpus);
    rp_irqs_destroy(m->irqs);
    rp_loop_destroy(m->loop);
    free(m->initial);
    if (m->vmfd >= 0)
        close(m->vmfd);
    if (m->kvmfd >= 0)
        close(m->kvmfd);
    if (m->ask_fd >= 0)
        close(m->ask_fd);
    if (m->end_fd >= 0)
        close(m->end_fd);
    if (m->ram && ram)
        memcpy(ram, m->ram, sizeof *ram);
    else if (m->ram)
        rp_guest_ram_fini(m->ram);
    free(m->ram);
    free_config(&m->cfg);
    pthread_cond_destroy(&m->uncut);
    pthread_mutex_destroy(&m->control);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

void rp_machine_destroy(struct rp_machine *m)
{
    if (m)
        rp_machine_unmake(m, NULL);
}

void rp_machine_dissolve(struct rp_machine *m, struct rp_guest_ram *ram)
{
    rp_machine_unmake(m, ram);
}

/* --- what QMP and status ask --- */

struct rp_guest_ram *rp_machine_ram(struct rp_machine *m)
{
    return m->ram;
}

const struct rp_machine_config *rp_machine_cfg(const struct rp_machine *m)
{
    return &m->cfg;
}

unsigned rp_machine_vcpus(struct rp_machine *m, struct rp_vcpu_info *out, unsigned max)
{
    unsigned n = m->vcpus->n < max ? m->vcpus->n : max;

    for (unsigned i = 0; i < n; i++)
        out[i] = (struct rp_vcpu_info){.index = i, .thread_id = atomic_load(&m->vcpus->v[i].tid)};
    return n;
}

void rp_machine_output_deadline(struct rp_machine *m, uint64_t deadline_ns)
{
    rp_gate_set_deadline(m->gate, deadline_ns);
    rp_disks_deadline(m->disks, deadline_ns);
}

void rp_machine_output_stats(struct rp_machine *m, struct rp_gate_stats *out)
{
    rp_gate_stats(m->gate, out);
}

int rp_machine_open_disks(struct rp_machine *m, struct rp_error *err)
{
    int rc = 0;

    rp_loop_lock(m->loop);
    for (unsigned i = 0; i < m->cfg.ndisks && rc == 0; i++) {
        m->cfg.disks[i].take = true;
        rc = rp_virtio_blk_open(&m->devices[m->disk_at[i]], &m->cfg.disks[i], err);
    }
    rp_loop_unlock(m->loop);
    return rc;
}

unsigned rp_machine_disks(struct rp_machine *m, struct rp_disk_info *out, unsigned max)
{
    unsigned n = m->cfg.ndisks < max ? m->cfg.ndisks : max;

    rp_loop_lock(m->loop);
    for (unsigned i = 0; i < n; i++)
        rp_virtio_blk_info(&m->devices[m->disk_at[i]], &out[i]);
    rp_loop_unlock(m->loop);
    return n;
}

void rp_machine_disks_ended(struct rp_machine *m)
{
    rp_disks_ended(m->disks);
}

unsigned rp_machine_nics(struct rp_machine *m, struct rp_nic_info *out, unsigned max)
{
    unsigned n = m->cfg.nnics < max ? m->cfg.nnics : max;

    rp_loop_lock(m->loop);
    for (unsigned i = 0; i < n; i++)
        rp_virtio_net_info(&m->devices[m->nic_at[i]], &out[i]);
    rp_loop_unlock(m->loop);
    return n;
}

static const struct rp_device *balloon(const struct rp_machine *m)
{
    for (unsigned i = 0; i < m->ndevices; i++)
        if (m->cfg.balloon && strcmp(m->devices[i].section, rp_virtio_balloon_table.name) == 0)
            return &m->devices[i];
    return NULL;
}

int rp_machine_balloon(struct rp_machine *m, struct rp_balloon_info *out, struct rp_error *err)
{
    const struct rp_device *d = balloon(m);
    bool driven = false;

    if (d) {
        rp_loop_lock(m->loop);
        driven = rp_virtio_balloon_info(d, out);
        rp_loop_unlock(m->loop);
    }
    return driven ? 0 : rp_error_set(err, ENODEV, d ? "the guest does not drive its balloon" : "the VM has no balloon (--balloon on)");
}

int rp_machine_balloon_set(struct rp_machine *m, uint64_t ram_bytes, struct rp_error *err)
{
    struct rp_balloon_info now;
    int rc = rp_machine_balloon(m, &now, err);

    if (rc < 0)
        return rc;
    rp_loop_lock(m->loop);
    rp_virtio_balloon_target(balloon(m), ram_bytes);
    rp_loop_unlock(m->loop);
    return 0;
}
