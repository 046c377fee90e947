/*
 * machine: what a cut of a real machine costs before anything is copied or sent: kick, state, dirty set. The guest is
 * `idle` in 1 GiB (one page a millisecond). Without /dev/kvm it says so.
 */
#include "tests/bench/bench.h"

#include "core/clock.h"
#include "core/histogram.h"
#include "vmm/machine.h"

#include <stdio.h>
#include <unistd.h>

struct cutting {
    struct rp_machine *m;
    struct rp_source *src;
    struct rp_pageset dirty;
    struct rp_hist cut_ns, pause_ns;
    uint64_t pages;
};

static int one_cut(struct cutting *c, uint64_t epoch, struct rp_error *err)
{
    struct rp_sections sections = {0};
    struct rp_cut cut = {.sections = &sections, .dirty = &c->dirty, .epoch = epoch};
    int rc = c->src->ops->cut(c->src, &cut, err);

    if (rc < 0)
        return rc;
    rp_hist_add(&c->cut_ns, rp_clock_ns() - cut.pause_start_ns);
    rc = c->src->ops->resume(c->src, err);
    rp_hist_add(&c->pause_ns, rp_clock_ns() - cut.pause_start_ns);
    c->pages += rp_pageset_count(&c->dirty);
    rp_pageset_clear(&c->dirty);
    rp_sections_fini(&sections);
    return rc;
}

static int cuts(struct cutting *c, unsigned n, unsigned every_us, struct rp_error *err)
{
    int rc = c->src->ops->track_start(c->src, false, err);

    for (unsigned i = 1; i <= n && rc == 0; i++) {
        usleep(every_us);
        rc = one_cut(c, i, err);
        if (i == 10) {          /* warm */
            c->cut_ns = (struct rp_hist){0};
            c->pause_ns = (struct rp_hist){0};
            c->pages = 0;
        }
    }
    c->src->ops->track_stop(c->src);
    return rc;
}

static void report(const char *tracker, const struct cutting *c, unsigned n)
{
    char what[80];

    snprintf(what, sizeof what, "%s: vCPU stopped to dirty set known, p50", tracker);
    bench_row(what, (double)rp_hist_quantile(&c->cut_ns, 0.5) / 1000, "us");
    snprintf(what, sizeof what, "%s: vCPU stopped to running again, p50", tracker);
    bench_row(what, (double)rp_hist_quantile(&c->pause_ns, 0.5) / 1000, "us");
    snprintf(what, sizeof what, "%s: the same, p99", tracker);
    bench_row(what, (double)rp_hist_quantile(&c->pause_ns, 0.99) / 1000, "us");
    snprintf(what, sizeof what, "%s: dirty pages per cut", tracker);
    bench_row(what, (double)c->pages / (n - 10), "pages");
}

int bench_machine(const struct bench_words *w)
{
    static const struct { int dirty; const char *name; } trackers[] = {{RP_DIRTY_LOG, "log"}, {RP_DIRTY_RING, "ring"}};
    unsigned n = (unsigned)bench_number(w, "cuts", 300), vcpus = (unsigned)bench_number(w, "cpus", 1);

    bench_title("machine: idle guest, 1 GiB");
    for (unsigned i = 0; i < 2; i++) {
        struct rp_machine_config cfg = {.name = "bench", .vcpus = vcpus, .ram = {.size_bytes = 1ull << 30}, .dirty = trackers[i].dirty,
                                        .kernel = bench_text(w, "guest", "build/guests/idle.elf"), .cmdline = ""};
        static struct cutting c;
        struct rp_error err = {0};

        c = (struct cutting){0};
        if (rp_machine_create(&cfg, NULL, &c.m, &err) < 0) {
            printf("  %s: not measured: %s\n", trackers[i].name, err.text);
            continue;
        }
        c.src = rp_machine_source(c.m);
        if (rp_pageset_init(&c.dirty, rp_machine_ram(c.m)->view.gfn_end) < 0 || rp_machine_start(c.m, &err) < 0 ||
            cuts(&c, n, (unsigned)bench_number(w, "every_us", 10000), &err) < 0)
            printf("  %s: %s\n", trackers[i].name, err.text);
        else
            report(trackers[i].name, &c, n);
        rp_pageset_fini(&c.dirty);
        rp_machine_destroy(c.m);
    }
    return 0;
}
