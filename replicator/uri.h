/*
 * uri.h - where the other side is: tcp://host:port | rdma://host:port | unix:/path.
 */
#ifndef RP_REPLICATOR_URI_H
#define RP_REPLICATOR_URI_H

#include "core/error.h"

enum rp_uri_scheme { RP_URI_TCP, RP_URI_RDMA, RP_URI_UNIX };

struct rp_uri {
    enum rp_uri_scheme scheme;
    char host[256];     /* tcp, rdma: name or address, IPv6 without its brackets; empty: any address (listen) */
    char port[8];
    char path[108];     /* unix */
};

/* -EINVAL with what is wrong and how it should look (RP_EXIT_USAGE). */
int rp_uri_parse(const char *text, struct rp_uri *out, struct rp_error *err) RP_MUST_CHECK;
/* The same text again, for messages. `out`: 400 bytes are enough. */
void rp_uri_format(const struct rp_uri *u, char *out, size_t size);

#endif
