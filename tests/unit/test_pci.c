/* PCI configuration space, BARs, MSI-X and the virtio transport's registers, without KVM. */
#include "tests/unit/guest_driver.h"

#include <errno.h>

static struct board board;

struct probe {              /* a virtio device that only counts */
    struct rp_virtio v;
    unsigned notified, resets, oks;
    uint8_t config[8];
};
static struct probe probe;

static void probe_notify(void *dev, unsigned queue) { (void)queue; ((struct probe *)dev)->notified++; }
static void probe_reset(void *dev) { ((struct probe *)dev)->resets++; }
static void probe_ok(void *dev) { ((struct probe *)dev)->oks++; }
static void probe_read(void *dev, uint32_t off, uint8_t *data, uint32_t len)
{
    for (uint32_t i = 0; i < len && off + i < 8; i++)
        data[i] = ((struct probe *)dev)->config[off + i];
}
static const struct rp_virtio_ops probe_ops = {
    .notify = probe_notify, .config_read = probe_read, .driver_ok = probe_ok, .reset = probe_reset};

static void make_probe(struct probe *p, unsigned slot)
{
    struct rp_error err = {0};
    struct rp_virtio_config cfg = {.name = "probe", .type = 4, .class_code = 0x00ff00, .features = 1ull << 5,
                                   .nqueues = 2, .queue_size = 64, .ops = &probe_ops, .dev = p};

    memset(p, 0, sizeof(*p));
    cr_assert_eq(rp_virtio_init(&p->v, &board.env, slot, &cfg, &err), 0, "%s", err.text);
}

static void setup(void)
{
    board_make(&board, 4u << 20);
    make_probe(&probe, 3);
    rp_virtio_start(&probe.v);
}
static void teardown(void)
{
    rp_virtio_fini(&probe.v);
    board_free(&board);
}
TestSuite(pci, .init = setup, .fini = teardown);

Test(pci, empty_slots_read_all_ones_and_bridge_is_there)
{
    cr_assert_eq(cfg_get(&board, 7, 0, 4), 0xffffffffu);
    cr_assert_eq(cfg_get(&board, 0, PCI_CLASS_DEVICE, 2), 0x0600u);
    cr_assert_eq(cfg_get(&board, 3, 0, 4), 0x10441af4u);
    cr_assert_eq(cfg_get(&board, 3, 0x100, 4), 0u, "no extended capabilities");
}

Test(pci, cf8_reaches_the_same_registers)
{
    uint8_t d[4];

    rp_st32(d, 0x80000000u | 3u << 11);
    rp_bus_access(&board.pio, 0xcf8, d, 4, true);
    memset(d, 0, 4);
    rp_bus_access(&board.pio, 0xcfe, d, 2, false);
    cr_assert_eq(rp_ld16(d), 0x1044);
    rp_st32(d, 0x80000000u | 1u << 16 | 3u << 11);     /* bus 1 */
    rp_bus_access(&board.pio, 0xcf8, d, 4, true);
    rp_bus_access(&board.pio, 0xcfc, d, 4, false);
    cr_assert_eq(rp_ld32(d), 0xffffffffu);
}

Test(pci, read_only_registers_stay)
{
    for (uint32_t off = 0; off < 256; off += 4) {
        if (off == PCI_COMMAND || (off >= 0x10 && off < 0x28) || off == PCI_CACHE_LINE_SIZE || off == PCI_INTERRUPT_LINE)
            continue;
        uint32_t before = cfg_get(&board, 0, off, 4);

        cfg_set(&board, 0, off, 4, ~before);
        cr_assert_eq(cfg_get(&board, 0, off, 4), before, "offset 0x%x", off);
    }
}

Test(pci, bar_is_sized_and_moved)
{
    uint64_t was = cfg_get(&board, 3, PCI_BASE_ADDRESS_0, 4), to = RP_PCI_MMIO_START + 0x1000000;

    cfg_set(&board, 3, PCI_COMMAND, 2, 0);
    cfg_set(&board, 3, PCI_BASE_ADDRESS_0, 4, 0xffffffff);
    cr_assert_eq(cfg_get(&board, 3, PCI_BASE_ADDRESS_0, 4), 0xffff8000u);
    cr_assert_eq(cfg_get(&board, 3, PCI_BASE_ADDRESS_1, 4), 0u);
    cfg_set(&board, 3, PCI_BASE_ADDRESS_0, 4, (uint32_t)to);
    cfg_set(&board, 3, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    cr_assert_eq(mmio_get(&board, was + VIRTIO_PCI_COMMON_NUMQ, 2), 0xffffu, "the old place is empty");
    cr_assert_eq(mmio_get(&board, to + VIRTIO_PCI_COMMON_NUMQ, 2), 2u);
    cfg_set(&board, 3, PCI_COMMAND, 2, 0);
    cr_assert_eq(mmio_get(&board, to + VIRTIO_PCI_COMMON_NUMQ, 2), 0xffffu, "decoding is off");
}

Test(pci, bar_outside_the_window_or_over_another_is_not_decoded)
{
    static struct probe other;
    uint32_t a, b;

    make_probe(&other, 4);
    a = cfg_get(&board, 3, PCI_BASE_ADDRESS_0, 4);
    b = cfg_get(&board, 4, PCI_BASE_ADDRESS_0, 4);
    cfg_set(&board, 3, PCI_BASE_ADDRESS_0, 4, 0);               /* over RAM */
    cr_assert_eq(mmio_get(&board, a, 4), 0xffffffffu);
    cfg_set(&board, 3, PCI_BASE_ADDRESS_0, 4, 0xfee00000);      /* over the LAPIC */
    cr_assert_eq(mmio_get(&board, 0xfee00000, 4), 0xffffffffu);
    cfg_set(&board, 3, PCI_BASE_ADDRESS_0, 4, b);               /* over the other one: it stays */
    cr_assert_eq(mmio_get(&board, b + VIRTIO_PCI_COMMON_NUMQ, 2), 2u);
    cfg_set(&board, 4, PCI_BASE_ADDRESS_0, 4, a);               /* gone: the first appears */
    cr_assert_eq(mmio_get(&board, b + VIRTIO_PCI_COMMON_NUMQ, 2), 2u);
    cr_assert_eq(mmio_get(&board, a + VIRTIO_PCI_COMMON_NUMQ, 2), 2u);
    rp_virtio_fini(&other.v);
}

Test(pci, msix_mask_pending_and_table)
{
    struct drv d;

    drv_find(&d, &board, 3);
    mmio_set(&board, d.table + 16, 8, 0xfee01000);
    mmio_set(&board, d.table + 24, 4, 0x41);
    cr_assert_eq(mmio_get(&board, d.table + 28, 4), 1u, "masked at reset");
    cr_assert_eq(mmio_get(&board, d.table + 16, 4), 0xfee01000u);
    rp_pci_msix_signal(&probe.v.pci, 1);
    cr_assert_eq(mmio_get(&board, d.pba, 8), 2u);
    rp_pci_msix_signal(&probe.v.pci, 99);
    mmio_get(&board, d.table + 3 * 16 - 4, 8);      /* crosses the end: nothing happens */
    mmio_set(&board, d.table + 12, 8, ~0ull);
}

Test(pci, features_that_were_not_offered_do_not_stick)
{
    struct drv d;

    drv_find(&d, &board, 3);
    cr_assert(drv_offered(&d) & 1ull << VIRTIO_RING_F_EVENT_IDX);
    cr_assert(drv_negotiate(&d, 1ull << 5));
    cr_assert_not(drv_negotiate(&d, 1ull << 6), "VIRTIO-3");
    drv_status(&d, 0x0f);
    cr_assert_eq(drv_get_status(&d) & VIRTIO_CONFIG_S_DRIVER_OK, 0);
}

/* Virtio 1.2, 2.1.1: the driver must not clear a status bit. One that does has no other features in the middle of its work. */
Test(pci, what_was_agreed_on_stays_until_a_reset)
{
    struct drv d;
    uint8_t running;

    drv_up(&d, &board, 3, 1ull << 5);
    running = drv_get_status(&d);
    drv_status(&d, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    mmio_set(&board, d.common + VIRTIO_PCI_COMMON_GFSELECT, 4, 0);
    mmio_set(&board, d.common + VIRTIO_PCI_COMMON_GF, 4, 0);
    cr_assert_eq(probe.v.driver_features, 1ull << 5 | 1ull << VIRTIO_F_VERSION_1);
    cr_assert_eq(drv_get_status(&d), running);
    drv_status(&d, 0);
    cr_assert_eq(drv_get_status(&d), 0);
}

/* A driver may write what it likes until it asks for FEATURES_OK, and a cut can come then. */
Test(pci, features_that_were_never_agreed_on_travel)
{
    static struct rp_virtio_state s;
    struct rp_error err = {0};
    struct drv d;

    drv_find(&d, &board, 3);
    cr_assert_not(drv_negotiate(&d, ~0ull));
    rp_virtio_save(&probe.v, &s);
    cr_assert_eq(rp_virtio_load(&probe.v, &s, &err), 0, "%s", err.text);
    s.status |= VIRTIO_CONFIG_S_DRIVER_OK;
    cr_assert_eq(rp_virtio_load(&probe.v, &s, &err), -EBADMSG, "VIRTIO-3");
}

Test(pci, driver_comes_up_and_kicks_reach_the_device)
{
    struct drv d;
    struct rp_error err = {0};

    probe.config[3] = 0x77;
    drv_up(&d, &board, 3, 1ull << VIRTIO_RING_F_EVENT_IDX);
    cr_assert_eq(probe.oks, 1u);
    cr_assert_eq(mmio_get(&board, d.device + 3, 1), 0x77u);
    cr_assert_eq(rp_loop_start(board.loop, &err), 0);
    drv_kick(&d, 1);
    for (int i = 0; i < 1000 && __atomic_load_n(&probe.notified, __ATOMIC_SEQ_CST) < 2; i++)
        usleep(1000);
    rp_loop_stop(board.loop);
    cr_assert_geq(probe.notified, 2u, "both queues are looked at on DRIVER_OK");
}

Test(pci, a_queue_outside_ram_needs_reset)
{
    struct drv d;

    drv_find(&d, &board, 3);
    cr_assert(drv_negotiate(&d, 0));
    mmio_set(&board, d.common + VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
    mmio_set(&board, d.common + VIRTIO_PCI_COMMON_Q_DESCLO, 4, 0xfffff000);
    mmio_set(&board, d.common + VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    cr_assert(drv_get_status(&d) & VIRTIO_CONFIG_S_NEEDS_RESET);
    drv_status(&d, 0);
    cr_assert_eq(drv_get_status(&d), 0);
}

/* INV-7: what happened to the VM is not the guest's to push out of its history. */
Test(pci, a_device_that_is_broken_again_and_again_leaves_the_history)
{
    struct rp_events *events;
    struct drv d;

    cr_assert_eq(rp_events_create(256, &events), 0);
    rp_events_emit(events, 1, "TAKEOVER", "{}");
    probe.v.env.events = events;
    drv_find(&d, &board, 3);
    for (unsigned i = 0; i < 1000; i++) {
        cr_assert(drv_negotiate(&d, 0));
        mmio_set(&board, d.common + VIRTIO_PCI_COMMON_Q_DESCLO, 4, 0xfffff000);
        mmio_set(&board, d.common + VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
        cr_assert(drv_get_status(&d) & VIRTIO_CONFIG_S_NEEDS_RESET);
    }
    cr_assert_geq(rp_events_count(events), 2u, "it is said");
    cr_assert_lt(rp_events_count(events), 256u);
    probe.v.env.events = NULL;
    rp_events_destroy(events);
}

Test(pci, configuration_access_capability_reads_the_bar)
{
    uint32_t cap = cfg_get(&board, 3, PCI_CAPABILITY_LIST, 1);

    while (cap && !(cfg_get(&board, 3, cap, 1) == PCI_CAP_ID_VNDR && cfg_get(&board, 3, cap + 3, 1) == VIRTIO_PCI_CAP_PCI_CFG))
        cap = cfg_get(&board, 3, cap + 1, 1);
    cr_assert_neq(cap, 0u);
    cfg_set(&board, 3, cap + 8, 4, VIRTIO_PCI_COMMON_NUMQ);
    cfg_set(&board, 3, cap + 12, 4, 2);
    cr_assert_eq(cfg_get(&board, 3, cap + 16, 2), 2u);
    cfg_set(&board, 3, cap + 8, 4, 0xfffffffe);
    cr_assert_eq(cfg_get(&board, 3, cap + 16, 2), 0xffffu);
    cfg_set(&board, 3, cap + 4, 1, 77);
    cfg_get(&board, 3, cap + 16, 4);
}

Test(pci, state_travels)
{
    struct drv d;
    static struct rp_virtio_state s, t;
    static struct probe other;
    struct rp_buf b = {0};
    struct rp_error err = {0};

    drv_up(&d, &board, 3, 1ull << 5);
    mmio_set(&board, d.table + 16, 4, 0xfee01000);
    rp_virtio_save(&probe.v, &s);
    rp_state_encode(&rp_virtio_state_table, &s, &b);
    make_probe(&other, 4);
    rp_virtio_save(&other.v, &t);
    cr_assert_eq(rp_state_decode(&rp_virtio_state_table, &t, b.data, b.len, &err), 0, "%s", err.text);
    t.pci.config[PCI_DEVICE_ID] ^= 1;
    cr_assert_eq(rp_virtio_load(&other.v, &t, &err), -EBADMSG);
    t.pci.config[PCI_DEVICE_ID] ^= 1;
    t.driver_features |= 1ull << 40;
    cr_assert_eq(rp_virtio_load(&other.v, &t, &err), -EBADMSG);
    t.driver_features = s.driver_features;
    t.queues[0].used_gpa = 1ull << 50;
    cr_assert_eq(rp_virtio_load(&other.v, &t, &err), -EBADMSG);
    cr_assert(strstr(err.text, "used ring"), "%s", err.text);
    t.queues[0].used_gpa = s.queues[0].used_gpa;
    rp_virtio_fini(&probe.v);           /* its BAR is free: the other takes its place */
    cr_assert_eq(rp_virtio_load(&other.v, &t, &err), 0, "%s", err.text);
    rp_virtio_save(&other.v, &t);
    cr_assert_eq(rp_state_diff(&rp_virtio_state_table, &s, &t, stderr, 0), 0);
    rp_buf_fini(&b);
    rp_virtio_fini(&other.v);
    make_probe(&probe, 3);
}

Test(pci, tables_tile_their_structs)
{
    struct rp_error err = {0};

    cr_assert_eq(rp_state_check(&rp_pci_state_table, &err), 0, "%s", err.text);
    cr_assert_eq(rp_state_check(&rp_pci_host_table, &err), 0, "%s", err.text);
    cr_assert_eq(rp_state_check(&rp_virtio_state_table, &err), 0, "%s", err.text);
    cr_assert_eq(rp_state_check(&rp_virtq_state_table, &err), 0, "%s", err.text);
}

/* Random accesses to all of ECAM, CF8/CFC and the BAR window: whatever the guest does, no crash. */
Test(pci, random_accesses_never_crash)
{
    unsigned seed = 4711;
    static const uint32_t lens[] = {1, 2, 4, 8};

    for (int i = 0; i < 200000; i++) {
        uint8_t data[8];
        uint32_t len = lens[rand_r(&seed) % 4];
        bool write = rand_r(&seed) & 1;

        for (int k = 0; k < 8; k++)
            data[k] = (uint8_t)(rand_r(&seed) % 3 ? rand_r(&seed) : 0xff);
        switch (rand_r(&seed) % 3) {
        case 0: rp_bus_access(&board.mmio, RP_PCI_ECAM_START + (rand_r(&seed) % 2 ? 3u << 15 : 0) + (unsigned)rand_r(&seed) % 0x1000, data, len, write); break;
        case 1: rp_bus_access(&board.pio, 0xcf8 + (unsigned)rand_r(&seed) % 8, data, len, write); break;
        default: rp_bus_access(&board.mmio, RP_PCI_MMIO_START + (unsigned)rand_r(&seed) % 0x8000, data, len, write); break;
        }
    }
}
