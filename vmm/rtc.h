/*
 * rtc.h - MC146818 real-time clock and CMOS RAM at ports 0x70/0x71, IRQ 8. Its time is the host's wall clock plus an
 * offset that the guest sets. After a restore it shows the host's time again unless the wall clock is to stay
 * (machine.h, wall_clock_follows). Machine lock held. Source: MC146818A data sheet; ACPI (century byte 0x32).
 */
#ifndef RP_VMM_RTC_H
#define RP_VMM_RTC_H

#include "core/state.h"
#include "vmm/bus.h"
#include "vmm/device.h"
#include "vmm/irq.h"
#include "vmm/loop.h"

#define RP_RTC_PORT 0x70
#define RP_RTC_IRQ 8
#define RP_RTC_CENTURY 0x32

extern const struct rp_state_table rp_rtc_table;

/* `irqs` NULL (tests): no interrupts. `follow`: a loaded clock shows the host's time of then on. */
int rp_rtc_create(struct rp_bus *pio, struct rp_irqs *irqs, struct rp_loop *loop, bool follow, struct rp_device *out,
                  struct rp_error *err) RP_MUST_CHECK;

#endif
