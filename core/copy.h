/*
 * copy.h - copying pages that others may be writing at the same time, as fast as memory allows.
 *
 * A copy of a page that is being written may be torn; the caller knows what that means (capture.h). This is the one place that
 * reads guest RAM while the guest runs, and the one that the thread sanitizer is told not to look at.
 * Any thread.
 */
#ifndef RP_CORE_COPY_H
#define RP_CORE_COPY_H

#include "core/ram.h"

#include <stdbool.h>

/* `next`: the page that will be copied after this one (any address; it is fetched ahead). `far`: nobody reads the copy soon, or there
 * are so many that caches cannot hold them: it goes around the caches, and `to` is 64-byte aligned; else it may be any address. */
void rp_copy_page(uint8_t *to, const uint8_t *from, const uint8_t *next, bool far);

#endif
