/* serial.h - a 16550A UART at an ISA port with a chardev behind it. Machine lock held. Source: PC16550D data sheet. */
#ifndef RP_VMM_SERIAL_H
#define RP_VMM_SERIAL_H

#include "core/state.h"
#include "vmm/bus.h"
#include "vmm/device.h"
#include "vmm/irq.h"
#include "vmm/loop.h"
#include "vmm/machine.h"

#define RP_COM1_PORT 0x3f8
#define RP_COM1_IRQ 4

extern const struct rp_state_table rp_serial_table;

/* `irqs` NULL (tests): no interrupts. The device's destroy op frees everything. */
int rp_serial_create(struct rp_bus *pio, struct rp_irqs *irqs, struct rp_loop *loop, const struct rp_chardev_config *cfg,
                     struct rp_device *out, struct rp_error *err) RP_MUST_CHECK;

#endif
