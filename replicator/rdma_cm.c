#include "replicator/rdma_cm.h"

#include "core/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#define ACK_TIMEOUT 14u     /* 4.096 us × 2^14 = 67 ms without an acknowledgement … */
#define RETRY_COUNT 2u      /* … and two retries: a dead peer is an error after about 0.2 s */
#define RNR_RETRY_COUNT 6u  /* 7 would be for ever; it never happens, receives are posted ahead of every credit */
#define REJECTED_NO_LISTENER 8  /* IB_CM_REJ_INVALID_SERVICE_ID, InfiniBand Architecture Specification 12.6.7.2 */

static int no_rdma(struct rp_error *err, int e)
{
    return rp_error_exit(err, RP_EXIT_HOST, e,
                         "this host has no RDMA connection manager (%s); load rdma_ucm and a device's driver, or use tcp://", strerror(e));
}

static int open_channel(struct rp_rdma_cm *cm, struct rp_error *err)
{
    cm->channel = rdma_create_event_channel();
    if (!cm->channel)
        return no_rdma(err, errno ? errno : ENODEV);
    fcntl(cm->channel->fd, F_SETFL, fcntl(cm->channel->fd, F_GETFL) | O_NONBLOCK);
    fcntl(cm->channel->fd, F_SETFD, FD_CLOEXEC);
    return 0;
}

/* Kernels before 4.20 do not know the option; their default then stands. */
static void bound_silence(struct rdma_cm_id *id)
{
    uint8_t timeout = ACK_TIMEOUT;
    rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof(timeout));
}

int rp_rdma_cm_open(struct rp_rdma_cm *cm, struct rp_error *err)
{
    *cm = (struct rp_rdma_cm){0};
    int rc = open_channel(cm, err);
    if (rc < 0)
        return rc;
    if (rdma_create_id(cm->channel, &cm->id, NULL, RDMA_PS_TCP) < 0) {
        int e = errno;
        cm->id = NULL;
        rp_rdma_cm_close(cm);
        return no_rdma(err, e);
    }
    bound_silence(cm->id);
    return 0;
}

int rp_rdma_cm_adopt(struct rp_rdma_cm *cm, struct rdma_cm_id *id, struct rp_error *err)
{
    *cm = (struct rp_rdma_cm){0};
    int rc = open_channel(cm, err);
    if (rc == 0 && rdma_migrate_id(id, cm->channel) < 0)
        rc = rp_error_set(err, errno, "cannot take over an RDMA connection: %s", strerror(errno));
    if (rc < 0) {
        rdma_destroy_id(id);
        rp_rdma_cm_close(cm);
        return rc;
    }
    cm->id = id;
    bound_silence(id);
    return 0;
}

void rp_rdma_cm_close(struct rp_rdma_cm *cm)
{
    if (cm->id)
        rdma_destroy_id(cm->id);
    if (cm->channel)
        rdma_destroy_event_channel(cm->channel);
    *cm = (struct rp_rdma_cm){0};
}

static int status_of(const struct rdma_cm_event *ev)
{
    switch (ev->event) {
    case RDMA_CM_EVENT_REJECTED:
        return ev->status == REJECTED_NO_LISTENER || ev->status == -ECONNREFUSED ? -ECONNREFUSED : -ECONNRESET;
    case RDMA_CM_EVENT_UNREACHABLE:
        return -ETIMEDOUT;
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
        return -ENODEV;
    default:
        return ev->status > 0 ? -EIO : ev->status;
    }
}

int rp_rdma_cm_next(struct rp_rdma_cm *cm, struct rp_rdma_cm_event *out)
{
    struct rdma_cm_event *ev;
    if (rdma_get_cm_event(cm->channel, &ev) < 0)
        return errno == EINTR ? -EAGAIN : -errno;
    *out = (struct rp_rdma_cm_event){.type = ev->event, .status = status_of(ev), .id = ev->id};
    bool carries = ev->event == RDMA_CM_EVENT_CONNECT_REQUEST || ev->event == RDMA_CM_EVENT_ESTABLISHED;
    if (carries && ev->param.conn.private_data && ev->param.conn.private_data_len >= RP_RDMA_PRIVATE_BYTES) {
        out->has_private = true;
        memcpy(out->private_data, ev->param.conn.private_data, RP_RDMA_PRIVATE_BYTES);
    }
    rdma_ack_cm_event(ev);
    return 0;
}

int rp_rdma_cm_await(struct rp_rdma_cm *cm, enum rdma_cm_event_type want, uint64_t deadline_ns, struct rp_rdma_cm_event *out)
{
    int rc;
    while ((rc = rp_rdma_cm_next(cm, out)) == -EAGAIN) {
        uint64_t now = rp_clock_ns();
        struct pollfd p = {.fd = cm->channel->fd, .events = POLLIN};
        if (now >= deadline_ns)
            return -ETIMEDOUT;
        if (poll(&p, 1, (int)((deadline_ns - now) / 1000000u) + 1) < 0 && errno != EINTR)
            return -errno;
    }
    if (rc < 0 || out->type == want)
        return rc;
    return out->status < 0 ? out->status : -ECONNRESET;
}

int rp_rdma_cm_resolve(struct rp_rdma_cm *cm, const struct sockaddr *to, uint64_t deadline_ns)
{
    struct rp_rdma_cm_event ev;
    uint64_t now = rp_clock_ns();
    int ms = now < deadline_ns ? (int)((deadline_ns - now) / 1000000u) + 1 : 1;
    union { const struct sockaddr *in; struct sockaddr *out; } a = {to};    /* librdmacm's parameter has no const */
    if (rdma_resolve_addr(cm->id, NULL, a.out, ms) < 0)
        return -errno;
    int rc = rp_rdma_cm_await(cm, RDMA_CM_EVENT_ADDR_RESOLVED, deadline_ns, &ev);
    if (rc < 0)
        return rc;
    if (rdma_resolve_route(cm->id, ms) < 0)
        return -errno;
    return rp_rdma_cm_await(cm, RDMA_CM_EVENT_ROUTE_RESOLVED, deadline_ns, &ev);
}

static struct rdma_conn_param parameters(const uint8_t *private_data)
{
    return (struct rdma_conn_param){.private_data = private_data, .private_data_len = RP_RDMA_PRIVATE_BYTES,
                                    .retry_count = RETRY_COUNT, .rnr_retry_count = RNR_RETRY_COUNT};
}

int rp_rdma_cm_connect(struct rp_rdma_cm *cm, const uint8_t *private_data)
{
    struct rdma_conn_param p = parameters(private_data);
    return rdma_connect(cm->id, &p) < 0 ? -errno : 0;
}

int rp_rdma_cm_accept(struct rp_rdma_cm *cm, const uint8_t *private_data)
{
    struct rdma_conn_param p = parameters(private_data);
    return rdma_accept(cm->id, &p) < 0 ? -errno : 0;
}

void rp_rdma_cm_name(const struct sockaddr *a, char *out, size_t size)
{
    char host[64], port[8];
    socklen_t len = a->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    if (getnameinfo(a, len, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        snprintf(out, size, a->sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
    else
        snprintf(out, size, "unknown");
}
