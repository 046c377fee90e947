/*
 * All devices that need no KVM, as a guest reaches them: configuration space (ECAM, CF8/CFC), BARs, rings in hostile memory,
 * kicks, ACPI power ports, RTC, serial port; and as an epoch reaches them: sections. The input is a row of actions; one of them
 * brings a device up the way a driver does, so that what lies behind DRIVER_OK is reached.
 */
#include "tests/fuzz/fuzz.h"
#include "vmm/devices.h"
#include "vmm/power.h"
#include "vmm/rtc.h"
#include "vmm/serial.h"
#include "vmm/virtio_pci.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define RAM_BYTES (2u << 20)
#define DISK_BYTES (256u << 10)
#define SLOT_BLK 2u
#define SLOT_NET 3u
#define SLOT_RNG 4u
#define SLOT_BALLOON 5u
#define SLOT_CONSOLE 6u
#define SLOT_VSOCK 7u
#define SLOTS 8u
#define QUEUE_SPACE 0x8000u     /* rings of queue n of slot s: at ((s - SLOT_BLK) * 8 + n % 8) * QUEUE_SPACE */
#define CID 3u
#define ACTIONS_MAX 200u
#define DEVICES 9u

static struct {
    pthread_mutex_t lock;
    struct rp_guest_ram ram;
    struct rp_bus mmio, pio;
    struct rp_loop *loop;
    struct rp_pci_bus *pci;
    struct rp_power *power;
    struct rp_device_env env;
    struct rp_device dev[DEVICES];
    uint64_t bar[SLOTS];        /* where each slot's BAR 0 was put */
    int wire;                   /* the other end of the network card */
    int terminal;               /* of the console */
    unsigned off, resets;
} b;

static void on_off(void *ctx) { (void)ctx; b.off++; }
static void on_reset(void *ctx) { (void)ctx; b.resets++; }

static int disk_file(void)
{
    int fd = memfd_create("disk", MFD_CLOEXEC);
    return fd >= 0 && ftruncate(fd, DISK_BYTES) == 0 ? fd : -1;
}

static int open_terminal(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    b.terminal = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return b.terminal < 0 ? -1 : connect(b.terminal, (struct sockaddr *)&a, sizeof(a));
}

static int make_devices(void)
{
    static const uint8_t mac[6] = {0x52, 0x54, 0, 1, 2, 3};
    struct rp_error err = {0};
    int pair[2];
    char folder[64], path[80];
    fz_folder(folder);
    snprintf(path, sizeof(path), "%s/console", folder);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        return -1;
    b.wire = pair[0];
    struct rp_disk_config disk = {.fd = disk_file(), .serial = "fuzz", .queues = 2};
    struct rp_nic_config nic = {.kind = RP_NIC_FD, .fd = pair[1], .queues = 1};
    struct rp_chardev_config null = {.kind = RP_SERIAL_NULL}, console = {.kind = RP_SERIAL_UNIX, .path = path};
    static const struct rp_power_ops power_ops = {.off = on_off, .reset = on_reset};
    int rc = rp_virtio_blk_create(&b.env, SLOT_BLK, &disk, &b.dev[0], &err);
    rc = rc ? rc : rp_virtio_net_create(&b.env, SLOT_NET, &nic, mac, &b.dev[1], &err);
    rc = rc ? rc : rp_virtio_rng_create(&b.env, SLOT_RNG, &b.dev[2], &err);
    rc = rc ? rc : rp_virtio_balloon_create(&b.env, SLOT_BALLOON, &b.dev[3], &err);
    rc = rc ? rc : rp_virtio_console_create(&b.env, SLOT_CONSOLE, &console, &b.dev[7], &err);
    rc = rc ? rc : rp_virtio_vsock_create(&b.env, SLOT_VSOCK, NULL, CID, &b.dev[8], &err);     /* the host's side: fuzz_vsock */
    rc = rc ? rc : open_terminal(path);
    rc = rc ? rc : rp_power_create(&b.pio, NULL, &power_ops, &b.power, &b.dev[4], &err);
    rc = rc ? rc : rp_rtc_create(&b.pio, NULL, b.loop, true, &b.dev[5], &err);
    rc = rc ? rc : rp_serial_create(&b.pio, NULL, b.loop, &null, &b.dev[6], &err);
    if (rc)
        fprintf(stderr, "devices: %s\n", err.text);
    return rc;
}

static uint32_t config(unsigned slot, uint32_t off, uint32_t len, bool write, uint32_t v)
{
    uint8_t d[8] = {0};
    rp_st32(d, v);
    rp_bus_access(&b.mmio, RP_PCI_ECAM_START + ((uint64_t)slot << 15) + off, d, len, write);
    return rp_ld32(d);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    setenv("REPRISE_LOG", "error", 1);
    struct rp_ram_config ram = {.size_bytes = RAM_BYTES};
    struct rp_error err = {0};
    pthread_mutex_init(&b.lock, NULL);
    if (rp_guest_ram_init(&b.ram, &ram, &err) || rp_loop_create(&b.lock, &b.loop, &err) ||
        rp_pci_bus_create(&b.mmio, &b.pio, NULL, &b.pci, &err))
        return -1;
    b.env = (struct rp_device_env){.ram = &b.ram, .pci = b.pci, .loop = b.loop, .vcpus = 2};
    if (rp_gate_create(b.loop, 1u << 20, &b.env.gate, &err) || make_devices())
        return -1;
    rp_pci_bus_reset_port(b.pci, rp_power_reset_port, b.power);
    for (unsigned s = SLOT_BLK; s < SLOTS; s++)
        b.bar[s] = config(s, PCI_BASE_ADDRESS_0, 4, false, 0) & ~15u;
    rp_ram_track(&b.ram, true);
    return 0;
}

/* --- actions; machine lock held --- */

static void bar(unsigned slot, uint32_t off, uint32_t len, bool write, uint64_t v)
{
    uint8_t d[8];
    rp_st64(d, v);
    rp_bus_access(&b.mmio, b.bar[slot] + off, d, len, write);
}

static uint64_t ring(unsigned slot, unsigned queue)
{
    return ((uint64_t)(slot - SLOT_BLK) * 8 + queue % 8) * QUEUE_SPACE;
}

/* What a driver does; the transport's registers lie at the BAR's beginning. */
static void bring_up(struct fz *f, unsigned slot)
{
    uint64_t features = fz_u64(f) | 1ull << VIRTIO_F_VERSION_1, offered = 0;
    unsigned queues = 1 + fz_u8(f) % 4;
    for (uint32_t i = 0; i < 2; i++) {
        uint8_t d[4] = {0};
        bar(slot, VIRTIO_PCI_COMMON_DFSELECT, 4, true, i);
        rp_bus_access(&b.mmio, b.bar[slot] + VIRTIO_PCI_COMMON_DF, d, 4, false);
        offered |= (uint64_t)rp_ld32(d) << 32 * i;
    }
    bar(slot, VIRTIO_PCI_COMMON_STATUS, 1, true, 0);
    bar(slot, VIRTIO_PCI_COMMON_STATUS, 1, true, 3);
    for (uint32_t i = 0; i < 2; i++) {
        bar(slot, VIRTIO_PCI_COMMON_GFSELECT, 4, true, i);
        bar(slot, VIRTIO_PCI_COMMON_GF, 4, true, (features & offered) >> 32 * i);
    }
    bar(slot, VIRTIO_PCI_COMMON_STATUS, 1, true, 11);
    for (unsigned n = 0; n < queues; n++) {
        uint64_t at = ring(slot, n);
        bar(slot, VIRTIO_PCI_COMMON_Q_SELECT, 2, true, n);
        bar(slot, VIRTIO_PCI_COMMON_Q_SIZE, 2, true, 1ull << fz_u8(f) % 9);
        bar(slot, VIRTIO_PCI_COMMON_Q_MSIX, 2, true, n + 1);
        bar(slot, VIRTIO_PCI_COMMON_Q_DESCLO, 8, true, at);
        bar(slot, VIRTIO_PCI_COMMON_Q_AVAILLO, 8, true, at + 0x2000);
        bar(slot, VIRTIO_PCI_COMMON_Q_USEDLO, 8, true, at + 0x4000);
        bar(slot, VIRTIO_PCI_COMMON_Q_ENABLE, 2, true, 1);
    }
    bar(slot, VIRTIO_PCI_COMMON_STATUS, 1, true, 15);
}

/* A chain of descriptors from `first` on, offered; lengths and addresses are the input's. */
static void post(struct fz *f, unsigned slot, unsigned queue)
{
    uint64_t at = ring(slot, queue);
    uint8_t *desc = rp_ram_at(&b.ram, rp_gpa(at), 0x2000), *avail = rp_ram_at(&b.ram, rp_gpa(at + 0x2000), 0x1000);
    unsigned first = fz_u8(f), n = 1 + fz_u8(f) % 20;
    if (!desc || !avail)
        return;
    for (unsigned i = 0; i < n; i++) {
        uint8_t *d = desc + 16 * ((first + i) % 256);
        rp_st64(d, 0x180000u + fz_u16(f) * 8u);
        rp_st32(d + 8, fz_u8(f) % 4 ? fz_u16(f) : fz_u8(f));
        rp_st16(d + 12, (uint16_t)((fz_u8(f) & 6) | (i + 1 < n)));
        rp_st16(d + 14, (uint16_t)((first + i + 1) % 256));
    }
    uint16_t idx = rp_ld16(avail + 2);
    rp_st16(avail + 4 + 2 * (idx % 256), (uint16_t)(first % 256));
    rp_st16(avail + 2, (uint16_t)(idx + 1));
}

/* A virtio-blk request of a good shape, so that its kinds are reached. */
static void block_request(struct fz *f)
{
    uint8_t *h = rp_ram_at(&b.ram, rp_gpa(0x170000), 16), *desc = rp_ram_at(&b.ram, rp_gpa(ring(SLOT_BLK, 0)), 64);
    uint8_t *avail = rp_ram_at(&b.ram, rp_gpa(ring(SLOT_BLK, 0) + 0x2000), 1024);
    uint32_t type = fz_u8(f), len = fz_u16(f);
    rp_st32(h, type % 16);
    rp_st64(h + 8, fz_u16(f));
    for (unsigned i = 0; i < 3; i++) {
        rp_st64(desc + 16 * i, i == 0 ? 0x170000u : i == 1 ? 0x180000u : 0x171000u);
        rp_st32(desc + 16 * i + 8, i == 0 ? 16 : i == 1 ? len : 1);
        rp_st16(desc + 16 * i + 12, (uint16_t)((i == 2 || (i == 1 && !(type & 1)) ? 2 : 0) | (i < 2)));
        rp_st16(desc + 16 * i + 14, (uint16_t)(i + 1));
    }
    uint16_t idx = rp_ld16(avail + 2);
    rp_st16(avail + 4 + 2 * (idx % 256), 0);
    rp_st16(avail + 2, (uint16_t)(idx + 1));
    bar(SLOT_BLK, 0x3000, 2, true, 0);
}

/* A packet with the addresses that it must have to be looked at; the rest is the input's. */
static void vsock_packet(struct fz *f)
{
    uint8_t *h = rp_ram_at(&b.ram, rp_gpa(0x172000), 256), *desc = rp_ram_at(&b.ram, rp_gpa(ring(SLOT_VSOCK, 1)), 16);
    uint8_t *avail = rp_ram_at(&b.ram, rp_gpa(ring(SLOT_VSOCK, 1) + 0x2000), 1024);
    uint32_t len = fz_u8(f);
    rp_st64(h, CID);
    rp_st64(h + 8, 2);
    rp_st32(h + 16, fz_u8(f));
    rp_st32(h + 20, fz_u8(f));
    rp_st32(h + 24, len & 1 ? len : fz_u32(f));
    rp_st16(h + 28, len & 2 ? 1 : fz_u16(f));
    rp_st16(h + 30, fz_u8(f) % 9);
    rp_st64(desc, 0x172000);
    rp_st32(desc + 8, 44 + len);
    rp_st32(desc + 12, 0);
    uint16_t idx = rp_ld16(avail + 2);
    rp_st16(avail + 4 + 2 * (idx % 256), 0);
    rp_st16(avail + 2, (uint16_t)(idx + 1));
    bar(SLOT_VSOCK, 0x3004, 2, true, 0);
}

static void turn(void)
{
    pthread_mutex_unlock(&b.lock);
    for (unsigned i = 0; i < 32 && rp_loop_turn(b.loop); i++)
        continue;
    pthread_mutex_lock(&b.lock);
}

static void write_ram(struct fz *f)
{
    size_t n;
    uint64_t at = fz_u32(f) % RAM_BYTES;
    const uint8_t *p = fz_bytes(f, fz_u8(f), &n);
    if (rp_ram_write(&b.ram, rp_gpa(at), p, n) < 0) {
        /* beyond RAM: not written */
    }
}

static void from_the_wire(struct fz *f)
{
    size_t n;
    uint8_t buf[2048];
    const uint8_t *p;
    if (fz_u8(f) & 1) {     /* in a frame, as the stream wants it */
        p = fz_bytes(f, fz_u8(f) * 4u, &n);
        uint8_t head[4] = {0, 0, (uint8_t)(n >> 8), (uint8_t)n};
        if (send(b.wire, head, 4, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
            return;
    } else {
        p = fz_bytes(f, fz_u8(f), &n);
    }
    if (send(b.wire, p, n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        /* the card has hung up: it may */
    }
    while (recv(b.wire, buf, sizeof(buf), MSG_DONTWAIT) > 0)
        continue;
}

static void from_the_terminal(struct fz *f)
{
    size_t n;
    uint8_t buf[2048];
    const uint8_t *p = fz_bytes(f, fz_u8(f) * 4u, &n);
    FZ_HOLDS(send(b.terminal, p, n, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 || errno == EAGAIN);
    while (recv(b.terminal, buf, sizeof(buf), MSG_DONTWAIT) > 0)
        continue;
}

/* A device's state into a section, changed in a few places or not at all, and loaded; refused or taken, the device goes on. What a guest
 * brought a device into can be entered again: else it could undo its own protection. */
static void section(struct fz *f, struct rp_device *d)
{
    struct rp_sections s = {0};
    struct rp_section sec;
    struct rp_error err = {0};
    d->ops->stop ? d->ops->stop(d->dev) : (void)0;
    if (d->ops->drain && d->ops->drain(d->dev, &err) < 0)
        FZ_HOLDS(err.text[0]);
    FZ_HOLDS(d->ops->save(d->dev, &s, d->instance, &err) == 0);
    FZ_HOLDS(rp_sections_find(&s, d->section, d->instance, &sec));
    uint8_t *bytes = malloc(sec.len + 1u);
    memcpy(bytes, sec.bytes, sec.len);
    unsigned changes = fz_u8(f) % 8;
    for (unsigned i = 0; i < changes && sec.len; i++) {
        uint32_t at = fz_below(f, sec.len);
        bytes[at] = fz_u8(f);
    }
    sec.bytes = bytes;
    int rc = d->ops->load(d->dev, &sec, &err);
    FZ_HOLDS(rc == 0 || (changes && err.text[0]));
    if (rc < 0)
        d->ops->reset ? d->ops->reset(d->dev) : (void)0;    /* its owner would destroy the machine */
    d->ops->start ? d->ops->start(d->dev) : (void)0;
    free(bytes);
    rp_sections_fini(&s);
}

static void act(struct fz *f)
{
    unsigned what = fz_u8(f), slot = SLOT_BLK + what / 16 % (SLOTS - SLOT_BLK);
    static const uint32_t lens[] = {1, 2, 4, 8};
    uint32_t len = lens[what / 64];
    uint8_t d[8];
    switch (what % 16) {
    case 0: config(fz_u8(f) % 8, fz_u16(f) % 4096, len, true, fz_u32(f)); break;
    case 1: config(slot, fz_u8(f), len, false, 0); break;
    case 2: bar(slot, fz_u16(f) % 0x8000, len, true, fz_u64(f)); break;
    case 3: bar(slot, fz_u16(f) % 0x8000, len, false, 0); break;
    case 4: bring_up(f, slot); break;
    case 5: post(f, slot, fz_u8(f)); break;
    case 6: bar(slot, 0x3000 + 4u * (fz_u8(f) % 8), 2, true, 0); break;
    case 7: turn(); break;
    case 8: write_ram(f); break;
    case 9: what & 16 ? vsock_packet(f) : block_request(f); break;
    case 10: what & 16 ? from_the_terminal(f) : from_the_wire(f); break;
    case 11: section(f, &b.dev[fz_u8(f) % DEVICES]); break;
    case 12: rp_virtio_balloon_target(&b.dev[3], fz_u32(f)); break;
    case 13:
        rp_st64(d, fz_u64(f));
        rp_bus_access(&b.pio, fz_u16(f) % 0x1000, d, len == 8 ? 4 : len, fz_u8(f) & 1);
        break;
    case 14:
        rp_st64(d, fz_u64(f));
        rp_bus_access(&b.mmio, fz_u64(f), d, len, fz_u8(f) & 1);
        break;
    default: rp_power_button(b.power); rp_power_gpe(b.power, fz_u8(f) & 7); break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fz f = {data, size};
    pthread_mutex_lock(&b.lock);
    memset(b.ram.view.base, 0, RAM_BYTES);
    for (unsigned i = 0; i < DEVICES; i++)
        if (b.dev[i].ops->start)
            b.dev[i].ops->start(b.dev[i].dev);
    for (unsigned i = 0; i < ACTIONS_MAX && f.left > 0; i++)
        act(&f);
    turn();
    for (unsigned i = 0; i < DEVICES; i++) {
        struct rp_error err = {0};
        if (b.dev[i].ops->stop)
            b.dev[i].ops->stop(b.dev[i].dev);
        if (b.dev[i].ops->drain && b.dev[i].ops->drain(b.dev[i].dev, &err) < 0)
            FZ_HOLDS(err.text[0]);
        if (b.dev[i].ops->reset)
            b.dev[i].ops->reset(b.dev[i].dev);
    }
    turn();
    pthread_mutex_unlock(&b.lock);
    return 0;
}
