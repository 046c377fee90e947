/* ACPI tables; see acpi.h. */
#include "vmm/acpi.h"

#include "vmm/aml.h"
#include "vmm/pci.h"
#include "vmm/power.h"
#include "vmm/rtc.h"
#include "vmm/serial.h"

#include <errno.h>

#define LAPIC_ADDRESS 0xfee00000u
#define IOAPIC_ADDRESS 0xfec00000u
#define GPE0_LEN 2
#define AT_RSDP RP_ACPI_START
#define AT_FACS (RP_ACPI_START + 0x40)
#define AT_TABLES (RP_ACPI_START + 0x80)

/* Tables are built into one image of [AT_TABLES, …) and copied at the end. */
struct builder { struct rp_buf b; size_t table; };

static void begin(struct builder *w, const char sig[4], uint8_t revision)
{
    while (w->b.len % 16)
        rp_buf_u8(&w->b, 0);
    w->table = w->b.len;
    rp_buf_put(&w->b, sig, 4);
    rp_buf_u32(&w->b, 0);                   /* length, at the end */
    rp_buf_u8(&w->b, revision);
    rp_buf_u8(&w->b, 0);                    /* checksum, at the end */
    rp_buf_put(&w->b, "REPRIS", 6);
    rp_buf_put(&w->b, "REPRISE ", 8);
    rp_buf_u32(&w->b, 1);
    rp_buf_put(&w->b, "RPRS", 4);
    rp_buf_u32(&w->b, 1);
}

static uint8_t checksum(const uint8_t *p, size_t n)
{
    uint8_t sum = 0;

    while (n--)
        sum = (uint8_t)(sum + *p++);
    return (uint8_t)-sum;
}

/* Returns the table's guest address. */
static uint64_t end(struct builder *w)
{
    uint8_t *t;

    if (w->b.failed)
        return 0;
    t = w->b.data + w->table;
    rp_st32(t + 4, (uint32_t)(w->b.len - w->table));
    t[9] = checksum(t, w->b.len - w->table);
    return AT_TABLES + w->table;
}

static void generic_address(struct rp_buf *b, uint8_t bits, uint8_t access, uint64_t address)
{
    rp_buf_u8(b, 1);                        /* system I/O */
    rp_buf_u8(b, bits);
    rp_buf_u8(b, 0);
    rp_buf_u8(b, access);
    rp_buf_u64(b, address);
}

static uint64_t put_fadt(struct builder *w, uint64_t dsdt)
{
    struct rp_buf *b = &w->b;
    size_t at;

    begin(w, "FACP", 4);
    at = w->table;
    rp_buf_u32(b, AT_FACS);
    rp_buf_u32(b, (uint32_t)dsdt);
    rp_buf_u8(b, 0);                        /* reserved */
    rp_buf_u8(b, 4);                        /* profile: enterprise server */
    rp_buf_u16(b, RP_SCI_IRQ);
    rp_buf_u32(b, 0);                       /* SMI command: ACPI is always on */
    rp_buf_u32(b, 0);                       /* enable, disable, S4BIOS, PSTATE values */
    rp_buf_u32(b, RP_PM_PORT);              /* PM1a event */
    rp_buf_u32(b, 0);
    rp_buf_u32(b, RP_PM1_CNT_PORT);
    rp_buf_u32(b, 0);
    rp_buf_u32(b, 0);                       /* PM2 */
    rp_buf_u32(b, RP_PM_TIMER_PORT);
    rp_buf_u32(b, RP_GPE0_PORT);
    rp_buf_u32(b, 0);                       /* GPE1 */
    rp_buf_u8(b, 4);                        /* lengths: PM1 event, PM1 control, PM2, timer, GPE0, GPE1 */
    rp_buf_u8(b, 2);
    rp_buf_u8(b, 0);
    rp_buf_u8(b, 4);
    rp_buf_u8(b, GPE0_LEN);
    rp_buf_u8(b, 0);
    rp_buf_u8(b, 0);                        /* GPE1 base */
    rp_buf_u8(b, 0);
    rp_buf_u16(b, 0xfff);                   /* no C2, no C3 */
    rp_buf_u16(b, 0xfff);
    rp_buf_u32(b, 0);                       /* flush size, stride */
    rp_buf_u16(b, 0);                       /* duty */
    rp_buf_u8(b, 0);                        /* day alarm, month alarm */
    rp_buf_u8(b, 0);
    rp_buf_u8(b, RP_RTC_CENTURY);
    rp_buf_u16(b, 1u << 0 | 1u << 2);       /* legacy devices; no VGA */
    rp_buf_u8(b, 0);
    rp_buf_u32(b, 1u << 0 | 1u << 2 | 1u << 5 | 1u << 6 | 1u << 10);  /* WBINVD, C1, no sleep button, RTC not fixed, reset register */
    generic_address(b, 8, 1, RP_RESET_PORT);
    rp_buf_u8(b, RP_RESET_VALUE);
    rp_buf_u16(b, 0);                       /* ARM */
    rp_buf_u8(b, 0);                        /* minor revision */
    rp_buf_u64(b, 0);                       /* X_FACS: the 32-bit one counts */
    rp_buf_u64(b, dsdt);
    generic_address(b, 32, 2, RP_PM_PORT);
    generic_address(b, 0, 0, 0);
    generic_address(b, 16, 2, RP_PM1_CNT_PORT);
    generic_address(b, 0, 0, 0);
    generic_address(b, 0, 0, 0);
    generic_address(b, 32, 3, RP_PM_TIMER_PORT);
    generic_address(b, GPE0_LEN * 8, 1, RP_GPE0_PORT);
    generic_address(b, 0, 0, 0);
    w->table = at;
    return end(w);
}

static uint64_t put_madt(struct builder *w, unsigned vcpus)
{
    struct rp_buf *b = &w->b;

    begin(w, "APIC", 4);
    rp_buf_u32(b, LAPIC_ADDRESS);
    rp_buf_u32(b, 1);                       /* PC-AT PICs present */
    for (unsigned i = 0; i < vcpus; i++) {
        rp_buf_u8(b, 0);                    /* processor local APIC */
        rp_buf_u8(b, 8);
        rp_buf_u8(b, (uint8_t)i);
        rp_buf_u8(b, (uint8_t)i);
        rp_buf_u32(b, 1);
    }
    rp_buf_u8(b, 1);                        /* I/O APIC */
    rp_buf_u8(b, 12);
    rp_buf_u8(b, 0);
    rp_buf_u8(b, 0);
    rp_buf_u32(b, IOAPIC_ADDRESS);
    rp_buf_u32(b, 0);
    rp_buf_u8(b, 2);                        /* override: ISA IRQ 0 is pin 2 */
    rp_buf_u8(b, 10);
    rp_buf_u8(b, 0);
    rp_buf_u8(b, 0);
    rp_buf_u32(b, 2);
    rp_buf_u16(b, 0);
    rp_buf_u8(b, 2);                        /* override: the SCI is level-triggered, active high */
    rp_buf_u8(b, 10);
    rp_buf_u8(b, 0);
    rp_buf_u8(b, RP_SCI_IRQ);
    rp_buf_u32(b, RP_SCI_IRQ);
    rp_buf_u16(b, 0x000d);
    rp_buf_u8(b, 4);                        /* NMI at LINT1 of all */
    rp_buf_u8(b, 6);
    rp_buf_u8(b, 0xff);
    rp_buf_u16(b, 0);
    rp_buf_u8(b, 1);
    return end(w);
}

static uint64_t put_mcfg(struct builder *w)
{
    struct rp_buf *b = &w->b;

    begin(w, "MCFG", 1);
    rp_buf_u64(b, 0);
    rp_buf_u64(b, RP_PCI_ECAM_START);
    rp_buf_u16(b, 0);                       /* segment */
    rp_buf_u8(b, 0);                        /* buses 0-0 */
    rp_buf_u8(b, 0);
    rp_buf_u32(b, 0);
    return end(w);
}

/* --- DSDT --- */

static void put_pci(struct rp_buf *b)
{
    size_t dev = rp_aml_device(b, "PCI0");
    struct rp_aml_crs crs;
    size_t prt;

    rp_aml_name(b, "_HID");
    rp_aml_eisaid(b, "PNP0A08");
    rp_aml_name(b, "_CID");
    rp_aml_eisaid(b, "PNP0A03");
    rp_aml_name(b, "_SEG");
    rp_aml_int(b, 0);
    rp_aml_name(b, "_BBN");
    rp_aml_int(b, 0);
    rp_aml_name(b, "_UID");
    rp_aml_int(b, 0);
    rp_aml_name(b, "_CRS");
    crs = rp_aml_crs_begin(b);
    rp_aml_crs_bus(b, 0, 0);
    rp_aml_crs_io(b, 0xcf8, 8);
    rp_aml_crs_io_window(b, 0x0000, 0x0cf7);
    rp_aml_crs_io_window(b, 0x0d00, 0xffff);
    rp_aml_crs_memory_window(b, RP_PCI_MMIO_START, RP_PCI_MMIO_END - 1);
    rp_aml_crs_end(b, crs);
    rp_aml_name(b, "_PRT");                 /* no INTx: functions interrupt by MSI-X */
    prt = rp_aml_package(b, 0);
    rp_aml_close(b, prt);
    rp_aml_close(b, dev);
}

static void put_isa(struct rp_buf *b, const char *name, const char *hid, uint64_t uid, uint16_t port, uint8_t len, unsigned irq)
{
    size_t dev = rp_aml_device(b, name);
    struct rp_aml_crs crs;

    rp_aml_name(b, "_HID");
    rp_aml_eisaid(b, hid);
    rp_aml_name(b, "_UID");
    rp_aml_int(b, uid);
    rp_aml_name(b, "_STA");
    rp_aml_int(b, 0xf);
    rp_aml_name(b, "_CRS");
    crs = rp_aml_crs_begin(b);
    rp_aml_crs_io(b, port, len);
    rp_aml_crs_irq(b, irq);
    rp_aml_crs_end(b, crs);
    rp_aml_close(b, dev);
}

/* Source: Microsoft, "Virtual Machine Generation ID" (_CID, _DDN, ADDR); Linux matches VMGENCTR and VM_GEN_COUNTER. */
static void put_vmgenid(struct rp_buf *b, uint64_t gpa)
{
    size_t dev = rp_aml_device(b, "VGEN"), pkg;

    rp_aml_name(b, "_HID");
    rp_aml_string(b, "RPRS0001");
    rp_aml_name(b, "_CID");
    pkg = rp_aml_package(b, 2);
    rp_aml_string(b, "VM_Gen_Counter");
    rp_aml_string(b, "VMGENCTR");
    rp_aml_close(b, pkg);
    rp_aml_name(b, "_DDN");
    rp_aml_string(b, "VM_Gen_Counter");
    rp_aml_name(b, "_STA");
    rp_aml_int(b, 0xf);
    rp_aml_name(b, "ADDR");
    pkg = rp_aml_package(b, 2);
    rp_aml_int(b, gpa & 0xffffffff);
    rp_aml_int(b, gpa >> 32);
    rp_aml_close(b, pkg);
    rp_aml_close(b, dev);
}

static uint64_t put_dsdt(struct builder *w, uint64_t vmgenid_gpa)
{
    struct rp_buf *b = &w->b;
    size_t block, inner;

    begin(w, "DSDT", 2);
    block = rp_aml_scope(b, "\\_SB_");
    put_pci(b);
    put_isa(b, "COM1", "PNP0501", 1, RP_COM1_PORT, 8, RP_COM1_IRQ);
    put_isa(b, "RTC0", "PNP0B00", 0, RP_RTC_PORT, 2, RP_RTC_IRQ);
    put_vmgenid(b, vmgenid_gpa);
    rp_aml_close(b, block);
    block = rp_aml_scope(b, "\\_GPE");
    inner = rp_aml_method(b, "_E05", 0);    /* RP_ACPI_GPE_VMGENID */
    rp_aml_notify(b, "\\_SB_VGEN", 0x80);
    rp_aml_close(b, inner);
    rp_aml_close(b, block);
    rp_aml_name(b, "\\_S5_");
    block = rp_aml_package(b, 4);
    for (int i = 0; i < 4; i++)
        rp_aml_int(b, 0);
    rp_aml_close(b, block);
    return end(w);
}

static int put_rsdp(struct rp_guest_ram *ram, uint64_t xsdt)
{
    uint8_t r[36] = "RSD PTR ", facs[64] = "FACS";

    memcpy(r + 9, "REPRIS", 6);
    r[15] = 2;
    rp_st32(r + 20, sizeof r);
    rp_st64(r + 24, xsdt);
    r[8] = checksum(r, 20);
    r[32] = checksum(r, sizeof r);
    rp_st32(facs + 4, sizeof facs);
    facs[32] = 2;
    if (rp_ram_write(ram, rp_gpa(AT_FACS), facs, sizeof facs) < 0)
        return -EFAULT;
    return rp_ram_write(ram, rp_gpa(AT_RSDP), r, sizeof r);
}

int rp_acpi_write(struct rp_guest_ram *ram, unsigned vcpus, uint64_t vmgenid_gpa, uint64_t *rsdp_gpa, struct rp_error *err)
{
    struct builder w = {0};
    uint64_t dsdt = put_dsdt(&w, vmgenid_gpa);
    uint64_t tables[3] = {put_fadt(&w, dsdt), put_madt(&w, vcpus), put_mcfg(&w)}, xsdt;
    int rc;

    begin(&w, "XSDT", 1);
    for (int i = 0; i < 3; i++)
        rp_buf_u64(&w.b, tables[i]);
    xsdt = end(&w);
    if (w.b.failed)
        rc = rp_error_set(err, ENOMEM, "ACPI tables: out of memory");
    else if (AT_TABLES + w.b.len > RP_ACPI_END)
        rc = rp_error_set(err, E2BIG, "ACPI tables: %zu bytes do not fit", w.b.len);
    else if (rp_ram_write(ram, rp_gpa(AT_TABLES), w.b.data, w.b.len) < 0 || put_rsdp(ram, xsdt) < 0)
        rc = rp_error_set(err, EFAULT, "ACPI tables: guest RAM ends before 1 MiB");
    else
        rc = 0;
    rp_buf_fini(&w.b);
    if (rc == 0)
        *rsdp_gpa = AT_RSDP;
    return rc;
}
