/* libnbd, loaded by the first disk on an NBD export; see core/late.h. */
#include "core/late.h"

#include <errno.h>
#include <libnbd.h>
#include <stddef.h>

#define LIB "libnbd.so.0"

RP_LATE(LIB, int, -1, nbd_aio_connect_uri, (struct nbd_handle *h, const char *uri), (h, uri))
RP_LATE(LIB, int64_t, -1, nbd_aio_flush, (struct nbd_handle *h, nbd_completion_callback done, uint32_t flags), (h, done, flags))
RP_LATE(LIB, unsigned, 0, nbd_aio_get_direction, (struct nbd_handle *h), (h))
RP_LATE(LIB, int, -1, nbd_aio_get_fd, (struct nbd_handle *h), (h))
RP_LATE(LIB, int, -1, nbd_aio_in_flight, (struct nbd_handle *h), (h))
RP_LATE(LIB, int, -1, nbd_aio_is_closed, (struct nbd_handle *h), (h))
RP_LATE(LIB, int, -1, nbd_aio_is_connecting, (struct nbd_handle *h), (h))
RP_LATE(LIB, int, -1, nbd_aio_is_dead, (struct nbd_handle *h), (h))
RP_LATE(LIB, int, -1, nbd_aio_is_ready, (struct nbd_handle *h), (h))
RP_LATE(LIB, int, -1, nbd_aio_notify_read, (struct nbd_handle *h), (h))
RP_LATE(LIB, int, -1, nbd_aio_notify_write, (struct nbd_handle *h), (h))
RP_LATE(LIB, int64_t, -1, nbd_aio_pread, (struct nbd_handle *h, void *buf, size_t count, uint64_t offset, nbd_completion_callback done, uint32_t flags), (h, buf, count, offset, done, flags))
RP_LATE(LIB, int64_t, -1, nbd_aio_pwrite, (struct nbd_handle *h, const void *buf, size_t count, uint64_t offset, nbd_completion_callback done, uint32_t flags), (h, buf, count, offset, done, flags))
RP_LATE(LIB, int64_t, -1, nbd_aio_trim, (struct nbd_handle *h, uint64_t count, uint64_t offset, nbd_completion_callback done, uint32_t flags), (h, count, offset, done, flags))
RP_LATE(LIB, int64_t, -1, nbd_aio_zero, (struct nbd_handle *h, uint64_t count, uint64_t offset, nbd_completion_callback done, uint32_t flags), (h, count, offset, done, flags))
RP_LATE(LIB, int, -1, nbd_can_flush, (struct nbd_handle *h), (h))
RP_LATE(LIB, int, -1, nbd_can_trim, (struct nbd_handle *h), (h))
RP_LATE(LIB, int, -1, nbd_can_zero, (struct nbd_handle *h), (h))
RP_LATE(LIB, struct nbd_handle *, NULL, nbd_create, (void), ())
RP_LATE(LIB, int, ENOENT, nbd_get_errno, (void), ())
RP_LATE(LIB, const char *, LIB " is not installed (Debian: libnbd0)", nbd_get_error, (void), ())
RP_LATE(LIB, int64_t, -1, nbd_get_size, (struct nbd_handle *h), (h))
RP_LATE(LIB, int, -1, nbd_is_read_only, (struct nbd_handle *h), (h))
RP_LATE(LIB, int, -1, nbd_poll, (struct nbd_handle *h, int timeout_ms), (h, timeout_ms))
RP_LATE(LIB, int, -1, nbd_shutdown, (struct nbd_handle *h, uint32_t flags), (h, flags))

void nbd_close(struct nbd_handle *h)
{
    static _Atomic(void *) cache;
    void (*fn)(struct nbd_handle *) = (void (*)(struct nbd_handle *))rp_late(&cache, LIB, "nbd_close");

    if (fn)
        fn(h);
}
