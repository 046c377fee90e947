/*
 * source.h - a source for benchmarks and component tests that needs no KVM: the "vCPUs" are threads that write real memory
 * at a set rate and pattern, and mark what they wrote. A cut stops them as a kick stops vCPUs: each finishes the page it
 * is at. Everything behind the contract (core/source.h) is the real thing.
 *
 * Thread: rp_source calls as core/source.h says; make, start, stop from one control thread.
 */
#ifndef RP_TESTS_BENCH_SOURCE_H
#define RP_TESTS_BENCH_SOURCE_H

#include "core/histogram.h"
#include "core/source.h"

#include <pthread.h>

#define SYNTH_WRITERS_MAX 8u

enum synth_pattern { SYNTH_RANDOM, SYNTH_SEQ, SYNTH_HOT };      /* hot: 90 % of the writes go to 1 % of the pages */
enum synth_content { SYNTH_COUNTER, SYNTH_TEXT, SYNTH_NOISE, SYNTH_ZERO };

struct synth_config {
    uint64_t ram_bytes;
    uint64_t ws_pages;          /* working set; 0: all of RAM */
    unsigned writers;           /* 0: 1 */
    double pages_s;             /* asked of all writers together; 0: as fast as it goes */
    unsigned bytes;             /* written per visit, 8 … 4096 */
    enum synth_pattern pattern;
    enum synth_content content, fill;
    uint64_t output_ns;         /* > 0: an output begins to wait so often after the last one left (a request/reply client) */
    bool digest;                /* every cut notes the digest of all RAM (synth_digest_at) */
    uint32_t seed;
};

struct synth;
struct synth *synth_make(const struct synth_config *cfg);   /* exits when memory is short */
void synth_start(struct synth *s);
void synth_stop(struct synth *s);       /* joins the writers; the source has to run */
void synth_free(struct synth *s);
struct rp_source *synth_source(struct synth *s);
const struct rp_ram_view *synth_ram(const struct synth *s);

uint64_t synth_written(const struct synth *s);      /* pages, of all writers */
uint64_t synth_behind(const struct synth *s);       /* pages asked for and not written, because a writer was held up */
uint64_t synth_writer_cpu_ns(const struct synth *s);
const struct rp_hist *synth_gaps(const struct synth *s);        /* ns between two visits, from 100 us on, of writer 0 going as fast as it can */
const struct rp_hist *synth_outputs(const struct synth *s);     /* ns an output waited */
unsigned synth_throttle(const struct synth *s);                 /* percent, as last told */
uint64_t synth_released(const struct synth *s);
/* The digest of all RAM at the cut of `epoch`; false when it was not noted, or is overwritten (256 are kept). */
bool synth_digest_at(struct synth *s, uint64_t epoch, uint64_t *lo, uint64_t *hi);

#endif
