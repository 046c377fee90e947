/*
 * late.h - libraries that few VMs need, loaded when they are needed: libcurl (a lease in etcd) and libnbd bring more than thirty
 * others along, which would cost every VM milliseconds at its start and megabytes while it runs.
 *
 * A wrapper file (replicator/late_curl.c, vmm/late_nbd.c) defines the library's functions under their own names; callers see
 * no difference, but that the first one (…_init, …_create) fails where the library is not installed.
 */
#ifndef RP_CORE_LATE_H
#define RP_CORE_LATE_H

#include <stdatomic.h>

/* `name` out of `library`, looked up once: `cache` is the wrapper's, NULL at first. NULL: there is no such library. Any thread. */
void *rp_late(_Atomic(void *) *cache, const char *library, const char *name);

/* One wrapper: RP_LATE(LIBRARY, int, -1, nbd_aio_get_fd, (struct nbd_handle *h), (h)). `otherwise`: without the library. */
#define RP_LATE(library, type, otherwise, name, params, args) \
    type name params \
    { \
        static _Atomic(void *) cache; /* a constant once it is known */ \
        type (*fn) params = (type (*) params)rp_late(&cache, library, #name); \
        return fn ? fn args : (otherwise); \
    }

#endif
