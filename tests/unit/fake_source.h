/*
 * fake_source.h - a source without KVM for component tests: the "guest" is a thread that writes its RAM, and what it
 * writes it marks dirty. Cut stops it with a lock. Everything behind the contract (core/source.h) is the real thing.
 */
#ifndef RP_TESTS_FAKE_SOURCE_H
#define RP_TESTS_FAKE_SOURCE_H

#include "core/clock.h"
#include "core/source.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES 4096u

struct fake {
    struct rp_source base;
    struct rp_ram_view ram;
    struct rp_pageset dirty;        /* atomic */
    pthread_mutex_t run;            /* held while the guest writes; `stand` */
    pthread_cond_t go;
    bool stand;                     /* run: the machine stands */
    _Atomic bool all;               /* the next harvest reports everything */
    pthread_t guest;
    _Atomic bool quit;
    uint32_t seed;
    unsigned bytes, burst, pause_us;
    _Atomic uint64_t released;
    _Atomic unsigned throttle;      /* percent of its time that the guest has to stand still */
    unsigned harvests;
    uint64_t written_bytes;         /* guest thread; read after it has ended */
};

static uint32_t rnd(uint32_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 17;
    return *s ^= *s << 5;
}

static void *guest_main(void *arg)
{
    struct fake *f = arg;
    while (!atomic_load(&f->quit)) {
        uint64_t began_ns = rp_clock_ns();
        pthread_mutex_lock(&f->run);
        while (f->stand)
            pthread_cond_wait(&f->go, &f->run);
        for (unsigned i = 0; i < f->burst; i++) {
            uint64_t gfn = rnd(&f->seed) % PAGES;
            uint8_t *p = rp_ram_page(&f->ram, gfn);
            uint32_t at = rnd(&f->seed) % (RP_PAGE_SIZE - f->bytes + 1);
            bool zero = rnd(&f->seed) % 16 == 0;
            f->written_bytes += zero ? RP_PAGE_SIZE : f->bytes;
            if (zero)
                memset(p, 0, RP_PAGE_SIZE);
            else
                for (unsigned k = 0; k < f->bytes; k++)
                    p[at + k] = (uint8_t)rnd(&f->seed);
            rp_pageset_set_atomic(&f->dirty, gfn, 1);
        }
        pthread_mutex_unlock(&f->run);
        usleep(f->pause_us);
        uint64_t percent = atomic_load(&f->throttle);
        if (percent)
            usleep((unsigned)((rp_clock_ns() - began_ns) / 1000 * percent / (100 - percent)));
    }
    return NULL;
}

static int fake_describe(struct rp_source *s, struct rp_source_info *out, struct rp_error *err)
{
    (void)err;
    memset(out, 0, sizeof(*out));
    memset(out->vm_id, 7, sizeof(out->vm_id));
    strcpy(out->name, "fake");
    out->ram = ((struct fake *)s)->ram;
    return 0;
}
static int fake_track(struct rp_source *s, bool all, struct rp_error *err)
{
    (void)err;
    atomic_store(&((struct fake *)s)->all, all);
    return 0;
}
static void fake_untrack(struct rp_source *s) { (void)s; }
static int fake_harvest(struct rp_source *s, struct rp_pageset *dirty, struct rp_error *err)
{
    (void)err;
    struct fake *f = (struct fake *)s;
    f->harvests++;
    rp_pageset_take(dirty, &f->dirty);
    if (atomic_exchange(&f->all, false))
        rp_pageset_fill(dirty, &f->ram);
    return 0;
}
static int fake_cut(struct rp_source *s, struct rp_cut *cut, struct rp_error *err)
{
    struct fake *f = (struct fake *)s;
    cut->pause_start_ns = rp_clock_ns();
    pthread_mutex_lock(&f->run);
    f->stand = true;
    pthread_mutex_unlock(&f->run);
    uint64_t n = cut->epoch;
    struct rp_section sec = {.name = "fake", .bytes = (uint8_t *)&n, .len = sizeof(n), .version = 1};
    cr_assert_eq(rp_sections_put(cut->sections, &sec), 0);
    return fake_harvest(s, cut->dirty, err);
}
static int fake_resume(struct rp_source *s, struct rp_error *err)
{
    (void)err;
    struct fake *f = (struct fake *)s;
    pthread_mutex_lock(&f->run);
    f->stand = false;
    pthread_cond_broadcast(&f->go);
    pthread_mutex_unlock(&f->run);
    return 0;
}
static void fake_release(struct rp_source *s, uint64_t epoch) { atomic_store(&((struct fake *)s)->released, epoch); }
static void fake_gate(struct rp_source *s, bool hold) { (void)s; (void)hold; }
static int fake_output_fd(struct rp_source *s) { (void)s; return -1; }
static void fake_throttle(struct rp_source *s, unsigned percent) { atomic_store(&((struct fake *)s)->throttle, percent < 99 ? percent : 99); }

static const struct rp_source_ops fake_ops = {
    .name = "fake", .describe = fake_describe, .track_start = fake_track, .track_stop = fake_untrack,
    .harvest = fake_harvest, .cut = fake_cut, .resume = fake_resume, .release = fake_release, .gate = fake_gate,
    .output_fd = fake_output_fd, .throttle = fake_throttle,
};

static void view_init(struct rp_ram_view *v)
{
    *v = (struct rp_ram_view){.gfn_end = PAGES, .pages = PAGES, .nregions = 1, .regions = {{0, PAGES}}};
    v->base = mmap(NULL, PAGES * RP_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void fake_start(struct fake *f, unsigned bytes, unsigned burst, unsigned pause_us)
{
    *f = (struct fake){.base.ops = &fake_ops, .seed = (uint32_t)getpid(), .bytes = bytes, .burst = burst, .pause_us = pause_us};
    printf("seed %u\n", f->seed);
    view_init(&f->ram);
    cr_assert_eq(rp_pageset_init(&f->dirty, PAGES), 0);
    pthread_mutex_init(&f->run, NULL);
    pthread_cond_init(&f->go, NULL);
    pthread_create(&f->guest, NULL, guest_main, f);
    usleep(20000);
}

static void fake_stop(struct fake *f)
{
    atomic_store(&f->quit, true);
    pthread_join(f->guest, NULL);
    rp_pageset_fini(&f->dirty);
    munmap(f->ram.base, PAGES * RP_PAGE_SIZE);
}

#endif
