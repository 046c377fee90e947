/* MC146818; see rtc.h. */
#include "vmm/rtc.h"

#include "core/clock.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

enum { SEC = 0, SEC_ALARM, MIN, MIN_ALARM, HOUR, HOUR_ALARM, WDAY, MDAY, MON, YEAR, REG_A, REG_B, REG_C, REG_D };
#define A_DEFAULT 0x26u     /* 32,768 Hz, 1,024 Hz periodic */
#define B_SET 0x80u
#define B_PIE 0x40u
#define B_AIE 0x20u
#define B_UIE 0x10u
#define B_BINARY 0x04u
#define B_24H 0x02u
#define C_IRQ 0x80u
#define C_PF 0x40u
#define C_AF 0x20u
#define C_UF 0x10u
#define D_VALID 0x80u
#define NS 1000000000ull
#define DAY_S 86400u
#define UPDATE_NS 244000u   /* the update cycle: A's UIP is set for that long before the second turns */

struct rp_rtc_state {
    uint8_t index;
    uint8_t cmos[128];
    uint8_t pad[7];
    uint64_t offset_ns;     /* two's complement: guest wall clock = host wall clock + this */
    uint64_t wall_ns;       /* host wall clock when it was saved */
};
RP_TABLE(rp_rtc_table, "rtc", 1, struct rp_rtc_state,
    RP_U8(struct rp_rtc_state, index, 1), RP_BYTES(struct rp_rtc_state, cmos, 2), RP_PAD(struct rp_rtc_state, pad),
    RP_U64(struct rp_rtc_state, offset_ns, 3), RP_U64(struct rp_rtc_state, wall_ns, 4));

struct rtc {
    struct rp_rtc_state s;
    struct rp_bus *pio;
    struct rp_irqs *irqs;
    struct rp_timer *timer;
    uint64_t next_second;   /* guest wall clock, seconds: when UF and AF are looked at */
    uint64_t next_period;   /* guest wall clock, ns */
    bool follow;
};

static uint64_t now_ns(const struct rtc *d)
{
    return rp_wall_ns() + d->s.offset_ns;
}

static uint8_t to_reg(const struct rtc *d, int v)
{
    return (uint8_t)(d->s.cmos[REG_B] & B_BINARY ? v : v / 10 << 4 | v % 10);
}

static int from_reg(const struct rtc *d, uint8_t v)
{
    return d->s.cmos[REG_B] & B_BINARY ? v : (v >> 4) * 10 + (v & 0xf);
}

static uint8_t hour_reg(const struct rtc *d, int hour)
{
    int h12 = hour % 12 ? hour % 12 : 12;

    if (d->s.cmos[REG_B] & B_24H)
        return to_reg(d, hour);
    return (uint8_t)(to_reg(d, h12) | (hour >= 12 ? 0x80 : 0));
}

static void fill_time(struct rtc *d)
{
    time_t t = (time_t)(now_ns(d) / NS);
    struct tm tm;

    if (d->s.cmos[REG_B] & B_SET)       /* the guest is writing it */
        return;
    gmtime_r(&t, &tm);
    d->s.cmos[SEC] = to_reg(d, tm.tm_sec);
    d->s.cmos[MIN] = to_reg(d, tm.tm_min);
    d->s.cmos[HOUR] = hour_reg(d, tm.tm_hour);
    d->s.cmos[WDAY] = to_reg(d, tm.tm_wday + 1);
    d->s.cmos[MDAY] = to_reg(d, tm.tm_mday);
    d->s.cmos[MON] = to_reg(d, tm.tm_mon + 1);
    d->s.cmos[YEAR] = to_reg(d, tm.tm_year % 100);
    d->s.cmos[RP_RTC_CENTURY] = to_reg(d, tm.tm_year / 100 + 19);
}

/* The guest has written a time: what it says becomes the offset. */
static void take_time(struct rtc *d)
{
    const uint8_t *c = d->s.cmos;
    struct tm tm = {
        .tm_sec = from_reg(d, c[SEC]), .tm_min = from_reg(d, c[MIN]), .tm_hour = from_reg(d, c[HOUR] & 0x7f),
        .tm_mday = from_reg(d, c[MDAY]), .tm_mon = from_reg(d, c[MON]) - 1,
        .tm_year = from_reg(d, c[YEAR]) + (from_reg(d, c[RP_RTC_CENTURY]) - 19) * 100};
    uint64_t real = rp_wall_ns();

    if (!(c[REG_B] & B_24H))
        tm.tm_hour = tm.tm_hour % 12 + (c[HOUR] & 0x80 ? 12 : 0);
    d->s.offset_ns = (uint64_t)timegm(&tm) * NS + real % NS - real;
}

static bool alarm_due(struct rtc *d, uint64_t second)
{
    time_t t = (time_t)second;
    struct tm tm;
    const uint8_t *c = d->s.cmos;

    gmtime_r(&t, &tm);      /* 0xc0 and above: any */
    return (c[SEC_ALARM] >= 0xc0 || c[SEC_ALARM] == to_reg(d, tm.tm_sec))
        && (c[MIN_ALARM] >= 0xc0 || c[MIN_ALARM] == to_reg(d, tm.tm_min))
        && (c[HOUR_ALARM] >= 0xc0 || c[HOUR_ALARM] == hour_reg(d, tm.tm_hour));
}

static uint64_t period_ns(const struct rtc *d)
{
    unsigned rate = d->s.cmos[REG_A] & 0xf;

    if (rate == 0)
        return 0;
    return NS / (32768u >> ((rate < 3 ? rate + 7 : rate) - 1));
}

/* Arms the timer for whichever enabled interrupt is next. */
static void rearm(struct rtc *d)
{
    uint64_t now = now_ns(d), at = UINT64_MAX;
    uint8_t b = d->s.cmos[REG_B];

    if ((b & (B_UIE | B_AIE)) && !(b & B_SET)) {
        d->next_second = now / NS + 1;
        at = d->next_second * NS;
    }
    if ((b & B_PIE) && period_ns(d)) {
        uint64_t p = period_ns(d);
        d->next_period = now / p * p + p;
        if (d->next_period < at)
            at = d->next_period;
    }
    if (at == UINT64_MAX)
        rp_timer_disarm(d->timer);
    else
        rp_timer_arm(d->timer, rp_clock_ns() + (at - now));
}

static void raise_irq(struct rtc *d, uint8_t flags)
{
    d->s.cmos[REG_C] |= flags;
    if (!(d->s.cmos[REG_C] & d->s.cmos[REG_B] & (B_PIE | B_AIE | B_UIE)))
        return;
    d->s.cmos[REG_C] |= C_IRQ;
    if (d->irqs)
        rp_irq_line(d->irqs, RP_RTC_IRQ, true);
}

/* Was one of the seconds that have begun since the last look the alarm's? */
static bool alarm_passed(struct rtc *d, uint64_t now_s)
{
    uint64_t from = d->next_second + DAY_S > now_s ? d->next_second : now_s - DAY_S;

    for (uint64_t t = from; t <= now_s; t++)
        if (alarm_due(d, t))
            return true;
    return false;
}

static void tick(void *ctx)
{
    struct rtc *d = ctx;
    uint64_t now = now_ns(d);
    uint8_t b = d->s.cmos[REG_B], flags = 0;

    if ((b & (B_UIE | B_AIE)) && now / NS >= d->next_second)
        flags |= C_UF | (alarm_passed(d, now / NS) ? C_AF : 0);
    if ((b & B_PIE) && now >= d->next_period)
        flags |= C_PF;
    if (flags)
        raise_irq(d, flags);
    rearm(d);
}

static uint8_t read_reg(struct rtc *d)
{
    uint8_t i = d->s.index, v;

    switch (i) {
    case REG_A:
        v = d->s.cmos[REG_A];
        return now_ns(d) % NS > NS - UPDATE_NS && !(d->s.cmos[REG_B] & B_SET) ? v | 0x80 : v;
    case REG_C:
        v = d->s.cmos[REG_C];
        d->s.cmos[REG_C] = 0;
        if ((v & C_IRQ) && d->irqs)
            rp_irq_line(d->irqs, RP_RTC_IRQ, false);
        return v;
    case REG_D:
        return D_VALID;
    default:
        if (i < REG_A || i == RP_RTC_CENTURY)
            fill_time(d);
        return d->s.cmos[i];
    }
}

static void write_reg(struct rtc *d, uint8_t v)
{
    uint8_t i = d->s.index, old = d->s.cmos[REG_B];
    bool time = i < REG_A && i != SEC_ALARM && i != MIN_ALARM && i != HOUR_ALARM;

    if (i == REG_C || i == REG_D)
        return;
    if ((time || i == RP_RTC_CENTURY) && !(old & B_SET))
        fill_time(d);       /* one field changes, the others go on from now */
    if (i == REG_B && (v & B_SET) && !(old & B_SET))
        fill_time(d);
    d->s.cmos[i] = i == REG_A ? v & 0x7f : v;
    if (((time || i == RP_RTC_CENTURY) && !(old & B_SET)) || (i == REG_B && (old & B_SET) && !(v & B_SET)))
        take_time(d);
    if (i == REG_A || i == REG_B)
        rearm(d);
}

static void access(void *dev, uint64_t off, uint8_t *data, uint32_t len, bool write)
{
    struct rtc *d = dev;

    for (uint32_t i = 0; i < len; i++, off++) {
        if (off == 0 && write)
            d->s.index = data[i] & 0x7f;        /* bit 7 is the NMI mask */
        else if (off == 0)
            data[i] = 0xff;
        else if (write)
            write_reg(d, data[i]);
        else
            data[i] = read_reg(d);
    }
}

static int save(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err)
{
    struct rtc *d = dev;

    d->s.wall_ns = rp_wall_ns();
    return rp_sections_add(out, &rp_rtc_table, instance, &d->s, err);
}

static int load(void *dev, const struct rp_section *sec, struct rp_error *err)
{
    struct rtc *d = dev;
    struct rp_rtc_state s = {0};
    int rc = rp_section_decode(&rp_rtc_table, sec, &s, err);

    if (rc < 0)
        return rc;
    if (s.index > 127)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "rtc: index %u", s.index);
    d->s = s;
    d->next_second = (uint64_t)(s.wall_ns + s.offset_ns) / NS + 1;
    if (!d->follow)     /* its clock goes on from where it was */
        d->s.offset_ns += s.wall_ns - rp_wall_ns();
    return 0;
}

/* Seconds that began while it stood still, or was on its way here, are caught up with. */
static void start(void *dev)
{
    struct rtc *d = dev;
    uint8_t b = d->s.cmos[REG_B];

    if ((b & (B_UIE | B_AIE)) && !(b & B_SET) && now_ns(d) / NS >= d->next_second)
        tick(d);
    else
        rearm(d);
}

static void stop(void *dev)
{
    struct rtc *d = dev;

    rp_timer_disarm(d->timer);
}

static void reset(void *dev)
{
    struct rtc *d = dev;

    d->s.cmos[REG_A] = A_DEFAULT;
    d->s.cmos[REG_B] = B_24H;
    d->s.cmos[REG_C] = 0;
    rp_timer_disarm(d->timer);
    if (d->irqs)
        rp_irq_line(d->irqs, RP_RTC_IRQ, false);
}

static void destroy(void *dev)
{
    struct rtc *d = dev;

    rp_bus_remove(d->pio, RP_RTC_PORT);
    rp_timer_destroy(d->timer);
    free(d);
}

static const struct rp_device_ops ops = {.save = save, .load = load, .reset = reset, .start = start, .stop = stop, .destroy = destroy};

int rp_rtc_create(struct rp_bus *pio, struct rp_irqs *irqs, struct rp_loop *loop, bool follow, struct rp_device *out,
                  struct rp_error *err)
{
    struct rtc *d = calloc(1, sizeof *d);
    int rc = -ENOMEM;

    if (!d)
        goto fail;
    d->pio = pio;
    d->irqs = irqs;
    d->follow = follow;
    rc = rp_timer_create(loop, tick, d, &d->timer);
    if (rc == 0)
        rc = rp_bus_add(pio, RP_RTC_PORT, 2, access, d);
    if (rc < 0)
        goto fail;
    reset(d);
    *out = (struct rp_device){.section = rp_rtc_table.name, .ops = &ops, .dev = d};
    return 0;
fail:
    if (d)
        rp_timer_destroy(d->timer);
    free(d);
    return rp_error_set(err, rc, "rtc: cannot be made");
}
