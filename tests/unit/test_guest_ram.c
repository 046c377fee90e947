/* Guest RAM without KVM: ranges, what it holds, what is given back. */
#include "tools/enter.h"
#include "vmm/guest_ram.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct rp_guest_ram ram;
static bool swapped_out;        /* all of it: it is held, and nothing of it is in core */

/* In place of the C library's. */
int mincore(void *at, size_t bytes, unsigned char *in_core)
{
    if (!swapped_out)
        return (int)syscall(SYS_mincore, at, bytes, in_core);
    memset(in_core, 0, (bytes + 4095) / 4096);
    return 0;
}

static void make(uint64_t bytes)
{
    struct rp_ram_config cfg = {.size_bytes = bytes, .overcommit = true};
    struct rp_error err = {0};

    cr_assert_eq(rp_guest_ram_init(&ram, &cfg, &err), 0, "%s", err.text);
}

static void drop(void)
{
    rp_guest_ram_fini(&ram);
}

static uint64_t held(uint64_t *first)
{
    struct rp_pageset set;
    uint64_t n;

    cr_assert_eq(rp_pageset_init(&set, ram.view.gfn_end), 0);
    rp_ram_held(&ram, &set);
    n = rp_pageset_count(&set);
    *first = rp_pageset_next(&set, 0);
    for (uint64_t g = *first; g < set.bits; g = rp_pageset_next(&set, g + 1))
        cr_assert(rp_ram_contains(&ram.view, g, 1), "frame 0x%lx is no RAM", g);
    rp_pageset_fini(&set);
    return n;
}

/* Who wants the process to end does not wait until all memory is there. */
Test(guest_ram, populating_ends_with_a_signal)
{
    struct rp_ram_config cfg = {.size_bytes = 16 << 20, .populate = true};
    struct rp_error err = {0};
    sigset_t set;
    int number = 0;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    cr_assert_eq(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
    cr_assert_eq(kill(getpid(), SIGTERM), 0);
    cr_assert_eq(rp_guest_ram_init(&ram, &cfg, &err), -ECANCELED, "%s", err.text);
    cr_assert_eq(sigwait(&set, &number), 0, "the signal is still to be taken");
    cr_assert_eq(rp_guest_ram_init(&ram, &cfg, &err), 0, "%s", err.text);
    rp_guest_ram_fini(&ram);
}

/* 64 GiB are an address range and bookkeeping until they are used. */
Test(guest_ram, sixty_four_gib_are_sparse, .fini = drop)
{
    uint64_t first;

    make(64ull << 30);
    cr_assert_eq(ram.view.nregions, 2u);
    cr_assert_eq(held(&first), 0u);
    memset(rp_ram_at(&ram, rp_gpa(RP_RAM_HIGH_START + (60ull << 30)), 4096), 1, 4096);
    cr_assert_geq(held(&first), 1u);
    cr_assert_leq(held(&first), 512u, "a huge page at most");
    cr_assert(rp_ram_at(&ram, rp_gpa(RP_RAM_HIGH_START + (61ull << 30) - 4096), 4096) != NULL);
    cr_assert_null(rp_ram_at(&ram, rp_gpa(RP_RAM_HIGH_START + (61ull << 30) - 4096), 4097));
}

/* Populated behind what is written into it: nothing of that is lost, all of it is there in the end, and going earlier is no harm. */
Test(guest_ram, it_is_populated_while_it_is_used)
{
    struct rp_ram_config cfg = {.size_bytes = 256ull << 20, .populate = true, .behind = true};
    struct rp_error err = {0};
    uint64_t first;

    for (unsigned early = 0; early < 2; early++) {
        cr_assert_eq(rp_guest_ram_init(&ram, &cfg, &err), 0, "%s", err.text);
        for (uint64_t at = 255ull << 20; at > 0; at -= 1 << 20)
            memset(rp_ram_at(&ram, rp_gpa(at), 100), 5, 100);
        while (!early && held(&first) < ram.view.pages)
            usleep(1000);
        for (uint64_t at = 255ull << 20; at > 0; at -= 1 << 20)
            cr_assert_eq(*(uint8_t *)rp_ram_at(&ram, rp_gpa(at + 99), 1), 5);
        drop();
    }
}

Test(guest_ram, what_it_holds_is_what_was_written_and_not_given_back, .fini = drop)
{
    uint64_t first, n;

    make(64ull << 20);
    memset(rp_ram_at(&ram, rp_gpa(5 << 20), 4 << 20), 7, 4 << 20);
    n = held(&first);
    cr_assert_geq(n, 1024u);
    cr_assert_leq(first, (5u << 20) / 4096);
    cr_assert_eq(rp_ram_discard(&ram, rp_gpa(5 << 20), 4 << 20), 4 << 20);
    cr_assert_lt(held(&first), 512u, "busy pages may stay, as zeroes");
    for (unsigned i = 0; i < 4u << 20; i++)
        cr_assert_eq(((uint8_t *)rp_ram_at(&ram, rp_gpa(5 << 20), 4 << 20))[i], 0);
}

/* Pages that are not held are not read, and so not made, for a checkpoint: not even single ones among others. */
Test(guest_ram, single_holes_are_no_pages, .fini = drop)
{
    uint64_t first, n, size = 40u << 20, from = 1u << 20;

    make(64ull << 20);
    memset(rp_ram_at(&ram, rp_gpa(from), size), 7, size);
    n = held(&first);
    for (uint64_t at = from; at < from + size; at += 2 * 4096)
        cr_assert_eq(fallocate(ram.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, 4096), 0);
    cr_assert_eq(held(&first), n - size / 4096 / 2);
    swapped_out = true;
    cr_assert_eq(held(&first), n - size / 4096 / 2, "what is swapped out is held, too");
}

static uint64_t made_bytes(int memfd)
{
    struct stat st;

    cr_assert_eq(fstat(memfd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* Nor are they for a standby that goes on with what it had as a primary: a VM of many GiB may have used few, and its balloon given the rest back. */
Test(guest_ram, who_adopts_it_makes_no_pages)
{
    struct rp_ram_config how = {0};
    uint8_t vm_id[16] = {7}, *page;
    struct rp_error err = {0};
    struct rp_entry *e;
    const struct rp_digest *d;
    struct rp_hash128 h;
    uint64_t before;
    int memfd;

    make(256ull << 20);
    memfd = ram.memfd;
    page = rp_ram_at(&ram, rp_gpa(100 << 20), 4096);
    memset(page, 7, 4096);
    h = rp_page_hash((100 << 20) / 4096, page);
    before = made_bytes(memfd);
    cr_assert_eq(rp_entry_create(RP_IMAGE_STAGED, &how, NULL, &e, &err), 0, "%s", err.text);
    cr_assert_eq(rp_entry_adopt(e, &ram, vm_id, &err), 0, "%s", err.text);
    d = rp_image_pages(rp_entry_image(e), vm_id);
    cr_assert(d && d->sum.lo == h.lo && d->sum.hi == h.hi, "what is there counts");
    cr_assert_eq(made_bytes(memfd), before, "%lu bytes were made of %lu", made_bytes(memfd), before);
    rp_entry_destroy(e);
}

Test(guest_ram, only_ram_can_be_given_back, .fini = drop)
{
    make(8ull << 20);
    cr_assert_eq(rp_ram_discard(&ram, rp_gpa(7 << 20), 2 << 20), -EFAULT);
    cr_assert_eq(rp_ram_discard(&ram, rp_gpa(UINT64_MAX - 4095), 8192), -EFAULT);
    cr_assert_eq(rp_ram_discard(&ram, rp_gpa(100), 4000), 0, "no whole page");
}

Test(guest_ram, more_than_the_host_has_is_refused_unless_asked_for)
{
    struct rp_ram_config cfg = {.size_bytes = 1ull << 40};
    struct rp_error err = {0};

    cr_assert_eq(rp_guest_ram_init(&ram, &cfg, &err), -ENOMEM);
    cr_assert_eq(err.exit, RP_EXIT_HOST);
    cr_assert(strstr(err.text, "the host has"), "%s", err.text);
    cfg.size_bytes = 4095;
    cr_assert_eq(rp_guest_ram_init(&ram, &cfg, &err), -EINVAL);
}
