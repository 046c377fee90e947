/* own_address.h - where a standby of a test or a benchmark listens: no other process of this host does. */
#ifndef RP_TESTS_OWN_ADDRESS_H
#define RP_TESTS_OWN_ADDRESS_H

#include "replicator/uri.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* `scheme`: unix, tcp (on loopback), or rdma (at RP_RDMA_ADDRESS, which must be set). */
static inline struct rp_uri own_address(const char *scheme)
{
    const char *host = strcmp(scheme, "rdma") == 0 ? getenv("RP_RDMA_ADDRESS") : "127.0.0.1";
    struct rp_uri uri;
    char text[100];
    if (strcmp(scheme, "unix") == 0)
        snprintf(text, sizeof(text), "unix:/tmp/reprise-own-%d", getpid());
    else
        snprintf(text, sizeof(text), "%s://%s:%d", scheme, host, 20000 + getpid() % 12000);    /* below the ports that the kernel gives away */
    if (rp_uri_parse(text, &uri, NULL) < 0)
        abort();
    return uri;
}

#endif
