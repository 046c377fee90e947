/* bench.h - what the native benchmarks share: words of the command line, best-of timing, rows of figures. */
#ifndef RP_TESTS_BENCH_H
#define RP_TESTS_BENCH_H

#include "core/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct bench_words {
    int argc;
    char **argv;
};
/* The value of KEY=VALUE on the command line, or `otherwise`. Sizes and counts: plain numbers. */
double bench_number(const struct bench_words *w, const char *key, double otherwise);
const char *bench_text(const struct bench_words *w, const char *key, const char *otherwise);

/* The shortest of `rounds` runs of fn(ctx), in ns: what it costs when nobody disturbs it. */
double bench_best_ns(unsigned rounds, void (*fn)(void *ctx), void *ctx);
/* Runs run(ctx, ready_fd), which does not return, in a process of its own, and waits until it has written a byte to ready_fd.
 * Ends this process, too, when that one ends first. */
pid_t bench_child(void (*run)(const void *ctx, int ready_fd), const void *ctx);
/* Ends this process: what it was at, and why it cannot go on. */
__attribute__((noreturn)) void bench_die(const char *what, const struct rp_error *err);
/* Prints one row: what, figure, unit. */
void bench_row(const char *what, double figure, const char *unit);
void bench_title(const char *title);

int bench_pages(const struct bench_words *w);       /* cost per page of every step it goes through */
int bench_encode(const struct bench_words *w);      /* encoder: cost and wire bytes per kind of page */
int bench_cow(const struct bench_words *w);         /* copy-on-write against copying in the pause */
int bench_link(const struct bench_words *w);        /* the whole engine to a standby process, tcp and unix */
int bench_resync(const struct bench_words *w);      /* a standby that comes back: what differs against all of RAM */
int bench_machine(const struct bench_words *w);     /* cuts of a real machine; needs /dev/kvm */

#endif
