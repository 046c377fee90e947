/* A machine with a native guest: it starts, pauses, resumes, is cut and entered again. */
#include "tests/unit/native.h"
#include "tests/unit/told.h"

#include "core/fault.h"
#include "vmm/cpuid.h"
#include "vmm/vcpu_state.h"
#include "vmm/vmgenid.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>

static struct rp_machine *boot(const char *guest, const char *cmdline, unsigned vcpus, uint64_t mib)
{
    struct rp_machine_config cfg = native_config(guest, cmdline, vcpus, mib);
    struct rp_machine *m = NULL;
    struct rp_error err = {0};

    cr_assert_eq(rp_machine_create(&cfg, NULL, &m, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_start(m, &err), 0, "%s", err.text);
    wait_running(m);
    return m;
}

static uint64_t beats(struct rp_machine *m, unsigned vcpu)
{
    return __atomic_load_n(&guest_vcpu(m, vcpu)->heartbeat, __ATOMIC_ACQUIRE);
}

static void wait_beats(struct rp_machine *m, unsigned vcpu, uint64_t more)
{
    uint64_t start = beats(m, vcpu), until = rp_clock_ns() + 10000000000u;

    while (beats(m, vcpu) < start + more) {
        cr_assert(rp_clock_ns() < until, "vcpu %u stands at heartbeat %lu: %s", vcpu, beats(m, vcpu), rp_machine_failure(m));
        usleep(500);
    }
}

/* A machine's first epoch, and what it is cut into. */
struct cutting {
    struct rp_source *src;
    struct rp_sections sections;
    struct rp_pageset dirty;
    struct rp_cut cut;
};

/* From here on it can be cut. */
static void track(struct cutting *c, struct rp_machine *m, uint64_t epoch)
{
    struct rp_error err = {0};

    *c = (struct cutting){.src = rp_machine_source(m), .cut = {.sections = &c->sections, .dirty = &c->dirty, .epoch = epoch}};
    cr_assert_eq(rp_pageset_init(&c->dirty, rp_machine_ram(m)->view.gfn_end), 0);
    cr_assert_eq(c->src->ops->track_start(c->src, true, &err), 0, "%s", err.text);
}

static void cutting_fini(struct cutting *c)
{
    rp_pageset_fini(&c->dirty);
    rp_sections_fini(&c->sections);
}

Test(machine, runs_pauses_resumes)
{
    struct rp_machine *m;
    struct rp_error err = {0};
    uint64_t n;

    need_kvm("idle");
    m = boot("idle", "", 1, 64);
    wait_beats(m, 0, 5);
    cr_assert_eq(rp_machine_pause(m, RP_PAUSE_USER, &err), 0, "%s", err.text);
    n = beats(m, 0);
    usleep(20000);
    cr_assert_eq(beats(m, 0), n, "a paused guest goes on");
    cr_assert_eq(rp_machine_resume(m, RP_PAUSE_USER, &err), 0, "%s", err.text);
    wait_beats(m, 0, 5);
    rp_machine_quit(m);
    cr_assert_eq(rp_machine_state(m), RP_VM_SHUTDOWN);
    rp_machine_destroy(m);
}

/* INV-2: a standby that cannot make its machine (a disk is not there yet) still holds what it needs for the next attempt. */
Test(machine, INV2_who_cannot_be_made_leaves_the_adopted_memory, .timeout = 120)
{
    struct rp_machine_config cfg = native_config("idle", "", 1, 64);
    struct rp_ram_config how = {.size_bytes = 64 << 20};
    struct rp_guest_ram ram = {.memfd = -1};
    struct rp_machine *m = NULL;
    struct rp_error err = {0};

    need_kvm("idle");
    cr_assert_eq(rp_guest_ram_init(&ram, &how, &err), 0, "%s", err.text);
    memset(ram.view.base + (32 << 20), 0x5a, RP_PAGE_SIZE);
    cfg.adopt = &ram;
    cfg.kernel = NULL;
    cfg.ndisks = 1;
    cfg.disks[0].path = "/nonexistent/disk";
    for (int i = 0; i < 2; i++) {
        cr_assert_lt(rp_machine_create(&cfg, NULL, &m, &err), 0);
        cr_assert_not_null(ram.view.base);
        cr_assert_eq(ram.view.base[(32 << 20) + RP_PAGE_SIZE - 1], 0x5a);
    }
    cfg.ndisks = 0;
    cr_assert_eq(rp_machine_create(&cfg, NULL, &m, &err), 0, "%s", err.text);
    cr_assert_null(ram.view.base, "the machine has it now");
    cr_assert_eq(rp_machine_ram(m)->view.base[32 << 20], 0x5a);
    rp_machine_destroy(m);
}

/* Each bit that says what the processor can do, wherever CPUID has it: a guest that has seen it would use it. */
Test(machine, features_that_a_host_lacks_are_named)
{
    static const struct { uint32_t function, index; unsigned reg, bit; const char *name; } features[] = {
        {1, 0, 2, 12, "fma"}, {1, 0, 3, 25, "cpuid.1.edx bit 25"}, {7, 0, 1, 5, "avx2"}, {7, 0, 2, 16, "la57"}, {7, 0, 3, 26, "spec-ctrl"},
        {7, 1, 0, 4, "avx-vnni"}, {7, 1, 2, 5, "cpuid.7.1.ecx bit 5"}, {7, 1, 3, 4, "avx-vnni-int8"}, {7, 1, 3, 10, "avx-vnni-int16"},
        {7, 1, 3, 19, "avx10"}, {7, 2, 3, 0, "cpuid.7.2.edx bit 0"}, {0xd, 0, 0, 2, "cpuid.d.eax (XCR0) bit 2"}, {0xd, 1, 0, 3, "xsaves"},
        {0x80000001, 0, 3, 27, "rdtscp"}, {0x80000008, 0, 1, 0, "cpuid.80000008.ebx bit 0"},
        {0x80000021, 0, 0, 8, "auto-ibrs"}, {0x80000021, 0, 2, 1, "cpuid.80000021.ecx bit 1"}, {0x40000001, 0, 0, 3, "kvmclock"}};
    struct rp_cpuid *want = calloc(1, sizeof *want), *host = calloc(1, sizeof *host);

    for (unsigned i = 0; i < sizeof features / sizeof features[0]; i++) {
        struct rp_error err = {0};
        struct rp_cpuid_entry e = {.function = features[i].function, .index = features[i].index};
        uint32_t *regs[] = {&e.eax, &e.ebx, &e.ecx, &e.edx};

        want->n = host->n = 1;
        host->e[0] = e;
        *regs[features[i].reg] = 1u << features[i].bit;
        want->e[0] = e;
        cr_assert_eq(rp_cpuid_compatible(want, host, &err), -EOPNOTSUPP, "%s", features[i].name);
        cr_assert(strstr(err.text, features[i].name), "%s, not %s", err.text, features[i].name);
        host->n = 0;        /* a host that has no such leaf lacks it as well */
        cr_assert_eq(rp_cpuid_compatible(want, host, &err), -EOPNOTSUPP, "%s", features[i].name);
        cr_assert_eq(rp_cpuid_compatible(want, want, &err), 0, "%s", features[i].name);
    }
    want->e[0] = (struct rp_cpuid_entry){.function = 1, .edx = 1u << 28};               /* HTT, CmpLegacy: how many cores there are */
    want->e[1] = (struct rp_cpuid_entry){.function = 0x80000001, .ecx = 1u << 1};
    want->n = 2;
    cr_assert_eq(rp_cpuid_compatible(want, host, &(struct rp_error){0}), 0, "the guest's cores are not the host's");
    free(want);
    free(host);
}

/* One that goes on from an epoch boots nothing, but can when it is reset, if it was given what. */
Test(machine, who_goes_on_from_an_epoch_can_be_reset, .timeout = 120)
{
    struct rp_machine_config cfg = {.name = "test", .kernel = guest_elf("idle"), .wall_clock_follows = true};
    struct rp_epoch_trailer t = {.number = 1};
    struct cutting c;
    struct rp_guest_ram ram = {.memfd = -1};
    struct rp_machine *m, *to = NULL;
    struct rp_error err = {0};
    uint64_t beats;

    need_kvm("idle");
    m = boot("idle", "", 1, 24);
    wait_beats(m, 0, 50);
    track(&c, m, 1);
    cr_assert_eq(c.src->ops->cut(c.src, &c.cut, &err), 0, "%s", err.text);
    beats = guest_vcpu(m, 0)->heartbeat;
    rp_machine_dissolve(m, &ram);
    cr_assert_eq(rp_machine_config_from(&c.sections, &cfg, &err), 0, "%s", err.text);
    cfg.adopt = &ram;
    cr_assert_eq(rp_machine_create(&cfg, NULL, &to, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_enter(to, &c.sections, &t, true, &err), 0, "%s", err.text);
    cr_assert_eq(guest_vcpu(to, 0)->heartbeat, beats, "RAM is the epoch's");
    cr_assert_eq(rp_machine_start(to, &err), 0, "%s", err.text);
    wait_beats(to, 0, 5);
    cr_assert_eq(rp_machine_reset(to, &err), 0, "%s", err.text);
    wait_running(to);
    wait_beats(to, 0, 5);
    rp_machine_destroy(to);
    cutting_fini(&c);
}

static uint64_t *msr_of(struct rp_vcpu_state *s, uint32_t index)
{
    for (uint32_t i = 0; i < s->nmsrs; i++)
        if (s->msrs[i].index == index)
            return &s->msrs[i].value;
    cr_assert_lt(s->nmsrs, (uint32_t)RP_VCPU_MSRS_MAX);
    s->msrs[s->nmsrs] = (struct rp_msr_state){.index = index};
    return &s->msrs[s->nmsrs++].value;
}

/* The vCPU's section of an epoch, and the others if they are wanted. */
static struct rp_vcpu_state *vcpu_state(const struct rp_sections *s, struct rp_sections *others)
{
    struct rp_vcpu_state *state = calloc(1, sizeof *state);
    struct rp_section sec;
    struct rp_error err = {0};
    size_t pos = 0;

    while (rp_sections_next(s, &pos, &sec))
        if (strcmp(sec.name, "vcpu") == 0)
            cr_assert_eq(rp_section_decode(&rp_vcpu_table, &sec, state, &err), 0, "%s", err.text);
        else if (others)
            cr_assert_eq(rp_sections_put(others, &sec), 0);
    return state;
}

/* What a takeover could not enter has to be found out at the rehearsal, while the primary lives: the history of a newer reprise is no exception. */
Test(machine, a_history_that_cannot_be_taken_over_fails_the_rehearsal, .timeout = 60)
{
    struct rp_machine_config cfg = {.name = "test", .wall_clock_follows = true};
    struct rp_section newer = {.name = "history", .version = 99};
    struct rp_epoch_trailer t = {.number = 1};
    struct rp_events *events;
    struct rp_machine *m, *to = NULL;
    struct cutting c;
    struct rp_error err = {0};

    need_kvm("idle");
    m = boot("idle", "", 1, 24);
    track(&c, m, 1);
    cr_assert_eq(c.src->ops->cut(c.src, &c.cut, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_config_from(&c.sections, &cfg, &err), 0, "%s", err.text);
    cr_assert_eq(rp_sections_put(&c.sections, &newer), 0);
    cr_assert_eq(rp_events_create(64, &events), 0);
    cr_assert_eq(rp_machine_create(&cfg, events, &to, &err), 0, "%s", err.text);
    cr_assert_lt(rp_machine_rehearse(to, &c.sections, &err), 0, "a takeover would have failed");
    cr_assert(strstr(err.text, "\"history\" 0 is version 99"), "%s", err.text);
    cr_assert_lt(rp_machine_enter(to, &c.sections, &t, true, &err), 0);
    rp_machine_destroy(to);
    rp_machine_destroy(m);
    rp_events_destroy(events);
    cutting_fini(&c);
}

/* The MTRRs are state like other MSRs, though KVM does not list them: a guest found the types of its memory forgotten where it was entered. */
Test(machine, the_memory_types_that_a_guest_has_set_travel, .timeout = 120)
{
    static const struct { uint32_t msr; uint64_t value; } types[] = {
        {0x2ff, 0xc06}, {0x200, 0xc0000000}, {0x201, 0xfc0000800}, {0x20e, 0x80000001}, {0x250, 0x0606060606060606}, {0x26f, 0x0505050505050505}};
    struct rp_machine_config cfg = {.name = "test", .wall_clock_follows = true};
    struct rp_epoch_trailer t = {.number = 1};
    struct rp_sections set = {0};
    struct rp_vcpu_state *state;
    struct cutting c, again;
    struct rp_guest_ram ram = {.memfd = -1};
    struct rp_machine *m, *to = NULL;
    struct rp_error err = {0};

    need_kvm("idle");
    m = boot("idle", "", 1, 24);
    track(&c, m, 1);
    cr_assert_eq(c.src->ops->cut(c.src, &c.cut, &err), 0, "%s", err.text);
    rp_machine_dissolve(m, &ram);
    state = vcpu_state(&c.sections, &set);
    for (unsigned i = 0; i < sizeof types / sizeof types[0]; i++)
        *msr_of(state, types[i].msr) = types[i].value;
    cr_assert_eq(rp_sections_add(&set, &rp_vcpu_table, 0, state, &err), 0, "%s", err.text);
    free(state);
    cr_assert_eq(rp_machine_config_from(&set, &cfg, &err), 0, "%s", err.text);
    cfg.adopt = &ram;
    cr_assert_eq(rp_machine_create(&cfg, NULL, &to, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_enter(to, &set, &t, false, &err), 0, "%s", err.text);
    track(&again, to, 2);
    cr_assert_eq(again.src->ops->cut(again.src, &again.cut, &err), 0, "%s", err.text);
    state = vcpu_state(&again.sections, NULL);
    for (unsigned i = 0; i < sizeof types / sizeof types[0]; i++)
        cr_assert_eq(*msr_of(state, types[i].msr), types[i].value, "MSR 0x%x", types[i].msr);
    free(state);
    rp_machine_destroy(to);
    cutting_fini(&c);
    cutting_fini(&again);
    rp_sections_fini(&set);
}

Test(machine, guest_ends_itself)
{
    struct rp_machine_config cfg = native_config("idle", "run=20ms end=off", 1, 64);
    struct rp_machine *m = NULL;
    struct rp_error err = {0};
    uint64_t until = rp_clock_ns() + 10000000000u;

    need_kvm("idle");
    cr_assert_eq(rp_machine_create(&cfg, NULL, &m, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_start(m, &err), 0, "%s", err.text);
    while (rp_machine_state(m) == RP_VM_RUNNING && rp_clock_ns() < until)
        usleep(1000);
    cr_assert_eq(rp_machine_state(m), RP_VM_SHUTDOWN, "%s", rp_machine_failure(m));
    rp_machine_destroy(m);
}

Test(machine, resets)
{
    struct rp_machine *m;
    struct rp_error err = {0};

    need_kvm("idle");
    m = boot("idle", "", 1, 64);
    wait_beats(m, 0, 5);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(rp_machine_reset(m, &err), 0, "%s", err.text);
        wait_running(m);
        wait_beats(m, 0, 5);
    }
    rp_machine_destroy(m);
}

/* Nobody resets but once: Linux pulses the line ten times over, and each vCPU may fault. What the old guest asked for is not the new one's. */
Test(machine, a_guest_that_asks_twice_is_reset_once, .timeout = 60)
{
    struct rp_machine_config cfg = native_config("idle", "run=1s end=reset", 1, 24);    /* longer than the test looks */
    struct rp_events *events;
    struct rp_machine *m = NULL;
    struct rp_error err = {0};

    need_kvm("idle");
    setenv("RP_FAULT", "guest-asks:1:stall", 1);    /* the first is being served when the second comes */
    rp_fault_reload();
    cr_assert_eq(rp_events_create(64, &events), 0);
    cr_assert_eq(rp_machine_create(&cfg, events, &m, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_start(m, &err), 0, "%s", err.text);
    for (int i = 0; i < 5000 && !rp_fault_fired(); i++)
        usleep(1000);
    cr_assert(rp_fault_fired(), "the guest asked for nothing");
    usleep(100000);
    cr_assert_eq(rp_machine_pause(m, RP_PAUSE_USER, &err), 0, "%s", err.text);     /* or it comes to its end again */
    unsetenv("RP_FAULT");
    rp_fault_reload();
    for (int i = 0; i < 5000 && told(events, "RESET") == 0; i++)
        usleep(1000);
    usleep(100000);
    cr_assert_eq(told(events, "RESET"), 1u);
    rp_machine_destroy(m);
    rp_events_destroy(events);
}

/* The kernel's file may have been removed since: the VM is asked to start anew, and cannot. */
Test(machine, a_reset_that_has_no_kernel_leaves_the_VM_running, .timeout = 60)
{
    struct rp_machine_config cfg = native_config("idle", "", 1, 24);
    char path[] = "/tmp/kernel-XXXXXX", copy[256];
    struct rp_machine *m = NULL;
    struct rp_error err = {0};
    int fd;

    need_kvm("idle");
    fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    close(fd);
    snprintf(copy, sizeof copy, "cp %s %s", guest_elf("idle"), path);
    cr_assert_eq(system(copy), 0);
    cfg.kernel = path;
    cr_assert_eq(rp_machine_create(&cfg, NULL, &m, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_start(m, &err), 0, "%s", err.text);
    wait_running(m);
    unlink(path);
    cr_assert_lt(rp_machine_reset(m, &err), 0);
    cr_assert(strstr(err.text, path), "%s", err.text);
    cr_assert_eq(rp_machine_state(m), RP_VM_RUNNING);
    wait_beats(m, 0, 5);
    rp_machine_destroy(m);
}

/* One that is a kernel, but does not load any more, is found out when there is no way back: then the VM has failed, and says so. */
Test(machine, a_reset_that_breaks_half_way_ends_the_VM, .timeout = 60)
{
    struct rp_machine_config cfg = native_config("idle", "", 1, 24);
    struct rp_events *events;
    char path[] = "/tmp/initrd-XXXXXX";
    struct rp_machine *m = NULL;
    struct rp_error err = {0};
    int fd;

    need_kvm("idle");
    fd = mkstemp(path);
    cr_assert_eq(ftruncate(fd, 4096), 0);
    cr_assert_eq(rp_events_create(64, &events), 0);
    cfg.initrd = path;
    cr_assert_eq(rp_machine_create(&cfg, events, &m, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_start(m, &err), 0, "%s", err.text);
    wait_running(m);
    cr_assert_eq(ftruncate(fd, 1 << 30), 0);    /* more than the VM's RAM */
    cr_assert_lt(rp_machine_reset(m, &err), 0);
    cr_assert_eq(rp_machine_state(m), RP_VM_FAILED, "it stands still, and is said to run");
    cr_assert(strstr(rp_machine_failure(m), path), "%s", rp_machine_failure(m));
    cr_assert_eq(told(events, "GUEST_FAILED"), 1u);
    rp_machine_destroy(m);
    rp_events_destroy(events);
    close(fd);
    unlink(path);
}

static void same_ram(const struct rp_ram_view *a, const struct rp_ram_view *b, uint64_t epoch)
{
    for (uint64_t gfn = 0; gfn < a->gfn_end; gfn++) {
        const uint8_t *p, *q;
        if (!rp_ram_contains(a, gfn, 1))
            continue;
        p = rp_ram_page(a, gfn);
        q = rp_ram_page(b, gfn);
        for (unsigned i = 0; memcmp(p, q, RP_PAGE_SIZE) != 0 && i < RP_PAGE_SIZE; i++)
            cr_assert_eq(p[i], q[i], "epoch %lu: RAM differs at 0x%lx: %02x, entered %02x", epoch, gfn * RP_PAGE_SIZE + i, p[i], q[i]);
    }
}

static int config_of(const struct rp_sections *s, const char *serial, uint8_t mac, unsigned queues, struct rp_error *err)
{
    struct rp_machine_config cfg = {.name = "test", .nnics = 1, .ndisks = 1, .nics[0] = {.queues = queues}};
    memcpy(cfg.nics[0].mac, (const uint8_t[6]){2, 0, 0, 0, 0, mac}, 6);
    cfg.nics[0].has_mac = mac != 0;
    snprintf(cfg.disks[0].serial, sizeof(cfg.disks[0].serial), "%s", serial);
    rp_error_clear(err);
    return rp_machine_config_from(s, &cfg, err);
}

/* A disk or a card that is said to be another than the VM's is refused: a guest that finds two exchanged writes to the wrong one. */
Test(machine, what_is_said_of_a_disk_or_a_card_has_to_be_so, .timeout = 60)
{
    char path[64];
    struct rp_machine_config cfg = {.name = "test", .vcpus = 1, .ram.size_bytes = 24 << 20, .kernel = guest_elf("idle"), .nnics = 1, .ndisks = 1,
                                    .nics[0] = {.kind = RP_NIC_FD, .has_mac = true, .mac = {2, 0, 0, 0, 0, 7}},
                                    .disks[0] = {.path = path, .serial = "alpha"}};
    struct cutting c;
    struct rp_machine *m = NULL;
    struct rp_error err = {0};

    int fds[2];

    need_kvm("idle");
    snprintf(path, sizeof path, "/tmp/rp-said-%d", getpid());
    cr_assert_eq(socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), 0);
    cfg.nics[0].fd = fds[0];
    int fd = open(cfg.disks[0].path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert_eq(ftruncate(fd, 1 << 20) | close(fd), 0);
    cr_assert_eq(rp_machine_create(&cfg, NULL, &m, &err), 0, "%s", err.text);
    track(&c, m, 1);
    cr_assert_eq(c.src->ops->cut(c.src, &c.cut, &err), 0, "%s", err.text);
    cr_assert_eq(config_of(&c.sections, "", 0, 0, &err), 0, "%s", err.text);
    cr_assert_eq(config_of(&c.sections, "alpha", 7, 1, &err), 0, "%s", err.text);
    cr_assert_lt(config_of(&c.sections, "beta", 0, 0, &err), 0);
    cr_assert(strstr(err.text, "serial \"alpha\", \"beta\" is given"), "%s", err.text);
    cr_assert_eq(err.exit, RP_EXIT_USAGE);
    cr_assert_lt(config_of(&c.sections, "", 8, 0, &err), 0);
    cr_assert(strstr(err.text, "02:00:00:00:00:07"), "%s", err.text);
    cr_assert_lt(config_of(&c.sections, "", 0, 4, &err), 0);
    cr_assert(strstr(err.text, "1 queue pairs, 4 are given"), "%s", err.text);
    unlink(cfg.disks[0].path);
}

/* Cuts `from`, makes a new machine from it and checks that its RAM is the same; ends `from`. It is paused. */
static struct rp_machine *enter_anew(struct rp_machine *from, uint64_t epoch, int nic_fd)
{
    struct cutting c;
    struct rp_machine_config cfg = {.name = "test", .wall_clock_follows = true, .nnics = nic_fd >= 0, .kernel = rp_machine_cfg(from)->kernel,
                                    .cmdline = rp_machine_cfg(from)->cmdline, .nics[0] = {.kind = RP_NIC_FD, .fd = nic_fd}};
    uint8_t id[16], *at;
    struct rp_epoch_trailer t = {.number = epoch};
    struct rp_machine *to = NULL;
    struct rp_error err = {0};
    const struct rp_ram_view *a = &rp_machine_ram(from)->view, *b;

    track(&c, from, epoch);
    cr_assert_eq(c.src->ops->cut(c.src, &c.cut, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_config_from(&c.sections, &cfg, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_create(&cfg, NULL, &to, &err), 0, "%s", err.text);
    b = &rp_machine_ram(to)->view;
    for (uint32_t i = 0; i < a->nregions; i++)
        memcpy(rp_ram_page(b, a->regions[i].gfn), rp_ram_page(a, a->regions[i].gfn), a->regions[i].pages << RP_PAGE_SHIFT);
    if (epoch % 2) {        /* as a standby does, long before */
        cr_assert_eq(rp_machine_rehearse(to, &c.sections, &err), 0, "%s", err.text);
        cr_assert_eq(rp_machine_state(to), RP_VM_CREATED);
        same_ram(a, b, epoch);
    }
    at = rp_ram_page(b, RP_VMGENID_GPA >> RP_PAGE_SHIFT);
    memcpy(id, at, sizeof id);
    cr_assert_eq(rp_machine_enter(to, &c.sections, &t, nic_fd >= 0, &err), 0, "%s", err.text);
    cr_assert_eq(memcmp(id, at, sizeof id) != 0, nic_fd >= 0, "the VM generation id changes when it moved, and only then");
    memcpy(at, id, sizeof id);
    same_ram(a, b, epoch);
    rp_machine_destroy(from);
    cutting_fini(&c);
    return to;
}

static struct rp_machine *reenter(struct rp_machine *from, uint64_t epoch)
{
    struct rp_machine *to = enter_anew(from, epoch, -1);
    struct rp_error err = {0};

    cr_assert_eq(rp_machine_start(to, &err), 0, "%s", err.text);
    return to;
}

/* Cut between the guest's asking and what comes of it. */
static struct rp_machine *enter_what_asked(const char *cmdline)
{
    struct rp_machine *m = NULL;
    struct rp_machine_config cfg = native_config("idle", cmdline, 1, 24);
    struct rp_error err = {0};

    setenv("RP_FAULT", "guest-asks:1:stall", 1);
    rp_fault_reload();
    cr_assert_eq(rp_machine_create(&cfg, NULL, &m, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_start(m, &err), 0, "%s", err.text);
    for (int i = 0; i < 5000 && !rp_fault_fired(); i++)
        usleep(1000);
    cr_assert(rp_fault_fired(), "the guest asked for nothing");
    unsetenv("RP_FAULT");
    rp_fault_reload();
    return reenter(m, 2);
}

Test(machine, a_guest_that_was_cut_while_it_powered_off_is_off_where_it_is_entered, .timeout = 60)
{
    struct rp_machine *m;
    uint64_t until;

    need_kvm("idle");
    m = enter_what_asked("run=20ms end=off");
    for (until = rp_clock_ns() + 10000000000u; rp_machine_state(m) == RP_VM_RUNNING && rp_clock_ns() < until;)
        usleep(1000);
    cr_assert_eq(rp_machine_state(m), RP_VM_SHUTDOWN, "%s", rp_machine_failure(m));
    rp_machine_destroy(m);
}

Test(machine, a_guest_that_was_cut_while_it_reset_starts_anew_where_it_is_entered, .timeout = 60)
{
    struct rp_machine *m;
    uint64_t last, now, until = rp_clock_ns() + 10000000000u;

    need_kvm("idle");
    m = enter_what_asked("run=20ms end=reset");
    for (now = last = beats(m, 0); now >= last; usleep(500)) {  /* it counts from 0 again */
        cr_assert(rp_clock_ns() < until, "the guest stands at heartbeat %lu: %s", now, rp_machine_failure(m));
        last = now;
        now = beats(m, 0);
    }
    rp_machine_destroy(m);
}

Test(machine, reasons_to_stand_still_are_a_set_and_the_administrators_travels, .timeout = 60)
{
    struct rp_machine *m;
    struct rp_error err = {0};
    uint64_t n;

    need_kvm("idle");
    m = boot("idle", "", 1, 24);
    wait_beats(m, 0, 5);
    cr_assert_eq(rp_machine_pause(m, RP_PAUSE_LEASE, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_pause(m, RP_PAUSE_USER, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_resume(m, RP_PAUSE_LEASE, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_state(m), RP_VM_PAUSED);
    cr_assert_eq(rp_machine_pause(m, RP_PAUSE_STANDBY, &err), 0, "%s", err.text);
    m = reenter(m, 3);
    cr_assert_eq(rp_machine_paused(m), RP_PAUSE_USER, "what concerns this host alone does not travel");
    cr_assert_eq(rp_machine_state(m), RP_VM_PAUSED);
    n = beats(m, 0);
    usleep(20000);
    cr_assert_eq(beats(m, 0), n, "a paused guest goes on");
    cr_assert_eq(rp_machine_resume(m, RP_PAUSE_USER, &err), 0, "%s", err.text);
    wait_beats(m, 0, 5);
    rp_machine_destroy(m);
}

static void cycles(const char *guest, const char *cmdline, unsigned vcpus, unsigned n)
{
    struct rp_machine *m = boot(guest, cmdline, vcpus, 24);   /* MiB: all of it is copied and compared at every cut */

    for (unsigned i = 1; i <= n; i++) {
        for (unsigned v = 0; v < vcpus; v++)
            wait_beats(m, v, 2);
        m = reenter(m, i);
    }
    for (unsigned v = 0; v < vcpus; v++)
        wait_beats(m, v, 2);
    rp_machine_destroy(m);
}

Test(machine, is_cut_and_entered_again, .timeout = 1800)
{
    need_kvm("dirtier");
    cycles("dirtier", "ws=8M rate=4000", 1, native_cuts(10, 200));
}

Test(machine, is_cut_and_entered_again_smp, .timeout = 1800)
{
    need_kvm("dirtier");
    cycles("dirtier", "ws=8M rate=4000 smp=2", 2, native_cuts(10, 200));
}

static uint8_t lapic_bit(const struct rp_vcpu_state *st, unsigned base, unsigned vector)
{
    return st->lapic[base + vector / 32 * 16 + vector % 32 / 8] >> vector % 8 & 1;
}

/* One cut while all vCPUs but the first send it interrupts: what was sent is in its LAPIC. */
static void cut_among_interrupts(unsigned vcpus, const char *cmdline, unsigned delay_us)
{
    static struct rp_vcpu_state st;
    struct rp_machine *m = boot("ipis", cmdline, vcpus, 24);
    struct cutting c;
    struct rp_section sec;
    struct rp_error err = {0};
    struct rg_status *status = rp_ram_at(rp_machine_ram(m), rp_gpa(RG_STATUS_GPA), sizeof *status);

    track(&c, m, 1);
    __atomic_fetch_or(&status->control, RG_CONTROL_GO, __ATOMIC_RELEASE);
    usleep(delay_us);
    cr_assert_eq(c.src->ops->cut(c.src, &c.cut, &err), 0, "%s", err.text);
    cr_assert(rp_sections_find(&c.sections, "vcpu", 0, &sec));
    cr_assert_eq(rp_section_decode(&rp_vcpu_table, &sec, &st, &err), 0, "%s", err.text);
    for (unsigned v = 1; v < vcpus; v++)
        for (uint64_t n = 0; n < guest_vcpu(m, v)->iterations; n++) {
            unsigned vector = 32 + v - 1 + (unsigned)n * (vcpus - 1);
            cr_assert(lapic_bit(&st, 0x200, vector), "%u us: vcpu %u has sent vector %u, its %lu., and it is not in vcpu 0's LAPIC", delay_us, v,
                      vector, n + 1);
        }
    rp_machine_destroy(m);
    cutting_fini(&c);
}

/* VCPU-4 */
Test(machine, no_interrupt_between_vcpus_is_lost_at_a_cut, .timeout = 600)
{
    unsigned seed = (unsigned)getpid(), n = native_cuts(20, 200);

    need_kvm("ipis");
    printf("seed %u\n", seed);
    for (unsigned i = 0; i < n; i++)
        cut_among_interrupts(i % 2 ? 4 : 2, i % 2 ? "smp=4 every=20us" : "smp=2 every=5us", (unsigned)rand_r(&seed) % 1500);
}

/* Reads the wire until both were seen: the VMM's reverse ARP and the guest's own announcement. */
static void wait_announced(int wire)
{
    uint64_t until = rp_clock_ns() + 10000000000u;
    bool rarp = false, arp = false;
    uint8_t f[2048];

    while (!rarp || !arp) {
        cr_assert(rp_clock_ns() < until, "after 10 s: %s reverse ARP, %s announcement by the guest", rarp ? "a" : "no", arp ? "an" : "no");
        if (recv(wire, f, sizeof f, MSG_DONTWAIT) < 42) {
            usleep(1000);
            continue;
        }
        rarp = rarp || (f[12] == 0x80 && f[13] == 0x35);
        arp = arp || (f[12] == 0x08 && f[13] == 0x06 && memcmp(f, "\xff\xff\xff\xff\xff\xff", 6) == 0 && memcmp(f + 28, f + 38, 4) == 0);
    }
}

Test(machine, who_enters_elsewhere_announces_itself_when_it_runs, .timeout = 120)
{
    struct rp_machine_config cfg = native_config("ledger", "entries=1000", 1, 24);
    struct rp_error err = {0};
    struct rp_machine *m = NULL;
    int here[2], there[2];
    uint8_t f[64];

    need_kvm("ledger");
    cr_assert_eq(socketpair(AF_UNIX, SOCK_DGRAM, 0, here) | socketpair(AF_UNIX, SOCK_DGRAM, 0, there), 0);
    cfg.nnics = 1;
    cfg.nics[0] = (struct rp_nic_config){.kind = RP_NIC_FD, .fd = here[0]};
    cr_assert_eq(rp_machine_create(&cfg, NULL, &m, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_start(m, &err), 0, "%s", err.text);
    wait_running(m);
    m = enter_anew(m, 1, there[0]);
    usleep(50000);
    cr_assert_lt(recv(there[1], f, sizeof f, MSG_DONTWAIT), 0, "a frame before it runs: the address may be somebody else's yet");
    cr_assert_eq(rp_machine_start(m, &err), 0, "%s", err.text);
    wait_announced(there[1]);
    rp_machine_destroy(m);
    close(here[1]);
    close(there[1]);
}

/* The largest machine. RAM is sparse: what the guest never wrote costs neither the host nor an epoch anything. Guests
 * poll, so on a host with few CPUs only four of the 32 vCPUs are started; the others wait for their SIPI. */
Test(machine, has_up_to_32_vcpus_and_64_gib, .timeout = 600)
{
    struct rp_machine_config cfg = native_config("idle", "smp=4", 32, 64 << 10);
    struct cutting c;
    struct rp_error err = {0};
    struct rp_machine *m = NULL;
    uint64_t until = rp_clock_ns() + 300000000000u;

    need_kvm("idle");
    cfg.ram.overcommit = true;
    cr_assert_eq(rp_machine_create(&cfg, NULL, &m, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_start(m, &err), 0, "%s", err.text);
    for (unsigned v = 0; v < 4; v++)
        while (beats(m, v) < 2) {
            cr_assert(rp_clock_ns() < until, "vcpu %u does not run: %s %s", v, (const char *)guest_status(m)->error_text, rp_machine_failure(m));
            usleep(1000);
        }
    track(&c, m, 1);
    cr_assert_eq(c.src->ops->cut(c.src, &c.cut, &err), 0, "%s", err.text);
    cr_assert_lt(rp_pageset_count(&c.dirty), 65536u, "a full epoch of an idle guest names what it has written");
    cr_assert_gt(rp_pageset_count(&c.dirty), 32u);
    cr_assert_eq(c.src->ops->resume(c.src, &err), 0, "%s", err.text);
    rp_machine_destroy(m);
    cutting_fini(&c);
}

static void arm(const char *fault)
{
    if (fault)
        setenv("RP_FAULT", fault, 1);
    else
        unsetenv("RP_FAULT");
    rp_fault_reload();
}

/* Fault points cut and load-section (INV-6): the source runs on, whoever could not enter is destroyed. */
Test(machine, what_fails_at_a_cut_or_an_entry_leaves_the_source_running, .timeout = 120)
{
    struct rp_machine_config cfg = {.name = "test", .wall_clock_follows = true};
    struct rp_epoch_trailer t = {.number = 1};
    struct cutting c;
    struct rp_machine *m, *to = NULL;
    struct rp_error err = {0};

    need_kvm("idle");
    m = boot("idle", "", 1, 24);
    track(&c, m, 1);
    arm("cut:1");
    cr_assert_eq(c.src->ops->cut(c.src, &c.cut, &err), -EIO);
    arm(NULL);
    wait_beats(m, 0, 5);
    cr_assert_eq(c.src->ops->cut(c.src, &c.cut, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_reset(m, &err), -EBUSY, "a VM that stands for a switchover may never be resumed: who asks is not to wait for it");
    cr_assert_eq(rp_machine_config_from(&c.sections, &cfg, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_create(&cfg, NULL, &to, &err), 0, "%s", err.text);
    arm("load-section:3");      /* no concern of a rehearsal */
    cr_assert_eq(rp_machine_rehearse(to, &c.sections, &err), 0, "%s", err.text);
    cr_assert_eq(rp_machine_enter(to, &c.sections, &t, true, &err), -EIO);
    arm(NULL);
    rp_machine_destroy(to);
    cfg.rng = true;             /* what it could not enter, it says at the rehearsal */
    cr_assert_eq(rp_machine_create(&cfg, NULL, &to, &err), 0, "%s", err.text);
    cr_assert_lt(rp_machine_rehearse(to, &c.sections, &err), 0);
    cr_assert(strstr(err.text, "no section \"virtio-rng\""), "%s", err.text);
    rp_machine_destroy(to);
    cr_assert_eq(c.src->ops->resume(c.src, &err), 0, "%s", err.text);
    wait_beats(m, 0, 5);
    rp_machine_destroy(m);
    cutting_fini(&c);
}
