/*
 * vcpu_state.h - everything of a vCPU that an epoch carries, and how it gets in and out of KVM.
 *
 * Order of restoring, and why (docs/state.md has the whole machine's):
 *   1 mp_state      a waiting AP must not be given registers that a later INIT would drop
 *   2 sregs         brings EFER, CR4 and the APIC base, on which the meaning of the rest depends
 *   3 regs          KVM drops pending exceptions here, so events come later
 *   4 XCRs, XSAVE   XCR0 says which components are live
 *   5 debug registers
 *   6 LAPIC         after the APIC base (mode), before its timer
 *   7 TSC           before everything that compares with it
 *   8 MSRs          the TSC deadline last: writing it arms the LAPIC timer
 *   9 events        last: everything above may clear or inject some
 * Source: Documentation/virt/kvm/api.rst; the order is KVM's requirement, tested by tests/native.
 */
#ifndef RP_VMM_VCPU_STATE_H
#define RP_VMM_VCPU_STATE_H

#include "core/state.h"

#define RP_VCPU_MSRS_MAX 192
#define RP_VCPU_XCRS_MAX 16
#define RP_VCPU_XSAVE_MAX 12288     /* the standard format with AMX tiles is 11,008 bytes */

struct rp_segment_state {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint8_t type, present, dpl, db, s, l, g, avl, unusable, pad;
};
struct rp_msr_state { uint64_t value; uint32_t index; uint32_t pad; };
struct rp_xcr_state { uint64_t value; uint32_t index; uint32_t pad; };

struct rp_vcpu_state {
    uint32_t mp_state;
    uint32_t nmsrs, nxcrs, xsave_bytes;
    uint64_t gpr[16];               /* rax rbx rcx rdx rsi rdi rsp rbp r8-r15 (struct kvm_regs' order) */
    uint64_t rip, rflags;
    struct rp_segment_state seg[8]; /* cs ds es fs gs ss tr ldt */
    uint64_t gdt_base, idt_base;
    uint32_t gdt_limit, idt_limit;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
    uint64_t interrupt_bitmap[4];
    uint64_t tsc;                   /* the guest's TSC at the clock section's instant */
    uint64_t dr[4], dr6, dr7;
    struct rp_xcr_state xcrs[RP_VCPU_XCRS_MAX];
    struct rp_msr_state msrs[RP_VCPU_MSRS_MAX];
    uint8_t events[64];             /* struct kvm_vcpu_events, little-endian, KVM's stable ABI */
    uint8_t lapic[1024];            /* the APIC's register page */
    uint8_t xsave[RP_VCPU_XSAVE_MAX];   /* standard (non-compacted) XSAVE area */
};
extern const struct rp_state_table rp_vcpu_table;

struct rp_vcpu;
struct rp_vcpus;
struct rp_msr_list;

/* Finds out which MSRs can be read and set back here. After CPUID is set. */
int rp_msr_list_probe(struct rp_vcpus *g, struct rp_error *err) RP_MUST_CHECK;
void rp_msr_list_free(struct rp_msr_list *l);

/* What nobody else changes: registers, FPU, MSRs. `state->tsc` is left as the TSC offset; rp_clock_save turns it into the guest's TSC.
 * The vCPU is still (vcpu.h). */
int rp_vcpu_save_own(struct rp_vcpu *v, struct rp_vcpu_state *state, struct rp_error *err) RP_MUST_CHECK;
/* After that, the rest: what other vCPUs and devices send to it (LAPIC, events, INIT and SIPI). Nobody sends any more. 1: it was
 * started or reset meanwhile: save its own anew. */
int rp_vcpu_save_sent(struct rp_vcpu *v, struct rp_vcpu_state *state, struct rp_error *err) RP_MUST_CHECK;
/* `tsc_offset`: guest TSC = host TSC + offset. -EBADMSG when the state cannot be entered here, with the reason. */
int rp_vcpu_load(struct rp_vcpu *v, const struct rp_vcpu_state *state, uint64_t tsc_offset,
                 struct rp_error *err) RP_MUST_CHECK;

#endif
