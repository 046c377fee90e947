/*
 * virtio-vsock (virtio 1.2, section 5.10): the guest's stream sockets to the host, without a network.
 *
 *     guest ─ tx queue ─► output gate ─► inbox ─► vsock.c ─► unix sockets             outputs wait for their epoch (INV-1)
 *     guest ◄─ rx queue ◄──────────────────────── vsock.c ◄─ unix sockets
 *
 * Everything that the guest sends, the wish for a connection too, is an output: it passes the gate as one packet and
 * has no effect on the host before that. Connections are this host's alone: a machine that enters an epoch tells the guest
 * that all of them are gone (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET), and the guest's programs connect again.
 */
#include "core/bytes.h"
#include "vmm/virtio_tx.h"
#include "vmm/vsock.h"

#include <errno.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_vsock.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { RX, TX, EVENTS, NQUEUES };
#define QUEUE_SIZE 256u
#define HEADER 44u                      /* struct virtio_vsock_hdr */
#define HOST_CID 2u
#define INBOX_MAX (512u << 10)          /* bytes that left the gate and were not looked at */
#define BURST 64u

struct rp_virtio_vsock_state {
    struct rp_virtio_state virtio;
    uint64_t cid;
};

static int validate(const void *state, struct rp_error *err)
{
    const struct rp_virtio_vsock_state *s = state;

    if (s->cid <= HOST_CID || s->cid >= UINT32_MAX)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "virtio-vsock: %llu is no guest's CID", (unsigned long long)s->cid);
    return 0;
}

static const struct rp_field fields[] = {
    RP_STRUCT(struct rp_virtio_vsock_state, virtio, 1, &rp_virtio_state_table),
    RP_U64(struct rp_virtio_vsock_state, cid, 2),
};
const struct rp_state_table rp_virtio_vsock_table = {
    .name = "virtio-vsock", .version = 1, .size = sizeof(struct rp_virtio_vsock_state),
    .fields = fields, .nfields = sizeof(fields) / sizeof(fields[0]), .validate = validate};

struct rp_virtio_vsock {
    struct rp_virtio v;             /* first, for rp_virtio_device_stop and the like */
    struct rp_vsock *host;
    struct rp_virtio_tx tx;
    struct rp_chain chain;
    uint64_t cid;
    bool moved;                     /* the guest is to be told that its connections are gone */
    int inbox_fd;
    pthread_mutex_t lock;           /* guards inbox and full; leaf: taken under the gate's lock */
    struct rp_buf inbox;            /* packets: header and payload */
    bool full;                      /* a packet was refused */
    struct rp_buf work;             /* machine lock: the inbox being looked at */
};

/* --- from the guest --- */

/* The packet in s->chain, as struct rp_virtio_tx wants it. */
static int transmit(void *ctx, struct rp_error *err)
{
    struct rp_virtio_vsock *s = ctx;
    struct rp_chain *c = &s->chain;
    uint8_t h[HEADER];
    struct iovec iov[RP_CHAIN_SEGS_MAX + 1] = {{.iov_base = h, .iov_len = HEADER}};
    unsigned n;
    uint32_t len;

    if (rp_chain_read(c, 0, h, HEADER) != HEADER)
        return rp_error_set(err, EBADMSG, "packet %u has no header", c->head);
    len = rp_ld32(h + 24);
    if (len > c->out_bytes - HEADER || len > RP_VSOCK_PAYLOAD_MAX)
        return rp_error_set(err, EBADMSG, "packet %u says %u bytes, %llu are there", c->head, len, (unsigned long long)(c->out_bytes - HEADER));
    if (rp_ld64(h) != s->cid || rp_ld64(h + 8) != HOST_CID)
        return RP_TX_DONE;      /* not addressed to anybody */
    /* The header travels as it was read, whatever the guest does to it meanwhile. */
    n = rp_iov_slice(c->iov, c->nout, HEADER, len, iov + 1);
    return rp_gate_send(s->tx.port, iov, (int)n + 1) ? -EAGAIN : RP_TX_DONE;
}

/* --- through the gate: any thread, under the gate's lock --- */

static int gate_write(void *ctx, const struct iovec *iov, int n)
{
    struct rp_virtio_vsock *s = ctx;
    size_t len = 0;
    int rc = 0;

    for (int i = 0; i < n; i++)
        len += iov[i].iov_len;
    pthread_mutex_lock(&s->lock);
    if (s->inbox.len && s->inbox.len + len > INBOX_MAX) {
        s->full = true;
        rc = -EAGAIN;
    } else if (rp_buf_reserve(&s->inbox, len) < 0) {
        rc = -ENOMEM;
    } else {
        for (int i = 0; i < n; i++)
            rp_buf_put(&s->inbox, iov[i].iov_base, iov[i].iov_len);
    }
    pthread_mutex_unlock(&s->lock);
    if (rc == 0)
        eventfd_write(s->inbox_fd, 1);
    return rc;
}

static void gate_resume(void *ctx)
{
    rp_virtio_tx_resume(&((struct rp_virtio_vsock *)ctx)->tx);
}

static const struct rp_gate_ops gate_ops = {.write = gate_write, .resume = gate_resume};

static void take_packet(struct rp_virtio_vsock *s, const uint8_t *p)
{
    struct rp_vsock_hdr h = {.src_port = rp_ld32(p + 16), .dst_port = rp_ld32(p + 20), .len = rp_ld32(p + 24), .type = rp_ld16(p + 28),
                             .op = rp_ld16(p + 30), .flags = rp_ld32(p + 32), .buf_alloc = rp_ld32(p + 36), .fwd_cnt = rp_ld32(p + 40)};

    rp_vsock_from_guest(s->host, &h, p + HEADER);
}

static void on_inbox(void *ctx, uint32_t events)
{
    struct rp_virtio_vsock *s = ctx;
    eventfd_t n;
    bool full;

    (void)events;
    eventfd_read(s->inbox_fd, &n);
    pthread_mutex_lock(&s->lock);
    struct rp_buf b = s->work;
    s->work = s->inbox;
    s->inbox = b;
    full = s->full;
    s->full = false;
    pthread_mutex_unlock(&s->lock);
    for (size_t at = 0; at < s->work.len; at += HEADER + rp_ld32(s->work.data + at + 24))
        take_packet(s, s->work.data + at);
    rp_buf_reset(&s->work);
    if (full)
        rp_gate_writable(s->tx.port);
}

/* --- to the guest --- */

/* One packet into s->chain. False: there is none. */
static bool receive(struct rp_virtio_vsock *s)
{
    uint64_t room = s->chain.in_bytes - HEADER;
    struct rp_vsock_hdr h;
    const uint8_t *payload;
    uint8_t p[HEADER];

    if (!rp_vsock_to_guest(s->host, room < UINT32_MAX ? (uint32_t)room : UINT32_MAX, &h, &payload))
        return false;
    rp_st64(p, HOST_CID);
    rp_st64(p + 8, s->cid);
    rp_st32(p + 16, h.src_port);
    rp_st32(p + 20, h.dst_port);
    rp_st32(p + 24, h.len);
    rp_st16(p + 28, h.type);
    rp_st16(p + 30, h.op);
    rp_st32(p + 32, h.flags);
    rp_st32(p + 36, h.buf_alloc);
    rp_st32(p + 40, h.fwd_cnt);
    rp_chain_write(s->v.env.ram, &s->chain, 0, p, HEADER);
    rp_chain_write(s->v.env.ram, &s->chain, HEADER, payload, h.len);
    rp_virtq_push(rp_virtio_queue(&s->v, RX), s->chain.head, HEADER + h.len);
    return true;
}

static void run_rx(struct rp_virtio_vsock *s)
{
    struct rp_virtq *q = rp_virtio_queue(&s->v, RX);
    struct rp_error err = {0};
    unsigned burst = 0;
    bool dry = false;
    int rc;

    while (!s->moved && !(dry = (rc = rp_virtq_pop(q, &s->chain, &err)) == 0)) {
        if (rc == 1 && s->chain.in_bytes <= HEADER)
            rc = rp_error_set(&err, EBADMSG, "buffer %u has no room for a packet", s->chain.head);
        if (rc < 0) {
            rp_virtio_fail(&s->v, RX, &err);
            return;
        }
        if (burst == BURST || !receive(s)) {
            rp_virtq_unpop(q, 1);
            break;
        }
        burst++;
    }
    rp_virtio_publish(&s->v, RX);
    /* a buffer that comes is a reason to look again; one that has come meanwhile, too */
    if (burst == BURST || (rp_virtq_want_kicks(q, true) && dry))
        rp_virtio_again(&s->v, RX);
}

/* The guest's connections are gone: told before it hears anything else. */
static void run_events(struct rp_virtio_vsock *s)
{
    struct rp_virtq *q = rp_virtio_queue(&s->v, EVENTS);
    uint8_t id[4] = {VIRTIO_VSOCK_EVENT_TRANSPORT_RESET};
    struct rp_error err = {0};
    int rc;

    if (!s->moved) {
        rp_virtq_want_kicks(q, false);  /* its buffers wait until they are needed */
        return;
    }
    rc = rp_virtq_pop(q, &s->chain, &err);
    if (rc == 1 && s->chain.in_bytes < sizeof(id))
        rc = rp_error_set(&err, EBADMSG, "buffer %u has no room for an event", s->chain.head);
    if (rc < 0) {
        rp_virtio_fail(&s->v, EVENTS, &err);
        return;
    }
    if (rc == 0) {
        if (rp_virtq_want_kicks(q, true))
            rp_virtio_again(&s->v, EVENTS);
        return;
    }
    rp_chain_write(s->v.env.ram, &s->chain, 0, id, sizeof(id));
    rp_virtq_push(q, s->chain.head, sizeof(id));
    rp_virtio_publish(&s->v, EVENTS);
    s->moved = false;
    rp_virtio_again(&s->v, RX);
}

static void on_notify(void *dev, unsigned n)
{
    struct rp_virtio_vsock *s = dev;

    if (n == TX)
        rp_virtio_tx_run(&s->tx);
    else if (n == RX)
        run_rx(s);
    else
        run_events(s);
}

static void on_wake(void *ctx)
{
    rp_virtio_again(&((struct rp_virtio_vsock *)ctx)->v, RX);
}

static void config_read(void *dev, uint32_t off, uint8_t *data, uint32_t len)
{
    struct rp_virtio_vsock *s = dev;
    uint8_t cid[8];

    rp_st64(cid, s->cid);
    for (uint32_t i = 0; i < len; i++)
        data[i] = off + i < sizeof(cid) ? cid[off + i] : 0;
}

static void on_driver_ok(void *dev)
{
    rp_virtio_again(&((struct rp_virtio_vsock *)dev)->v, EVENTS);
}

static void on_reset(void *dev)
{
    struct rp_virtio_vsock *s = dev;

    rp_vsock_reset(s->host);
    s->moved = false;           /* a driver that begins has no connections */
}

static const struct rp_virtio_ops virtio_ops = {
    .notify = on_notify, .config_read = config_read, .driver_ok = on_driver_ok, .reset = on_reset};

/* --- the machine's calls --- */

static int vsock_save(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err)
{
    struct rp_virtio_vsock *s = dev;
    struct rp_virtio_vsock_state st = {.cid = s->cid};

    rp_virtio_save(&s->v, &st.virtio);
    return rp_sections_add(out, &rp_virtio_vsock_table, instance, &st, err);
}

static int vsock_load(void *dev, const struct rp_section *sec, struct rp_error *err)
{
    struct rp_virtio_vsock *s = dev;
    struct rp_virtio_vsock_state st = {.cid = s->cid};
    int rc;

    rp_virtio_save(&s->v, &st.virtio);
    rc = rp_section_decode(&rp_virtio_vsock_table, sec, &st, err);
    rc = rc ? rc : rp_virtio_load(&s->v, &st.virtio, err);
    if (rc)
        return rc;
    rp_vsock_reset(s->host);
    s->cid = st.cid;
    s->moved = true;            /* VSOCK-2 */
    rp_virtio_again(&s->v, EVENTS);
    return 0;
}

int rp_virtio_vsock_cid(const struct rp_section *sec, uint32_t *cid, struct rp_error *err)
{
    struct rp_virtio_vsock_state st = {0};
    int rc = rp_section_decode(&rp_virtio_vsock_table, sec, &st, err);

    if (rc == 0)
        *cid = (uint32_t)st.cid;
    return rc;
}

static void vsock_destroy(void *dev)
{
    struct rp_virtio_vsock *s = dev;

    rp_gate_port_remove(s->tx.port);
    rp_virtio_fini(&s->v);
    rp_vsock_destroy(s->host);
    if (s->inbox_fd >= 0) {
        rp_loop_remove(s->v.env.loop, s->inbox_fd);
        close(s->inbox_fd);
    }
    rp_buf_fini(&s->inbox);
    rp_buf_fini(&s->work);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static const struct rp_device_ops device_ops = {.save = vsock_save, .load = vsock_load, .reset = rp_virtio_device_reset,
                                                .start = rp_virtio_device_start, .stop = rp_virtio_device_stop, .destroy = vsock_destroy};

int rp_virtio_vsock_create(const struct rp_device_env *env, unsigned slot, const char *path, uint32_t cid, struct rp_device *out,
                           struct rp_error *err)
{
    struct rp_virtio_vsock *s = calloc(1, sizeof(*s));
    struct rp_virtio_config vc = {.name = rp_virtio_vsock_table.name, .type = VIRTIO_ID_VSOCK, .class_code = 0x078000, .nqueues = NQUEUES,
                                  .queue_size = QUEUE_SIZE, .ops = &virtio_ops, .dev = s};
    int rc;

    if (!s)
        return rp_error_set(err, ENOMEM, "virtio-vsock: no memory");
    s->cid = cid;
    s->v.env = *env;            /* destroy needs the loop, however far this comes */
    s->tx = (struct rp_virtio_tx){.v = &s->v, .queue = TX, .burst = BURST, .chain = &s->chain, .send = transmit, .ctx = s};
    pthread_mutex_init(&s->lock, NULL);
    s->inbox_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->inbox_fd < 0)
        rc = rp_error_set(err, errno, "virtio-vsock: no eventfd");
    else if ((rc = rp_loop_add(env->loop, s->inbox_fd, EPOLLIN, on_inbox, s)) < 0)
        rp_error_set(err, rc, "virtio-vsock: no watch");
    if (rc == 0 && (rc = rp_gate_port_add(env->gate, &gate_ops, s, &s->tx.port)) < 0)
        rp_error_set(err, rc, "virtio-vsock: no port at the output gate");
    if (rc == 0)
        rc = rp_vsock_create(env->loop, path, on_wake, s, &s->host, err);
    if (rc == 0)
        rc = rp_virtio_init(&s->v, env, slot, &vc, err);
    if (rc < 0) {
        vsock_destroy(s);
        return rc;
    }
    *out = (struct rp_device){.section = rp_virtio_vsock_table.name, .instance = slot, .ops = &device_ops, .dev = s};
    return 0;
}
