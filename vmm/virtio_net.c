/*
 * virtio-net (virtio 1.2, section 5.1): queue pairs in front of a backend (net.h). Transmit: a frame goes to the output
 * gate straight from guest RAM (virtio_tx.h); receive: virtio_net_rx.h.
 *
 *   NET-1  a frame is received or taken from a queue only between start and stop, under the machine lock;
 *   NET-2  every frame leaves through the gate (INV-1), announcements too.
 */
#include "core/clock.h"
#include "core/log.h"
#include "vmm/virtio_net_rx.h"
#include "vmm/virtio_tx.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <stdlib.h>

#define QUEUE_SIZE 256u
#define TX_BURST 128u               /* frames per turn of the io thread */
#define CONTROL_BURST 64u           /* commands, likewise */
#define ANNOUNCE_ROUNDS 5u          /* as often as QEMU announces, for switches that drop the first */
#define ANNOUNCE_STEP_NS 100000000ull
#define BIT(n) (1ull << (n))
#define OFFLOADS_GUEST (BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_GUEST_TSO4) | BIT(VIRTIO_NET_F_GUEST_TSO6) | \
                        BIT(VIRTIO_NET_F_GUEST_ECN) | BIT(VIRTIO_NET_F_GUEST_UFO))

struct rp_virtio_net_state {
    struct rp_virtio_state virtio;
    uint64_t guest_offloads;        /* as the driver last chose (control queue) */
    uint8_t mac[6];
    uint16_t status;                /* VIRTIO_NET_S_… */
    uint32_t pairs;                 /* in use */
    uint32_t pad;
};

RP_TABLE(rp_virtio_net_table, "virtio-net", 1, struct rp_virtio_net_state,
    RP_STRUCT(struct rp_virtio_net_state, virtio, 1, &rp_virtio_state_table),
    RP_U64(struct rp_virtio_net_state, guest_offloads, 2),
    RP_BYTES(struct rp_virtio_net_state, mac, 3),
    RP_U16(struct rp_virtio_net_state, status, 4),
    RP_U32(struct rp_virtio_net_state, pairs, 5),
    {.kind = RP_F_U32, .flags = RP_F_PAD, .name = "pad", .offset = offsetof(struct rp_virtio_net_state, pad), .count = 1});

struct pair {
    struct rp_virtio_net *net;
    unsigned n;
    struct rp_virtio_tx tx;
    struct rp_net_rx rx;
};

struct rp_virtio_net {
    struct rp_virtio v;             /* first, for rp_virtio_device_stop and the like */
    struct rp_net *backend;
    struct rp_chain chain;
    uint8_t mac[6], own_mac[6];     /* in use; as configured */
    uint16_t status;
    unsigned pairs_max, pairs;
    uint64_t guest_offloads;
    struct pair pair[RP_NET_PAIRS_MAX];
    struct rp_timer *announce;
    unsigned announce_left;
    char name[128];
    uint64_t tx_frames, tx_bytes;
};

static unsigned rx_queue(unsigned pair) { return 2 * pair; }
static unsigned tx_queue(unsigned pair) { return 2 * pair + 1; }

/* Section 5.1.2: behind the pairs; a driver that knows nothing of several pairs has one. */
static unsigned pairs_known(const struct rp_virtio_net *net)
{
    return rp_virtio_has(&net->v, VIRTIO_NET_F_MQ) ? net->pairs_max : 1;
}
static unsigned control_queue(const struct rp_virtio_net *net) { return 2 * pairs_known(net); }

/* --- transmit --- */

/* The frame in net->chain, as struct rp_virtio_tx wants it. */
static int transmit(void *ctx, struct rp_error *err)
{
    struct pair *p = ctx;
    struct rp_virtio_net *net = p->net;
    struct rp_chain *c = &net->chain;
    struct iovec sliced[RP_CHAIN_SEGS_MAX], *iov = c->iov;
    unsigned n = c->nout;

    if (c->out_bytes < RP_VNET_HEADER)
        return rp_error_set(err, EBADMSG, "frame %u has no header", c->head);
    if (c->out_bytes < RP_VNET_HEADER + ETH_HLEN || c->out_bytes > RP_VNET_HEADER + RP_FRAME_MAX)
        return RP_TX_DONE;  /* not something that a wire carries */
    if (!net->backend->vnet_header) {
        n = rp_iov_slice(c->iov, c->nout, RP_VNET_HEADER, c->out_bytes, sliced);
        iov = sliced;
    }
    if (rp_gate_send(p->tx.port, iov, (int)n))
        return -EAGAIN;
    net->tx_frames++;
    net->tx_bytes += c->out_bytes - RP_VNET_HEADER;
    return RP_TX_DONE;
}

static int gate_write(void *ctx, const struct iovec *iov, int n)
{
    struct pair *p = ctx;

    return p->net->backend->ops->send(p->net->backend, p->n, iov, n);
}

static int gate_flush(void *ctx)
{
    struct pair *p = ctx;
    struct rp_net *b = p->net->backend;

    return b->ops->flush ? b->ops->flush(b, p->n) : 0;
}

static void gate_resume(void *ctx)
{
    rp_virtio_tx_resume(&((struct pair *)ctx)->tx);
}

static void gate_blocked(void *ctx)
{
    struct pair *p = ctx;

    p->net->backend->ops->want_write(p->net->backend, p->n, true);
}

static const struct rp_gate_ops gate_ops = {
    .write = gate_write, .flush = gate_flush, .resume = gate_resume, .blocked = gate_blocked};

static void on_writable(void *ctx, unsigned pair)
{
    struct rp_virtio_net *net = ctx;

    if (rp_gate_writable(net->pair[pair].tx.port))
        net->backend->ops->want_write(net->backend, pair, false);
}

/* --- receive --- */

static bool rx_ready(const struct rp_virtio_net *net, const struct pair *p)
{
    return p->n < net->pairs && rp_virtio_ready(&net->v, rx_queue(p->n));
}

static void on_readable(void *ctx, unsigned pair)
{
    struct rp_virtio_net *net = ctx;
    struct pair *p = &net->pair[pair];

    if (rx_ready(net, p))
        rp_net_rx_run(&p->rx);
    else
        rp_net_rx_wait(&p->rx);     /* NET-1: until the driver, or start, asks for frames */
}

/* --- control queue --- */

static int set_pairs(struct rp_virtio_net *net, unsigned n)
{
    int rc;

    if (n < 1 || n > pairs_known(net))
        return -EINVAL;
    rc = net->backend->ops->pairs ? net->backend->ops->pairs(net->backend, n) : 0;
    if (rc)
        return rc;
    net->pairs = n;
    for (unsigned i = 0; i < n; i++)
        rp_virtio_again(&net->v, rx_queue(i));
    return 0;
}

static int set_offloads(struct rp_virtio_net *net, uint64_t bits)
{
    if (bits & ~(net->v.driver_features & OFFLOADS_GUEST))
        return -EINVAL;
    net->guest_offloads = bits;
    return net->backend->ops->offloads ? net->backend->ops->offloads(net->backend, bits) : 0;
}

/* One command of class, command, data; the answer. */
static uint8_t control(struct rp_virtio_net *net)
{
    const struct rp_chain *c = &net->chain;
    uint8_t h[2], d[8] = {0};
    size_t len;
    bool ok = false;

    rp_chain_read(c, 0, h, sizeof(h));
    len = rp_chain_read(c, sizeof(h), d, sizeof(d));
    switch (h[0] << 8 | h[1]) {
    case VIRTIO_NET_CTRL_MQ << 8 | VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET:
        ok = len >= 2 && set_pairs(net, rp_ld16(d)) == 0;
        break;
    case VIRTIO_NET_CTRL_MAC << 8 | VIRTIO_NET_CTRL_MAC_ADDR_SET:
        ok = len >= 6;
        if (ok)
            memcpy(net->mac, d, sizeof(net->mac));
        break;
    case VIRTIO_NET_CTRL_ANNOUNCE << 8 | VIRTIO_NET_CTRL_ANNOUNCE_ACK:
        net->status &= (uint16_t)~VIRTIO_NET_S_ANNOUNCE;
        ok = true;
        break;
    case VIRTIO_NET_CTRL_GUEST_OFFLOADS << 8 | VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET:
        ok = len == 8 && set_offloads(net, rp_ld64(d)) == 0;
        break;
    default:
        break;
    }
    return ok ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
}

static void run_control(struct rp_virtio_net *net, unsigned n)
{
    struct rp_virtq *q = rp_virtio_queue(&net->v, n);
    struct rp_error err = {0};
    unsigned burst = 0;
    int rc = 0;

    do {
        while (burst++ < CONTROL_BURST && (rc = rp_virtq_pop(q, &net->chain, &err)) == 1) {
            uint8_t ack;

            if (net->chain.out_bytes < 2 || net->chain.in_bytes < 1) {
                rc = rp_error_set(&err, EBADMSG, "control command %u has no header or no room for the answer", net->chain.head);
                break;
            }
            ack = control(net);
            rp_chain_write(net->v.env.ram, &net->chain, 0, &ack, 1);
            rp_virtq_push(q, net->chain.head, 1);
        }
        if (rc < 0) {
            rp_virtio_fail(&net->v, n, &err);
            return;
        }
        rp_virtio_publish(&net->v, n);
        if (burst > CONTROL_BURST) {
            rp_virtio_again(&net->v, n);
            return;
        }
    } while (rp_virtq_want_kicks(q, true));
}

/* --- transport --- */

static void on_notify(void *dev, unsigned n)
{
    struct rp_virtio_net *net = dev;
    struct pair *p = &net->pair[n / 2];

    if (n == control_queue(net))
        run_control(net, n);
    else if (n > control_queue(net))
        return;             /* of no use to this driver */
    else if (n % 2)
        rp_virtio_tx_run(&p->tx);
    else if (p->n < net->pairs)
        rp_net_rx_run(&p->rx);
}

static void on_config_read(void *dev, uint32_t off, uint8_t *data, uint32_t len)
{
    const struct rp_virtio_net *net = dev;
    uint8_t c[12] = {0};

    memcpy(c, net->mac, 6);
    rp_st16(c + offsetof(struct virtio_net_config, status), net->status);
    rp_st16(c + offsetof(struct virtio_net_config, max_virtqueue_pairs), (uint16_t)net->pairs_max);
    if (off < sizeof(c))
        memcpy(data, c + off, len < sizeof(c) - off ? len : sizeof(c) - off);
}

/* The backend in line with what the driver negotiated. */
static void apply(struct rp_virtio_net *net)
{
    struct rp_net *b = net->backend;

    if ((b->ops->offloads && b->ops->offloads(b, net->guest_offloads)) || (b->ops->pairs && b->ops->pairs(b, net->pairs)))
        rp_log(RP_LOG_WARN, "network %s: the host does not take the guest's offloads or queues", net->name);
}

static void on_driver_ok(void *dev)
{
    struct rp_virtio_net *net = dev;

    net->guest_offloads = net->v.driver_features & OFFLOADS_GUEST;
    apply(net);
}

static void on_reset(void *dev)
{
    struct rp_virtio_net *net = dev;

    memcpy(net->mac, net->own_mac, sizeof(net->mac));
    net->status = VIRTIO_NET_S_LINK_UP;
    net->pairs = 1;
    net->guest_offloads = 0;
    for (unsigned i = 0; i < net->pairs_max; i++)
        rp_net_rx_reset(&net->pair[i].rx);
    if (net->backend)
        apply(net);
}

static const struct rp_virtio_ops virtio_ops = {
    .notify = on_notify, .config_read = on_config_read, .driver_ok = on_driver_ok, .reset = on_reset};

/* --- announcing --- */

/* A reverse ARP request by our own address for our own address: switches learn the port from it (RFC 903's format). */
static void send_rarp(struct rp_virtio_net *net)
{
    uint8_t f[RP_VNET_HEADER + 60] = {0}, *e = f + RP_VNET_HEADER;
    static const uint8_t arp[] = {0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3};
    unsigned skip = net->backend->vnet_header ? 0 : RP_VNET_HEADER;
    struct iovec iov = {.iov_base = f + skip, .iov_len = sizeof(f) - skip};

    memset(e, 0xff, 6);
    memcpy(e + 6, net->mac, 6);
    memcpy(e + 12, arp, sizeof(arp));
    memcpy(e + 22, net->mac, 6);
    memcpy(e + 32, net->mac, 6);
    if (rp_gate_send(net->pair[0].tx.port, &iov, 1) == 0)      /* NET-2; when it is refused the next round comes */
        rp_gate_flush(net->pair[0].tx.port);
}

static void on_announce_timer(void *ctx)
{
    struct rp_virtio_net *net = ctx;

    send_rarp(net);
    if (--net->announce_left)
        rp_timer_arm(net->announce, rp_clock_ns() + (ANNOUNCE_ROUNDS - net->announce_left) * ANNOUNCE_STEP_NS);
}

static void net_announce(void *dev)
{
    struct rp_virtio_net *net = dev;

    for (unsigned i = 0; i < net->pairs_max; i++)
        rp_net_rx_drain(&net->pair[i].rx);      /* what came before the machine ran here was meant for another time */
    if (rp_virtio_has(&net->v, VIRTIO_NET_F_GUEST_ANNOUNCE) && rp_virtio_has(&net->v, VIRTIO_NET_F_CTRL_VQ)) {
        net->status |= VIRTIO_NET_S_ANNOUNCE;
        rp_virtio_config_changed(&net->v);      /* the guest knows its IP addresses: it sends gratuitous ARPs */
    }
    net->announce_left = ANNOUNCE_ROUNDS;
    on_announce_timer(net);
}

/* --- around a cut --- */

static int net_save(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err)
{
    struct rp_virtio_net *net = dev;
    struct rp_virtio_net_state s;

    memset(&s, 0, sizeof(s));
    rp_virtio_save(&net->v, &s.virtio);
    s.guest_offloads = net->guest_offloads;
    memcpy(s.mac, net->mac, sizeof(s.mac));
    s.status = net->status;
    s.pairs = net->pairs;
    return rp_sections_add(out, &rp_virtio_net_table, instance, &s, err);
}

static int net_load(void *dev, const struct rp_section *sec, struct rp_error *err)
{
    struct rp_virtio_net *net = dev;
    struct rp_virtio_net_state s;
    unsigned pairs;
    int rc;

    memset(&s, 0, sizeof(s));
    rp_virtio_save(&net->v, &s.virtio);
    rc = rp_section_decode(&rp_virtio_net_table, sec, &s, err);
    pairs = s.virtio.driver_features & BIT(VIRTIO_NET_F_MQ) ? net->pairs_max : 1;
    if (rc == 0 && (s.pairs < 1 || s.pairs > pairs || (s.guest_offloads & ~s.virtio.driver_features)))
        rc = rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "network %s: %u queue pairs, offloads 0x%llx", net->name, s.pairs,
                           (unsigned long long)s.guest_offloads);
    if (rc == 0)
        rc = rp_virtio_load(&net->v, &s.virtio, err);
    if (rc)
        return rc;
    memcpy(net->mac, s.mac, sizeof(net->mac));
    net->status = s.status & (VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE);
    net->pairs = s.pairs;
    net->guest_offloads = s.guest_offloads;
    apply(net);
    return 0;
}

static void net_start(void *dev)
{
    struct rp_virtio_net *net = dev;

    rp_virtio_start(&net->v);
    for (unsigned i = 0; i < net->pairs_max; i++) {
        struct pair *p = &net->pair[i];

        if (p->rx.dry && rx_ready(net, p))
            rp_virtio_again(&net->v, rx_queue(i));
    }
}

static void net_destroy(void *dev)
{
    struct rp_virtio_net *net = dev;

    rp_virtio_stop(&net->v);
    if (net->announce)
        rp_timer_destroy(net->announce);
    for (unsigned i = 0; i < net->pairs_max; i++)
        rp_gate_port_remove(net->pair[i].tx.port);
    if (net->v.dev)
        rp_virtio_fini(&net->v);
    if (net->backend)
        net->backend->ops->destroy(net->backend);
    for (unsigned i = 0; i < net->pairs_max; i++)
        rp_net_rx_fini(&net->pair[i].rx);
    free(net);
}

static const struct rp_device_ops device_ops = {.save = net_save, .load = net_load, .reset = rp_virtio_device_reset, .start = net_start,
                                                .stop = rp_virtio_device_stop, .announce = net_announce, .destroy = net_destroy};

static int make_pairs(struct rp_virtio_net *net, const struct rp_device_env *env)
{
    int rc = rp_timer_create(env->loop, on_announce_timer, net, &net->announce);

    for (unsigned i = 0; rc == 0 && i < net->pairs_max; i++) {
        struct pair *p = &net->pair[i];

        p->net = net;
        p->n = i;
        p->tx = (struct rp_virtio_tx){.v = &net->v, .queue = tx_queue(i), .burst = TX_BURST, .chain = &net->chain, .send = transmit, .ctx = p};
        rc = rp_net_rx_init(&p->rx, &net->v, rx_queue(i), net->backend, i, &net->chain);
        if (rc == 0)
            rc = rp_gate_port_add(env->gate, &gate_ops, p, &p->tx.port);
    }
    return rc;
}

int rp_virtio_net_create(const struct rp_device_env *env, unsigned slot, const struct rp_nic_config *cfg,
                         const uint8_t mac[6], struct rp_device *out, struct rp_error *err)
{
    struct rp_virtio_net *net = calloc(1, sizeof(*net));
    struct rp_virtio_config vc = {.name = rp_virtio_net_table.name, .type = VIRTIO_ID_NET, .class_code = 0x020000,
                                  .queue_size = QUEUE_SIZE, .ops = &virtio_ops, .dev = net};
    unsigned pairs = cfg->queues ? cfg->queues : 1;
    int rc;

    if (!net)
        return rp_error_set(err, ENOMEM, "network: no memory");
    memcpy(net->own_mac, mac, sizeof(net->own_mac));
    rc = rp_net_open(cfg, pairs > RP_NET_PAIRS_MAX ? RP_NET_PAIRS_MAX : pairs, env->loop, &net->backend, err);
    if (rc)
        goto destroy;
    net->pairs_max = net->backend->pairs;
    if (net->pairs_max < pairs) {
        rc = rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "network %s: a %s carries %u queue%s, not %u: a tap by its name does, tap:NAME,queues=%u",
                           cfg->name ? cfg->name : "descriptor", net->backend->ops->kind, net->pairs_max, net->pairs_max == 1 ? "" : "s",
                           pairs, pairs);
        goto destroy;
    }
    net->pairs = 1;
    net->backend->readable = on_readable;
    net->backend->writable = on_writable;
    net->backend->ctx = net;
    snprintf(net->name, sizeof(net->name), "%s", cfg->name ? cfg->name : net->backend->ops->kind);
    rc = make_pairs(net, env);
    if (rc) {
        rp_error_set(err, rc, "network %s: no memory", net->name);
        goto destroy;
    }
    vc.nqueues = 2 * net->pairs_max + 1;
    vc.features = BIT(VIRTIO_NET_F_MAC) | BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_NET_F_CTRL_VQ) |
                  BIT(VIRTIO_NET_F_CTRL_MAC_ADDR) | BIT(VIRTIO_NET_F_GUEST_ANNOUNCE) | net->backend->features |
                  (net->backend->features & OFFLOADS_GUEST ? BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) : 0) |
                  (net->pairs_max > 1 ? BIT(VIRTIO_NET_F_MQ) : 0);
    rc = rp_virtio_init(&net->v, env, slot, &vc, err);
    if (rc) {
        net->v.dev = NULL;
        goto destroy;
    }
    on_reset(net);
    for (unsigned i = 0; i < net->pairs_max; i++)
        net->backend->ops->want_read(net->backend, i, true);
    *out = (struct rp_device){.section = rp_virtio_net_table.name, .instance = slot, .ops = &device_ops, .dev = net};
    return 0;
destroy:
    net_destroy(net);
    return rc;
}

void rp_virtio_net_info(const struct rp_device *d, struct rp_nic_info *out)
{
    const struct rp_virtio_net *net = d->dev;
    const uint8_t *m = net->mac;

    *out = (struct rp_nic_info){.kind = net->backend->ops->kind, .name = net->name, .tx_frames = net->tx_frames,
                                .tx_bytes = net->tx_bytes};
    for (unsigned i = 0; i < net->pairs_max; i++) {
        out->rx_frames += net->pair[i].rx.frames;
        out->rx_bytes += net->pair[i].rx.bytes;
    }
    snprintf(out->mac, sizeof(out->mac), "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
}
