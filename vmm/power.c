/* Power; see power.h. */
#include "vmm/power.h"

#include "core/clock.h"

#include <errno.h>
#include <stdlib.h>

#define PM_LEN 0x10u
#define KBD_PORT 0x64
#define KBD_PULSE_RESET 0xfe
#define STS_TMR 0x0001u
#define STS_BUTTON 0x0100u
#define STS_WAK 0x8000u
#define CNT_SCI_EN 0x0001u
#define CNT_SLP_EN 0x2000u
#define CNT_SLP_TYP 0x1c00u
#define PM_TIMER_HZ 3579545u

struct rp_power_state {
    uint16_t pm1_sts, pm1_en, pm1_cnt;
    uint8_t gpe_sts, gpe_en;
    uint8_t reset_ctl;
    uint8_t pad[7];
    uint64_t timer_offset;      /* PM timer ticks = those of host monotonic time + this */
};
#define S struct rp_power_state
RP_TABLE(rp_power_table, "power", 1, S,
    RP_U16(S, pm1_sts, 1), RP_U16(S, pm1_en, 2), RP_U16(S, pm1_cnt, 3), RP_U8(S, gpe_sts, 4), RP_U8(S, gpe_en, 5),
    RP_U8(S, reset_ctl, 6), RP_PAD(S, pad), RP_U64(S, timer_offset, 7));
#undef S

struct rp_power {
    struct rp_power_state s;
    struct rp_bus *pio;
    struct rp_irqs *irqs;
    struct rp_power_ops ops;
    bool line;
};

static uint64_t host_ticks(void)
{
    return (uint64_t)((unsigned __int128)rp_clock_ns() * PM_TIMER_HZ / 1000000000u);
}

static bool sci(const struct rp_power *p)
{
    return (p->s.pm1_sts & p->s.pm1_en & ~STS_TMR) || (p->s.gpe_sts & p->s.gpe_en);
}

static void update(struct rp_power *p)
{
    bool on = sci(p);

    if (on != p->line && p->irqs)
        rp_irq_line(p->irqs, RP_SCI_IRQ, on);
    p->line = on;
}

void rp_power_button(struct rp_power *p)
{
    p->s.pm1_sts |= STS_BUTTON;
    update(p);
}

void rp_power_gpe(struct rp_power *p, unsigned bit)
{
    p->s.gpe_sts |= (uint8_t)(1u << bit);
    update(p);
}

static void write_cnt(struct rp_power *p, uint16_t v)
{
    p->s.pm1_cnt = (v & (uint16_t)~CNT_SLP_EN) | CNT_SCI_EN;   /* there is no SMI mode */
    if ((v & CNT_SLP_EN) && (v & CNT_SLP_TYP) == 0)            /* \_S5 says 0 */
        p->ops.off(p->ops.ctx);
}

/* The PM block byte by byte: event status (write 1 to clear), enable, control, timer. */
static void pm_access(void *dev, uint64_t off, uint8_t *data, uint32_t len, bool write)
{
    struct rp_power *p = dev;
    uint8_t block[PM_LEN] = {0};

    rp_st16(block, p->s.pm1_sts);
    rp_st16(block + 2, p->s.pm1_en);
    rp_st16(block + 4, p->s.pm1_cnt);
    rp_st32(block + 8, (uint32_t)(host_ticks() + p->s.timer_offset) & 0xffffff);
    if (!write) {
        memcpy(data, block + off, len);
        return;
    }
    if (off < 2) {
        uint8_t clear[2] = {0};
        memcpy(clear + off, data, len < 2 - off ? len : 2 - off);
        p->s.pm1_sts &= (uint16_t)~rp_ld16(clear);
    }
    memcpy(block + off, data, len);
    if (off < 4 && off + len > 2)
        p->s.pm1_en = rp_ld16(block + 2);
    if (off < 6 && off + len > 4)
        write_cnt(p, rp_ld16(block + 4));
    update(p);
}

static void gpe_access(void *dev, uint64_t off, uint8_t *data, uint32_t len, bool write)
{
    struct rp_power *p = dev;

    for (uint32_t i = 0; i < len; i++, off++) {
        if (!write)
            data[i] = off == 0 ? p->s.gpe_sts : p->s.gpe_en;
        else if (off == 0)
            p->s.gpe_sts &= (uint8_t)~data[i];
        else
            p->s.gpe_en = data[i];
    }
    update(p);
}

/* Just enough of an 8042 that the guest's last resort works: nothing attached, command 0xfe pulses reset. */
static void kbd_access(void *dev, uint64_t off, uint8_t *data, uint32_t len, bool write)
{
    struct rp_power *p = dev;

    (void)off;
    if (!write)
        memset(data, 0, len);
    else if (data[0] == KBD_PULSE_RESET)
        p->ops.reset(p->ops.ctx);
}

void rp_power_reset_port(void *dev, uint8_t value)
{
    struct rp_power *p = dev;

    p->s.reset_ctl = value & 0x0e;
    if (value & 0x04)
        p->ops.reset(p->ops.ctx);
}

static int save(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err)
{
    const struct rp_power *p = dev;
    struct rp_power_state s = p->s;

    s.timer_offset = host_ticks() + s.timer_offset;     /* as a reading: hosts count from different zeros */
    return rp_sections_add(out, &rp_power_table, instance, &s, err);
}

static int load(void *dev, const struct rp_section *sec, struct rp_error *err)
{
    struct rp_power *p = dev;
    struct rp_power_state s = {0};
    int rc = rp_section_decode(&rp_power_table, sec, &s, err);

    if (rc < 0)
        return rc;
    s.timer_offset -= host_ticks();
    p->s = s;
    p->line = sci(p);       /* the irqchip's state has the line */
    return 0;
}

static void reset(void *dev)
{
    struct rp_power *p = dev;

    p->s = (struct rp_power_state){.pm1_cnt = CNT_SCI_EN, .timer_offset = p->s.timer_offset};
    update(p);
}

static void destroy(void *dev)
{
    struct rp_power *p = dev;

    rp_bus_remove(p->pio, RP_PM_PORT);
    rp_bus_remove(p->pio, RP_GPE0_PORT);
    rp_bus_remove(p->pio, KBD_PORT);
    free(p);
}

static const struct rp_device_ops ops = {.save = save, .load = load, .reset = reset, .destroy = destroy};

int rp_power_create(struct rp_bus *pio, struct rp_irqs *irqs, const struct rp_power_ops *power_ops, struct rp_power **out,
                    struct rp_device *dev, struct rp_error *err)
{
    struct rp_power *p = calloc(1, sizeof *p);
    int rc;

    if (!p)
        return rp_error_set(err, ENOMEM, "power: out of memory");
    *p = (struct rp_power){.pio = pio, .irqs = irqs, .ops = *power_ops, .s.pm1_cnt = CNT_SCI_EN};
    rc = rp_bus_add(pio, RP_PM_PORT, PM_LEN, pm_access, p);
    if (rc == 0)
        rc = rp_bus_add(pio, RP_GPE0_PORT, 2, gpe_access, p);
    if (rc == 0)
        rc = rp_bus_add(pio, KBD_PORT, 1, kbd_access, p);
    if (rc < 0) {
        destroy(p);
        return rp_error_set(err, rc, "power: its ports are taken");
    }
    *out = p;
    *dev = (struct rp_device){.section = rp_power_table.name, .ops = &ops, .dev = p};
    return 0;
}
