/* A vCPU's state in and out of KVM; see vcpu_state.h for the order. */
#include "vmm/vcpu_state.h"

#include "vmm/vcpu.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#define MSR_TSC 0x10u
#define MSR_TSC_DEADLINE 0x6e0u

#define SEG(m, tag, w) RP_##w(struct rp_segment_state, m, tag)
RP_TABLE(segment_table, "segment", 1, struct rp_segment_state,
    SEG(base, 1, U64), SEG(limit, 2, U32), SEG(selector, 3, U16), SEG(type, 4, U8), SEG(present, 5, U8),
    SEG(dpl, 6, U8), SEG(db, 7, U8), SEG(s, 8, U8), SEG(l, 9, U8), SEG(g, 10, U8), SEG(avl, 11, U8),
    SEG(unusable, 12, U8), RP_PAD(struct rp_segment_state, pad));
RP_TABLE(msr_table, "msr", 1, struct rp_msr_state,
    RP_U32(struct rp_msr_state, index, 1), RP_U64(struct rp_msr_state, value, 2), RP_PAD(struct rp_msr_state, pad));
RP_TABLE(xcr_table, "xcr", 1, struct rp_xcr_state,
    RP_U32(struct rp_xcr_state, index, 1), RP_U64(struct rp_xcr_state, value, 2), RP_PAD(struct rp_xcr_state, pad));

static int validate(const void *state, struct rp_error *err)
{
    const struct rp_vcpu_state *s = state;

    if (s->xsave_bytes < 576 || s->xsave_bytes > RP_VCPU_XSAVE_MAX)     /* legacy region and header */
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "vcpu: an XSAVE area of %u bytes", s->xsave_bytes);
    return 0;
}

#define V struct rp_vcpu_state
static const struct rp_field fields[] = {
    RP_U32(V, mp_state, 1), RP_U32(V, nmsrs, 2), RP_U32(V, nxcrs, 3), RP_U32(V, xsave_bytes, 4),
    RP_ARRAY(V, gpr, 5, RP_F_U64), RP_U64(V, rip, 6), RP_U64(V, rflags, 7),
    {.tag = 8, .kind = RP_F_STRUCT, .name = "seg", .offset = offsetof(V, seg), .count = 8, .table = &segment_table},
    RP_U64(V, gdt_base, 9), RP_U64(V, idt_base, 10), RP_U32(V, gdt_limit, 11), RP_U32(V, idt_limit, 12),
    RP_U64(V, cr0, 13), RP_U64(V, cr2, 14), RP_U64(V, cr3, 15), RP_U64(V, cr4, 16), RP_U64(V, cr8, 17),
    RP_U64(V, efer, 18), RP_U64(V, apic_base, 19), RP_ARRAY(V, interrupt_bitmap, 20, RP_F_U64),
    RP_U64(V, tsc, 21), RP_ARRAY(V, dr, 22, RP_F_U64), RP_U64(V, dr6, 23), RP_U64(V, dr7, 24),
    RP_STRUCTS(V, xcrs, 25, &xcr_table, nxcrs), RP_STRUCTS(V, msrs, 26, &msr_table, nmsrs),
    RP_BYTES(V, events, 27), RP_BYTES(V, lapic, 28), RP_COUNTED(V, xsave, 29, RP_F_U8, xsave_bytes),
};
#undef V
const struct rp_state_table rp_vcpu_table = {
    .name = "vcpu", .version = 1, .size = sizeof(struct rp_vcpu_state),
    .fields = fields, .nfields = sizeof fields / sizeof fields[0], .validate = validate};

static int fail(const struct rp_vcpu *v, const char *what, struct rp_error *err)
{
    return rp_error_set(err, errno, "vcpu %u: %s: %m", v->index, what);
}

/* --- which MSRs are state --- */

/* struct kvm_msrs and struct kvm_msr_list with room for what follows them. */
struct msrs { uint32_t nmsrs, pad; struct kvm_msr_entry e[RP_VCPU_MSRS_MAX]; };
struct one_msr { uint32_t nmsrs, pad; struct kvm_msr_entry e[1]; };
struct msr_indices { uint32_t nmsrs, index[1024]; };
_Static_assert(offsetof(struct msrs, e) == sizeof(struct kvm_msrs) && offsetof(struct one_msr, e) == sizeof(struct kvm_msrs)
               && offsetof(struct msr_indices, index) == sizeof(struct kvm_msr_list), "as KVM lays them out");

struct rp_msr_list {
    uint32_t n;                     /* without the two below */
    bool deadline, tsc_offset;      /* has MSR_TSC_DEADLINE; has the TSC offset attribute */
    struct msrs template;
};

static bool in(uint32_t x, uint32_t first, uint32_t last)
{
    return x >= first && x <= last;
}

/* MSRs of KVM_GET_MSR_INDEX_LIST that are not state of a guest here, with the reason. */
static bool excluded(uint32_t x)
{
    return x == MSR_TSC || x == MSR_TSC_DEADLINE            /* set on their own, in order */
        || x == 0x11 || x == 0x4b564d00                     /* KVM wall clock: a command that writes guest RAM */
        || x == 0x12                                        /* old name of 0x4b564d01, not offered in CPUID */
        || x == 0x4b564d02 || x == 0x4b564d06 || x == 0x4b564d07    /* asynchronous page faults: not offered */
        || in(x, 0x40000000, 0x40000fff)                    /* Hyper-V: not offered */
        || in(x, 0xc1, 0xc8) || in(x, 0x186, 0x18d) || in(x, 0x309, 0x30c) || in(x, 0x38d, 0x390)
        || x == 0x345 || in(x, 0x4c1, 0x4c8) || in(x, 0x3f0, 0x3f7) || x == 0x600   /* PMU: not offered */
        || in(x, 0xc0010000, 0xc0010007) || in(x, 0xc0010200, 0xc001020b) || in(x, 0xc0000300, 0xc0000303)
        || in(x, 0x480, 0x493) || x == 0xc0010114 || x == 0xc0010117;   /* nested virtualization: not offered */
}

/* State that KVM_GET_MSR_INDEX_LIST leaves out: the MTRRs. (Machine checks' banks are not among them: none ever comes.) */
static const struct { uint32_t first, last; } unlisted[] = {
    {0x200, 0x20f}, {0x250, 0x250}, {0x258, 0x259}, {0x268, 0x26f}, {0x2ff, 0x2ff}};

static bool round_trips(const struct rp_vcpu *v, uint32_t index)
{
    struct one_msr m = {.nmsrs = 1, .e[0].index = index};

    return ioctl(v->fd, KVM_GET_MSRS, &m) == 1 && ioctl(v->fd, KVM_SET_MSRS, &m) == 1;
}

static bool is_state(const struct rp_msr_list *l, uint32_t index)
{
    for (uint32_t i = 0; i < l->n; i++)
        if (l->template.e[i].index == index)
            return true;
    return false;
}

static int probe(const struct rp_vcpus *g, struct rp_msr_list *l, uint32_t index, struct rp_error *err)
{
    if (excluded(index) || is_state(l, index) || !round_trips(&g->v[0], index))
        return 0;
    if (l->n == RP_VCPU_MSRS_MAX - 1)       /* the last is the TSC deadline's */
        return rp_error_exit(err, RP_EXIT_HOST, ENOSPC, "this KVM has more than the %u MSRs that an epoch holds", RP_VCPU_MSRS_MAX);
    l->template.e[l->n++].index = index;
    return 0;
}

int rp_msr_list_probe(struct rp_vcpus *g, struct rp_error *err)
{
    struct msr_indices all = {.nmsrs = 1024};
    struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET};
    struct rp_msr_list *l = calloc(1, sizeof *l);
    int rc = 0;

    if (!l)
        return rp_error_set(err, ENOMEM, "vcpus: out of memory");
    if (ioctl(g->cfg.kvmfd, KVM_GET_MSR_INDEX_LIST, &all) != 0)
        rc = rp_error_set(err, errno, "KVM_GET_MSR_INDEX_LIST: %m");
    for (uint32_t i = 0; i < all.nmsrs && rc == 0; i++) {
        rc = probe(g, l, all.index[i], err);
        l->deadline |= all.index[i] == MSR_TSC_DEADLINE;
    }
    for (unsigned i = 0; i < sizeof unlisted / sizeof unlisted[0]; i++)
        for (uint32_t index = unlisted[i].first; index <= unlisted[i].last && rc == 0; index++)
            rc = probe(g, l, index, err);
    if (rc < 0) {
        free(l);
        return rc;
    }
    l->template.nmsrs = l->n;
    l->tsc_offset = ioctl(g->v[0].fd, KVM_HAS_DEVICE_ATTR, &attr) == 0;
    rp_msr_list_free(g->msrs);
    g->msrs = l;
    return 0;
}

void rp_msr_list_free(struct rp_msr_list *l)
{
    free(l);
}

/* --- out of KVM --- */

static void save_segment(struct rp_segment_state *o, const struct kvm_segment *s)
{
    *o = (struct rp_segment_state){
        .base = s->base, .limit = s->limit, .selector = s->selector, .type = s->type, .present = s->present,
        .dpl = s->dpl, .db = s->db, .s = s->s, .l = s->l, .g = s->g, .avl = s->avl, .unusable = s->unusable};
}

static void save_regs(struct rp_vcpu_state *o, const struct kvm_regs *r)
{
    static_assert(offsetof(struct kvm_regs, rip) == sizeof o->gpr, "kvm_regs begins with the 16 registers");
    memcpy(o->gpr, r, sizeof o->gpr);
    o->rip = r->rip;
    o->rflags = r->rflags;
}

static void save_sregs(struct rp_vcpu_state *o, const struct kvm_sregs *s)
{
    const struct kvm_segment *seg[8] = {&s->cs, &s->ds, &s->es, &s->fs, &s->gs, &s->ss, &s->tr, &s->ldt};

    for (int i = 0; i < 8; i++)
        save_segment(&o->seg[i], seg[i]);
    o->gdt_base = s->gdt.base;
    o->gdt_limit = s->gdt.limit;
    o->idt_base = s->idt.base;
    o->idt_limit = s->idt.limit;
    o->cr0 = s->cr0;
    o->cr2 = s->cr2;
    o->cr3 = s->cr3;
    o->cr4 = s->cr4;
    o->cr8 = s->cr8;
    o->efer = s->efer;
    o->apic_base = s->apic_base;
    memcpy(o->interrupt_bitmap, s->interrupt_bitmap, sizeof o->interrupt_bitmap);
}

static int save_core(struct rp_vcpu *v, struct rp_vcpu_state *o, struct rp_error *err)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;

    if (ioctl(v->fd, KVM_GET_REGS, &regs) != 0)
        return fail(v, "KVM_GET_REGS", err);
    save_regs(o, &regs);
    if (ioctl(v->fd, KVM_GET_SREGS, &sregs) != 0)
        return fail(v, "KVM_GET_SREGS", err);
    save_sregs(o, &sregs);
    return 0;
}

static int save_fpu(struct rp_vcpu *v, struct rp_vcpu_state *o, struct rp_error *err)
{
    struct kvm_xcrs x;

    o->xsave_bytes = v->gang->xsave_bytes;
    if (o->xsave_bytes > RP_VCPU_XSAVE_MAX)
        return rp_error_set(err, E2BIG, "vcpu %u: an XSAVE area of %u bytes", v->index, o->xsave_bytes);
    if (ioctl(v->fd, o->xsave_bytes > 4096 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, o->xsave) != 0)
        return fail(v, "KVM_GET_XSAVE2", err);
    if (ioctl(v->fd, KVM_GET_XCRS, &x) != 0)
        return fail(v, "KVM_GET_XCRS", err);
    o->nxcrs = x.nr_xcrs < RP_VCPU_XCRS_MAX ? x.nr_xcrs : RP_VCPU_XCRS_MAX;
    for (uint32_t i = 0; i < o->nxcrs; i++)
        o->xcrs[i] = (struct rp_xcr_state){.index = x.xcrs[i].xcr, .value = x.xcrs[i].value};
    return 0;
}

static int save_msrs(struct rp_vcpu *v, struct rp_vcpu_state *o, struct rp_error *err)
{
    const struct rp_msr_list *l = v->gang->msrs;
    struct msrs m;
    int rc;

    memcpy(&m, &l->template, offsetof(struct msrs, e) + l->n * sizeof m.e[0]);
    if (l->deadline)
        m.e[m.nmsrs++].index = MSR_TSC_DEADLINE;
    rc = ioctl(v->fd, KVM_GET_MSRS, &m);
    if (rc < 0)
        return fail(v, "KVM_GET_MSRS", err);
    if ((uint32_t)rc != m.nmsrs)
        return rp_error_set(err, EIO, "vcpu %u: MSR 0x%x can no longer be read", v->index, m.e[rc].index);
    o->nmsrs = m.nmsrs;
    for (uint32_t i = 0; i < o->nmsrs; i++)
        o->msrs[i] = (struct rp_msr_state){.index = m.e[i].index, .value = m.e[i].data};
    return 0;
}

static uint64_t host_tsc(void)
{
    return __builtin_ia32_rdtsc();
}

static int save_tsc_offset(struct rp_vcpu *v, struct rp_vcpu_state *o, struct rp_error *err)
{
    struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET,
                                   .addr = (uint64_t)(uintptr_t)&o->tsc};
    struct one_msr m = {.nmsrs = 1, .e[0].index = MSR_TSC};

    if (v->gang->msrs->tsc_offset)
        return ioctl(v->fd, KVM_GET_DEVICE_ATTR, &attr) == 0 ? 0 : fail(v, "KVM_VCPU_TSC_OFFSET", err);
    if (ioctl(v->fd, KVM_GET_MSRS, &m) != 1)
        return fail(v, "reading the TSC", err);
    o->tsc = m.e[0].data - host_tsc();
    return 0;
}

int rp_vcpu_save_own(struct rp_vcpu *v, struct rp_vcpu_state *o, struct rp_error *err)
{
    struct kvm_mp_state mp;
    struct kvm_debugregs dr;
    int rc = 0;

    if (ioctl(v->fd, KVM_GET_MP_STATE, &mp) != 0)       /* first: an INIT or SIPI that waits changes registers */
        return fail(v, "KVM_GET_MP_STATE", err);
    o->mp_state = mp.mp_state;
    rc = save_core(v, o, err);
    if (rc == 0)
        rc = save_fpu(v, o, err);
    if (rc == 0)
        rc = save_msrs(v, o, err);      /* before the LAPIC: a deadline that passes in between interrupts twice, not never */
    if (rc == 0)
        rc = save_tsc_offset(v, o, err);
    if (rc < 0)
        return rc;
    if (ioctl(v->fd, KVM_GET_DEBUGREGS, &dr) != 0)
        return fail(v, "KVM_GET_DEBUGREGS", err);
    memcpy(o->dr, dr.db, sizeof o->dr);
    o->dr6 = dr.dr6;
    o->dr7 = dr.dr7;
    return 0;
}

int rp_vcpu_save_sent(struct rp_vcpu *v, struct rp_vcpu_state *o, struct rp_error *err)
{
    struct kvm_mp_state mp;
    struct kvm_vcpu_events ev;
    struct kvm_lapic_state lapic;

    static_assert(sizeof ev == sizeof o->events, "struct kvm_vcpu_events is 64 bytes");
    if (ioctl(v->fd, KVM_GET_MP_STATE, &mp) != 0)
        return fail(v, "KVM_GET_MP_STATE", err);
    if (mp.mp_state != o->mp_state)
        return 1;
    if (ioctl(v->fd, KVM_GET_VCPU_EVENTS, &ev) != 0)
        return fail(v, "KVM_GET_VCPU_EVENTS", err);
    memcpy(o->events, &ev, sizeof o->events);
    if (ioctl(v->fd, KVM_GET_LAPIC, &lapic) != 0)
        return fail(v, "KVM_GET_LAPIC", err);
    static_assert(sizeof lapic == sizeof o->lapic, "the APIC page is 1,024 bytes");
    memcpy(o->lapic, &lapic, sizeof o->lapic);
    return 0;
}

/* --- into KVM --- */

static int refuse(const struct rp_vcpu *v, const char *what, struct rp_error *err)
{
    return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "vcpu %u: KVM refuses its %s: %m", v->index, what);
}

static struct kvm_segment load_segment(const struct rp_segment_state *s)
{
    return (struct kvm_segment){
        .base = s->base, .limit = s->limit, .selector = s->selector, .type = s->type, .present = s->present,
        .dpl = s->dpl, .db = s->db, .s = s->s, .l = s->l, .g = s->g, .avl = s->avl, .unusable = s->unusable};
}

static int load_core(struct rp_vcpu *v, const struct rp_vcpu_state *o, struct rp_error *err)
{
    struct kvm_sregs s = {
        .cs = load_segment(&o->seg[0]), .ds = load_segment(&o->seg[1]), .es = load_segment(&o->seg[2]),
        .fs = load_segment(&o->seg[3]), .gs = load_segment(&o->seg[4]), .ss = load_segment(&o->seg[5]),
        .tr = load_segment(&o->seg[6]), .ldt = load_segment(&o->seg[7]),
        .gdt = {.base = o->gdt_base, .limit = (uint16_t)o->gdt_limit},
        .idt = {.base = o->idt_base, .limit = (uint16_t)o->idt_limit},
        .cr0 = o->cr0, .cr2 = o->cr2, .cr3 = o->cr3, .cr4 = o->cr4, .cr8 = o->cr8, .efer = o->efer,
        .apic_base = o->apic_base};
    struct kvm_mp_state mp = {.mp_state = o->mp_state};
    struct kvm_regs r;

    if (ioctl(v->fd, KVM_SET_MP_STATE, &mp) != 0)
        return refuse(v, "MP state", err);
    memcpy(s.interrupt_bitmap, o->interrupt_bitmap, sizeof s.interrupt_bitmap);
    if (ioctl(v->fd, KVM_SET_SREGS, &s) != 0)
        return refuse(v, "system registers", err);
    memcpy(&r, o->gpr, sizeof o->gpr);
    r.rip = o->rip;
    r.rflags = o->rflags;
    return ioctl(v->fd, KVM_SET_REGS, &r) == 0 ? 0 : refuse(v, "registers", err);
}

static int load_fpu(struct rp_vcpu *v, const struct rp_vcpu_state *o, struct rp_error *err)
{
    uint32_t room = v->gang->xsave_bytes;
    struct kvm_xcrs x = {.nr_xcrs = o->nxcrs};
    uint8_t area[RP_VCPU_XSAVE_MAX] = {0};

    for (uint32_t i = 0; i < o->nxcrs; i++) {
        x.xcrs[i].xcr = o->xcrs[i].index;
        x.xcrs[i].value = o->xcrs[i].value;
    }
    if (ioctl(v->fd, KVM_SET_XCRS, &x) != 0)
        return refuse(v, "XCRs", err);
    memcpy(area, o->xsave, o->xsave_bytes);
    for (uint32_t i = room; i < o->xsave_bytes; i++)
        if (area[i] != 0)
            return rp_error_exit(err, RP_EXIT_HOST, EBADMSG, "vcpu %u: %u bytes of XSAVE state in use, this host has %u",
                                 v->index, o->xsave_bytes, room);
    return ioctl(v->fd, KVM_SET_XSAVE, area) == 0 ? 0 : refuse(v, "XSAVE area", err);
}

static int set_msr(struct rp_vcpu *v, uint32_t index, uint64_t value, struct rp_error *err)
{
    struct one_msr m = {
        .nmsrs = 1, .e[0] = {.index = index, .data = value}};

    if (ioctl(v->fd, KVM_SET_MSRS, &m) != 1)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "vcpu %u: KVM refuses MSR 0x%x = 0x%llx", v->index, index,
                             (unsigned long long)value);
    return 0;
}

static int load_msrs(struct rp_vcpu *v, const struct rp_vcpu_state *o, struct rp_error *err)
{
    const struct rp_msr_list *l = v->gang->msrs;
    uint64_t deadline = 0;
    int rc;

    for (uint32_t i = 0; i < o->nmsrs; i++) {
        const struct rp_msr_state *m = &o->msrs[i];
        if (m->index == MSR_TSC_DEADLINE) {
            deadline = m->value;
            continue;
        }
        if (!is_state(l, m->index)) {
            if (m->value == 0)      /* a register that this host lacks and the guest has not used */
                continue;
            return rp_error_exit(err, RP_EXIT_HOST, EBADMSG, "vcpu %u: MSR 0x%x is in use (0x%llx) and not known here",
                                 v->index, m->index, (unsigned long long)m->value);
        }
        rc = set_msr(v, m->index, m->value, err);
        if (rc < 0)
            return rc;
    }
    return deadline ? set_msr(v, MSR_TSC_DEADLINE, deadline, err) : 0;
}

static int load_tsc(struct rp_vcpu *v, uint64_t offset, struct rp_error *err)
{
    struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET,
                                   .addr = (uint64_t)(uintptr_t)&offset};

    if (!v->gang->msrs->tsc_offset)
        return set_msr(v, MSR_TSC, host_tsc() + offset, err);
    return ioctl(v->fd, KVM_SET_DEVICE_ATTR, &attr) == 0 ? 0 : refuse(v, "TSC offset", err);
}

int rp_vcpu_load(struct rp_vcpu *v, const struct rp_vcpu_state *o, uint64_t tsc_offset, struct rp_error *err)
{
    struct kvm_debugregs dr = {.dr6 = o->dr6, .dr7 = o->dr7};
    struct kvm_vcpu_events ev;
    struct kvm_lapic_state lapic;
    int rc = load_core(v, o, err);

    if (rc == 0)
        rc = load_fpu(v, o, err);
    if (rc < 0)
        return rc;
    memcpy(dr.db, o->dr, sizeof dr.db);
    if (ioctl(v->fd, KVM_SET_DEBUGREGS, &dr) != 0)
        return refuse(v, "debug registers", err);
    memcpy(&lapic, o->lapic, sizeof lapic);
    if (ioctl(v->fd, KVM_SET_LAPIC, &lapic) != 0)
        return refuse(v, "LAPIC", err);
    rc = load_tsc(v, tsc_offset, err);
    if (rc == 0)
        rc = load_msrs(v, o, err);
    if (rc < 0)
        return rc;
    memcpy(&ev, o->events, sizeof ev);
    return ioctl(v->fd, KVM_SET_VCPU_EVENTS, &ev) == 0 ? 0 : refuse(v, "pending events", err);
}
