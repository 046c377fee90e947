/* The machine's state as sections, and back; see machine.h and docs/state.md for the order. */
#include "vmm/machine_internal.h"

#include "core/clock.h"
#include "core/fault.h"
#include "vmm/devices.h"
#include "vmm/time.h"
#include "vmm/vcpu_state.h"
#include "vmm/vmgenid.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#define MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01u
#define PVCLOCK_BYTES 32u       /* struct pvclock_vcpu_time_info */
#define TSC_TOLERANCE_PPM 250u  /* KVM's default: less apart is left as it is */

static int validate(const void *state, struct rp_error *err)
{
    const struct rp_machine_state *s = state;

    if (s->vcpus == 0 || s->vcpus > RP_VCPUS_MAX || s->ndisks > RP_DISKS_MAX || s->nnics > RP_NICS_MAX)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "machine: %u vCPUs, %u disks, %u network devices (at most %d, %d, %d)",
                             s->vcpus, s->ndisks, s->nnics, RP_VCPUS_MAX, RP_DISKS_MAX, RP_NICS_MAX);
    for (unsigned i = 0; i < RP_DISKS_MAX; i++)
        if (s->disk_serials[i][sizeof s->disk_serials[i] - 1] != 0)
            return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "machine: disk %u's serial number does not end", i);
    return 0;
}

#define M struct rp_machine_state
static const struct rp_field fields[] = {
    RP_U32(M, vcpus, 1), RP_U32(M, ndisks, 2), RP_U32(M, nnics, 3), RP_U32(M, has_console, 4), RP_U32(M, rng, 5),
    RP_U32(M, balloon, 6), RP_U64(M, ram_bytes, 7), RP_BYTES(M, vm_id, 8), RP_BYTES(M, macs, 9),
    RP_ARRAY(M, disk_queues, 10, RP_F_U32), RP_ARRAY(M, nic_queues, 11, RP_F_U32), RP_BYTES(M, disk_serials, 12),
    RP_ARRAY(M, disk_readonly, 13, RP_F_U32), RP_STRUCT(M, cpuid, 14, &rp_cpuid_table),
};
#undef M
const struct rp_state_table rp_machine_table = {
    .name = "machine", .version = 1, .size = sizeof(struct rp_machine_state),
    .fields = fields, .nfields = sizeof fields / sizeof fields[0], .validate = validate};

static int validate_run(const void *state, struct rp_error *err)
{
    const struct rp_run *s = state;

    return (s->asked & ~(uint32_t)(RP_ASK_RESET | RP_ASK_OFF)) == 0 && s->paused <= 1 ? 0
        : rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "run: paused %u, asked %#x", s->paused, s->asked);
}

static const struct rp_field run_fields[] = {RP_U32(struct rp_run, paused, 1), RP_U32(struct rp_run, asked, 2)};
const struct rp_state_table rp_run_table = {
    .name = "run", .version = 1, .size = sizeof(struct rp_run),
    .fields = run_fields, .nfields = sizeof run_fields / sizeof run_fields[0], .validate = validate_run};

/* An epoch of before there was this section is of a machine that ran. */
static int decode_run(const struct rp_sections *s, struct rp_run *out, struct rp_error *err)
{
    struct rp_section sec;

    memset(out, 0, sizeof *out);
    return rp_sections_find(s, rp_run_table.name, 0, &sec) ? rp_section_decode(&rp_run_table, &sec, out, err) : 0;
}

static int decode_machine(const struct rp_sections *s, struct rp_machine_state *out, struct rp_error *err)
{
    struct rp_section sec;

    if (!rp_sections_find(s, rp_machine_table.name, 0, &sec))
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "the epoch has no section \"machine\"");
    memset(out, 0, sizeof *out);
    return rp_section_decode(&rp_machine_table, &sec, out, err);
}

/* --- saving --- */

/* Ticks of the host's TSC as the guest counts them. They differ where KVM has the processor scale them: for a guest from a host of another
 * frequency, when the difference is beyond what KVM lets pass. */
static uint64_t as_guest_counts(const struct rp_machine *m, uint64_t host_tsc)
{
    int khz = m->host_tsc_khz ? ioctl(m->vcpus->v[0].fd, KVM_GET_TSC_KHZ, 0) : 0;
    uint64_t apart = khz <= 0 ? 0 : (uint64_t)(khz > (int)m->host_tsc_khz ? khz - (int)m->host_tsc_khz : (int)m->host_tsc_khz - khz);

    if (apart * 1000000u <= (uint64_t)TSC_TOLERANCE_PPM * m->host_tsc_khz)
        return host_tsc;
    return (uint64_t)((unsigned __int128)host_tsc * (unsigned)khz / m->host_tsc_khz);
}

int rp_machine_save(struct rp_machine *m, struct rp_sections *out, uint64_t *guest_ns, struct rp_error *err)
{
    struct rp_clock_state clock;
    struct rp_section machine = {.instance = 0, .version = rp_machine_table.version};
    struct rp_run run = {.paused = (atomic_load(&m->paused) & RP_PAUSE_USER) != 0};
    int rc = 0;

    rp_vcpus_save(m->vcpus);
    if (m->st_bytes.len == 0)       /* constant: encoded once */
        rp_state_encode(&rp_machine_table, &m->st, &m->st_bytes);
    snprintf(machine.name, sizeof machine.name, "%s", rp_machine_table.name);
    machine.bytes = m->st_bytes.data;
    machine.len = (uint32_t)m->st_bytes.len;
    if (m->st_bytes.failed || rp_sections_put(out, &machine) < 0)
        rc = rp_error_set(err, ENOMEM, "machine: out of memory");
    run.asked = (atomic_load(&m->asks) | m->serving) & (RP_ASK_RESET | RP_ASK_OFF);
    if (rc == 0)
        rc = rp_sections_add(out, &rp_run_table, 0, &run, err);
    for (unsigned i = 0; i < m->ndevices && rc == 0; i++) {     /* while the vCPUs take their own (VCPU-4) */
        const struct rp_device *d = &m->devices[i];
        if (d->ops->save)
            rc = d->ops->save(d->dev, out, d->instance, err);
    }
    if (rc == 0)
        rc = rp_vcpus_collect(m->vcpus, err);
    if (rc == 0)
        rc = rp_clock_read_guest(m->vmfd, m->vcpus->v[0].fd, &clock, err);
    if (rc == 0)
        rc = rp_sections_add(out, &rp_clock_table, 0, &clock, err);
    for (unsigned i = 0; i < m->vcpus->n && rc == 0; i++) {
        struct rp_vcpu_state *s = m->vcpus->v[i].state;
        uint64_t counted = as_guest_counts(m, clock.host_tsc);
        s->tsc += counted;          /* offset + host TSC of that instant */
        rc = rp_sections_add(out, &rp_vcpu_table, i, s, err);
        s->tsc -= counted;
    }
    if (rc == 0)
        *guest_ns = clock.kvmclock_ns;
    return rc;
}

/* --- entering --- */

/* The epoch has a vsock device exactly if it has its section. */
static int vsock_from(const struct rp_sections *s, struct rp_vsock_config *cfg, struct rp_error *err)
{
    struct rp_section sec;
    size_t pos = 0;

    cfg->cid = 0;
    while (rp_sections_next(s, &pos, &sec))
        if (strcmp(sec.name, rp_virtio_vsock_table.name) == 0)
            return rp_virtio_vsock_cid(&sec, &cfg->cid, err);
    return cfg->path ? rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "--vsock %s: the VM has no vsock device", cfg->path) : 0;
}

/* What the user says of a disk, a card or a console has to be so: a guest that finds two disks exchanged writes to the wrong one. */
static int check_said(const struct rp_machine_state *st, const struct rp_machine_config *cfg, struct rp_error *err)
{
    if (cfg->has_console && !st->has_console)
        return rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "--console: the VM has no virtio console; leave it out");
    for (unsigned i = 0; i < st->ndisks; i++) {
        const struct rp_disk_config *d = &cfg->disks[i];

        if (d->readonly && !st->disk_readonly[i])
            return rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "disk %u: the VM writes to it, it cannot be \"ro\"", i);
        if (d->serial[0] && strncmp(d->serial, (const char *)st->disk_serials[i], sizeof d->serial - 1) != 0)
            return rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "disk %u: the VM's has the serial \"%.20s\", \"%s\" is given: give the disks in the "
                                 "order they had", i, (const char *)st->disk_serials[i], d->serial);
        if (d->queues && d->queues != st->disk_queues[i])
            return rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "disk %u: the VM's has %u queues, %u are given: leave that out", i,
                                 st->disk_queues[i], d->queues);
    }
    for (unsigned i = 0; i < st->nnics; i++) {
        const struct rp_nic_config *n = &cfg->nics[i];
        const uint8_t *a = st->macs[i];

        if (n->has_mac && memcmp(n->mac, a, sizeof n->mac) != 0)
            return rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "network device %u: the VM's has the address %02x:%02x:%02x:%02x:%02x:%02x, another one is "
                                 "given: leave it out, or give the devices in the order they had", i, a[0], a[1], a[2], a[3], a[4], a[5]);
        if (n->queues && n->queues != st->nic_queues[i])
            return rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "network device %u: the VM's has %u queue pairs, %u are given: leave that out", i,
                                 st->nic_queues[i], n->queues);
    }
    return 0;
}

int rp_machine_config_from(const struct rp_sections *s, struct rp_machine_config *cfg, struct rp_error *err)
{
    struct rp_machine_state *st = malloc(sizeof *st);
    int rc = st ? decode_machine(s, st, err) : rp_error_set(err, ENOMEM, "machine: out of memory");

    if (rc < 0)
        goto out;
    rc = -EBADMSG;
    if (cfg->ndisks < st->ndisks) {
        rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "the VM has %u disk%s, %u given: disk %u%s%s is missing", st->ndisks,
                      st->ndisks == 1 ? "" : "s", cfg->ndisks, cfg->ndisks, st->disk_serials[cfg->ndisks][0] ? ", serial " : "",
                      (const char *)st->disk_serials[cfg->ndisks]);
        goto out;
    }
    if (cfg->nnics < st->nnics) {
        const uint8_t *a = st->macs[cfg->nnics];
        rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "the VM has %u network device%s, %u given: the one with address "
                      "%02x:%02x:%02x:%02x:%02x:%02x is missing", st->nnics, st->nnics == 1 ? "" : "s", cfg->nnics,
                      a[0], a[1], a[2], a[3], a[4], a[5]);
        goto out;
    }
    if (cfg->ndisks > st->ndisks || cfg->nnics > st->nnics) {
        rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "the VM has %u disk%s and %u network device%s, %u and %u are given", st->ndisks,
                      st->ndisks == 1 ? "" : "s", st->nnics, st->nnics == 1 ? "" : "s", cfg->ndisks, cfg->nnics);
        goto out;
    }
    rc = check_said(st, cfg, err);
    if (rc == 0)
        rc = vsock_from(s, &cfg->vsock, err);
    if (rc < 0)
        goto out;
    cfg->vcpus = st->vcpus;
    cfg->ram.size_bytes = st->ram_bytes;
    cfg->ndisks = st->ndisks;
    cfg->nnics = st->nnics;
    cfg->has_console = st->has_console != 0;
    cfg->rng = st->rng != 0;
    cfg->balloon = st->balloon != 0;
    memcpy(cfg->vm_id, st->vm_id, sizeof cfg->vm_id);
    for (unsigned i = 0; i < st->ndisks; i++) {
        cfg->disks[i].queues = st->disk_queues[i];
        cfg->disks[i].readonly = st->disk_readonly[i] != 0;
        memcpy(cfg->disks[i].serial, st->disk_serials[i], sizeof cfg->disks[i].serial - 1);
        cfg->disks[i].serial[sizeof cfg->disks[i].serial - 1] = 0;
    }
    for (unsigned i = 0; i < st->nnics; i++) {
        cfg->nics[i].queues = st->nic_queues[i];
        cfg->nics[i].has_mac = true;
        memcpy(cfg->nics[i].mac, st->macs[i], 6);
    }
out:
    free(st);
    return rc;
}

/* The machine section against this machine; gives every vCPU the epoch's CPUID table. */
static int enter_machine(struct rp_machine *m, const struct rp_sections *s, struct rp_error *err)
{
    struct rp_machine_state *st = malloc(sizeof *st);
    int rc = st ? decode_machine(s, st, err) : rp_error_set(err, ENOMEM, "machine: out of memory");

    if (rc < 0)
        goto out;
    if (st->vcpus != m->st.vcpus || st->ram_bytes != m->st.ram_bytes || st->ndisks != m->st.ndisks || st->nnics != m->st.nnics) {
        rc = rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "the epoch is of a machine with %u vCPUs, %" PRIu64 " MiB, %u disks, "
                           "%u network devices; this one has %u, %" PRIu64 ", %u, %u", st->vcpus, st->ram_bytes >> 20,
                           st->ndisks, st->nnics, m->st.vcpus, m->st.ram_bytes >> 20, m->st.ndisks, m->st.nnics);
        goto out;
    }
    rc = rp_cpuid_compatible(&st->cpuid, &m->st.cpuid, err);
    for (unsigned i = 0; i < m->vcpus->n && rc == 0; i++)
        rc = rp_cpuid_apply(&st->cpuid, m->vcpus->v[i].fd, i, err);
    if (rc == 0) {
        m->st = *st;
        rp_buf_reset(&m->st_bytes);
        rc = rp_msr_list_probe(m->vcpus, err);
    }
out:
    free(st);
    return rc;
}

/* Some KVMs write the guest's clock page as soon as the MSR that names it is set, all of them when the vCPU first runs
 * again. RAM is the epoch's until then: what was there is put back. (rp_machine_resume asks for the update.) */
static int load_vcpu(struct rp_machine *m, unsigned i, const struct rp_vcpu_state *st, uint64_t tsc_offset, struct rp_error *err)
{
    uint8_t page[PVCLOCK_BYTES], *at = NULL;
    int rc;

    for (uint32_t k = 0; k < st->nmsrs; k++)
        if (st->msrs[k].index == MSR_KVM_SYSTEM_TIME_NEW && (st->msrs[k].value & 1))
            at = rp_ram_at(m->ram, rp_gpa(st->msrs[k].value & ~1ull), sizeof page);
    if (at)
        memcpy(page, at, sizeof page);
    rc = rp_vcpu_load(&m->vcpus->v[i], st, tsc_offset, err);
    if (at)
        memcpy(at, page, sizeof page);
    return rc;
}

static int enter_vcpus(struct rp_machine *m, const struct rp_sections *s, struct rp_error *err)
{
    struct rp_clock_state clock = {0};
    struct rp_section sec;
    struct rp_vcpu_state *st = malloc(sizeof *st);
    uint64_t elapsed_ns = 0, host_tsc = 0, advance;
    int rc = 0;

    if (!st)
        return rp_error_set(err, ENOMEM, "vcpu: out of memory");
    if (!rp_sections_find(s, rp_clock_table.name, 0, &sec))
        rc = rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "the epoch has no section \"clock\"");
    else
        rc = rp_section_decode(&rp_clock_table, &sec, &clock, err);
    if (rc == 0)
        rc = rp_clock_enter(m->vmfd, &clock, m->cfg.wall_clock_follows, &elapsed_ns, &host_tsc, err);
    advance = (uint64_t)((unsigned __int128)elapsed_ns * clock.tsc_khz / 1000000u);
    for (unsigned i = 0; i < m->vcpus->n && rc == 0; i++) {
        struct rp_vcpu *v = &m->vcpus->v[i];
        int khz = ioctl(v->fd, KVM_GET_TSC_KHZ, 0);
        memset(st, 0, sizeof *st);
        if (!rp_sections_find(s, rp_vcpu_table.name, i, &sec))
            rc = rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "the epoch has no section \"vcpu\" %u", i);
        else
            rc = rp_section_decode(&rp_vcpu_table, &sec, st, err);
        /* Another frequency: scaled by the CPU where it can; kvmclock tells the guest the truth in either case. */
        if (rc == 0 && clock.tsc_khz && khz > 0 && (uint32_t)khz != clock.tsc_khz)
            (void)ioctl(v->fd, KVM_SET_TSC_KHZ, (long)clock.tsc_khz);
        if (rc == 0)
            rc = load_vcpu(m, i, st, st->tsc + advance - as_guest_counts(m, host_tsc), err);
        if (rc < 0)
            rp_error_wrap(err, "vcpu %u", i);
    }
    free(st);
    return rc;
}

static int enter_devices(struct rp_machine *m, const struct rp_sections *s, bool rehearsal, struct rp_error *err)
{
    struct rp_section sec;
    int rc = 0;

    for (unsigned i = 0; i < m->ndevices && rc == 0; i++) {
        const struct rp_device *d = &m->devices[i];
        if (!d->ops->load)
            continue;
        if (!rp_sections_find(s, d->section, d->instance, &sec))
            rc = rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "the epoch has no section \"%s\" %u", d->section, d->instance);
        else if (!rehearsal && rp_fault(RP_FAULT_LOAD_SECTION))
            rc = rp_error_set(err, EIO, "fault point load-section");
        else
            rc = d->ops->load(d->dev, &sec, err);
        if (rc < 0)
            rp_error_wrap(err, "entering device %s %u", d->section, d->instance);
    }
    return rc;
}

/* Every section must have a taker: state that is left out is a guest that breaks later. */
static int no_strangers(const struct rp_machine *m, const struct rp_sections *s, struct rp_error *err)
{
    struct rp_section sec;
    size_t pos = 0;

    while (rp_sections_next(s, &pos, &sec)) {
        bool known = strcmp(sec.name, "machine") == 0 || strcmp(sec.name, "run") == 0 || strcmp(sec.name, "clock") == 0
            || strcmp(sec.name, "history") == 0
            || (strcmp(sec.name, "vcpu") == 0 && sec.instance < m->vcpus->n);
        for (unsigned i = 0; i < m->ndevices && !known; i++)
            known = strcmp(sec.name, m->devices[i].section) == 0 && sec.instance == m->devices[i].instance;
        if (!known)
            return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "the epoch has a section \"%s\" %u (version %u) that this "
                                 "machine has no device for", sec.name, sec.instance, sec.version);
    }
    return 0;
}

/* Control and machine lock held. */
static int enter_sections(struct rp_machine *m, const struct rp_sections *s, bool rehearsal, struct rp_error *err)
{
    struct rp_section history;
    struct rp_run run;
    int rc = no_strangers(m, s, err);

    if (rc == 0)
        rc = decode_run(s, &run, err);
    if (rc == 0 && m->events && rp_sections_find(s, rp_history_table.name, 0, &history))
        rc = rp_events_load(NULL, &history, err);   /* taken over last of all, and then nothing may fail */
    if (rc == 0 && !rehearsal) {
        atomic_store(&m->paused, (atomic_load(&m->paused) & ~(unsigned)RP_PAUSE_USER) | (run.paused ? RP_PAUSE_USER : 0));
        atomic_store(&m->asks, run.asked);
    }
    if (rc == 0)
        rc = enter_machine(m, s, err);
    if (rc == 0)
        rc = enter_devices(m, s, rehearsal, err);   /* the irqchip before the LAPICs: their state must not be hit by its lines */
    return rc == 0 ? enter_vcpus(m, s, err) : rc;
}

int rp_machine_rehearse(struct rp_machine *m, const struct rp_sections *s, struct rp_error *err)
{
    struct rp_machine_state *own = malloc(sizeof *own);
    int rc;

    if (!own)
        return rp_error_set(err, ENOMEM, "machine: out of memory");
    pthread_mutex_lock(&m->control);
    rp_loop_lock(m->loop);
    *own = m->st;
    rc = enter_sections(m, s, true, err);
    if (rc == 0)
        rc = rp_machine_power_on(m, err);   /* no timer of the guest's is left running */
    m->st = *own;
    rp_loop_unlock(m->loop);
    pthread_mutex_unlock(&m->control);
    free(own);
    return rc;
}

int rp_machine_enter(struct rp_machine *m, const struct rp_sections *s, const struct rp_epoch_trailer *t, bool moved,
                     struct rp_error *err)
{
    struct rp_section sec;
    int rc = 0;

    pthread_mutex_lock(&m->control);
    if (atomic_load(&m->state) != RP_VM_CREATED && atomic_load(&m->state) != RP_VM_PAUSED)
        rc = rp_error_exit(err, RP_EXIT_REFUSED, EINVAL, "the VM runs: an epoch is entered by one that stands still");
    rp_loop_lock(m->loop);
    if (rc == 0)
        rc = enter_sections(m, s, false, err);
    if (rc == 0 && moved)
        rp_vmgenid_renew(m->vmgenid);
    m->announce_due = rc == 0 && moved;
    rp_loop_unlock(m->loop);
    if (rc == 0) {
        if (m->events && rp_sections_find(s, "history", 0, &sec))
            rc = rp_events_load(m->events, &sec, err);
        m->newest_epoch = t ? t->number : 0;
        atomic_store(&m->state, RP_VM_PAUSED);
    }
    pthread_mutex_unlock(&m->control);
    return rc < 0 ? rp_error_wrap(err, "entering epoch %" PRIu64, t ? t->number : 0) : 0;
}
