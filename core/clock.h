/* clock.h - monotonic and wall time in nanoseconds. Any thread. */
#ifndef RP_CORE_CLOCK_H
#define RP_CORE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t rp_clock_read(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}
static inline uint64_t rp_clock_ns(void) { return rp_clock_read(CLOCK_MONOTONIC); }
/* A time or a duration for the calls that want it so. */
static inline struct timespec rp_timespec(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
}
static inline uint64_t rp_wall_ns(void) { return rp_clock_read(CLOCK_REALTIME); }

#endif
