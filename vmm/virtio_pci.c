/* The modern virtio PCI transport. The contract is in virtio_pci.h. */
#include "vmm/virtio_pci.h"
#include "core/log.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* One BAR holds everything, a page for each part. */
#define BAR 0
#define BAR_BYTES 0x8000u
#define COMMON_OFF 0x0000u
#define ISR_OFF 0x1000u
#define DEVICE_OFF 0x2000u
#define NOTIFY_OFF 0x3000u
#define MSIX_OFF 0x4000u
#define PBA_OFF 0x5000u
#define PART_BYTES 0x1000u
#define COMMON_BYTES 0x38u
#define NOTIFY_STEP 4u

#define ISR_QUEUE 1u        /* virtio 1.2, 4.1.4.5 */
#define ISR_CONFIG 2u

#define BIT(n) (1ull << (n))

RP_TABLE(rp_virtio_state_table, "virtio", 1, struct rp_virtio_state,
    RP_STRUCT(struct rp_virtio_state, pci, 1, &rp_pci_state_table),
    RP_U64(struct rp_virtio_state, device_features, 2),
    RP_U64(struct rp_virtio_state, driver_features, 3),
    RP_U32(struct rp_virtio_state, device_feature_sel, 4),
    RP_U32(struct rp_virtio_state, driver_feature_sel, 5),
    RP_U16(struct rp_virtio_state, config_vector, 6),
    RP_U16(struct rp_virtio_state, queue_sel, 7),
    RP_U8(struct rp_virtio_state, status, 8),
    RP_U8(struct rp_virtio_state, isr, 9),
    RP_U8(struct rp_virtio_state, generation, 10),
    {.kind = RP_F_U8, .flags = RP_F_PAD, .name = "pad", .offset = offsetof(struct rp_virtio_state, pad), .count = 1},
    RP_U32(struct rp_virtio_state, nqueues, 11),
    {.kind = RP_F_U32, .flags = RP_F_PAD, .name = "pad2", .offset = offsetof(struct rp_virtio_state, pad2), .count = 1},
    RP_STRUCTS(struct rp_virtio_state, queues, 12, &rp_virtq_state_table, nqueues));

/* --- kicks and interrupts --- */

bool rp_virtio_ready(const struct rp_virtio *v, unsigned queue)
{
    return v->running && (v->status & VIRTIO_CONFIG_S_DRIVER_OK) && !(v->status & VIRTIO_CONFIG_S_NEEDS_RESET) &&
           queue < v->nqueues && v->queues[queue].q.s.enabled;
}

static void serve(struct rp_virtio_queue *q)
{
    struct rp_virtio *v = q->v;
    unsigned n = (unsigned)(q - v->queues);

    if (!v->running)
        q->kicked = true;
    else if (rp_virtio_ready(v, n))
        v->ops->notify(v->dev, n);
}

/* Edge-triggered: every signal is an edge, so the counter need not be read. */
static void on_kick(void *ctx, uint32_t events)
{
    (void)events;
    serve(ctx);
}

void rp_virtio_again(struct rp_virtio *v, unsigned queue)
{
    (void)eventfd_write(v->queues[queue].kick_fd, 1);
}

static void interrupt(struct rp_virtio *v, uint16_t vector, uint8_t isr)
{
    if (vector == RP_VIRTQ_NO_VECTOR)
        v->isr |= isr;      /* for a guest that polls */
    else
        rp_pci_msix_signal(&v->pci, vector);
}

void rp_virtio_publish(struct rp_virtio *v, unsigned queue)
{
    struct rp_virtq *q = &v->queues[queue].q;

    if (rp_virtq_publish(q))
        interrupt(v, q->s.vector, ISR_QUEUE);
}

void rp_virtio_config_changed(struct rp_virtio *v)
{
    v->generation++;
    if (v->status & VIRTIO_CONFIG_S_DRIVER_OK)
        interrupt(v, v->config_vector, ISR_CONFIG);
}

/* Not more often than once a second: a guest that breaks and resets its device in a loop would push all else out of the history. */
static void say_broken(struct rp_virtio *v, unsigned queue, const struct rp_error *why)
{
    char plain[128];

    if (!rp_event_due(&v->said_ns))
        return;
    snprintf(plain, sizeof plain, "%.120s", why->text);
    rp_event_plain(plain);
    rp_log(RP_LOG_WARN, "%s in slot %u: queue %u: %s: the guest has to reset it", v->name, v->pci.slot, queue, why->text);
    rp_events_emit(v->env.events, 0, "DEVICE_BROKEN", "{\"device\":\"%s\",\"slot\":%u,\"queue\":%u,\"reason\":\"%s\"}",
                   v->name, v->pci.slot, queue, plain);
}

void rp_virtio_fail(struct rp_virtio *v, unsigned queue, const struct rp_error *why)
{
    if (v->status & VIRTIO_CONFIG_S_NEEDS_RESET)
        return;
    v->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    say_broken(v, queue, why);
    rp_virtio_config_changed(v);
}

/* --- where the kernel catches notifications --- */

static void wire(struct rp_virtio *v, unsigned n, bool on)
{
    struct rp_virtio_queue *q = &v->queues[n];
    struct rp_error err = {0};

    if (!v->env.irqs || on == q->wired || (on && !v->notify_at))
        return;
    /* length 0 (any) is not offered by every KVM; the driver writes 16 bits */
    if (rp_irq_ioeventfd(v->env.irqs, q->kick_fd, v->notify_at + n * NOTIFY_STEP, 2, false, on, &err))
        rp_log(RP_LOG_WARN, "%s in slot %u: kicks of queue %u stay slow: %s", v->name, v->pci.slot, n, err.text);
    else
        q->wired = on;
}

static void bar_moved(void *ctx, unsigned bar, uint64_t addr)
{
    struct rp_virtio *v = ctx;

    (void)bar;
    for (unsigned n = 0; n < v->nqueues; n++)
        wire(v, n, false);
    v->notify_at = addr ? addr + NOTIFY_OFF : 0;
    for (unsigned n = 0; n < v->nqueues; n++)
        wire(v, n, v->queues[n].q.s.enabled);
}

/* --- registers --- */

static void device_reset(struct rp_virtio *v)
{
    if (v->ops->reset)
        v->ops->reset(v->dev);
    for (unsigned n = 0; n < v->nqueues; n++) {
        wire(v, n, false);
        rp_virtq_reset(&v->queues[n].q);
        v->queues[n].kicked = false;
    }
    v->driver_features = 0;
    v->device_feature_sel = v->driver_feature_sel = 0;
    v->config_vector = RP_VIRTQ_NO_VECTOR;
    v->queue_sel = 0;
    v->status = v->isr = 0;
}

static void write_status(struct rp_virtio *v, uint8_t status)
{
    uint8_t was = v->status;

    if (status == 0) {
        device_reset(v);
        return;
    }
    status |= was;      /* 2.1.1: a driver takes a bit back by a reset only; features that were agreed on stay as they are until then */
    if ((status & VIRTIO_CONFIG_S_FEATURES_OK) && !(was & VIRTIO_CONFIG_S_FEATURES_OK) &&
        ((v->driver_features & ~v->features) || !(v->driver_features & BIT(VIRTIO_F_VERSION_1))))
        status &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;    /* VIRTIO-3 */
    if (!(status & VIRTIO_CONFIG_S_FEATURES_OK))
        status &= (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK;
    v->status = status;
    if ((v->status & VIRTIO_CONFIG_S_DRIVER_OK) && !(was & VIRTIO_CONFIG_S_DRIVER_OK)) {
        if (v->ops->driver_ok)
            v->ops->driver_ok(v->dev);
        for (unsigned n = 0; n < v->nqueues; n++)
            rp_virtio_again(v, n);      /* buffers that were there before DRIVER_OK */
    }
}

static void enable_queue(struct rp_virtio *v, unsigned n)
{
    struct rp_error err = {0};

    if (v->queues[n].q.s.enabled)
        return;
    if (rp_virtq_enable(&v->queues[n].q, v->driver_features, &err)) {
        rp_virtio_fail(v, n, &err);
        return;
    }
    wire(v, n, true);
}

static uint64_t vector_or_none(const struct rp_virtio *v, uint64_t vector)
{
    return vector < v->pci.s.nvectors ? vector : RP_VIRTQ_NO_VECTOR;
}

static void common_queue_write(struct rp_virtio *v, uint32_t off, uint32_t len, uint64_t x)
{
    struct rp_virtq *q = v->queue_sel < v->nqueues ? &v->queues[v->queue_sel].q : NULL;
    uint64_t *addr;
    unsigned shift = off & 4 ? 32 : 0;

    if (!q)
        return;
    if (off == VIRTIO_PCI_COMMON_Q_MSIX) {
        q->s.vector = (uint16_t)vector_or_none(v, x);
        return;
    }
    if (q->s.enabled)
        return;             /* fixed until reset */
    switch (off) {
    case VIRTIO_PCI_COMMON_Q_SIZE:
        if (x && x <= q->size_max && !(x & (x - 1)))
            q->s.size = (uint16_t)x;
        return;
    case VIRTIO_PCI_COMMON_Q_ENABLE:
        if (x == 1)
            enable_queue(v, v->queue_sel);
        return;
    case VIRTIO_PCI_COMMON_Q_DESCLO: case VIRTIO_PCI_COMMON_Q_DESCHI: addr = &q->s.desc_gpa; break;
    case VIRTIO_PCI_COMMON_Q_AVAILLO: case VIRTIO_PCI_COMMON_Q_AVAILHI: addr = &q->s.avail_gpa; break;
    case VIRTIO_PCI_COMMON_Q_USEDLO: case VIRTIO_PCI_COMMON_Q_USEDHI: addr = &q->s.used_gpa; break;
    default: return;
    }
    if (len == 8 && !shift)
        *addr = x;
    else if (len == 4)
        *addr = (*addr & ~(0xffffffffull << shift)) | x << shift;
}

static void common_write(struct rp_virtio *v, uint32_t off, uint32_t len, uint64_t x)
{
    unsigned sel;

    switch (off) {
    case VIRTIO_PCI_COMMON_DFSELECT: v->device_feature_sel = (uint32_t)x; break;
    case VIRTIO_PCI_COMMON_GFSELECT: v->driver_feature_sel = (uint32_t)x; break;
    case VIRTIO_PCI_COMMON_GF:
        sel = v->driver_feature_sel;
        if (sel < 2 && !(v->status & VIRTIO_CONFIG_S_FEATURES_OK))
            v->driver_features = (v->driver_features & ~(0xffffffffull << 32 * sel)) | (x & 0xffffffffu) << 32 * sel;
        break;
    case VIRTIO_PCI_COMMON_MSIX: v->config_vector = (uint16_t)vector_or_none(v, x & 0xffff); break;
    case VIRTIO_PCI_COMMON_STATUS: write_status(v, (uint8_t)x); break;
    case VIRTIO_PCI_COMMON_Q_SELECT: v->queue_sel = (uint16_t)x; break;
    default: common_queue_write(v, off, len, x); break;
    }
}

/* The registers as they stand, so that any width and alignment can be read. */
static void common_image(const struct rp_virtio *v, uint8_t r[COMMON_BYTES])
{
    const struct rp_virtq_state *q = v->queue_sel < v->nqueues ? &v->queues[v->queue_sel].q.s : NULL;
    unsigned dsel = v->device_feature_sel, gsel = v->driver_feature_sel;

    memset(r, 0, COMMON_BYTES);
    rp_st32(r + VIRTIO_PCI_COMMON_DFSELECT, dsel);
    rp_st32(r + VIRTIO_PCI_COMMON_DF, dsel < 2 ? (uint32_t)(v->features >> 32 * dsel) : 0);
    rp_st32(r + VIRTIO_PCI_COMMON_GFSELECT, gsel);
    rp_st32(r + VIRTIO_PCI_COMMON_GF, gsel < 2 ? (uint32_t)(v->driver_features >> 32 * gsel) : 0);
    rp_st16(r + VIRTIO_PCI_COMMON_MSIX, v->config_vector);
    rp_st16(r + VIRTIO_PCI_COMMON_NUMQ, (uint16_t)v->nqueues);
    r[VIRTIO_PCI_COMMON_STATUS] = v->status;
    r[VIRTIO_PCI_COMMON_CFGGENERATION] = v->generation;
    rp_st16(r + VIRTIO_PCI_COMMON_Q_SELECT, v->queue_sel);
    if (!q)
        return;             /* size 0: no such queue */
    rp_st16(r + VIRTIO_PCI_COMMON_Q_SIZE, q->size);
    rp_st16(r + VIRTIO_PCI_COMMON_Q_MSIX, q->vector);
    rp_st16(r + VIRTIO_PCI_COMMON_Q_ENABLE, q->enabled);
    rp_st16(r + VIRTIO_PCI_COMMON_Q_NOFF, v->queue_sel);
    rp_st64(r + VIRTIO_PCI_COMMON_Q_DESCLO, q->desc_gpa);
    rp_st64(r + VIRTIO_PCI_COMMON_Q_AVAILLO, q->avail_gpa);
    rp_st64(r + VIRTIO_PCI_COMMON_Q_USEDLO, q->used_gpa);
}

static void common_io(struct rp_virtio *v, uint32_t off, uint8_t *data, uint32_t len, bool write)
{
    uint8_t r[COMMON_BYTES];
    uint64_t x = 0;

    if (off + len > COMMON_BYTES)
        return;
    if (!write) {
        common_image(v, r);
        memcpy(data, r + off, len);
        return;
    }
    memcpy(&x, data, len);
    common_write(v, off, len, x);
}

static void device_io(struct rp_virtio *v, uint32_t off, uint8_t *data, uint32_t len, bool write)
{
    if (!write && v->ops->config_read)
        v->ops->config_read(v->dev, off, data, len);
    else if (write && v->ops->config_write && !(v->status & VIRTIO_CONFIG_S_NEEDS_RESET))
        v->ops->config_write(v->dev, off, data, len);
}

static void bar_access(void *ctx, unsigned bar, uint64_t off, uint8_t *data, uint32_t len, bool write)
{
    struct rp_virtio *v = ctx;
    uint32_t in_part = (uint32_t)off % PART_BYTES, part = (uint32_t)off - in_part;

    (void)bar;
    if (!write)
        memset(data, 0, len);
    switch (part) {
    case COMMON_OFF: common_io(v, in_part, data, len, write); break;
    case DEVICE_OFF: device_io(v, in_part, data, len, write); break;
    case ISR_OFF:
        if (!write && in_part == 0) {
            data[0] = v->isr;       /* read clears */
            v->isr = 0;
        }
        break;
    case NOTIFY_OFF:
        if (write && in_part / NOTIFY_STEP < v->nqueues)
            rp_virtio_again(v, in_part / NOTIFY_STEP);
        break;
    default: break;
    }
}

/* The PCI configuration access capability: a window onto the BAR for who cannot map it. */
static void config_access(void *ctx, uint32_t off, uint32_t len, bool write)
{
    struct rp_virtio *v = ctx;
    uint8_t *cap = v->pci.s.config + v->cfg_cap;
    uint32_t data_off = v->cfg_cap + sizeof(struct virtio_pci_cap);
    uint32_t at = rp_ld32(cap + VIRTIO_PCI_CAP_OFFSET), n = rp_ld32(cap + VIRTIO_PCI_CAP_LENGTH);

    if (off >= data_off + 4 || off + len <= data_off)
        return;
    if ((n == 1 || n == 2 || n == 4) && at % n == 0)
        rp_pci_bar_access(&v->pci, cap[VIRTIO_PCI_CAP_BAR], at, v->pci.s.config + data_off, n, write);
}

static const struct rp_pci_ops pci_ops = {.bar = bar_access, .bar_moved = bar_moved, .config = config_access};

/* --- making one --- */

static int add_cap(struct rp_virtio *v, uint8_t cfg_type, uint32_t off, uint32_t len, uint32_t cap_len, struct rp_error *err)
{
    uint8_t cap[20] = {0};

    cap[VIRTIO_PCI_CAP_LEN] = (uint8_t)cap_len;
    cap[VIRTIO_PCI_CAP_CFG_TYPE] = cfg_type;
    cap[VIRTIO_PCI_CAP_BAR] = BAR;
    rp_st32(cap + VIRTIO_PCI_CAP_OFFSET, off);
    rp_st32(cap + VIRTIO_PCI_CAP_LENGTH, len);
    if (cfg_type == VIRTIO_PCI_CAP_NOTIFY_CFG)
        rp_st32(cap + VIRTIO_PCI_NOTIFY_CAP_MULT, NOTIFY_STEP);
    return rp_pci_dev_cap(&v->pci, PCI_CAP_ID_VNDR, cap, cap_len, err);
}

static int add_caps(struct rp_virtio *v, struct rp_error *err)
{
    int at = add_cap(v, VIRTIO_PCI_CAP_COMMON_CFG, COMMON_OFF, COMMON_BYTES, 16, err);

    if (at > 0)
        at = add_cap(v, VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY_OFF, v->nqueues * NOTIFY_STEP, 20, err);
    if (at > 0)
        at = add_cap(v, VIRTIO_PCI_CAP_ISR_CFG, ISR_OFF, 1, 16, err);
    if (at > 0 && v->ops->config_read)
        at = add_cap(v, VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE_OFF, PART_BYTES, 16, err);
    if (at > 0)
        at = add_cap(v, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, 20, err);
    if (at < 0)
        return at;
    v->cfg_cap = (uint32_t)at;
    v->pci.wmask[at + VIRTIO_PCI_CAP_BAR] = 0xff;
    memset(v->pci.wmask + at + VIRTIO_PCI_CAP_OFFSET, 0xff, 12);   /* offset, length, data */
    return 0;
}

static int make_queues(struct rp_virtio *v, uint16_t size, struct rp_error *err)
{
    for (unsigned n = 0; n < v->nqueues; n++) {
        struct rp_virtio_queue *q = &v->queues[n];

        q->v = v;
        q->q.ram = v->env.ram;
        q->q.size_max = size;
        rp_virtq_reset(&q->q);
        q->kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (q->kick_fd < 0)
            return rp_error_set(err, errno, "%s: eventfd: %m", v->name);
        int rc = rp_loop_add(v->env.loop, q->kick_fd, EPOLLIN | EPOLLET, on_kick, q);

        if (rc) {
            close(q->kick_fd);
            q->kick_fd = -1;
            return rp_error_set(err, rc, "%s: cannot watch its queue", v->name);
        }
    }
    return 0;
}

void rp_virtio_offer(struct rp_virtio *v, uint64_t features)
{
    v->features = features | BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VIRTIO_RING_F_INDIRECT_DESC);
}

int rp_virtio_init(struct rp_virtio *v, const struct rp_device_env *env, unsigned slot,
                   const struct rp_virtio_config *cfg, struct rp_error *err)
{
    struct rp_pci_id id = {.vendor = 0x1af4, .device = (uint16_t)(0x1040 + cfg->type), .subsystem_vendor = 0x1af4,
                           .subsystem = 0x1100, .class_code = cfg->class_code, .revision = 1};
    int rc;

    memset(v, 0, sizeof(*v));
    v->env = *env;
    v->ops = cfg->ops;
    v->dev = cfg->dev;
    v->name = cfg->name;
    rp_virtio_offer(v, cfg->features);
    v->nqueues = cfg->nqueues;
    v->config_vector = RP_VIRTQ_NO_VECTOR;
    for (unsigned n = 0; n < RP_VIRTQS_MAX; n++)
        v->queues[n].kick_fd = -1;
    if (cfg->nqueues > RP_VIRTQS_MAX || cfg->queue_size > RP_VIRTQ_SIZE_MAX)
        return rp_error_set(err, EINVAL, "%s: %u queues of %u", cfg->name, cfg->nqueues, cfg->queue_size);
    rc = rp_pci_dev_init(&v->pci, env->pci, slot, &id, &pci_ops, v, err);
    if (rc == 0)
        rc = rp_pci_dev_bar(&v->pci, BAR, BAR_BYTES, err);
    if (rc == 0)
        rc = rp_pci_dev_msix(&v->pci, cfg->nqueues + 1, BAR, MSIX_OFF, PBA_OFF, err);
    if (rc == 0)
        rc = add_caps(v, err);
    if (rc == 0)
        rc = make_queues(v, cfg->queue_size, err);
    if (rc == 0)
        rc = rp_pci_dev_plug(&v->pci, err);
    if (rc)
        rp_virtio_fini(v);
    return rc;
}

void rp_virtio_fini(struct rp_virtio *v)
{
    rp_pci_dev_fini(&v->pci);
    for (unsigned n = 0; n < v->nqueues && n < RP_VIRTQS_MAX; n++) {
        if (v->queues[n].kick_fd < 0)
            continue;
        wire(v, n, false);
        rp_loop_remove(v->env.loop, v->queues[n].kick_fd);
        close(v->queues[n].kick_fd);
        v->queues[n].kick_fd = -1;
    }
}

/* --- around a cut --- */

void rp_virtio_save(const struct rp_virtio *v, struct rp_virtio_state *out)
{
    memset(out, 0, sizeof(*out));
    out->pci = v->pci.s;
    out->device_features = v->features;
    out->driver_features = v->driver_features;
    out->device_feature_sel = v->device_feature_sel;
    out->driver_feature_sel = v->driver_feature_sel;
    out->config_vector = v->config_vector;
    out->queue_sel = v->queue_sel;
    out->status = v->status;
    out->isr = v->isr;
    out->generation = v->generation;
    out->nqueues = v->nqueues;
    for (unsigned n = 0; n < v->nqueues; n++)
        out->queues[n] = v->queues[n].q.s;
}

static int load_queue(struct rp_virtio *v, unsigned n, const struct rp_virtq_state *s, struct rp_error *err)
{
    struct rp_virtq *q = &v->queues[n].q;

    q->s = *s;
    q->s.enabled = 0;
    if (s->size == 0 || s->size > q->size_max || (s->size & (s->size - 1)))
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "queue %u: size %u, at most %u here", n, s->size, q->size_max);
    if (s->enabled && rp_virtq_enable(q, v->driver_features, err))
        return rp_error_wrap(err, "queue %u", n);
    return 0;
}

int rp_virtio_load(struct rp_virtio *v, const struct rp_virtio_state *s, struct rp_error *err)
{
    int rc;

    if (s->nqueues != v->nqueues)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "%s in slot %u: the epoch has %u queues, this machine %u", v->name,
                             v->pci.slot, s->nqueues, v->nqueues);
    if ((s->status & (VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK)) && (s->driver_features & ~v->features))
        return rp_error_exit(err, RP_EXIT_HOST, EBADMSG,
                             "%s in slot %u: its driver uses features 0x%llx that this host's backend does not offer", v->name,
                             v->pci.slot, (unsigned long long)(s->driver_features & ~v->features));
    device_reset(v);
    v->driver_features = s->driver_features;
    v->device_feature_sel = s->device_feature_sel;
    v->driver_feature_sel = s->driver_feature_sel;
    v->config_vector = (uint16_t)vector_or_none(v, s->config_vector);
    v->queue_sel = s->queue_sel;
    v->status = s->status;
    v->isr = s->isr;
    v->generation = s->generation;
    for (unsigned n = 0; n < v->nqueues; n++) {
        rc = load_queue(v, n, &s->queues[n], err);
        if (rc)
            return rp_error_wrap(err, "%s in slot %u", v->name, v->pci.slot);
        v->queues[n].q.s.vector = (uint16_t)vector_or_none(v, s->queues[n].vector);
        v->queues[n].kicked = true;     /* what was kicked before the cut is looked at on start */
    }
    v->entered = true;
    rc = rp_pci_dev_load(&v->pci, &s->pci, err);
    for (unsigned n = 0; rc == 0 && n < v->nqueues; n++)
        wire(v, n, v->queues[n].q.s.enabled);
    return rc;
}

void rp_virtio_reset(struct rp_virtio *v)
{
    device_reset(v);
    v->generation = 0;
    rp_pci_dev_reset(&v->pci);
}

/* KVM may have had an interrupt on its way still when the LAPICs were read. To look at a ring in vain does a driver no harm. */
static void interrupt_all(struct rp_virtio *v)
{
    for (unsigned n = 0; n < v->nqueues; n++)
        if (v->queues[n].q.s.enabled)
            interrupt(v, v->queues[n].q.s.vector, ISR_QUEUE);
    interrupt(v, v->config_vector, ISR_CONFIG);
}

void rp_virtio_start(struct rp_virtio *v)
{
    v->running = true;
    if (v->entered && v->status & VIRTIO_CONFIG_S_DRIVER_OK)
        interrupt_all(v);
    v->entered = false;
    for (unsigned n = 0; n < v->nqueues; n++) {
        if (!v->queues[n].kicked)
            continue;
        v->queues[n].kicked = false;
        rp_virtio_again(v, n);      /* served by the io thread */
    }
}

void rp_virtio_stop(struct rp_virtio *v)
{
    v->running = false;
}

void rp_virtio_device_reset(void *dev)
{
    rp_virtio_reset(dev);
}

void rp_virtio_device_start(void *dev)
{
    rp_virtio_start(dev);
}

void rp_virtio_device_stop(void *dev)
{
    rp_virtio_stop(dev);
}
