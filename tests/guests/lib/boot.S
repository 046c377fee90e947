/*
 * From the PVH entry (32-bit, CPL 0, paging off) to C code at CPL 3 in long mode, on the boot processor and on the others.
 *
 * Why CPL 3: some KVMs interpret CPL 0 and run only CPL 3 with exactly CS=0x33, SS=DS=ES=0x2b at the speed of the processor. So
 * CPL 0 is kept short: tables, TSS and IDT, kvmclock, iretq. IOPL 3 leaves `in` and `out` usable; interrupts stay off.
 *
 * Boot protocol: Xen's docs/misc/pvh.pandoc (register state at entry) and arch-x86/hvm/start_info.h.
 */
#include "layout.h"

#define CR0_PE      (1 << 0)
#define CR0_NE      (1 << 5)
#define CR0_WP      (1 << 16)
#define CR0_PG      (1 << 31)
#define CR4_PAE     (1 << 5)
#define MSR_EFER    0xc0000080
#define EFER_LME    (1 << 8)
#define CPUID_1GB   (1 << 26)        /* 0x80000001 EDX */
#define PTE_TABLE   0x27             /* present, writable, user, accessed */
#define PTE_BIG     0xe7             /* … dirty, page size: preset, so that no walk has to set them */

	.section .note.pvh, "a", @note
	.align 4
	.long 4, 8, 18               /* name size, value size, XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.quad pvh_entry

	.section .text.boot, "ax"
	.code32
	.globl pvh_entry
pvh_entry:
	cli
	cld
	rdtsc
	movl %eax, rg_area + RG_FIRST_TSC
	movl %edx, rg_area + RG_FIRST_TSC + 4
	movl %ebx, rg_start_info
	movl $boot_stack_top, %esp
	call build_tables
	lgdt gdt_pointer
	xorl %esi, %esi              /* vCPU number */
	jmp enter_long_mode

/* Identity map: 1 GiB pages for RG_MAP_GIB where the processor has them, else 2 MiB pages for the first 4 GiB; C adds the rest. */
build_tables:
	movl $rg_pdpt + PTE_TABLE, rg_pml4
	movl $0x80000000, %eax
	cpuid
	cmpl $0x80000001, %eax
	jb 2f
	movl $0x80000001, %eax
	cpuid
	testl $CPUID_1GB, %edx
	jz 2f
	movl $1, rg_big_pages
	movl $rg_pdpt, %edi
	movl $PTE_BIG, %eax
	xorl %edx, %edx
	movl $RG_MAP_GIB, %ecx
1:	movl %eax, (%edi)
	movl %edx, 4(%edi)
	addl $0x40000000, %eax
	adcl $0, %edx
	addl $8, %edi
	loop 1b
	ret
2:	movl $rg_pdpt, %edi
	movl $rg_pd + PTE_TABLE, %eax
	movl $RG_MAP_GIB, %ecx
3:	movl %eax, (%edi)
	addl $0x1000, %eax
	addl $8, %edi
	loop 3b
	movl $rg_pd, %edi
	movl $PTE_BIG, %eax
	movl $4 * 512, %ecx
4:	movl %eax, (%edi)
	addl $0x200000, %eax
	addl $8, %edi
	loop 4b
	ret

enter_long_mode:
	movl $CR4_PAE, %eax
	movl %eax, %cr4
	movl $rg_pml4, %eax
	movl %eax, %cr3
	movl $MSR_EFER, %ecx
	rdmsr
	orl $EFER_LME, %eax
	wrmsr
	movl $CR0_PE | CR0_NE | CR0_WP | CR0_PG, %eax
	movl %eax, %cr0
	ljmp $RG_SEL_KCODE64, $long_mode

	.code64
long_mode:
	movl $RG_SEL_KDATA, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	xorl %eax, %eax
	movl %eax, %fs
	movl %eax, %gs
	movl %esi, %ebx
	/* kernel stack of vCPU n: rg_kstacks + (n + 1) * RG_KSTACK_BYTES */
	leal 1(%rbx), %eax
	imull $RG_KSTACK_BYTES, %eax, %eax
	leaq rg_kstacks(%rax), %rsp
	movl %ebx, %edi
	call rg_cpl0_init
	leal 1(%rbx), %eax
	imull $RG_STACK_BYTES, %eax, %eax
	leaq rg_stacks(%rax), %rcx
	movl $RG_SEL_UDATA, %eax
	movl %eax, %ds
	movl %eax, %es
	pushq $RG_SEL_UDATA
	pushq %rcx
	pushq $0x3002                /* IOPL 3, IF 0 */
	pushq $RG_SEL_UCODE64
	pushq $user_mode
	movl %ebx, %edi
	xorl %esi, %esi
	xorl %ebp, %ebp
	iretq

user_mode:
	rdtsc
	shlq $32, %rdx
	leaq (%rdx, %rax), %rsi      /* TSC at the first instruction at CPL 3 */
	call rg_main
	ud2

/* The other processors: copied to RG_TRAMPOLINE, entered in real mode at RG_TRAMPOLINE >> 12. */
	.globl rg_trampoline, rg_trampoline_end
	.code16
rg_trampoline:
	cli
	cld
	xorw %ax, %ax
	movw %ax, %ds
	lgdtl RG_TRAMPOLINE + (trampoline_gdt - rg_trampoline)
	movl $CR0_PE, %eax
	movl %eax, %cr0
	ljmpl $RG_SEL_KCODE32, $ap_protected
	.align 8
trampoline_gdt:
	.word gdt_end - gdt - 1
	.long gdt
rg_trampoline_end:

	.code32
ap_protected:
	movl $RG_SEL_KDATA, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	movl rg_ap_number, %esi      /* set by rg_smp_start() for the one processor it starts */
	jmp enter_long_mode

/* Exceptions: record and stop. Vectors that push no error code get a zero. */
	.code64
	.altmacro
	.macro STUB n
	.align 16
	.if !(\n == 8 || (\n >= 10 && \n <= 14) || \n == 17 || \n == 21 || \n == 29 || \n == 30)
	pushq $0
	.endif
	pushq $\n
	jmp fault
	.endm

	.globl rg_fault_stubs
	.align 16
rg_fault_stubs:
	.set vector, 0
	.rept 32
	STUB %vector
	.set vector, vector + 1
	.endr

fault:
	movq %rsp, %rdi              /* vector, error code, rip, cs, rflags, rsp, ss */
	movq %cr2, %rsi
	call rg_fault
1:	cli
	hlt
	jmp 1b

	.section .data
	.align 16
	.globl gdt
gdt:
	.quad 0
	.quad 0x00af9b000000ffff     /* 0x08 code 64, CPL 0 */
	.quad 0x00cf93000000ffff     /* 0x10 data, CPL 0 */
	.quad 0x00cf9b000000ffff     /* 0x18 code 32, CPL 0 */
	.quad 0x00cffb000000ffff     /* 0x20 code 32, CPL 3 */
	.quad 0x00cff3000000ffff     /* 0x28 data, CPL 3 */
	.quad 0x00affb000000ffff     /* 0x30 code 64, CPL 3 */
	.quad 0
	.globl rg_gdt_tss
rg_gdt_tss:
	.fill 2 * RG_CPUS_MAX, 8, 0  /* 0x40 + 16 n: TSS of vCPU n */
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt

	.section .bss
	.align 4096
	.globl rg_pml4, rg_pdpt, rg_pd
rg_pml4:
	.skip 4096
rg_pdpt:
	.skip 4096
rg_pd:
	.skip 4096 * RG_MAP_GIB
	.globl rg_stacks, rg_kstacks
rg_stacks:
	.skip RG_STACK_BYTES * RG_CPUS_MAX
rg_kstacks:
	.skip RG_KSTACK_BYTES * RG_CPUS_MAX
	.skip 256
boot_stack_top:
	.globl rg_start_info, rg_big_pages, rg_ap_number
	.align 8
rg_start_info:
	.quad 0
rg_big_pages:
	.long 0
rg_ap_number:
	.long 0

	.section .note.GNU-stack, "", @progbits
