/*
 * bounce.h - buffers between guest RAM and the host's storage: page-aligned, recycled, a bounded number of idle bytes.
 * Thread: machine lock.
 */
#ifndef RP_VMM_BOUNCE_H
#define RP_VMM_BOUNCE_H

#include <stddef.h>
#include <stdint.h>

#define RP_BOUNCE_CLASSES 15            /* 4 KiB … 64 MiB */
#define RP_BOUNCE_MAX (4096ull << (RP_BOUNCE_CLASSES - 1))

struct rp_bounce {
    void *idle[RP_BOUNCE_CLASSES];      /* linked through their first word */
    size_t idle_bytes, idle_max;
    size_t used_bytes;                  /* handed out */
};

void rp_bounce_init(struct rp_bounce *b, size_t idle_max);
void rp_bounce_fini(struct rp_bounce *b);           /* everything was put back */
uint8_t *rp_bounce_get(struct rp_bounce *b, uint64_t len);      /* NULL: too long or no memory */
void rp_bounce_put(struct rp_bounce *b, uint8_t *buf, uint64_t len);

#endif
