/* PVH: an ELF kernel with the note XEN_ELFNOTE_PHYS32_ENTRY. Source: Xen's public headers elfnote.h and
 * arch-x86/hvm/start_info.h; System V ABI, chapter 5 (program header). */
#include "vmm/boot.h"

#include <elf.h>
#include <errno.h>
#include <inttypes.h>

#define NOTE_PHYS32_ENTRY 18u
#define START_INFO_MAGIC 0x336ec578u
#define PHDRS_MAX 64
#define NOTES_MAX_BYTES (64u << 10)

struct phdr { uint32_t type; uint64_t offset, paddr, filesz, memsz, align; };
struct elf {
    const struct rp_boot_file *f;
    bool wide;              /* 64-bit */
    unsigned n;
    struct phdr ph[PHDRS_MAX];
    uint64_t end;           /* of the highest segment */
};

static int bad(const struct elf *e, const char *why, struct rp_error *err)
{
    return rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "kernel %s: %s", e->f->path, why);
}

static int read_headers(struct elf *e, struct rp_error *err)
{
    uint8_t h[sizeof(Elf64_Ehdr)] = {0}, p[sizeof(Elf64_Phdr)];
    uint64_t phoff;
    uint16_t entsize, machine;
    int rc = rp_boot_read(e->f, 0, h, sizeof(Elf32_Ehdr), "ELF header", err);

    if (rc < 0)
        return rc;
    e->wide = h[EI_CLASS] == ELFCLASS64;
    if (e->wide && (rc = rp_boot_read(e->f, 0, h, sizeof(Elf64_Ehdr), "ELF header", err)) < 0)
        return rc;
    machine = rp_ld16(h + offsetof(Elf64_Ehdr, e_machine));
    if (h[EI_DATA] != ELFDATA2LSB || (machine != EM_X86_64 && machine != EM_386))
        return bad(e, "an ELF file for another machine than x86", err);
    phoff = e->wide ? rp_ld64(h + offsetof(Elf64_Ehdr, e_phoff)) : rp_ld32(h + offsetof(Elf32_Ehdr, e_phoff));
    entsize = rp_ld16(h + (e->wide ? offsetof(Elf64_Ehdr, e_phentsize) : offsetof(Elf32_Ehdr, e_phentsize)));
    e->n = rp_ld16(h + (e->wide ? offsetof(Elf64_Ehdr, e_phnum) : offsetof(Elf32_Ehdr, e_phnum)));
    if (entsize != (e->wide ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)) || e->n == 0 || e->n > PHDRS_MAX)
        return bad(e, "an ELF file with no usable program headers", err);
    if (phoff > e->f->size)
        return bad(e, "its program headers lie beyond the end of the file", err);
    for (unsigned i = 0; i < e->n; i++) {
        rc = rp_boot_read(e->f, phoff + (uint64_t)i * entsize, p, entsize, "program header", err);
        if (rc < 0)
            return rc;
#define GET(m) (e->wide ? rp_ld64(p + offsetof(Elf64_Phdr, m)) : rp_ld32(p + offsetof(Elf32_Phdr, m)))
        e->ph[i] = (struct phdr){.type = rp_ld32(p), .offset = GET(p_offset), .paddr = GET(p_paddr),
                                 .filesz = GET(p_filesz), .memsz = GET(p_memsz), .align = GET(p_align)};
#undef GET
    }
    return 0;
}

static int load_segments(struct elf *e, struct rp_guest_ram *ram, struct rp_error *err)
{
    for (unsigned i = 0; i < e->n; i++) {
        const struct phdr *p = &e->ph[i];
        int rc;
        if (p->type != PT_LOAD || p->memsz == 0)
            continue;
        if (p->filesz > p->memsz)
            return bad(e, "a segment that is larger in the file than in memory", err);
        if (p->paddr < RP_BOOT_HIGH || !rp_ram_at(ram, rp_gpa(p->paddr), p->memsz))
            return rp_error_exit(err, RP_EXIT_USAGE, EBADMSG, "kernel %s: its segment %u (%" PRIu64 " bytes at guest address "
                                 "0x%" PRIx64 ") does not fit the VM's RAM above 1 MiB (%" PRIu64 " MiB)", e->f->path, i,
                                 p->memsz, p->paddr, ram->size_bytes >> 20);
        rc = rp_boot_read_ram(e->f, p->offset, ram, p->paddr, p->filesz, "segment", err);
        if (rc < 0)
            return rc;
        /* Memory may be that of a guest that was reset. */
        memset(rp_ram_at(ram, rp_gpa(p->paddr), p->memsz) + p->filesz, 0, (size_t)(p->memsz - p->filesz));
        rp_ram_dirty(ram, rp_gpa(p->paddr), p->memsz);
        if (p->paddr + p->memsz > e->end)
            e->end = p->paddr + p->memsz;
    }
    return e->end ? 0 : bad(e, "an ELF file with nothing to load", err);
}

/* Looks for the PVH note in one note segment; true when found. */
static bool scan_notes(const uint8_t *bytes, size_t len, uint64_t align, uint32_t *entry)
{
    struct rp_reader r = rp_reader_of(bytes, len);
    uint32_t mask = align == 8 ? 7 : 3;

    while (r.left >= 12) {
        uint32_t namesz = rp_get_u32(&r), descsz = rp_get_u32(&r), type = rp_get_u32(&r);
        const uint8_t *name, *desc;
        if (namesz > len || descsz > len)
            return false;
        name = rp_get(&r, namesz);
        (void)rp_get(&r, r.left < (-namesz & mask) ? r.left : (-namesz & mask));
        desc = rp_get(&r, descsz);
        (void)rp_get(&r, r.left < (-descsz & mask) ? r.left : (-descsz & mask));
        if (r.failed)
            return false;
        if (type == NOTE_PHYS32_ENTRY && namesz == 4 && memcmp(name, "Xen", 4) == 0 && (descsz == 4 || descsz == 8)) {
            *entry = rp_ld32(desc);
            return true;
        }
    }
    return false;
}

static int find_entry(const struct elf *e, uint32_t *entry, struct rp_error *err)
{
    struct rp_buf b = {0};
    bool found = false;
    int rc = 0;

    for (unsigned i = 0; i < e->n && !found && rc == 0; i++) {
        const struct phdr *p = &e->ph[i];
        if (p->type != PT_NOTE || p->filesz > NOTES_MAX_BYTES)
            continue;
        rp_buf_reset(&b);
        if (!rp_buf_extend(&b, (size_t)p->filesz))
            rc = rp_error_set(err, ENOMEM, "kernel %s: out of memory", e->f->path);
        else
            rc = rp_boot_read(e->f, p->offset, b.data, (size_t)p->filesz, "notes", err);
        if (rc == 0)
            found = scan_notes(b.data, (size_t)p->filesz, p->align, entry);
    }
    rp_buf_fini(&b);
    if (rc == 0 && !found)
        return bad(e, "an ELF file without a PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY): use a kernel with CONFIG_PVH, or a bzImage", err);
    return rc;
}

/* An entry outside of what was loaded would run whatever lies there. */
static bool loaded(const struct elf *e, uint32_t entry)
{
    for (unsigned i = 0; i < e->n; i++)
        if (e->ph[i].type == PT_LOAD && entry >= e->ph[i].paddr && entry - e->ph[i].paddr < e->ph[i].memsz)
            return true;
    return false;
}

/* struct hvm_start_info, version 1, with its module list and memory map behind it. */
static int put_start_info(struct rp_guest_ram *ram, const struct rp_boot_config *cfg, const struct rp_boot_initrd *rd,
                          struct rp_error *err)
{
    struct rp_boot_range map[RP_BOOT_RANGES_MAX];
    unsigned n = rp_boot_memmap(ram, map);
    struct rp_buf b = {0};
    int rc;

    rp_buf_u32(&b, START_INFO_MAGIC);
    rp_buf_u32(&b, 1);                              /* version */
    rp_buf_u32(&b, 0);                              /* flags */
    rp_buf_u32(&b, rd->size ? 1 : 0);               /* nr_modules */
    rp_buf_u64(&b, RP_BOOT_PVH_INFO + 56);          /* modlist_paddr */
    rp_buf_u64(&b, RP_BOOT_CMDLINE);
    rp_buf_u64(&b, cfg->rsdp_gpa);
    rp_buf_u64(&b, RP_BOOT_PVH_INFO + 56 + 32);     /* memmap_paddr */
    rp_buf_u32(&b, n);
    rp_buf_u32(&b, 0);
    rp_buf_u64(&b, rd->gpa);                        /* the module: paddr, size, cmdline, reserved */
    rp_buf_u64(&b, rd->size);
    rp_buf_u64(&b, 0);
    rp_buf_u64(&b, 0);
    for (unsigned i = 0; i < n; i++) {
        rp_buf_u64(&b, map[i].start);
        rp_buf_u64(&b, map[i].len);
        rp_buf_u32(&b, map[i].type);
        rp_buf_u32(&b, 0);
    }
    rc = b.failed ? -ENOMEM : rp_ram_write(ram, rp_gpa(RP_BOOT_PVH_INFO), b.data, b.len);
    rp_buf_fini(&b);
    return rc < 0 ? rp_error_set(err, rc, "kernel: writing the start info") : 0;
}

int rp_boot_elf_check(const struct rp_boot_file *f, struct rp_error *err)
{
    struct elf e = {.f = f};
    uint32_t entry = 0;
    int rc = read_headers(&e, err);

    return rc == 0 ? find_entry(&e, &entry, err) : rc;
}

int rp_boot_elf(const struct rp_boot_file *f, const struct rp_boot_config *cfg, struct rp_guest_ram *ram,
                struct rp_boot_entry *out, struct rp_error *err)
{
    struct elf e = {.f = f};
    struct rp_boot_initrd rd = {0};
    uint32_t entry = 0;
    int rc = read_headers(&e, err);

    if (rc == 0)
        rc = find_entry(&e, &entry, err);
    if (rc == 0)
        rc = load_segments(&e, ram, err);
    if (rc == 0 && !loaded(&e, entry))
        rc = bad(&e, "its PVH entry lies outside of its segments", err);
    if (rc == 0 && cfg->initrd)
        rc = rp_boot_load_initrd(cfg->initrd, ram, e.end, UINT32_MAX, &rd, err);
    if (rc == 0)
        rc = rp_boot_put_cmdline(ram, cfg->cmdline, RP_BOOT_CMDLINE_MAX, err);
    if (rc == 0)
        rc = put_start_info(ram, cfg, &rd, err);
    if (rc == 0)
        *out = (struct rp_boot_entry){.kind = RP_BOOT_PVH, .rip = entry, .arg = RP_BOOT_PVH_INFO};
    return rc;
}
