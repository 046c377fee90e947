/*
 * irq.h - interrupts into the in-kernel irqchip: ISA/PCI lines as GSIs, MSI through routes and irqfds.
 * Routes are the machine's; a device asks for one per MSI-X vector and changes it when the guest writes the vector.
 */
#ifndef RP_VMM_IRQ_H
#define RP_VMM_IRQ_H

#include "core/error.h"

#include <stdbool.h>
#include <stdint.h>

struct rp_irqs;     /* vmm/irq.c: vm fd, routing table; machine lock */

/* `vmfd`: a VM with an in-kernel irqchip; borrowed, closed after rp_irqs_destroy. */
int rp_irqs_create(int vmfd, struct rp_irqs **out, struct rp_error *err) RP_MUST_CHECK;
void rp_irqs_destroy(struct rp_irqs *q);

/* Level or edge of a pin (KVM_IRQ_LINE). */
void rp_irq_line(struct rp_irqs *q, uint32_t gsi, bool level);

/* An MSI route with an irqfd: signalling is one eventfd write, from any thread. Returns a handle >= 0 or -errno. */
int rp_irq_route_add(struct rp_irqs *q, struct rp_error *err) RP_MUST_CHECK;
void rp_irq_route_del(struct rp_irqs *q, int route);
/* Points it at addr/data; `masked`: the irqfd is out of KVM; signals are the caller's to remember (pending bit). */
int rp_irq_route_set(struct rp_irqs *q, int route, uint64_t addr, uint32_t data, bool masked, struct rp_error *err) RP_MUST_CHECK;
void rp_irq_route_signal(struct rp_irqs *q, int route);

/* ioeventfd: a guest write of `len` bytes (0: any) at addr signals fd without an exit to user space. */
int rp_irq_ioeventfd(struct rp_irqs *q, int fd, uint64_t addr, uint32_t len, bool pio, bool add, struct rp_error *err) RP_MUST_CHECK;

#endif
