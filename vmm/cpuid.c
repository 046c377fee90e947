/* The CPU model; see cpuid.h. Sources: Intel SDM vol. 2A "CPUID", AMD APM vol. 3 appendix E, Linux
 * Documentation/virt/kvm/x86/cpuid.rst (leaf 0x40000001). */
#include "vmm/cpuid.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <sys/ioctl.h>

RP_TABLE(entry_table, "cpuid-entry", 1, struct rp_cpuid_entry,
    RP_U32(struct rp_cpuid_entry, function, 1), RP_U32(struct rp_cpuid_entry, index, 2),
    RP_U32(struct rp_cpuid_entry, flags, 3), RP_U32(struct rp_cpuid_entry, eax, 4),
    RP_U32(struct rp_cpuid_entry, ebx, 5), RP_U32(struct rp_cpuid_entry, ecx, 6),
    RP_U32(struct rp_cpuid_entry, edx, 7), RP_PAD(struct rp_cpuid_entry, pad));

RP_TABLE(rp_cpuid_table, "cpuid", 1, struct rp_cpuid,
    RP_U32(struct rp_cpuid, n, 1), RP_PAD(struct rp_cpuid, pad),
    RP_STRUCTS(struct rp_cpuid, e, 2, &entry_table, n));

#define BIT(n) (1u << (n))
#define L1_ECX_VMX BIT(5)
#define L80000001_ECX_SVM BIT(2)
#define L1_ECX_TSC_DEADLINE BIT(24)
#define L1_ECX_HYPERVISOR BIT(31)
#define L1_EDX_HTT BIT(28)
#define L80000001_ECX_CMP_LEGACY BIT(1)     /* AMD: more than one core; what HTT says on Intel's */
#define L0_EBX_AUTH 0x68747541u             /* "Auth"enticAMD */
#define L0_EBX_HYGO 0x6f677948u             /* "Hygo"nGenuine */
#define L80000007_EDX_INVARIANT_TSC BIT(8)

/* Paravirtual features of leaf 0x40000001 that are not offered: the old clock MSRs (0; 3 is the new pair), asynchronous page faults (4, 10, 14) have completions
 * in flight that cannot be cut; migration control (17) belongs to encrypted guests. */
#define KVM_FEATURES_OFF (BIT(0) | BIT(4) | BIT(10) | BIT(14) | BIT(17))

static struct rp_cpuid_entry *find(struct rp_cpuid *c, uint32_t function, uint32_t index)
{
    for (uint32_t i = 0; i < c->n; i++)
        if (c->e[i].function == function && c->e[i].index == index)
            return &c->e[i];
    return NULL;
}

static struct rp_cpuid_entry *find_or_add(struct rp_cpuid *c, uint32_t function, uint32_t index, uint32_t flags)
{
    struct rp_cpuid_entry *e = find(c, function, index);

    if (e || c->n == RP_CPUID_MAX)
        return e;
    e = &c->e[c->n++];
    *e = (struct rp_cpuid_entry){.function = function, .index = index, .flags = flags};
    return e;
}

static uint32_t id_bits(unsigned vcpus)
{
    uint32_t bits = 0;

    while ((1u << bits) < vcpus)
        bits++;
    return bits;
}

/* One package, `vcpus` cores of one thread each. */
static void set_topology(struct rp_cpuid *c, unsigned vcpus)
{
    static const uint32_t extended[] = {0xb, 0x1f};
    struct rp_cpuid_entry *e = find(c, 1, 0), *vendor = find(c, 0, 0);
    uint32_t max = vendor ? vendor->eax : 0;

    if (e) {
        e->ebx = (e->ebx & 0xff00ffffu) | (vcpus & 0xff) << 16;
        e->edx = vcpus > 1 ? e->edx | L1_EDX_HTT : e->edx & ~L1_EDX_HTT;
    }
    e = find(c, 0x80000001, 0);
    if (e) {
        bool amd = vendor && (vendor->ebx == L0_EBX_AUTH || vendor->ebx == L0_EBX_HYGO);
        e->ecx = amd && vcpus > 1 ? e->ecx | L80000001_ECX_CMP_LEGACY : e->ecx & ~L80000001_ECX_CMP_LEGACY;
    }
    for (uint32_t i = 0; i < c->n; i++)     /* cache leaf: cores per package; a cache is one core's, the last level's shared */
        if (c->e[i].function == 4 && (c->e[i].eax & 0x1f)) {
            uint32_t shared = ((c->e[i].eax >> 5) & 7) >= 3 ? (1u << id_bits(vcpus)) - 1 : 0;
            c->e[i].eax = (c->e[i].eax & 0x3fffu) | shared << 14 | ((1u << id_bits(vcpus)) - 1) << 26;
        }
    for (unsigned k = 0; k < 2; k++) {
        struct rp_cpuid_entry *smt, *core, *end;
        if (extended[k] > max)
            continue;
        smt = find_or_add(c, extended[k], 0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
        core = find_or_add(c, extended[k], 1, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
        end = find_or_add(c, extended[k], 2, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
        if (!smt || !core || !end)
            continue;
        smt->eax = 0; smt->ebx = 1; smt->ecx = 1u << 8;             /* level type 1: thread */
        core->eax = id_bits(vcpus); core->ebx = vcpus; core->ecx = 1u | 2u << 8;    /* type 2: core */
        end->eax = 0; end->ebx = 0; end->ecx = 2;                   /* type 0: no more levels */
    }
    e = find(c, 0x80000008, 0);
    if (e)
        e->ecx = (e->ecx & ~0xf0ffu) | (vcpus - 1) | id_bits(vcpus) << 12;
    e = find(c, 0x8000001e, 0);
    if (e)
        *e = (struct rp_cpuid_entry){.function = e->function, .index = e->index, .flags = e->flags};
}

static void set_features(struct rp_cpuid *c, int kvmfd)
{
    struct rp_cpuid_entry *e = find(c, 1, 0);

    if (e) {
        e->ecx |= L1_ECX_HYPERVISOR;
        e->ecx &= ~L1_ECX_VMX;              /* no nested virtualization: its state is not carried */
        if (ioctl(kvmfd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
            e->ecx |= L1_ECX_TSC_DEADLINE;
    }
    e = find(c, 0xa, 0);                    /* no virtual PMU: its counters cannot be moved between hosts */
    if (e)
        e->eax = e->ebx = e->ecx = e->edx = 0;
    e = find(c, 0x80000001, 0);
    if (e)
        e->ecx &= ~L80000001_ECX_SVM;
    e = find(c, 0x80000007, 0);             /* the TSC may change its rate with the host: kvmclock says how */
    if (e)
        e->edx &= ~L80000007_EDX_INVARIANT_TSC;
    e = find(c, 0x40000000, 0);
    if (e && e->eax == 0)
        e->eax = 0x40000001;
    e = find(c, 0x40000001, 0);
    if (e)
        e->eax &= ~KVM_FEATURES_OFF;
}

int rp_cpuid_host(int kvmfd, unsigned vcpus, struct rp_cpuid *out, struct rp_error *err)
{
    struct kvm_cpuid2 *k = calloc(1, sizeof *k + RP_CPUID_MAX * sizeof k->entries[0]);
    int rc = 0;

    if (!k)
        return rp_error_set(err, ENOMEM, "CPUID: out of memory");
    k->nent = RP_CPUID_MAX;
    if (ioctl(kvmfd, KVM_GET_SUPPORTED_CPUID, k) != 0) {
        rc = rp_error_exit(err, RP_EXIT_HOST, errno, "KVM_GET_SUPPORTED_CPUID: %m");
        goto out;
    }
    memset(out, 0, sizeof *out);
    out->n = k->nent;
    for (uint32_t i = 0; i < k->nent; i++)
        out->e[i] = (struct rp_cpuid_entry){
            .function = k->entries[i].function, .index = k->entries[i].index, .flags = k->entries[i].flags,
            .eax = k->entries[i].eax, .ebx = k->entries[i].ebx, .ecx = k->entries[i].ecx, .edx = k->entries[i].edx};
    set_features(out, kvmfd);
    set_topology(out, vcpus);
out:
    free(k);
    return rc;
}

static void set_apic_id(struct kvm_cpuid_entry2 *e, unsigned index)
{
    switch (e->function) {
    case 1:
        e->ebx = (e->ebx & 0x00ffffffu) | (uint32_t)index << 24;
        break;
    case 0xb:
    case 0x1f:
        e->edx = index;
        break;
    case 0x8000001e:
        e->eax = index;
        e->ebx = index;
        break;
    default:
        break;
    }
}

int rp_cpuid_apply(const struct rp_cpuid *c, int vcpufd, unsigned index, struct rp_error *err)
{
    struct kvm_cpuid2 *k = calloc(1, sizeof *k + RP_CPUID_MAX * sizeof k->entries[0]);
    int rc = 0;

    if (!k)
        return rp_error_set(err, ENOMEM, "CPUID: out of memory");
    k->nent = c->n;
    for (uint32_t i = 0; i < c->n; i++) {
        k->entries[i] = (struct kvm_cpuid_entry2){
            .function = c->e[i].function, .index = c->e[i].index, .flags = c->e[i].flags,
            .eax = c->e[i].eax, .ebx = c->e[i].ebx, .ecx = c->e[i].ecx, .edx = c->e[i].edx};
        set_apic_id(&k->entries[i], index);
    }
    if (ioctl(vcpufd, KVM_SET_CPUID2, k) != 0)
        rc = rp_error_set(err, errno, "vcpu %u: KVM_SET_CPUID2 with %u entries: %m", index, c->n);
    free(k);
    return rc;
}

/* The leaves whose bits are features: each bit that the guest saw must be there. */
enum reg { EAX, EBX, ECX, EDX };
static const struct feature_leaf {
    uint32_t function, index;
    enum reg reg;
    uint32_t ignore;        /* bits that say something else, or that KVM sets by itself */
    const char *name;
} feature_leaves[] = {
    {1, 0, ECX, L1_ECX_HYPERVISOR | BIT(27), "cpuid.1.ecx"},            /* 27: OSXSAVE mirrors CR4 */
    {1, 0, EDX, L1_EDX_HTT, "cpuid.1.edx"},
    {7, 0, EBX, 0, "cpuid.7.ebx"},
    {7, 0, ECX, BIT(4), "cpuid.7.ecx"},                                 /* 4: OSPKE mirrors CR4 */
    {7, 0, EDX, 0, "cpuid.7.edx"},
    {7, 1, EAX, 0, "cpuid.7.1.eax"},
    {7, 1, ECX, 0, "cpuid.7.1.ecx"},
    {7, 1, EDX, 0, "cpuid.7.1.edx"},
    {7, 2, EDX, 0, "cpuid.7.2.edx"},
    {0xd, 0, EAX, 0, "cpuid.d.eax (XCR0)"},
    {0xd, 0, EDX, 0, "cpuid.d.edx (XCR0)"},
    {0xd, 1, EAX, 0, "cpuid.d.1.eax"},
    {0x80000001, 0, ECX, L80000001_ECX_CMP_LEGACY, "cpuid.80000001.ecx"},
    {0x80000001, 0, EDX, 0, "cpuid.80000001.edx"},
    {0x80000008, 0, EBX, 0, "cpuid.80000008.ebx"},
    {0x80000021, 0, EAX, 0, "cpuid.80000021.eax"},
    {0x80000021, 0, ECX, 0, "cpuid.80000021.ecx"},
    {0x40000001, 0, EAX, 0, "cpuid.40000001.eax"},
};

static const struct feature_name {
    uint32_t function, index;
    enum reg reg;
    uint32_t bit;
    const char *name;
} feature_names[] = {
    {1, 0, ECX, 0, "sse3"}, {1, 0, ECX, 1, "pclmulqdq"}, {1, 0, ECX, 9, "ssse3"}, {1, 0, ECX, 12, "fma"},
    {1, 0, ECX, 13, "cx16"}, {1, 0, ECX, 17, "pcid"}, {1, 0, ECX, 19, "sse4.1"}, {1, 0, ECX, 20, "sse4.2"},
    {1, 0, ECX, 21, "x2apic"}, {1, 0, ECX, 22, "movbe"}, {1, 0, ECX, 23, "popcnt"}, {1, 0, ECX, 24, "tsc-deadline"},
    {1, 0, ECX, 25, "aes"}, {1, 0, ECX, 26, "xsave"}, {1, 0, ECX, 28, "avx"}, {1, 0, ECX, 29, "f16c"},
    {1, 0, ECX, 30, "rdrand"},
    {7, 0, EBX, 0, "fsgsbase"}, {7, 0, EBX, 3, "bmi1"}, {7, 0, EBX, 5, "avx2"}, {7, 0, EBX, 7, "smep"},
    {7, 0, EBX, 8, "bmi2"}, {7, 0, EBX, 9, "erms"}, {7, 0, EBX, 10, "invpcid"}, {7, 0, EBX, 16, "avx512f"},
    {7, 0, EBX, 17, "avx512dq"}, {7, 0, EBX, 18, "rdseed"}, {7, 0, EBX, 19, "adx"}, {7, 0, EBX, 20, "smap"},
    {7, 0, EBX, 28, "avx512cd"}, {7, 0, EBX, 29, "sha"}, {7, 0, EBX, 30, "avx512bw"}, {7, 0, EBX, 31, "avx512vl"},
    {7, 0, ECX, 2, "umip"}, {7, 0, ECX, 3, "pku"}, {7, 0, ECX, 16, "la57"}, {7, 0, ECX, 22, "rdpid"},
    {7, 0, EDX, 22, "amx-bf16"}, {7, 0, EDX, 24, "amx-tile"}, {7, 0, EDX, 26, "spec-ctrl"}, {7, 0, EDX, 29, "arch-capabilities"},
    {7, 1, EAX, 4, "avx-vnni"}, {7, 1, EAX, 5, "avx512-bf16"}, {7, 1, EDX, 4, "avx-vnni-int8"}, {7, 1, EDX, 5, "avx-ne-convert"},
    {7, 1, EDX, 10, "avx-vnni-int16"}, {7, 1, EDX, 19, "avx10"}, {0x80000021, 0, EAX, 8, "auto-ibrs"},
    {0xd, 1, EAX, 0, "xsaveopt"}, {0xd, 1, EAX, 1, "xsavec"}, {0xd, 1, EAX, 3, "xsaves"},
    {0x80000001, 0, EDX, 20, "nx"}, {0x80000001, 0, EDX, 26, "1-GiB pages"}, {0x80000001, 0, EDX, 27, "rdtscp"},
    {0x40000001, 0, EAX, 3, "kvmclock"}, {0x40000001, 0, EAX, 5, "kvm-steal-time"}, {0x40000001, 0, EAX, 6, "kvm-pv-eoi"},
    {0x40000001, 0, EAX, 7, "kvm-pv-unhalt"}, {0x40000001, 0, EAX, 9, "kvm-pv-tlb-flush"},
    {0x40000001, 0, EAX, 11, "kvm-pv-send-ipi"}, {0x40000001, 0, EAX, 13, "kvm-pv-sched-yield"},
};

static uint32_t value(const struct rp_cpuid *c, const struct feature_leaf *l)
{
    for (uint32_t i = 0; i < c->n && i < RP_CPUID_MAX; i++)
        if (c->e[i].function == l->function && c->e[i].index == l->index) {
            const uint32_t regs[] = {c->e[i].eax, c->e[i].ebx, c->e[i].ecx, c->e[i].edx};
            return regs[l->reg];
        }
    return 0;
}

static void add_name(char *text, size_t size, const struct feature_leaf *l, uint32_t bit)
{
    size_t len = strlen(text);

    for (size_t i = 0; i < sizeof feature_names / sizeof feature_names[0]; i++) {
        const struct feature_name *f = &feature_names[i];
        if (f->function == l->function && f->index == l->index && f->reg == l->reg && f->bit == bit) {
            snprintf(text + len, size - len, "%s%s", len ? ", " : "", f->name);
            return;
        }
    }
    snprintf(text + len, size - len, "%s%s bit %u", len ? ", " : "", l->name, bit);
}

int rp_cpuid_compatible(const struct rp_cpuid *want, const struct rp_cpuid *host, struct rp_error *err)
{
    char names[300] = "";

    for (size_t i = 0; i < sizeof feature_leaves / sizeof feature_leaves[0]; i++) {
        const struct feature_leaf *l = &feature_leaves[i];
        uint32_t missing = value(want, l) & ~value(host, l) & ~l->ignore;
        for (uint32_t bit = 0; bit < 32; bit++)
            if (missing & BIT(bit))
                add_name(names, sizeof names, l, bit);
    }
    if (names[0])
        return rp_error_exit(err, RP_EXIT_HOST, EOPNOTSUPP, "this host's CPU or KVM lacks what the VM uses: %s", names);
    return 0;
}
