/* Interrupts into the in-kernel irqchip: the GSI routing table, irqfds and ioeventfds; see irq.h. */
#include "vmm/irq.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define IOAPIC_PINS 24
#define PIC_PINS 8
#define MSI_ROUTES_MAX 1024     /* KVM_MAX_IRQ_ROUTES is 4,096 */

struct route {
    bool used, assigned;        /* assigned: the irqfd is in KVM */
    bool masked, set;
    int fd;
    uint64_t addr;
    uint32_t data;
};

struct rp_irqs {                /* machine lock, except where said */
    int vmfd;                   /* borrowed */
    unsigned nroutes;           /* high-water mark */
    struct route routes[MSI_ROUTES_MAX];
};

int rp_irqs_create(int vmfd, struct rp_irqs **out, struct rp_error *err)
{
    struct rp_irqs *q = calloc(1, sizeof *q);

    if (!q)
        return rp_error_set(err, ENOMEM, "interrupts: out of memory");
    q->vmfd = vmfd;
    *out = q;
    return 0;
}

void rp_irqs_destroy(struct rp_irqs *q)
{
    if (!q)
        return;
    for (unsigned i = 0; i < q->nroutes; i++)
        if (q->routes[i].used)
            rp_irq_route_del(q, (int)i);
    free(q);
}

void rp_irq_line(struct rp_irqs *q, uint32_t gsi, bool level)
{
    struct kvm_irq_level l = {.irq = gsi, .level = level};

    (void)ioctl(q->vmfd, KVM_IRQ_LINE, &l);     /* fails only for a GSI that is not there */
}

static void put_pin(struct kvm_irq_routing *r, uint32_t gsi, uint32_t chip, uint32_t pin)
{
    r->entries[r->nr++] = (struct kvm_irq_routing_entry){
        .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = {.irqchip = chip, .pin = pin}};
}

/* The pins as a PC has them. IRQ 0 goes to IOAPIC pin 2 (MADT says so), pin 2 of the PIC is its cascade. */
static void put_pins(struct kvm_irq_routing *r)
{
    for (uint32_t i = 0; i < 2 * PIC_PINS; i++)
        if (i != 2)
            put_pin(r, i, i < PIC_PINS ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, i % PIC_PINS);
    for (uint32_t i = 0; i < IOAPIC_PINS; i++)
        if (i != 2)
            put_pin(r, i, KVM_IRQCHIP_IOAPIC, i == 0 ? 2 : i);
}

static int commit(struct rp_irqs *q, struct rp_error *err)
{
    size_t max = 2 * PIC_PINS + IOAPIC_PINS + q->nroutes;
    struct kvm_irq_routing *r = calloc(1, sizeof *r + max * sizeof r->entries[0]);
    int rc = 0;

    if (!r)
        return rp_error_set(err, ENOMEM, "interrupt routes: out of memory");
    put_pins(r);
    for (unsigned i = 0; i < q->nroutes; i++) {
        const struct route *rt = &q->routes[i];
        if (!rt->used || !rt->set)
            continue;
        r->entries[r->nr++] = (struct kvm_irq_routing_entry){
            .gsi = IOAPIC_PINS + i, .type = KVM_IRQ_ROUTING_MSI,
            .u.msi = {.address_lo = (uint32_t)rt->addr, .address_hi = (uint32_t)(rt->addr >> 32), .data = rt->data}};
    }
    if (ioctl(q->vmfd, KVM_SET_GSI_ROUTING, r) != 0)
        rc = rp_error_set(err, errno, "KVM_SET_GSI_ROUTING with %u entries: %m", r->nr);
    free(r);
    return rc;
}

static int assign(struct rp_irqs *q, unsigned route, bool on, struct rp_error *err)
{
    struct kvm_irqfd f = {.fd = (uint32_t)q->routes[route].fd, .gsi = IOAPIC_PINS + route,
                          .flags = on ? 0 : KVM_IRQFD_FLAG_DEASSIGN};

    if (q->routes[route].assigned == on)
        return 0;
    if (ioctl(q->vmfd, KVM_IRQFD, &f) != 0)
        return rp_error_set(err, errno, "KVM_IRQFD for route %u: %m", route);
    q->routes[route].assigned = on;
    return 0;
}

int rp_irq_route_add(struct rp_irqs *q, struct rp_error *err)
{
    unsigned i = 0;
    int fd;

    while (i < MSI_ROUTES_MAX && q->routes[i].used)
        i++;
    if (i == MSI_ROUTES_MAX)
        return rp_error_set(err, ENOSPC, "interrupt routes: all %d are taken", MSI_ROUTES_MAX);
    fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return rp_error_set(err, errno, "interrupt routes: eventfd: %m");
    q->routes[i] = (struct route){.used = true, .fd = fd};
    if (i >= q->nroutes)
        q->nroutes = i + 1;
    return (int)i;
}

void rp_irq_route_del(struct rp_irqs *q, int route)
{
    struct route *rt = &q->routes[route];

    if (!rt->used)
        return;
    (void)assign(q, (unsigned)route, false, NULL);
    close(rt->fd);
    *rt = (struct route){0};
    while (q->nroutes > 0 && !q->routes[q->nroutes - 1].used)
        q->nroutes--;
}

int rp_irq_route_set(struct rp_irqs *q, int route, uint64_t addr, uint32_t data, bool masked, struct rp_error *err)
{
    struct route *rt = &q->routes[route];
    struct route old = *rt;
    int rc;

    rt->masked = masked;
    if (rt->set && rt->addr == addr && rt->data == data)
        return assign(q, (unsigned)route, !masked, err);
    if (masked)     /* its route matters when it is unmasked; until then KVM need not know */
        return assign(q, (unsigned)route, false, err);
    rt->addr = addr;
    rt->data = data;
    rt->set = true;
    rc = commit(q, err);
    if (rc < 0) {
        *rt = old;
        return rc;
    }
    return assign(q, (unsigned)route, true, err);
}

void rp_irq_route_signal(struct rp_irqs *q, int route)
{
    uint64_t one = 1;

    (void)!write(q->routes[route].fd, &one, sizeof one);
}

int rp_irq_ioeventfd(struct rp_irqs *q, int fd, uint64_t addr, uint32_t len, bool pio, bool add, struct rp_error *err)
{
    struct kvm_ioeventfd io = {.addr = addr, .len = len, .fd = fd,
                               .flags = (pio ? KVM_IOEVENTFD_FLAG_PIO : 0u) | (add ? 0u : KVM_IOEVENTFD_FLAG_DEASSIGN)};

    if (ioctl(q->vmfd, KVM_IOEVENTFD, &io) != 0)
        return rp_error_set(err, errno, "KVM_IOEVENTFD at 0x%llx: %m", (unsigned long long)addr);
    return 0;
}
