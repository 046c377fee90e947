#include "core/log.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"error", "warn", "notice", "info", "debug"};

/* Read once; a race between first callers stores the same value twice. */
static int threshold(void)
{
    static _Atomic int level = -1;
    int l = atomic_load_explicit(&level, memory_order_relaxed);
    if (l >= 0)
        return l;
    const char *env = getenv("REPRISE_LOG");
    l = RP_LOG_NOTICE;
    for (int i = 0; env && i <= RP_LOG_DEBUG; i++)
        if (strcmp(env, names[i]) == 0)
            l = i;
    atomic_store_explicit(&level, l, memory_order_relaxed);
    return l;
}

void rp_log(enum rp_log_level level, const char *fmt, ...)
{
    if ((int)level > threshold())
        return;
    char line[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    fprintf(stderr, "reprise: %s: %s\n", names[level], line);
}
