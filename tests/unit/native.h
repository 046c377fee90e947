/* native.h - for tests that run a guest on this host's /dev/kvm: skips with the reason where there is none. */
#ifndef TESTS_UNIT_NATIVE_H
#define TESTS_UNIT_NATIVE_H

#include "core/clock.h"
#include "tests/guests/status.h"
#include "vmm/kvm.h"
#include "vmm/machine.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <unistd.h>

/* build/guests/NAME.elf beside the test program's build directory, whichever sanitizer it was built with. */
static inline const char *guest_elf(const char *name)
{
    static char path[128];
    const char *dir = getenv("RP_GUESTS");

    snprintf(path, sizeof path, "%s/%s.elf", dir ? dir : "build/guests", name);
    return path;
}

static inline void need_kvm(const char *guest)
{
    struct rp_error err = {0};
    int fd = rp_kvm_open(&err);

    if (fd < 0)
        cr_skip_test("%s", err.text);
    close(fd);
    if (guest && access(guest_elf(guest), R_OK) != 0)
        cr_skip_test("%s is not built (make guests)", guest_elf(guest));
}

static inline struct rp_machine_config native_config(const char *guest, const char *cmdline, unsigned vcpus, uint64_t mib)
{
    return (struct rp_machine_config){.name = "test", .vcpus = vcpus, .ram = {.size_bytes = mib << 20},
                                      .kernel = guest ? guest_elf(guest) : NULL, .cmdline = cmdline, .wall_clock_follows = true};
}

static inline const struct rg_status *guest_status(struct rp_machine *m)
{
    return rp_ram_at(rp_machine_ram(m), rp_gpa(RG_STATUS_GPA), sizeof(struct rg_status));
}

static inline const struct rg_vcpu *guest_vcpu(struct rp_machine *m, unsigned i)
{
    return rp_ram_at(rp_machine_ram(m), rp_gpa(RG_VCPU_GPA(i)), sizeof(struct rg_vcpu));
}

/* How often the test cuts its guest: RP_CUTS, but not more than `most`; without it `otherwise`, which an emulated host bears, too. */
static inline unsigned native_cuts(unsigned otherwise, unsigned most)
{
    const char *said = getenv("RP_CUTS");
    unsigned long n = said ? strtoul(said, NULL, 10) : otherwise;

    return n < most ? (unsigned)n : most;
}

/* Waits until the guest runs; fails the test when it fails or 10 s have passed. */
static inline void wait_running(struct rp_machine *m)
{
    const struct rg_status *s = guest_status(m);
    uint64_t until = rp_clock_ns() + 10000000000u;

    while (__atomic_load_n(&s->state, __ATOMIC_ACQUIRE) != RG_STATE_RUNNING) {
        cr_assert(rp_clock_ns() < until, "the guest is in state %u after 10 s: %s %s", (unsigned)s->state,
                  (const char *)s->error_text, rp_machine_failure(m));
        cr_assert_eq(rp_machine_state(m), RP_VM_RUNNING, "machine: %s", rp_machine_failure(m));
        usleep(1000);
    }
}

#endif
