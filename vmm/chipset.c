/* KVM's interrupt controllers and interval timer; see chipset.h. */
#include "vmm/chipset.h"

#include <assert.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <sys/ioctl.h>

struct rp_pic_state {
    uint8_t last_irr, irr, imr, isr, priority_add, irq_base, read_reg_select, poll, special_mask, init_state, auto_eoi,
        rotate_on_auto_eoi, special_fully_nested_mode, init4, elcr, elcr_mask;
};
struct rp_irqchip_state {
    struct rp_pic_state pic[2];
    uint64_t ioapic_base;
    uint32_t ioregsel, id, irr, pad;
    uint64_t redirection[KVM_IOAPIC_NUM_PINS];
};
struct rp_pit_channel_state {
    uint32_t count;
    uint16_t latched_count;
    uint8_t count_latched, status_latched, status, read_state, write_state, write_latch, rw_mode, mode, bcd, gate;
};
struct rp_pit_state { struct rp_pit_channel_state channels[3]; uint32_t flags; };

#define P(m, tag) RP_U8(struct rp_pic_state, m, tag)
RP_TABLE(pic_table, "pic", 1, struct rp_pic_state,
    P(last_irr, 1), P(irr, 2), P(imr, 3), P(isr, 4), P(priority_add, 5), P(irq_base, 6), P(read_reg_select, 7), P(poll, 8),
    P(special_mask, 9), P(init_state, 10), P(auto_eoi, 11), P(rotate_on_auto_eoi, 12), P(special_fully_nested_mode, 13),
    P(init4, 14), P(elcr, 15), P(elcr_mask, 16));
#define I struct rp_irqchip_state
RP_TABLE(rp_irqchip_table, "irqchip", 1, I,
    {.tag = 1, .kind = RP_F_STRUCT, .name = "pic", .offset = offsetof(I, pic), .count = 2, .table = &pic_table},
    RP_U64(I, ioapic_base, 2), RP_U32(I, ioregsel, 3), RP_U32(I, id, 4), RP_U32(I, irr, 5), RP_PAD(I, pad),
    RP_ARRAY(I, redirection, 6, RP_F_U64));
#undef I
#define C(m, tag, w) RP_##w(struct rp_pit_channel_state, m, tag)
RP_TABLE(channel_table, "pit-channel", 1, struct rp_pit_channel_state,
    C(count, 1, U32), C(latched_count, 2, U16), C(count_latched, 3, U8), C(status_latched, 4, U8), C(status, 5, U8),
    C(read_state, 6, U8), C(write_state, 7, U8), C(write_latch, 8, U8), C(rw_mode, 9, U8), C(mode, 10, U8), C(bcd, 11, U8),
    C(gate, 12, U8));
RP_TABLE(rp_pit_table, "pit", 1, struct rp_pit_state,
    {.tag = 1, .kind = RP_F_STRUCT, .name = "channels", .offset = 0, .count = 3, .table = &channel_table},
    RP_U32(struct rp_pit_state, flags, 2));

struct chipset {
    int vmfd;               /* borrowed */
    struct rp_irqchip_state irqchip_at_reset;
    struct rp_pit_state pit_at_reset;
};

/* --- PICs and IOAPIC --- */

static int get_irqchip(int vmfd, struct rp_irqchip_state *s, struct rp_error *err)
{
    struct kvm_irqchip c = {0};

    static_assert(sizeof(struct kvm_pic_state) == sizeof s->pic[0], "one byte per field, in KVM's order");
    for (uint32_t i = 0; i < 3; i++) {
        c.chip_id = i;
        if (ioctl(vmfd, KVM_GET_IRQCHIP, &c) != 0)
            return rp_error_set(err, errno, "KVM_GET_IRQCHIP %u: %m", i);
        if (i < 2)
            memcpy(&s->pic[i], &c.chip.pic, sizeof s->pic[i]);
    }
    s->ioapic_base = c.chip.ioapic.base_address;
    s->ioregsel = c.chip.ioapic.ioregsel;
    s->id = c.chip.ioapic.id;
    s->irr = c.chip.ioapic.irr;
    for (int i = 0; i < KVM_IOAPIC_NUM_PINS; i++)
        s->redirection[i] = c.chip.ioapic.redirtbl[i].bits;
    return 0;
}

static int set_irqchip(int vmfd, const struct rp_irqchip_state *s, struct rp_error *err)
{
    struct kvm_irqchip c = {0};

    for (uint32_t i = 0; i < 3; i++) {
        memset(&c, 0, sizeof c);
        c.chip_id = i;
        if (i < 2) {
            memcpy(&c.chip.pic, &s->pic[i], sizeof c.chip.pic);
        } else {
            c.chip.ioapic.base_address = s->ioapic_base;
            c.chip.ioapic.ioregsel = s->ioregsel;
            c.chip.ioapic.id = s->id;
            c.chip.ioapic.irr = s->irr;
            for (int k = 0; k < KVM_IOAPIC_NUM_PINS; k++)
                c.chip.ioapic.redirtbl[k].bits = s->redirection[k];
        }
        if (ioctl(vmfd, KVM_SET_IRQCHIP, &c) != 0)
            return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "irqchip %u: KVM refuses its state: %m", i);
    }
    return 0;
}

static int save_irqchip(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err)
{
    const struct chipset *d = dev;
    struct rp_irqchip_state s = {0};
    int rc = get_irqchip(d->vmfd, &s, err);

    return rc < 0 ? rc : rp_sections_add(out, &rp_irqchip_table, instance, &s, err);
}

static int load_irqchip(void *dev, const struct rp_section *sec, struct rp_error *err)
{
    const struct chipset *d = dev;
    struct rp_irqchip_state s = {0};
    int rc = rp_section_decode(&rp_irqchip_table, sec, &s, err);

    return rc < 0 ? rc : set_irqchip(d->vmfd, &s, err);
}

static void reset_irqchip(void *dev)
{
    const struct chipset *d = dev;

    (void)set_irqchip(d->vmfd, &d->irqchip_at_reset, NULL);
}

static void destroy_irqchip(void *dev)
{
    free(dev);
}

static const struct rp_device_ops irqchip_ops = {
    .save = save_irqchip, .load = load_irqchip, .reset = reset_irqchip, .destroy = destroy_irqchip};

/* --- PIT. count_load_time is host time; KVM sets it anew when the state is loaded. --- */

static int get_pit(int vmfd, struct rp_pit_state *s, struct rp_error *err)
{
    struct kvm_pit_state2 k;

    if (ioctl(vmfd, KVM_GET_PIT2, &k) != 0)
        return rp_error_set(err, errno, "KVM_GET_PIT2: %m");
    s->flags = k.flags;
    for (int i = 0; i < 3; i++)
        s->channels[i] = (struct rp_pit_channel_state){
            .count = k.channels[i].count, .latched_count = k.channels[i].latched_count,
            .count_latched = k.channels[i].count_latched, .status_latched = k.channels[i].status_latched,
            .status = k.channels[i].status, .read_state = k.channels[i].read_state,
            .write_state = k.channels[i].write_state, .write_latch = k.channels[i].write_latch,
            .rw_mode = k.channels[i].rw_mode, .mode = k.channels[i].mode, .bcd = k.channels[i].bcd, .gate = k.channels[i].gate};
    return 0;
}

static int set_pit(int vmfd, const struct rp_pit_state *s, struct rp_error *err)
{
    struct kvm_pit_state2 k = {.flags = s->flags};

    for (int i = 0; i < 3; i++)
        k.channels[i] = (struct kvm_pit_channel_state){
            .count = s->channels[i].count, .latched_count = s->channels[i].latched_count,
            .count_latched = s->channels[i].count_latched, .status_latched = s->channels[i].status_latched,
            .status = s->channels[i].status, .read_state = s->channels[i].read_state,
            .write_state = s->channels[i].write_state, .write_latch = s->channels[i].write_latch,
            .rw_mode = s->channels[i].rw_mode, .mode = s->channels[i].mode, .bcd = s->channels[i].bcd, .gate = s->channels[i].gate};
    if (ioctl(vmfd, KVM_SET_PIT2, &k) != 0)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "pit: KVM refuses its state: %m");
    return 0;
}

static int save_pit(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err)
{
    const struct chipset *d = dev;
    struct rp_pit_state s = {0};
    int rc = get_pit(d->vmfd, &s, err);

    return rc < 0 ? rc : rp_sections_add(out, &rp_pit_table, instance, &s, err);
}

static int load_pit(void *dev, const struct rp_section *sec, struct rp_error *err)
{
    const struct chipset *d = dev;
    struct rp_pit_state s = {0};
    int rc = rp_section_decode(&rp_pit_table, sec, &s, err);

    return rc < 0 ? rc : set_pit(d->vmfd, &s, err);
}

static void reset_pit(void *dev)
{
    const struct chipset *d = dev;

    (void)set_pit(d->vmfd, &d->pit_at_reset, NULL);
}

static const struct rp_device_ops pit_ops = {.save = save_pit, .load = load_pit, .reset = reset_pit};

int rp_chipset_create(int vmfd, struct rp_device out[2], struct rp_error *err)
{
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    struct chipset *d;
    int rc;

    if (ioctl(vmfd, KVM_CREATE_IRQCHIP, 0) != 0)
        return rp_error_exit(err, RP_EXIT_HOST, errno, "KVM_CREATE_IRQCHIP: %m");
    if (ioctl(vmfd, KVM_CREATE_PIT2, &pit) != 0)
        return rp_error_exit(err, RP_EXIT_HOST, errno, "KVM_CREATE_PIT2: %m");
    d = calloc(1, sizeof *d);
    if (!d)
        return rp_error_set(err, ENOMEM, "chipset: out of memory");
    d->vmfd = vmfd;
    rc = get_irqchip(vmfd, &d->irqchip_at_reset, err);
    if (rc == 0)
        rc = get_pit(vmfd, &d->pit_at_reset, err);
    if (rc < 0) {
        free(d);
        return rc;
    }
    out[0] = (struct rp_device){.section = rp_irqchip_table.name, .ops = &irqchip_ops, .dev = d};
    out[1] = (struct rp_device){.section = rp_pit_table.name, .ops = &pit_ops, .dev = d};
    return 0;
}
