/* Making a machine from its config; see machine.h. */
#include "vmm/machine_internal.h"

#include "vmm/acpi.h"
#include "vmm/chipset.h"
#include "vmm/devices.h"
#include "vmm/kvm.h"
#include "vmm/power.h"
#include "vmm/rtc.h"
#include "vmm/serial.h"
#include "vmm/vcpu_state.h"
#include "vmm/vmgenid.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <unistd.h>

#define TSS_ADDRESS 0xfffbd000ul        /* three pages for old Intel CPUs' real mode, below the 4 GiB line */
#define IDENTITY_MAP_ADDRESS 0xfffbc000ull

/* PCI slots: fixed by kind, so that the same config gives the same machine on every host. */
enum { SLOT_RNG = 1, SLOT_CONSOLE = 2, SLOT_BALLOON = 3, SLOT_NIC = 4, SLOT_DISK = SLOT_NIC + RP_NICS_MAX,
       SLOT_VSOCK = SLOT_DISK + RP_DISKS_MAX };


/* --- config --- */

static int copy_string(const char **s, struct rp_error *err)
{
    if (!*s)
        return 0;
    *s = strdup(*s);
    return *s ? 0 : rp_error_set(err, ENOMEM, "machine: out of memory");
}

/* Every string becomes the machine's own; on failure those not copied yet are NULL. */
static int copy_config(struct rp_machine_config *to, const struct rp_machine_config *from, struct rp_error *err)
{
    const char **strings[6 + 2 * RP_DISKS_MAX + RP_NICS_MAX] = {
        &to->kernel, &to->initrd, &to->cmdline, &to->serial.path, &to->console.path, &to->vsock.path};
    unsigned n = 6, i = 0;
    int rc = 0;

    *to = *from;
    for (unsigned k = 0; k < to->ndisks; k++) {
        strings[n++] = &to->disks[k].path;
        strings[n++] = &to->disks[k].state;
    }
    for (unsigned k = 0; k < to->nnics; k++)
        strings[n++] = &to->nics[k].name;
    while (i < n && (rc = copy_string(strings[i], err)) == 0)
        i++;
    for (; i < n; i++)
        *strings[i] = NULL;
    return rc;
}

static int check_config(const struct rp_machine_config *c, struct rp_error *err)
{
    if (c->vcpus == 0 || c->vcpus > RP_VCPUS_MAX)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%u vCPUs: from 1 to %d", c->vcpus, RP_VCPUS_MAX);
    if (c->ndisks > RP_DISKS_MAX || c->nnics > RP_NICS_MAX)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%u disks, %u network devices: at most %d and %d", c->ndisks, c->nnics,
                             RP_DISKS_MAX, RP_NICS_MAX);
    if (c->has_console && c->console.kind == RP_SERIAL_STDIO && c->serial.kind == RP_SERIAL_STDIO)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "the serial port and the console cannot both be on stdio");
    return c->kernel ? rp_boot_check(c->kernel, c->initrd, err) : 0;
}

/* What of the config travels: struct rp_machine_state. */
static void fill_state(struct rp_machine *m)
{
    const struct rp_machine_config *c = &m->cfg;
    uint8_t zero[16] = {0};

    while (memcmp(m->cfg.vm_id, zero, sizeof zero) == 0)
        (void)!getrandom(m->cfg.vm_id, sizeof m->cfg.vm_id, 0);
    m->st.vcpus = c->vcpus;
    m->st.ndisks = c->ndisks;
    m->st.nnics = c->nnics;
    m->st.has_console = c->has_console;
    m->st.rng = c->rng;
    m->st.balloon = c->balloon;
    m->st.ram_bytes = m->ram->size_bytes;
    memcpy(m->st.vm_id, c->vm_id, sizeof m->st.vm_id);
    for (unsigned i = 0; i < c->ndisks; i++) {
        m->cfg.disks[i].queues = c->disks[i].queues ? c->disks[i].queues : c->vcpus < 4 ? c->vcpus : 4;
        m->st.disk_queues[i] = c->disks[i].queues;
        m->st.disk_readonly[i] = c->disks[i].readonly;
        memcpy(m->st.disk_serials[i], c->disks[i].serial, sizeof c->disks[i].serial - 1);
    }
    for (unsigned i = 0; i < c->nnics; i++) {
        uint8_t *mac = m->cfg.nics[i].mac;
        if (!c->nics[i].has_mac) {      /* locally administered, from the VM id */
            memcpy(mac, c->vm_id, 6);
            mac[0] = (uint8_t)((mac[0] & 0xfc) | 2);
            mac[5] = (uint8_t)(mac[5] + i);
            m->cfg.nics[i].has_mac = true;
        }
        m->cfg.nics[i].queues = c->nics[i].queues ? c->nics[i].queues : 1;
        m->st.nic_queues[i] = c->nics[i].queues;
        memcpy(m->st.macs[i], mac, 6);
    }
}

/* --- KVM --- */

static int make_vm(struct rp_machine *m, struct rp_error *err)
{
    uint64_t identity = IDENTITY_MAP_ADDRESS;
    struct kvm_enable_cap pmu = {.cap = KVM_CAP_PMU_CAPABILITY, .args = {KVM_PMU_CAP_DISABLE}};
    int rc = rp_kvm_open(err);

    if (rc < 0)
        return rc;
    m->kvmfd = rc;
    do
        m->vmfd = ioctl(m->kvmfd, KVM_CREATE_VM, 0);
    while (m->vmfd < 0 && errno == EINTR);
    if (m->vmfd < 0)
        return rp_error_exit(err, RP_EXIT_HOST, errno, "KVM_CREATE_VM: %m");
    if (fcntl(m->vmfd, F_SETFD, FD_CLOEXEC) != 0)
        return rp_error_set(err, errno, "KVM_CREATE_VM: %m");
    (void)ioctl(m->vmfd, KVM_ENABLE_CAP, &pmu);     /* advice: CPUID offers no PMU in any case */
    (void)ioctl(m->vmfd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
    if (ioctl(m->vmfd, KVM_SET_TSS_ADDR, TSS_ADDRESS) != 0)
        return rp_error_exit(err, RP_EXIT_HOST, errno, "KVM_SET_TSS_ADDR: %m");
    return 0;
}

static int make_ram(struct rp_machine *m, const struct rp_machine_config *cfg, struct rp_error *err)
{
    int rc;

    m->ram = malloc(sizeof *m->ram);
    if (!m->ram)
        return rp_error_set(err, ENOMEM, "machine: out of memory");
    if (cfg->adopt) {
        memcpy(m->ram, cfg->adopt, sizeof *m->ram);
        *cfg->adopt = (struct rp_guest_ram){.memfd = -1};   /* the machine's from here on */
        return 0;
    }
    rc = rp_guest_ram_init(m->ram, &cfg->ram, err);
    if (rc < 0) {
        free(m->ram);
        m->ram = NULL;
    }
    return rc;
}

static void on_shutdown(void *ctx, unsigned vcpu)
{
    (void)vcpu;
    rp_machine_ask(ctx, RP_ASK_RESET);      /* a triple fault resets a PC */
}

static void on_failed(void *ctx, unsigned vcpu, const char *why)
{
    struct rp_machine *m = ctx;

    (void)vcpu;
    rp_loop_lock(m->loop);
    snprintf(m->ask_text, sizeof m->ask_text, "%s", why);
    rp_loop_unlock(m->loop);
    rp_machine_ask(m, RP_ASK_FAILED);
}

static void on_ring_full(void *ctx, unsigned vcpu)
{
    struct rp_machine *m = ctx;

    rp_dirty_ring_full(m->dirty, vcpu);
}

static int make_vcpus(struct rp_machine *m, struct rp_error *err)
{
    struct rp_vcpus_config c = {
        .kvmfd = m->kvmfd, .vmfd = m->vmfd, .n = m->cfg.vcpus, .pio = &m->pio, .mmio = &m->mmio, .loop = m->loop,
        .ops = {.ctx = m, .shutdown = on_shutdown, .failed = on_failed, .ring_full = on_ring_full}};
    int rc = rp_cpuid_host(m->kvmfd, m->cfg.vcpus, &m->st.cpuid, err);

    if (rc == 0)
        rc = rp_vcpus_create(&c, &m->vcpus, err);
    if (rc == 0 && ioctl(m->kvmfd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0) {
        int khz = ioctl(m->vcpus->v[0].fd, KVM_GET_TSC_KHZ, 0);
        m->host_tsc_khz = khz > 0 ? (uint32_t)khz : 0;
    }
    for (unsigned i = 0; i < m->cfg.vcpus && rc == 0; i++)
        rc = rp_cpuid_apply(&m->st.cpuid, m->vcpus->v[i].fd, i, err);
    if (rc == 0)
        rc = rp_msr_list_probe(m->vcpus, err);
    if (rc == 0)
        rc = rp_dirty_attach(m->dirty, m->vcpus, err);
    return rc;
}

/* Virtual wire mode, as firmware leaves it: LINT0 takes the PIC's interrupts, LINT1 NMIs. Then that is remembered as
 * the power-on state. */
static int remember_initial(struct rp_machine *m, struct rp_error *err)
{
    struct kvm_lapic_state l;
    int rc;

    m->initial = calloc(m->cfg.vcpus, sizeof *m->initial);
    if (!m->initial)
        return rp_error_set(err, ENOMEM, "machine: out of memory");
    for (unsigned i = 0; i < m->cfg.vcpus; i++) {
        if (ioctl(m->vcpus->v[i].fd, KVM_GET_LAPIC, &l) != 0)
            return rp_error_set(err, errno, "vcpu %u: KVM_GET_LAPIC: %m", i);
        rp_st32(l.regs + 0x350, 0x700);     /* LVT LINT0: ExtINT */
        rp_st32(l.regs + 0x360, 0x400);     /* LVT LINT1: NMI */
        if (ioctl(m->vcpus->v[i].fd, KVM_SET_LAPIC, &l) != 0)
            return rp_error_set(err, errno, "vcpu %u: KVM_SET_LAPIC: %m", i);
    }
    rp_vcpus_save(m->vcpus);
    rc = rp_vcpus_collect(m->vcpus, err);
    for (unsigned i = 0; i < m->cfg.vcpus && rc == 0; i++)
        m->initial[i] = *m->vcpus->v[i].state;
    return rc;
}

/* --- devices --- */

int rp_machine_add(struct rp_machine *m, const struct rp_device *d, struct rp_error *err)
{
    if (m->ndevices == RP_DEVICES_MAX) {
        if (d->ops->destroy)
            d->ops->destroy(d->dev);
        return rp_error_set(err, ENOSPC, "machine: more than %d devices", RP_DEVICES_MAX);
    }
    m->devices[m->ndevices++] = *d;
    return 0;
}

static void ask_off(void *ctx)
{
    rp_machine_ask(ctx, RP_ASK_OFF);
}

static void ask_reset(void *ctx)
{
    rp_machine_ask(ctx, RP_ASK_RESET);
}

static int make_board(struct rp_machine *m, struct rp_error *err)
{
    struct rp_power_ops ops = {.ctx = m, .off = ask_off, .reset = ask_reset};
    struct rp_device d;
    int rc = rp_serial_create(&m->pio, m->irqs, m->loop, &m->cfg.serial, &d, err);

    if (rc == 0)
        rc = rp_machine_add(m, &d, err);
    if (rc == 0)
        rc = rp_rtc_create(&m->pio, m->irqs, m->loop, m->cfg.wall_clock_follows, &d, err);
    if (rc == 0)
        rc = rp_machine_add(m, &d, err);
    if (rc == 0)
        rc = rp_power_create(&m->pio, m->irqs, &ops, &m->power, &d, err);
    if (rc == 0)
        rc = rp_machine_add(m, &d, err);
    if (rc == 0)
        rc = rp_vmgenid_create(m->ram, m->power, &m->vmgenid, &d, err);
    if (rc == 0)
        rc = rp_machine_add(m, &d, err);
    if (rc == 0)
        rc = rp_pci_bus_create(&m->mmio, &m->pio, m->irqs, &m->pci, err);
    if (rc < 0)
        return rc;
    rp_pci_bus_reset_port(m->pci, rp_power_reset_port, m->power);
    rp_pci_bus_device(m->pci, &d);
    return rp_machine_add(m, &d, err);
}

static int make_virtio(struct rp_machine *m, struct rp_error *err)
{
    const struct rp_machine_config *c = &m->cfg;
    struct rp_device_env env = {.ram = m->ram, .pci = m->pci, .irqs = m->irqs, .loop = m->loop, .events = m->events,
                                .gate = m->gate, .disks = m->disks, .disks_later = c->disks_later, .vcpus = c->vcpus};
    struct rp_device d;
    int rc = 0;

    for (unsigned i = 0; i < c->ndisks && rc == 0; i++) {
        rc = rp_virtio_blk_create(&env, SLOT_DISK + i, &c->disks[i], &d, err);
        m->disk_at[i] = (int)m->ndevices;
        rc = rc < 0 ? rc : rp_machine_add(m, &d, err);
    }
    for (unsigned i = 0; i < c->nnics && rc == 0; i++) {
        rc = rp_virtio_net_create(&env, SLOT_NIC + i, &c->nics[i], c->nics[i].mac, &d, err);
        m->nic_at[i] = (int)m->ndevices;
        rc = rc < 0 ? rc : rp_machine_add(m, &d, err);
    }
    if (rc == 0 && c->rng && (rc = rp_virtio_rng_create(&env, SLOT_RNG, &d, err)) == 0)
        rc = rp_machine_add(m, &d, err);
    if (rc == 0 && c->has_console && (rc = rp_virtio_console_create(&env, SLOT_CONSOLE, &c->console, &d, err)) == 0)
        rc = rp_machine_add(m, &d, err);
    if (rc == 0 && c->balloon && (rc = rp_virtio_balloon_create(&env, SLOT_BALLOON, &d, err)) == 0)
        rc = rp_machine_add(m, &d, err);
    if (rc == 0 && c->vsock.cid && (rc = rp_virtio_vsock_create(&env, SLOT_VSOCK, c->vsock.path, c->vsock.cid, &d, err)) == 0)
        rc = rp_machine_add(m, &d, err);
    return rc;
}

/* --- boot --- */

int rp_machine_boot(struct rp_machine *m, struct rp_error *err)
{
    struct rp_boot_config b = {.kernel = m->cfg.kernel, .initrd = m->cfg.initrd, .cmdline = m->cfg.cmdline};
    struct rp_boot_entry entry = {0};
    int rc = rp_acpi_write(m->ram, m->cfg.vcpus, RP_VMGENID_GPA, &b.rsdp_gpa, err);

    if (rc == 0)
        rc = rp_vmgenid_place(m->vmgenid, err);
    if (rc == 0)
        rc = rp_boot_load(m->ram, &b, &entry, err);
    return rc == 0 ? rp_boot_enter(m->vcpus->v[0].fd, &entry, err) : rc;
}

static int make(struct rp_machine *m, const struct rp_machine_config *cfg, struct rp_error *err)
{
    struct rp_device chips[2];
    int rc = make_ram(m, cfg, err);     /* first: the commonest reason for which a VM cannot be */

    if (rc == 0)
        rc = make_vm(m, err);
    if (rc < 0)
        return rc;
    fill_state(m);
    rc = rp_dirty_create(m->vmfd, m->ram, (int)m->cfg.dirty, &m->dirty, err);
    if (rc == 0)
        rc = rp_chipset_create(m->vmfd, chips, err);
    if (rc == 0)
        rc = rp_machine_add(m, &chips[0], err);
    if (rc == 0)
        rc = rp_machine_add(m, &chips[1], err);
    if (rc == 0)
        rc = rp_loop_create(&m->lock, &m->loop, err);
    if (rc == 0)
        rc = make_vcpus(m, err);
    if (rc == 0)
        rc = rp_irqs_create(m->vmfd, &m->irqs, err);
    if (rc == 0)
        rc = rp_gate_create(m->loop, RP_GATE_BOUND_BYTES, &m->gate, err);
    if (rc == 0)
        rc = rp_disks_create(m->loop, rp_gate_fd(m->gate), &m->disks, err);
    if (rc == 0)
        rc = make_board(m, err);
    if (rc == 0)
        rc = make_virtio(m, err);
    if (rc == 0)
        rc = remember_initial(m, err);
    if (rc == 0 && m->cfg.kernel && !cfg->adopt)     /* or for a reset only */
        rc = rp_machine_boot(m, err);
    return rc;
}

int rp_machine_create(const struct rp_machine_config *cfg, struct rp_events *events, struct rp_machine **out, struct rp_error *err)
{
    struct rp_machine *m;
    int rc = check_config(cfg, err);

    if (rc < 0)
        return rc;
    m = calloc(1, sizeof *m);
    if (!m)
        return rp_error_set(err, ENOMEM, "machine: out of memory");
    pthread_mutex_init(&m->lock, NULL);
    pthread_mutex_init(&m->control, NULL);
    pthread_cond_init(&m->uncut, NULL);
    m->kvmfd = m->vmfd = -1;
    m->events = events;
    m->ask_fd = eventfd(0, EFD_CLOEXEC);
    m->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rc = copy_config(&m->cfg, cfg, err);
    if (rc == 0 && (m->ask_fd < 0 || m->end_fd < 0))
        rc = rp_error_set(err, EMFILE, "machine: no descriptors left");
    if (rc == 0)
        rc = make(m, cfg, err);
    if (rc < 0) {
        rp_machine_unmake(m, cfg->adopt);
        return rc;
    }
    rp_machine_source_init(m);
    *out = m;
    return 0;
}
