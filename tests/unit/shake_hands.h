/* shake_hands.h - the accepting side of a handshake for tests that serve one connection at a time. */
#ifndef RP_TESTS_SHAKE_HANDS_H
#define RP_TESTS_SHAKE_HANDS_H

#include "replicator/handshake.h"

#include <errno.h>
#include <poll.h>

static inline int shake_hands(struct rp_conn *c, const struct rp_secret *key, rp_handshake_judge *judge, void *ctx, struct rp_hello *out,
                              struct rp_error *err)
{
    struct rp_greeting g = {.have = 0};
    int rc;
    while ((rc = rp_handshake_hear(&g, c, key, err)) == 0) {
        struct pollfd p = {.fd = c->ops->poll_fd(c), .events = POLLIN};
        if (poll(&p, 1, RP_HANDSHAKE_TIMEOUT_MS) <= 0)
            return rp_error_set(err, ETIMEDOUT, "the other side kept silent");
    }
    return rc < 0 ? rc : rp_handshake_welcome(&g, c, key, judge, ctx, out, err);
}

#endif
