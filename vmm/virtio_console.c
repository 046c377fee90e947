/*
 * virtio-console (virtio 1.2, section 5.3), one port: bytes between the guest and a chardev.
 *
 *     guest ─► transmit queue ─► output gate ─► out ring ─eventfd─► io thread ─► chardev
 *     guest ◄─ receive queue ◄───────────────────────────────────── io thread ◄─ chardev
 *
 * The gate releases on a committer's thread, but a chardev is the io thread's: the ring is between them.
 *
 *   CONSOLE-1  what the guest writes leaves through the gate (INV-1), byte for byte once: a request that the gate took
 *              in part is the driver's still, and how much of it left is state (tx_done);
 *   CONSOLE-2  input is taken only between start and stop, and only as far as the guest has posted buffers.
 */
#include "vmm/chardev.h"
#include "vmm/virtio_tx.h"

#include <errno.h>
#include <linux/virtio_console.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define QUEUE_SIZE 64u
#define RX 0u
#define TX 1u
#define PIECE 4096u             /* bytes that go through the gate at once */
#define OUT_BYTES (64u << 10)
#define BURST 64u               /* pieces per turn of the io thread */

struct rp_virtio_console_state {
    struct rp_virtio_state virtio;
    uint64_t tx_done;           /* bytes of the first transmit request that are through */
    uint16_t cols, rows;
    uint32_t pad;
};

RP_TABLE(rp_virtio_console_table, "virtio-console", 1, struct rp_virtio_console_state,
    RP_STRUCT(struct rp_virtio_console_state, virtio, 1, &rp_virtio_state_table),
    RP_U64(struct rp_virtio_console_state, tx_done, 2),
    RP_U16(struct rp_virtio_console_state, cols, 3),
    RP_U16(struct rp_virtio_console_state, rows, 4),
    RP_PAD(struct rp_virtio_console_state, pad));

struct rp_virtio_console {
    struct rp_virtio v;             /* first, for rp_virtio_device_stop and the like */
    struct rp_chain chain;
    struct rp_chardev *chr;
    struct rp_virtio_tx tx;
    uint64_t tx_done;
    uint16_t cols, rows;
    int out_fd;                 /* the ring has something, or had no room */
    pthread_mutex_t out_lock;   /* the ring; a leaf, taken under the gate's lock */
    size_t out_head, out_len;
    bool out_full;              /* a write was refused: the gate has to be told that there is room */
    uint8_t out[OUT_BYTES];
};

/* --- from the gate to the chardev --- */

static int gate_write(void *ctx, const struct iovec *iov, int n)
{
    struct rp_virtio_console *con = ctx;
    size_t len = 0;
    int rc = 0;

    for (int i = 0; i < n; i++)
        len += iov[i].iov_len;
    pthread_mutex_lock(&con->out_lock);
    if (len > OUT_BYTES - con->out_len) {
        con->out_full = true;
        rc = -EAGAIN;
    }
    for (int i = 0; rc == 0 && i < n; i++) {
        const uint8_t *p = iov[i].iov_base;
        size_t k = iov[i].iov_len, at = (con->out_head + con->out_len) % OUT_BYTES, run = OUT_BYTES - at < k ? OUT_BYTES - at : k;

        memcpy(con->out + at, p, run);
        memcpy(con->out, p + run, k - run);
        con->out_len += k;
    }
    pthread_mutex_unlock(&con->out_lock);
    if (rc)
        (void)eventfd_write(con->out_fd, 1);
    return rc;
}

static int gate_flush(void *ctx)
{
    (void)eventfd_write(((struct rp_virtio_console *)ctx)->out_fd, 1);
    return 0;
}

/* Everything in the ring to the chardev, which never refuses; true: the gate waits for room. */
static bool drain(struct rp_virtio_console *con)
{
    uint8_t piece[PIECE];
    size_t n;
    bool full;

    do {
        pthread_mutex_lock(&con->out_lock);
        n = OUT_BYTES - con->out_head < con->out_len ? OUT_BYTES - con->out_head : con->out_len;
        n = n < sizeof(piece) ? n : sizeof(piece);
        memcpy(piece, con->out + con->out_head, n);
        con->out_head = (con->out_head + n) % OUT_BYTES;
        con->out_len -= n;
        full = n == 0 && con->out_full;
        if (full)
            con->out_full = false;
        pthread_mutex_unlock(&con->out_lock);
        if (n)
            rp_chardev_write(con->chr, piece, n);
    } while (n);
    return full;
}

static void on_out(void *ctx, uint32_t events)
{
    struct rp_virtio_console *con = ctx;
    eventfd_t junk;

    (void)events;
    (void)eventfd_read(con->out_fd, &junk);
    while (drain(con) && !rp_gate_writable(con->tx.port))
        ;
}

/* --- transmit --- */

/* One piece of the request in con->chain, from tx_done on, as struct rp_virtio_tx wants it. */
static int transmit(void *ctx, struct rp_error *err)
{
    struct rp_virtio_console *con = ctx;
    struct rp_chain *c = &con->chain;
    struct iovec sliced[RP_CHAIN_SEGS_MAX];

    (void)err;
    if (con->tx_done < c->out_bytes) {
        uint64_t len = c->out_bytes - con->tx_done < PIECE ? c->out_bytes - con->tx_done : PIECE;
        unsigned n = rp_iov_slice(c->iov, c->nout, con->tx_done, len, sliced);

        if (rp_gate_send(con->tx.port, sliced, (int)n))
            return -EAGAIN;
        con->tx_done += len;
        if (con->tx_done < c->out_bytes)
            return RP_TX_PART;      /* CONSOLE-1 */
    }
    con->tx_done = 0;
    return RP_TX_DONE;
}

static void gate_resume(void *ctx)
{
    rp_virtio_tx_resume(&((struct rp_virtio_console *)ctx)->tx);
}

static const struct rp_gate_ops gate_ops = {.write = gate_write, .flush = gate_flush, .resume = gate_resume};

/* --- receive --- */

/* Into posted buffers, as many as there are; -EBADMSG. */
static ssize_t receive(struct rp_virtio_console *con, const uint8_t *bytes, size_t len, struct rp_error *err)
{
    struct rp_virtq *q = rp_virtio_queue(&con->v, RX);
    size_t done = 0;
    int rc = 0;

    while (done < len && (rc = rp_virtq_pop(q, &con->chain, err)) == 1) {
        size_t n = rp_chain_write(con->v.env.ram, &con->chain, 0, bytes + done, len - done);

        if (n == 0)
            return rp_error_set(err, EBADMSG, "receive buffer %u has no room", con->chain.head);
        rp_virtq_push(q, con->chain.head, (uint32_t)n);
        done += n;
    }
    /* A driver that may leave kicks out has to be told that its next buffer is waited for. */
    if (rc == 0 && done < len && rp_virtq_want_kicks(q, true))
        rp_virtio_again(&con->v, RX);
    return rc < 0 ? rc : (ssize_t)done;
}

static size_t on_input(void *ctx, const uint8_t *bytes, size_t len)
{
    struct rp_virtio_console *con = ctx;
    struct rp_error err = {0};
    ssize_t n;

    if (!rp_virtio_ready(&con->v, RX))      /* CONSOLE-2 */
        return 0;
    n = receive(con, bytes, len, &err);
    if (n < 0) {
        rp_virtio_fail(&con->v, RX, &err);
        return 0;
    }
    rp_virtio_publish(&con->v, RX);
    return (size_t)n;
}

/* --- transport --- */

static void on_notify(void *dev, unsigned n)
{
    struct rp_virtio_console *con = dev;

    if (n == TX)
        rp_virtio_tx_run(&con->tx);
    else
        rp_chardev_more(con->chr);
}

/* Takes the terminal's size over; tells the guest when it is another one. */
static void look_at_size(struct rp_virtio_console *con)
{
    uint16_t cols = con->cols, rows = con->rows;

    if (!con->v.running || !rp_chardev_size(con->chr, &cols, &rows) || (cols == con->cols && rows == con->rows))
        return;
    con->cols = cols;
    con->rows = rows;
    rp_virtio_config_changed(&con->v);
}

static void on_resized(void *ctx)
{
    look_at_size(ctx);
}

static void on_config_read(void *dev, uint32_t off, uint8_t *data, uint32_t len)
{
    const struct rp_virtio_console *con = dev;
    uint8_t c[sizeof(struct virtio_console_config)] = {0};

    rp_st16(c + offsetof(struct virtio_console_config, cols), con->cols);
    rp_st16(c + offsetof(struct virtio_console_config, rows), con->rows);
    rp_st32(c + offsetof(struct virtio_console_config, max_nr_ports), 1);
    if (off < sizeof(c))
        memcpy(data, c + off, len < sizeof(c) - off ? len : sizeof(c) - off);
}

/* A byte without a queue, of a kernel in distress; the gate may refuse it. */
static void on_config_write(void *dev, uint32_t off, const uint8_t *data, uint32_t len)
{
    struct rp_virtio_console *con = dev;
    uint8_t byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};

    if (off != offsetof(struct virtio_console_config, emerg_wr) || len == 0)
        return;
    byte = data[0];
    if (rp_gate_send(con->tx.port, &iov, 1) == 0)
        rp_gate_flush(con->tx.port);
}

static void on_reset(void *dev)
{
    ((struct rp_virtio_console *)dev)->tx_done = 0;
}

static const struct rp_virtio_ops virtio_ops = {
    .notify = on_notify, .config_read = on_config_read, .config_write = on_config_write, .reset = on_reset};

/* --- around a cut --- */

static int console_save(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err)
{
    struct rp_virtio_console *con = dev;
    struct rp_virtio_console_state s;

    memset(&s, 0, sizeof(s));
    rp_virtio_save(&con->v, &s.virtio);
    s.tx_done = con->tx_done;
    s.cols = con->cols;
    s.rows = con->rows;
    return rp_sections_add(out, &rp_virtio_console_table, instance, &s, err);
}

static int console_load(void *dev, const struct rp_section *sec, struct rp_error *err)
{
    struct rp_virtio_console *con = dev;
    struct rp_virtio_console_state s;
    int rc;

    memset(&s, 0, sizeof(s));
    rp_virtio_save(&con->v, &s.virtio);
    rc = rp_section_decode(&rp_virtio_console_table, sec, &s, err);
    if (rc == 0)
        rc = rp_virtio_load(&con->v, &s.virtio, err);
    if (rc)
        return rc;
    con->tx_done = s.tx_done;
    con->cols = s.cols;
    con->rows = s.rows;
    return 0;
}

static void console_start(void *dev)
{
    struct rp_virtio_console *con = dev;

    rp_virtio_start(&con->v);
    rp_virtio_again(&con->v, RX);       /* input may have come meanwhile */
    look_at_size(con);
}

static void console_destroy(void *dev)
{
    struct rp_virtio_console *con = dev;

    rp_virtio_stop(&con->v);
    rp_gate_port_remove(con->tx.port);
    if (con->v.dev)
        rp_virtio_fini(&con->v);
    if (con->chr) {
        drain(con);                     /* a guest's last words before it powered off */
        rp_chardev_destroy(con->chr);
    }
    if (con->out_fd >= 0) {
        rp_loop_remove(con->v.env.loop, con->out_fd);
        close(con->out_fd);
    }
    pthread_mutex_destroy(&con->out_lock);
    free(con);
}

static const struct rp_device_ops device_ops = {.save = console_save, .load = console_load, .reset = rp_virtio_device_reset,
                                                .start = console_start, .stop = rp_virtio_device_stop, .destroy = console_destroy};

/* The host's side. */
static int open_host(struct rp_virtio_console *con, const struct rp_device_env *env, const struct rp_chardev_config *cfg,
                     struct rp_error *err)
{
    int rc = rp_chardev_create(cfg, "console", env->loop, on_input, con, &con->chr, err);

    if (rc == 0)
        rc = rp_chardev_watch_size(con->chr, on_resized, err);
    if (rc < 0)
        return rc;
    (void)rp_chardev_size(con->chr, &con->cols, &con->rows);
    con->out_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (con->out_fd < 0 || rp_loop_add(env->loop, con->out_fd, EPOLLIN, on_out, con) < 0 ||
        rp_gate_port_add(env->gate, &gate_ops, con, &con->tx.port) < 0)
        return rp_error_set(err, ENOMEM, "virtio-console: no memory or no descriptors left");
    return 0;
}

int rp_virtio_console_create(const struct rp_device_env *env, unsigned slot, const struct rp_chardev_config *cfg,
                             struct rp_device *out, struct rp_error *err)
{
    struct rp_virtio_console *con = calloc(1, sizeof(*con));
    struct rp_virtio_config vc = {.name = rp_virtio_console_table.name, .type = VIRTIO_ID_CONSOLE, .class_code = 0x078000,
                                  .features = 1u << VIRTIO_CONSOLE_F_SIZE | 1u << VIRTIO_CONSOLE_F_EMERG_WRITE, .nqueues = 2,
                                  .queue_size = QUEUE_SIZE, .ops = &virtio_ops, .dev = con};
    int rc;

    if (!con)
        return rp_error_set(err, ENOMEM, "virtio-console: no memory");
    pthread_mutex_init(&con->out_lock, NULL);
    con->out_fd = -1;
    con->v.env = *env;
    con->tx = (struct rp_virtio_tx){.v = &con->v, .queue = TX, .burst = BURST, .chain = &con->chain, .send = transmit, .ctx = con};
    rc = open_host(con, env, cfg, err);
    if (rc == 0) {
        rc = rp_virtio_init(&con->v, env, slot, &vc, err);
        if (rc)
            con->v.dev = NULL;
    }
    if (rc) {
        console_destroy(con);
        return rc;
    }
    *out = (struct rp_device){.section = rp_virtio_console_table.name, .instance = slot, .ops = &device_ops, .dev = con};
    return 0;
}
