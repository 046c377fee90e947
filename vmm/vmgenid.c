/* VM generation id; see vmgenid.h. */
#include "vmm/vmgenid.h"

#include "vmm/acpi.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

struct rp_vmgenid_state { uint8_t id[16]; };
RP_TABLE(rp_vmgenid_table, "vmgenid", 1, struct rp_vmgenid_state, RP_BYTES(struct rp_vmgenid_state, id, 1));

struct rp_vmgenid {
    struct rp_vmgenid_state s;
    struct rp_guest_ram *ram;
    struct rp_power *power;
};

static void choose(struct rp_vmgenid *g)
{
    while (getrandom(g->s.id, sizeof g->s.id, 0) != (ssize_t)sizeof g->s.id)
        ;
}

int rp_vmgenid_place(struct rp_vmgenid *g, struct rp_error *err)
{
    if (rp_ram_write(g->ram, rp_gpa(RP_VMGENID_GPA), g->s.id, sizeof g->s.id) < 0)
        return rp_error_set(err, EFAULT, "vmgenid: guest RAM ends before 1 MiB");
    return 0;
}

void rp_vmgenid_renew(struct rp_vmgenid *g)
{
    choose(g);
    if (rp_vmgenid_place(g, NULL) == 0)
        rp_power_gpe(g->power, RP_ACPI_GPE_VMGENID);
}

static int save(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err)
{
    const struct rp_vmgenid *g = dev;

    return rp_sections_add(out, &rp_vmgenid_table, instance, &g->s, err);
}

static int load(void *dev, const struct rp_section *sec, struct rp_error *err)
{
    struct rp_vmgenid *g = dev;

    return rp_section_decode(&rp_vmgenid_table, sec, &g->s, err);
}

static void destroy(void *dev)
{
    free(dev);
}

static const struct rp_device_ops ops = {.save = save, .load = load, .destroy = destroy};

int rp_vmgenid_create(struct rp_guest_ram *ram, struct rp_power *power, struct rp_vmgenid **out, struct rp_device *dev,
                      struct rp_error *err)
{
    struct rp_vmgenid *g = calloc(1, sizeof *g);

    if (!g)
        return rp_error_set(err, ENOMEM, "vmgenid: out of memory");
    g->ram = ram;
    g->power = power;
    choose(g);
    *out = g;
    *dev = (struct rp_device){.section = rp_vmgenid_table.name, .ops = &ops, .dev = g};
    return 0;
}
