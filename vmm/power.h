/*
 * power.h - the ways out: ACPI PM1 (power off, power button, PM timer), the reset control register 0xcf9, the keyboard
 * controller's reset pulse. Machine lock held. Source: ACPI 6.5 chapter 4.8; ICH9 data sheet (0xcf9, PM block at 0x600).
 */
#ifndef RP_VMM_POWER_H
#define RP_VMM_POWER_H

#include "core/state.h"
#include "vmm/bus.h"
#include "vmm/device.h"
#include "vmm/irq.h"

#define RP_PM_PORT 0x600            /* PM1a event block; control at +4; timer at +8 */
#define RP_PM1_CNT_PORT (RP_PM_PORT + 4)
#define RP_PM_TIMER_PORT (RP_PM_PORT + 8)
#define RP_GPE0_PORT (RP_PM_PORT + 0x20)    /* status byte, enable byte */
#define RP_SCI_IRQ 9
#define RP_RESET_PORT 0xcf9
#define RP_RESET_VALUE 0x06

extern const struct rp_state_table rp_power_table;

struct rp_power;
struct rp_power_ops {               /* machine lock held: ask, do not do */
    void *ctx;
    void (*off)(void *ctx);
    void (*reset)(void *ctx);
};

int rp_power_create(struct rp_bus *pio, struct rp_irqs *irqs, const struct rp_power_ops *ops, struct rp_power **out,
                    struct rp_device *dev, struct rp_error *err) RP_MUST_CHECK;
void rp_power_button(struct rp_power *p);
/* General-purpose event `bit` (0-7) becomes pending: \_GPE._E0n runs in the guest. */
void rp_power_gpe(struct rp_power *p, unsigned bit);
/* A write to port 0xcf9, which PCI's configuration ports enclose. */
void rp_power_reset_port(void *p, uint8_t value);

#endif
