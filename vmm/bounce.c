/* Recycled page-aligned buffers. The contract is in bounce.h. */
#include "vmm/bounce.h"

#include <stdlib.h>
#include <string.h>

static unsigned class_of(uint64_t len)
{
    unsigned c = 0;

    while (c < RP_BOUNCE_CLASSES && (4096ull << c) < len)
        c++;
    return c;
}

void rp_bounce_init(struct rp_bounce *b, size_t idle_max)
{
    memset(b, 0, sizeof(*b));
    b->idle_max = idle_max;
}

void rp_bounce_fini(struct rp_bounce *b)
{
    for (unsigned c = 0; c < RP_BOUNCE_CLASSES; c++) {
        while (b->idle[c]) {
            void *buf = b->idle[c];

            memcpy(&b->idle[c], buf, sizeof(void *));
            free(buf);
        }
    }
    b->idle_bytes = 0;
}

uint8_t *rp_bounce_get(struct rp_bounce *b, uint64_t len)
{
    unsigned c = class_of(len);
    size_t bytes = (size_t)4096 << c;
    void *buf;

    if (c == RP_BOUNCE_CLASSES)
        return NULL;
    buf = b->idle[c];
    if (buf) {
        memcpy(&b->idle[c], buf, sizeof(void *));
        b->idle_bytes -= bytes;
    } else {
        buf = aligned_alloc(4096, bytes);
        if (!buf)
            return NULL;
    }
    b->used_bytes += bytes;
    return buf;
}

void rp_bounce_put(struct rp_bounce *b, uint8_t *buf, uint64_t len)
{
    unsigned c = class_of(len);
    size_t bytes = (size_t)4096 << c;

    b->used_bytes -= bytes;
    if (b->idle_bytes + bytes > b->idle_max) {
        free(buf);
        return;
    }
    memcpy(buf, &b->idle[c], sizeof(void *));
    b->idle[c] = buf;
    b->idle_bytes += bytes;
}
