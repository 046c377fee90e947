#include "core/fault.h"

#include "core/log.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum action { ACT_ERROR, ACT_KILL, ACT_STALL };

/* One armed point per process: RP_FAULT names it. armed: -1 not read yet, 0 none, else the point. */
static _Atomic int armed = -1;
static _Atomic long left;
static _Atomic int action;   /* enum action; tests arm points while other threads run */

static const struct { int point; const char *name; } points[] = {
#define X(n, id, name) {n, name},
    RP_FAULT_LIST(X)
#undef X
};

void rp_fault_reload(void)
{
    const char *env = getenv("RP_FAULT");
    int point = 0;
    char name[64] = "", act[16] = "error";
    long nth = 1;
    if (env && sscanf(env, "%63[^:]:%ld:%15s", name, &nth, act) >= 1)
        for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++)
            if (strcmp(points[i].name, name) == 0)
                point = points[i].point;
    if (env && *env && !point)
        rp_log(RP_LOG_ERROR, "RP_FAULT=%s: no such fault point", env);
    atomic_store(&action, strcmp(act, "kill") == 0 ? ACT_KILL : strcmp(act, "stall") == 0 ? ACT_STALL : ACT_ERROR);
    atomic_store(&left, nth);
    atomic_store(&armed, point);
}

static void say(enum rp_fault_point point)
{
    for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++)
        if (points[i].point == (int)point)
            rp_log(RP_LOG_WARN, "fault point %s fires", points[i].name);
}

bool rp_fault(enum rp_fault_point point)
{
    int a = atomic_load_explicit(&armed, memory_order_relaxed);
    if (a < 0) {
        rp_fault_reload();
        a = atomic_load_explicit(&armed, memory_order_relaxed);
    }
    if (a != (int)point)
        return false;
    int act = atomic_load(&action);     /* now: who sees that it fired may arm another at once */
    if (atomic_fetch_sub(&left, 1) != 1)
        return false;
    say(point);
    if (act == ACT_KILL)
        kill(getpid(), SIGKILL);
    if (act == ACT_STALL) {
        sleep(1);
        return false;
    }
    return true;
}

bool rp_fault_fired(void)
{
    return atomic_load(&armed) > 0 && atomic_load(&left) <= 0;
}
