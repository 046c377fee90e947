/* rdma: connecting and listening. What a connection does then is in rdma_conn.c. */
#include "core/clock.h"
#include "core/log.h"
#include "replicator/rdma_conn.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>

#define BACKLOG 16

static int resolve(const struct rp_uri *uri, bool passive, struct addrinfo **out, struct rp_error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = passive ? AI_PASSIVE : 0};
    int rc = getaddrinfo(*uri->host ? uri->host : NULL, uri->port, &hints, out);
    return rc == 0 ? 0 : rp_error_set(err, EHOSTUNREACH, "rdma://%s:%s: %s", uri->host, uri->port, gai_strerror(rc));
}

/* --- connecting --- */

static const char *reason(int rc)
{
    switch (rc) {
    case -ENODEV:
    case -ENXIO:
        return "no RDMA device on the way there";
    case -EPROTO:
        return "what answers there is no reprise of this version";
    case -ECONNREFUSED:
        return "nobody listens there";
    default:
        return strerror(-rc);
    }
}

static int establish(struct rp_rdma_conn *c, uint64_t deadline_ns)
{
    struct rp_rdma_cm *cm = rp_rdma_conn_cm(c);
    struct rp_rdma_cm_event ev;
    uint8_t mine[RP_RDMA_PRIVATE_BYTES];
    rp_rdma_conn_describe(c, mine);
    int rc = rp_rdma_cm_connect(cm, mine);
    if (rc == 0)
        rc = rp_rdma_cm_await(cm, RDMA_CM_EVENT_ESTABLISHED, deadline_ns, &ev);
    if (rc == 0)
        rc = ev.has_private ? rp_rdma_conn_peer(c, ev.private_data) : -EPROTO;
    if (rc == 0)
        rp_rdma_conn_established(c);
    return rc;
}

/* One address. `err` is set where the host itself is at fault. */
static int try_connect(const struct sockaddr *to, uint64_t deadline_ns, struct rp_conn **out, struct rp_error *err)
{
    struct rp_rdma_cm cm;
    struct rp_rdma_conn *c;
    int rc = rp_rdma_cm_open(&cm, err);
    if (rc < 0)
        return rc;
    rc = rp_rdma_cm_resolve(&cm, to, deadline_ns);
    if (rc < 0) {
        rp_rdma_cm_close(&cm);
        return rc;
    }
    if ((rc = rp_rdma_conn_create(&cm, &c, err)) < 0)
        return rc;
    *out = rp_rdma_conn_base(c);
    if ((rc = establish(c, deadline_ns)) < 0)
        rp_conn_close(*out);
    return rc;
}

int rp_rdma_connect(const struct rp_uri *uri, int timeout_ms, struct rp_conn **out, struct rp_error *err)
{
    struct addrinfo *list;
    struct rp_error why = {0};
    struct rp_conn *c = NULL;
    int rc = resolve(uri, false, &list, err);
    if (rc < 0)
        return rc;
    uint64_t end = rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    rc = -EHOSTUNREACH;
    for (struct addrinfo *a = list; a && rc < 0; a = a->ai_next)
        rc = try_connect(a->ai_addr, end, &c, &why);
    freeaddrinfo(list);
    if (rc < 0) {
        char text[400];
        rp_uri_format(uri, text, sizeof(text));
        return rp_error_exit(err, why.code || rc == -ENODEV || rc == -ENXIO ? RP_EXIT_HOST : RP_EXIT_FAILED, rc, "cannot connect to %s: %s", text,
                             why.code ? why.text : reason(rc));
    }
    *out = c;
    return 0;
}

/* --- listening --- */

struct rdma_listener {
    struct rp_listener base;
    struct rp_rdma_cm cm;
};

/* A connection is handed out before it is established: what is sent or received on it waits for that. */
static int welcome(const struct rp_rdma_cm_event *ev, struct rp_conn **out, struct rp_error *err)
{
    struct rp_rdma_cm cm;
    struct rp_rdma_conn *c;
    uint8_t mine[RP_RDMA_PRIVATE_BYTES];
    int rc = rp_rdma_cm_adopt(&cm, ev->id, err);
    if (rc < 0 || (rc = rp_rdma_conn_create(&cm, &c, err)) < 0)
        return rc;
    *out = rp_rdma_conn_base(c);
    rc = rp_rdma_conn_peer(c, ev->private_data);
    if (rc < 0) {
        rp_error_set(err, rc, "%s: what connects there is no reprise of this version", (*out)->peer);
    } else {
        rp_rdma_conn_describe(c, mine);
        rc = rp_rdma_cm_accept(rp_rdma_conn_cm(c), mine);
        if (rc < 0)
            rp_error_set(err, rc, "%s: cannot accept: %s", (*out)->peer, strerror(-rc));
    }
    if (rc < 0)
        rp_conn_close(*out);
    return rc;
}

static int rdma_accept_next(struct rp_listener *base, struct rp_conn **out, struct rp_error *err)
{
    struct rdma_listener *l = (struct rdma_listener *)base;
    struct rp_rdma_cm_event ev;
    struct rp_error why = {0};
    int rc = rp_rdma_cm_next(&l->cm, &ev);
    if (rc < 0)
        return rc == -EAGAIN ? rc : rp_error_set(err, rc, "waiting for RDMA connections: %s", strerror(-rc));
    if (ev.type == RDMA_CM_EVENT_DEVICE_REMOVAL)
        return rp_error_exit(err, RP_EXIT_HOST, ENODEV, "the RDMA device that was listened on has gone");
    if (ev.type != RDMA_CM_EVENT_CONNECT_REQUEST)
        return -EAGAIN;
    if (!ev.has_private) {
        rdma_reject(ev.id, NULL, 0);
        rdma_destroy_id(ev.id);
        return -EAGAIN;
    }
    if (welcome(&ev, out, &why) == 0)
        return 0;
    rp_log(RP_LOG_WARN, "%s", why.text);    /* one that failed does not stop the next */
    return -EAGAIN;
}

static int rdma_listener_fd(const struct rp_listener *base)
{
    return ((const struct rdma_listener *)base)->cm.channel->fd;
}

static void rdma_listener_close(struct rp_listener *base)
{
    struct rdma_listener *l = (struct rdma_listener *)base;
    struct rp_rdma_cm_event ev;
    while (rp_rdma_cm_next(&l->cm, &ev) == 0)
        if (ev.type == RDMA_CM_EVENT_CONNECT_REQUEST) {
            rdma_reject(ev.id, NULL, 0);
            rdma_destroy_id(ev.id);
        }
    rp_rdma_cm_close(&l->cm);
    free(l);
}

static const struct rp_listener_ops rdma_listener_ops = {
    .accept = rdma_accept_next, .poll_fd = rdma_listener_fd, .close = rdma_listener_close,
};

static int bind_to(struct rp_rdma_cm *cm, struct sockaddr *a)
{
    int one = 1, zero = 0;
    rdma_set_option(cm->id, RDMA_OPTION_ID, RDMA_OPTION_ID_REUSEADDR, &one, sizeof(one));
    if (a->sa_family == AF_INET6)
        rdma_set_option(cm->id, RDMA_OPTION_ID, RDMA_OPTION_ID_AFONLY, &zero, sizeof(zero));
    return rdma_bind_addr(cm->id, a) < 0 || rdma_listen(cm->id, BACKLOG) < 0 ? -errno : 0;
}

/* Without a host the IPv6 wildcard comes first: it takes IPv4 as well. An identifier that failed to bind is not used again. */
static int bind_any(struct rp_rdma_cm *cm, const struct addrinfo *list, bool v6_first, struct rp_error *err)
{
    int rc = -EADDRNOTAVAIL;
    for (int round = v6_first ? 0 : 1; round < 2; round++)
        for (const struct addrinfo *a = list; a; a = a->ai_next) {
            if (round == 0 && a->ai_family != AF_INET6)
                continue;
            int opened = rp_rdma_cm_open(cm, err);
            if (opened < 0)
                return opened;
            if ((rc = bind_to(cm, a->ai_addr)) == 0)
                return 0;
            rp_rdma_cm_close(cm);
        }
    return rc;
}

int rp_rdma_listen(const struct rp_uri *uri, struct rp_listener **out, struct rp_error *err)
{
    struct addrinfo *list;
    struct rp_error why = {0};
    int rc = resolve(uri, true, &list, err);
    if (rc < 0)
        return rc;
    struct rdma_listener *l = calloc(1, sizeof(*l));
    rc = l ? bind_any(&l->cm, list, !*uri->host, &why) : -ENOMEM;
    freeaddrinfo(list);
    if (rc < 0) {
        char text[400];
        rp_uri_format(uri, text, sizeof(text));
        free(l);
        return rp_error_exit(err, why.code || rc == -ENODEV ? RP_EXIT_HOST : RP_EXIT_FAILED, rc, "cannot listen on %s: %s", text,
                             why.code ? why.text : rc == -ENODEV ? "no RDMA device has this address" : strerror(-rc));
    }
    l->base.ops = &rdma_listener_ops;
    l->base.uri = *uri;
    snprintf(l->base.uri.port, sizeof(l->base.uri.port), "%u", ntohs(rdma_get_src_port(l->cm.id)));
    *out = &l->base;
    return 0;
}
