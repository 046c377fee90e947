#include "tests/bench/source.h"

#include "core/clock.h"
#include "core/digest.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define GAP_NS 100000u
#define CATCH_UP_NS 10000000u   /* a writer that was held up makes up for so much; the rest is counted as behind */
#define NAP_NS 100000u
#define DIGESTS 256u

struct writer {
    struct synth *s;
    unsigned index;
    pthread_t thread;
    pthread_mutex_t step;       /* held during one visit, and by whoever stopped the writer */
    uint64_t random, at;
    struct rp_hist gaps;
    _Atomic uint64_t written, behind;
};

struct synth {
    struct rp_source base;
    struct synth_config cfg;
    struct rp_ram_view ram;
    struct rp_pageset dirty;            /* atomic */
    unsigned nwriters;
    struct writer writers[SYNTH_WRITERS_MAX];
    _Atomic bool quit, hold;            /* hold: a cut is on, writers wait for `step` */
    bool started;
    bool all;                           /* engine: the next harvest reports everything */
    uint64_t cut_epoch;
    struct { uint64_t epoch, lo, hi; } digests[DIGESTS];    /* lock */
    pthread_mutex_t lock;
    pthread_cond_t go;          /* hold became false */
    struct rp_hist outputs;
    _Atomic unsigned throttle;
    _Atomic uint64_t released;
    _Atomic uint64_t output_since, output_epoch, output_next;   /* the one output that waits, 0: none; due when */
    int output_fd;
    _Atomic uint64_t writer_cpu_ns;
};

static struct synth *of(struct rp_source *s)
{
    return (struct synth *)s;
}

static uint64_t rnd(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

/* --- the writers --- */

static const char words[] = "the epoch is committed before the packet leaves and the standby holds what the primary was ";

static void put(struct writer *w, uint8_t *p, unsigned bytes, enum synth_content content)
{
    uint64_t *at = (uint64_t *)(void *)p;
    uint64_t v = rnd(&w->random);
    for (unsigned i = 0; i < bytes / 8; i++)
        switch (content) {
        case SYNTH_ZERO: at[i] = 0; break;
        case SYNTH_NOISE: at[i] = rnd(&w->random); break;
        case SYNTH_COUNTER: at[i] = v + i; break;
        case SYNTH_TEXT: memcpy(&at[i], words + (v + 8 * i) % (sizeof(words) - 9), 8); break;
        }
}

static uint64_t next_page(struct writer *w)
{
    const struct synth_config *c = &w->s->cfg;
    uint64_t slice = c->ws_pages / w->s->nwriters, r = rnd(&w->random), span = slice;
    if (c->pattern == SYNTH_SEQ)
        return slice * w->index + w->at++ % slice;
    if (c->pattern == SYNTH_HOT && r % 100 < 90)
        span = slice / 100 ? slice / 100 : 1;
    return slice * w->index + r / 128 % span;
}

static void visit(struct writer *w)
{
    struct synth *s = w->s;
    uint64_t gfn = next_page(w);
    unsigned bytes = s->cfg.bytes, room = (RP_PAGE_SIZE - bytes) / 8 + 1;
    uint8_t *p = rp_ram_page(&s->ram, gfn);
    put(w, p + rnd(&w->random) % room * 8, bytes, s->cfg.content);
    rp_pageset_set_atomic(&s->dirty, gfn, 1);
}

static void request(struct synth *s, uint64_t now)
{
    if (!s->cfg.output_ns || atomic_load(&s->output_since) || now < atomic_load(&s->output_next))
        return;
    atomic_store(&s->output_epoch, UINT64_MAX);     /* the next cut says which epoch it belongs to */
    atomic_store(&s->output_since, now);
    uint64_t one = 1;
    if (write(s->output_fd, &one, sizeof(one)) < 0)
        abort();
}

/* Keeps the rate: sleeps when it is ahead, at least NAP_NS at a time, and catches up in a burst after. */
static void pace(struct writer *w, uint64_t *due, double interval)
{
    struct synth *s = w->s;
    uint64_t now = rp_clock_ns();
    *due += (uint64_t)interval;
    if (*due + CATCH_UP_NS < now) {
        atomic_fetch_add(&w->behind, (uint64_t)((double)(now - *due) / interval));
        *due = now;
    }
    while (*due > now && !atomic_load(&s->quit)) {
        uint64_t ns = *due - now < NAP_NS ? NAP_NS : *due - now > 2000000 ? 2000000 : *due - now;
        nanosleep(&(struct timespec){.tv_nsec = (long)ns}, NULL);
        now = rp_clock_ns();
        if (w->index == 0)
            request(s, now);
    }
}

/* A cut waits for `step`; whoever sees `hold` leaves it that lock. */
static void stand_while_held(struct synth *s)
{
    if (!atomic_load(&s->hold))
        return;
    pthread_mutex_lock(&s->lock);
    while (atomic_load(&s->hold))
        pthread_cond_wait(&s->go, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

static void *writer_main(void *arg)
{
    struct writer *w = arg;
    struct synth *s = w->s;
    double interval = s->cfg.pages_s > 0 ? 1e9 * s->nwriters / s->cfg.pages_s : 0;
    uint64_t due = rp_clock_ns(), last = 0, slice = 0;
    prctl(PR_SET_TIMERSLACK, 1);
    while (!atomic_load(&s->quit)) {
        stand_while_held(s);
        pthread_mutex_lock(&w->step);
        uint64_t now = rp_clock_ns();
        if (!atomic_load(&s->hold)) {
            if (last && now - last > GAP_NS)
                rp_hist_add(&w->gaps, now - last);
            visit(w);
            atomic_fetch_add_explicit(&w->written, 1, memory_order_relaxed);
            if (w->index == 0)
                request(s, now);
        }
        pthread_mutex_unlock(&w->step);
        last = now;
        unsigned stolen = atomic_load(&s->throttle);
        if (stolen && now - slice > (100 - stolen) * 100000u) {     /* that share of each 10 ms */
            nanosleep(&(struct timespec){.tv_nsec = (long)stolen * 100000}, NULL);
            slice = rp_clock_ns();
        }
        if (interval > 0)
            pace(w, &due, interval);
        if (stolen || interval > 0)
            last = 0;   /* it may have slept of its own will */
    }
    atomic_fetch_add(&s->writer_cpu_ns, rp_clock_read(CLOCK_THREAD_CPUTIME_ID));
    return NULL;
}

/* --- the contract --- */

static int describe(struct rp_source *b, struct rp_source_info *out, struct rp_error *err)
{
    (void)err;
    *out = (struct rp_source_info){.vm_id = {7, 7, 7}, .name = "synthetic", .ram = of(b)->ram};
    return 0;
}

static int track_start(struct rp_source *b, bool all, struct rp_error *err)
{
    (void)err;
    of(b)->all = all;
    return 0;
}

static void track_stop(struct rp_source *b)
{
    (void)b;
}

static int harvest(struct rp_source *b, struct rp_pageset *dirty, struct rp_error *err)
{
    (void)err;
    rp_pageset_take(dirty, &of(b)->dirty);
    if (of(b)->all)
        rp_pageset_fill(dirty, &of(b)->ram);
    of(b)->all = false;
    return 0;
}

static int cut(struct rp_source *b, struct rp_cut *c, struct rp_error *err)
{
    struct synth *s = of(b);
    uint8_t state[512] = {0};
    struct rp_section sec = {.name = "synthetic", .bytes = state, .len = sizeof(state), .version = 1};
    c->pause_start_ns = rp_clock_ns();
    atomic_store(&s->hold, true);
    for (unsigned i = 0; i < s->nwriters; i++)
        pthread_mutex_lock(&s->writers[i].step);
    memcpy(state, &c->epoch, sizeof(c->epoch));
    if (rp_sections_put(c->sections, &sec) < 0)
        return rp_error_set(err, ENOMEM, "out of memory");
    if (atomic_load(&s->output_since) && atomic_load(&s->output_epoch) == UINT64_MAX)
        atomic_store(&s->output_epoch, c->epoch);
    s->cut_epoch = c->epoch;
    if (s->cfg.digest) {
        struct rp_hash128 d = rp_digest_of(&s->ram);
        pthread_mutex_lock(&s->lock);
        s->digests[c->epoch % DIGESTS].epoch = c->epoch;
        s->digests[c->epoch % DIGESTS].lo = d.lo;
        s->digests[c->epoch % DIGESTS].hi = d.hi;
        pthread_mutex_unlock(&s->lock);
    }
    c->wall_ns = rp_wall_ns();
    return harvest(b, c->dirty, err);
}

static int resume(struct rp_source *b, struct rp_error *err)
{
    struct synth *s = of(b);
    (void)err;
    pthread_mutex_lock(&s->lock);
    atomic_store(&s->hold, false);
    pthread_cond_broadcast(&s->go);
    pthread_mutex_unlock(&s->lock);
    for (unsigned i = s->nwriters; i-- > 0;)
        pthread_mutex_unlock(&s->writers[i].step);
    return 0;
}

static void release(struct rp_source *b, uint64_t epoch)
{
    struct synth *s = of(b);
    uint64_t now = rp_clock_ns(), since = atomic_load(&s->output_since);
    atomic_store(&s->released, epoch);
    if (since && atomic_load(&s->output_epoch) <= epoch) {
        rp_hist_add(&s->outputs, now - since);
        atomic_store(&s->output_next, now + s->cfg.output_ns);
        atomic_store(&s->output_since, 0);
    }
}

static void gate(struct rp_source *b, bool hold)
{
    (void)b;
    (void)hold;
}

static int output_fd(struct rp_source *b)
{
    return of(b)->output_fd;
}

static void throttle(struct rp_source *b, unsigned percent)
{
    atomic_store(&of(b)->throttle, percent);
}

static const struct rp_source_ops ops = {
    .name = "synthetic", .describe = describe, .track_start = track_start, .track_stop = track_stop, .harvest = harvest,
    .cut = cut, .resume = resume, .release = release, .gate = gate, .output_fd = output_fd, .throttle = throttle,
};

/* --- making one --- */

struct synth *synth_make(const struct synth_config *cfg)
{
    struct synth *s = calloc(1, sizeof(*s));
    uint64_t pages = cfg->ram_bytes >> RP_PAGE_SHIFT;
    int fd = memfd_create("synthetic", MFD_CLOEXEC);
    if (!s || fd < 0 || ftruncate(fd, (off_t)cfg->ram_bytes) < 0)
        goto fail;
    s->cfg = *cfg;
    s->base.ops = &ops;
    s->nwriters = cfg->writers ? cfg->writers : 1;
    if (!s->cfg.ws_pages)
        s->cfg.ws_pages = pages;
    s->ram = (struct rp_ram_view){.gfn_end = pages, .pages = pages, .nregions = 1, .regions = {{0, pages}}};
    s->ram.base = mmap(NULL, cfg->ram_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (s->ram.base == MAP_FAILED || rp_pageset_init(&s->dirty, pages) < 0)
        goto fail;
    close(fd);
    s->output_fd = cfg->output_ns ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->go, NULL);
    for (unsigned i = 0; i < s->nwriters; i++) {
        struct writer *w = &s->writers[i];
        w->s = s;
        w->index = i;
        w->random = (cfg->seed ? cfg->seed : 1) * 0x9E3779B97F4A7C15ull + i;
        pthread_mutex_init(&w->step, NULL);
    }
    for (uint64_t g = 0; g < pages; g++)
        put(&s->writers[0], rp_ram_page(&s->ram, g), RP_PAGE_SIZE, cfg->fill);
    return s;
fail:
    perror("synthetic source");
    exit(1);
}

void synth_start(struct synth *s)
{
    for (unsigned i = 0; i < s->nwriters; i++)
        if (pthread_create(&s->writers[i].thread, NULL, writer_main, &s->writers[i]))
            abort();
    s->started = true;
}

void synth_stop(struct synth *s)
{
    atomic_store(&s->quit, true);
    for (unsigned i = 0; s->started && i < s->nwriters; i++)
        pthread_join(s->writers[i].thread, NULL);
    s->started = false;
}

void synth_free(struct synth *s)
{
    if (s->output_fd >= 0)
        close(s->output_fd);
    munmap(s->ram.base, s->cfg.ram_bytes);
    rp_pageset_fini(&s->dirty);
    free(s);
}

struct rp_source *synth_source(struct synth *s)
{
    return &s->base;
}

const struct rp_ram_view *synth_ram(const struct synth *s)
{
    return &s->ram;
}

uint64_t synth_written(const struct synth *s)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < s->nwriters; i++)
        n += atomic_load(&s->writers[i].written);
    return n;
}

uint64_t synth_behind(const struct synth *s)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < s->nwriters; i++)
        n += atomic_load(&s->writers[i].behind);
    return n;
}

uint64_t synth_writer_cpu_ns(const struct synth *s)
{
    return atomic_load(&s->writer_cpu_ns);
}

const struct rp_hist *synth_gaps(const struct synth *s)
{
    return &s->writers[0].gaps;
}

const struct rp_hist *synth_outputs(const struct synth *s)
{
    return &s->outputs;
}

unsigned synth_throttle(const struct synth *s)
{
    return atomic_load(&s->throttle);
}

uint64_t synth_released(const struct synth *s)
{
    return atomic_load(&s->released);
}

bool synth_digest_at(struct synth *s, uint64_t epoch, uint64_t *lo, uint64_t *hi)
{
    pthread_mutex_lock(&s->lock);
    bool there = s->digests[epoch % DIGESTS].epoch == epoch;
    *lo = s->digests[epoch % DIGESTS].lo;
    *hi = s->digests[epoch % DIGESTS].hi;
    pthread_mutex_unlock(&s->lock);
    return there;
}
