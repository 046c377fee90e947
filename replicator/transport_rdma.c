/* rdma: not in this build yet; the address is understood and refused with a reason. */
#include "replicator/transport.h"

#include <errno.h>

static int absent(struct rp_error *err)
{
    return rp_error_exit(err, RP_EXIT_HOST, EOPNOTSUPP, "rdma:// is not available in this version of reprise; use tcp:// or unix:");
}

int rp_rdma_connect(const struct rp_uri *uri, int timeout_ms, struct rp_conn **out, struct rp_error *err)
{
    (void)uri, (void)timeout_ms, (void)out;
    return absent(err);
}

int rp_rdma_listen(const struct rp_uri *uri, struct rp_listener **out, struct rp_error *err)
{
    (void)uri, (void)out;
    return absent(err);
}
