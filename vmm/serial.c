/* 16550A; see serial.h. Transmission takes no time: THRE and TEMT are always set. */
#include "vmm/serial.h"

#include "vmm/chardev.h"

#include <errno.h>
#include <stdlib.h>

#define FIFO 16u
#define IER_RDA 1u      /* received data available */
#define IER_THRE 2u     /* transmitter empty */
#define IER_RLS 4u      /* line status */
#define IER_MSI 8u      /* modem status */
#define IIR_NONE 1u
#define IIR_THRE 2u
#define IIR_RDA 4u
#define IIR_TIMEOUT 0xcu
#define IIR_RLS 6u
#define IIR_FIFOS 0xc0u
#define FCR_ENABLE 1u
#define FCR_CLEAR_RX 2u
#define LCR_DLAB 0x80u
#define MCR_OUT2 8u     /* gates the interrupt line on a PC */
#define MCR_LOOP 0x10u
#define LSR_DR 1u
#define LSR_OE 2u
#define LSR_THRE 0x20u
#define LSR_TEMT 0x40u
#define MSR_IDLE 0xb0u  /* DCD, DSR, CTS */

struct rp_serial_state {
    uint8_t ier, fcr, lcr, mcr, lsr, scr, dll, dlm;
    uint8_t thre_pending;   /* the transmitter-empty interrupt is due */
    uint8_t pad[3];
    uint32_t rx_len;
    uint8_t rx[FIFO];       /* oldest first */
};
#define S struct rp_serial_state
static int validate(const void *state, struct rp_error *err);
static const struct rp_field fields[] = {
    RP_U8(S, ier, 1), RP_U8(S, fcr, 2), RP_U8(S, lcr, 3), RP_U8(S, mcr, 4), RP_U8(S, lsr, 5), RP_U8(S, scr, 6),
    RP_U8(S, dll, 7), RP_U8(S, dlm, 8), RP_U8(S, thre_pending, 9), RP_PAD(S, pad), RP_U32(S, rx_len, 10),
    RP_COUNTED(S, rx, 11, RP_F_U8, rx_len),
};
#undef S
const struct rp_state_table rp_serial_table = {
    .name = "serial", .version = 1, .size = sizeof(struct rp_serial_state),
    .fields = fields, .nfields = sizeof fields / sizeof fields[0], .validate = validate};

static int validate(const void *state, struct rp_error *err)
{
    const struct rp_serial_state *s = state;

    if (s->thre_pending > 1)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "serial: thre_pending is %u", s->thre_pending);
    if (s->rx_len > (s->fcr & FCR_ENABLE ? FIFO : 1u))
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "serial: %u bytes received, more than it holds", s->rx_len);
    return 0;
}

struct serial {
    struct rp_serial_state s;
    struct rp_bus *pio;
    struct rp_irqs *irqs;
    struct rp_chardev *chr;
    bool line;              /* as last told to the irqchip */
};

static uint8_t interrupt_id(const struct serial *d)
{
    uint8_t fifos = d->s.fcr & FCR_ENABLE ? IIR_FIFOS : 0;

    if ((d->s.ier & IER_RLS) && (d->s.lsr & LSR_OE))
        return fifos | IIR_RLS;
    if ((d->s.ier & IER_RDA) && d->s.rx_len > 0)
        return fifos | IIR_RDA;
    if ((d->s.ier & IER_THRE) && d->s.thre_pending)
        return fifos | IIR_THRE;
    return fifos | IIR_NONE;
}

static void update(struct serial *d)
{
    bool on = (interrupt_id(d) & 0xf) != IIR_NONE && (d->s.mcr & MCR_OUT2) && !(d->s.mcr & MCR_LOOP);

    if (on != d->line && d->irqs)
        rp_irq_line(d->irqs, RP_COM1_IRQ, on);
    d->line = on;
}

static size_t room(const struct serial *d)
{
    return (d->s.fcr & FCR_ENABLE ? FIFO : 1u) - d->s.rx_len;
}

static size_t input(void *ctx, const uint8_t *bytes, size_t len)
{
    struct serial *d = ctx;
    size_t n = 0;

    if (d->s.mcr & MCR_LOOP)
        return 0;
    for (; n < len && d->s.rx_len < (d->s.fcr & FCR_ENABLE ? FIFO : 1u); n++)
        d->s.rx[d->s.rx_len++] = bytes[n];
    update(d);
    return n;
}

/* What waits at the host comes only when it is asked for: whenever the receiver became empty, by whatever. */
static void ask_for_more(struct serial *d)
{
    if (d->s.rx_len == 0)
        rp_chardev_more(d->chr);
}

static uint8_t receive(struct serial *d)
{
    uint8_t v = d->s.rx_len ? d->s.rx[0] : 0;

    if (d->s.rx_len) {
        d->s.rx_len--;
        memmove(d->s.rx, d->s.rx + 1, d->s.rx_len);
    }
    ask_for_more(d);
    return v;
}

static void transmit(struct serial *d, uint8_t v)
{
    if (d->s.mcr & MCR_LOOP) {
        if (room(d) > 0)
            d->s.rx[d->s.rx_len++] = v;
        else
            d->s.lsr |= LSR_OE;
    } else {
        rp_chardev_write(d->chr, &v, 1);
    }
    d->s.thre_pending = 1;
}

static uint8_t modem_status(const struct serial *d)
{
    uint8_t m = d->s.mcr;

    if (!(m & MCR_LOOP))
        return MSR_IDLE;
    /* Loopback: RTS→CTS, DTR→DSR, OUT1→RI, OUT2→DCD. */
    return (uint8_t)((m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4);
}

static uint8_t read_reg(struct serial *d, uint64_t off)
{
    bool dlab = d->s.lcr & LCR_DLAB;
    uint8_t v;

    switch (off) {
    case 0:
        return dlab ? d->s.dll : receive(d);
    case 1:
        return dlab ? d->s.dlm : d->s.ier;
    case 2:
        v = interrupt_id(d);
        if ((v & 0xf) == IIR_THRE)
            d->s.thre_pending = 0;
        return v;
    case 3:
        return d->s.lcr;
    case 4:
        return d->s.mcr;
    case 5:
        v = d->s.lsr | LSR_THRE | LSR_TEMT | (d->s.rx_len ? LSR_DR : 0);
        d->s.lsr = 0;
        return v;
    case 6:
        return modem_status(d);
    default:
        return d->s.scr;
    }
}

static void write_reg(struct serial *d, uint64_t off, uint8_t v)
{
    bool dlab = d->s.lcr & LCR_DLAB;

    switch (off) {
    case 0:
        if (dlab)
            d->s.dll = v;
        else
            transmit(d, v);
        break;
    case 1:
        if (dlab) {
            d->s.dlm = v;
            break;
        }
        if ((v & IER_THRE) && !(d->s.ier & IER_THRE))
            d->s.thre_pending = 1;
        d->s.ier = v & 0xf;
        break;
    case 2:
        if ((v & FCR_CLEAR_RX) || ((v ^ d->s.fcr) & FCR_ENABLE))
            d->s.rx_len = 0;
        d->s.fcr = v & 0xc9;
        ask_for_more(d);
        break;
    case 3:
        d->s.lcr = v;
        break;
    case 4:
        d->s.mcr = v & 0x1f;
        ask_for_more(d);        /* in loopback nothing came */
        break;
    case 7:
        d->s.scr = v;
        break;
    default:
        break;
    }
}

static void access(void *dev, uint64_t off, uint8_t *data, uint32_t len, bool write)
{
    struct serial *d = dev;

    for (uint32_t i = 0; i < len; i++) {
        if (write)
            write_reg(d, off + i, data[i]);
        else
            data[i] = read_reg(d, off + i);
    }
    update(d);
}

static int save(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err)
{
    const struct serial *d = dev;

    return rp_sections_add(out, &rp_serial_table, instance, &d->s, err);
}

static int load(void *dev, const struct rp_section *sec, struct rp_error *err)
{
    struct serial *d = dev;
    struct rp_serial_state s = {0};
    int rc = rp_section_decode(&rp_serial_table, sec, &s, err);

    if (rc < 0)
        return rc;
    d->s = s;
    d->line = (interrupt_id(d) & 0xf) != IIR_NONE && (s.mcr & MCR_OUT2) && !(s.mcr & MCR_LOOP); /* the irqchip's state has it */
    return 0;
}

static void reset(void *dev)
{
    struct serial *d = dev;

    d->s = (struct rp_serial_state){.dll = 12};     /* 9,600 baud */
    update(d);
}

/* After a reset, or with an epoch's state. */
static void start(void *dev)
{
    ask_for_more(dev);
}

static void destroy(void *dev)
{
    struct serial *d = dev;

    rp_bus_remove(d->pio, RP_COM1_PORT);
    rp_chardev_destroy(d->chr);
    free(d);
}

static const struct rp_device_ops ops = {.save = save, .load = load, .reset = reset, .start = start, .destroy = destroy};

int rp_serial_create(struct rp_bus *pio, struct rp_irqs *irqs, struct rp_loop *loop, const struct rp_chardev_config *cfg,
                     struct rp_device *out, struct rp_error *err)
{
    struct serial *d = calloc(1, sizeof *d);
    int rc;

    if (!d)
        return rp_error_set(err, ENOMEM, "serial: out of memory");
    d->pio = pio;
    d->irqs = irqs;
    d->s.dll = 12;
    rc = rp_chardev_create(cfg, "serial", loop, input, d, &d->chr, err);
    if (rc < 0)
        goto undo;
    rc = rp_bus_add(pio, RP_COM1_PORT, 8, access, d);
    if (rc < 0) {
        rp_error_set(err, rc, "serial: its ports are taken");
        goto undo_chr;
    }
    *out = (struct rp_device){.section = rp_serial_table.name, .ops = &ops, .dev = d};
    return 0;
undo_chr:
    rp_chardev_destroy(d->chr);
undo:
    free(d);
    return rc;
}
