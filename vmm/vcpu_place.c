/*
 * On which CPUs vCPUs run. The kernel says it of each thread in its stat file: "tid (name) state ppid …", the processor is field 39.
 * (An rseq area would say it for less, but only as of the last return to user space, and a vCPU may stay in the guest for long.)
 * Source: proc(5), /proc/pid/stat.
 */
#include "vmm/vcpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROCESSOR_FIELD 39u
#define STATE_FIELD 3u

/* The CPU that a thread runs on; -1: it waits, or nobody knows. */
static int place(int stat_fd)
{
    char text[1024];
    ssize_t n = stat_fd < 0 ? -1 : pread(stat_fd, text, sizeof text - 1, 0);
    char *at;

    if (n <= 0)
        return -1;
    text[n] = '\0';
    at = strrchr(text, ')');    /* a name may hold anything */
    if (!at || strncmp(at, ") R ", 4) != 0)
        return -1;
    at += 2;
    for (unsigned field = STATE_FIELD; at && field < PROCESSOR_FIELD; field++)
        at = strchr(at + 1, ' ');
    return at ? (int)strtol(at, NULL, 10) : -1;
}

void rp_vcpus_running_on(struct rp_vcpus *g, cpu_set_t *cpus)
{
    for (unsigned i = 0; i < g->n; i++) {
        int cpu = place(atomic_load(&g->v[i].stat_fd));

        if (cpu >= 0)
            CPU_SET((unsigned)cpu, cpus);
    }
}
