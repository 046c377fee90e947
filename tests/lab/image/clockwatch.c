/*
 * clockwatch FILE: watches the guest's clocks from inside, every 2 ms; writes one line to FILE every half second:
 *   samples=N backwards=N longest_monotonic_ms=N longest_realtime_ms=N tsc_apart=N
 * backwards counts every time that CLOCK_MONOTONIC, CLOCK_BOOTTIME or one CPU's TSC was less than before, and every time
 * that the wall clock stepped back by more than 1 ms; longest is the longest time between two samples on that clock: a
 * pause as the guest sees it. tsc_apart counts how often the TSC was less on another CPU: no clock of Linux's goes
 * backwards by that, and a host whose own TSCs are apart (an emulated one with several CPUs) cannot do better.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

enum { PERIOD_US = 2000, SAMPLES_PER_LINE = 250, WALL_TOLERANCE_NS = 1000000 };

struct sample {
    int64_t monotonic_ns;
    int64_t boottime_ns;
    int64_t realtime_ns;
    uint64_t tsc;
    int cpu;                /* of the TSC, -1: not sure */
};

static int64_t clock_ns(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static struct sample take(void)
{
    int cpu;
    struct sample s = {
        .monotonic_ns = clock_ns(CLOCK_MONOTONIC),
        .boottime_ns = clock_ns(CLOCK_BOOTTIME),
        .realtime_ns = clock_ns(CLOCK_REALTIME),
    };

    cpu = sched_getcpu();
    s.tsc = __rdtsc();
    s.cpu = cpu == sched_getcpu() ? cpu : -1;
    return s;
}

/* Rename, so that a reader never sees half a line. */
static void report(const char *path, const char *part, unsigned long samples, unsigned long backwards,
                   unsigned long apart, int64_t longest_monotonic_ns, int64_t longest_realtime_ns)
{
    FILE *file = fopen(part, "w");

    if (!file)
        return;
    fprintf(file, "samples=%lu backwards=%lu longest_monotonic_ms=%.1f longest_realtime_ms=%.1f tsc_apart=%lu\n", samples, backwards,
            (double)longest_monotonic_ns / 1e6, (double)longest_realtime_ns / 1e6, apart);
    fclose(file);
    rename(part, path);
}

int main(int argc, char **argv)
{
    struct sample last = take(), now;
    int64_t longest_monotonic_ns = 0, longest_realtime_ns = 0;
    unsigned long samples = 0, backwards = 0, apart = 0;
    char part[256];

    if (argc != 2 || snprintf(part, sizeof(part), "%s.part", argv[1]) >= (int)sizeof(part)) {
        fprintf(stderr, "usage: clockwatch FILE\n");
        return 2;
    }
    for (;; last = now) {
        usleep(PERIOD_US);
        now = take();
        backwards += now.monotonic_ns < last.monotonic_ns;
        backwards += now.boottime_ns < last.boottime_ns;
        if (now.tsc < last.tsc && now.cpu == last.cpu && now.cpu >= 0)
            backwards++;
        else if (now.tsc < last.tsc)
            apart++;
        backwards += now.realtime_ns + WALL_TOLERANCE_NS < last.realtime_ns;
        if (now.monotonic_ns - last.monotonic_ns > longest_monotonic_ns)
            longest_monotonic_ns = now.monotonic_ns - last.monotonic_ns;
        if (now.realtime_ns - last.realtime_ns > longest_realtime_ns)
            longest_realtime_ns = now.realtime_ns - last.realtime_ns;
        if (++samples % SAMPLES_PER_LINE == 0)
            report(argv[1], part, samples, backwards, apart, longest_monotonic_ns, longest_realtime_ns);
    }
}
