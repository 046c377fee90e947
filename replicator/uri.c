#include "replicator/uri.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int bad(struct rp_error *err, const char *text, const char *why)
{
    return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "\"%s\": %s; write tcp://HOST:PORT, rdma://HOST:PORT or unix:/PATH", text, why);
}

static bool port_ok(const char *port)
{
    char *end;
    long n = strtol(port, &end, 10);
    return *port >= '0' && *port <= '9' && !*end && n <= 65535;
}

static int parse_host_port(const char *text, const char *rest, struct rp_uri *u, struct rp_error *err)
{
    const char *host = rest, *colon = strrchr(rest, ':');
    if (!colon)
        return bad(err, text, "there is no port");
    size_t n = (size_t)(colon - host);
    if (n >= 2 && host[0] == '[' && host[n - 1] == ']') {
        host++;
        n -= 2;
    } else if (memchr(host, ':', n)) {
        return bad(err, text, "an IPv6 address stands in brackets");
    }
    if (n >= sizeof(u->host) || strlen(colon + 1) >= sizeof(u->port) || !port_ok(colon + 1))
        return bad(err, text, "the host is too long or the port is not a number up to 65535");
    memcpy(u->host, host, n);
    snprintf(u->port, sizeof(u->port), "%s", colon + 1);
    return 0;
}

int rp_uri_parse(const char *text, struct rp_uri *out, struct rp_error *err)
{
    struct rp_uri u = {0};
    int rc = 0;
    if (strncmp(text, "tcp://", 6) == 0) {
        u.scheme = RP_URI_TCP;
        rc = parse_host_port(text, text + 6, &u, err);
    } else if (strncmp(text, "rdma://", 7) == 0) {
        u.scheme = RP_URI_RDMA;
        rc = parse_host_port(text, text + 7, &u, err);
    } else if (strncmp(text, "unix:", 5) == 0) {
        u.scheme = RP_URI_UNIX;
        if (!text[5] || strlen(text + 5) >= sizeof(u.path))
            return bad(err, text, "the socket's path is empty or longer than 107 bytes");
        snprintf(u.path, sizeof(u.path), "%s", text + 5);
    } else {
        return bad(err, text, "unknown kind of address");
    }
    if (rc == 0)
        *out = u;
    return rc;
}

void rp_uri_format(const struct rp_uri *u, char *out, size_t size)
{
    if (u->scheme == RP_URI_UNIX)
        snprintf(out, size, "unix:%s", u->path);
    else
        snprintf(out, size, strchr(u->host, ':') ? "%s://[%s]:%s" : "%s://%s:%s", u->scheme == RP_URI_TCP ? "tcp" : "rdma",
                 u->host, u->port);
}
