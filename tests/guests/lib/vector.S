/* One round of registers.c: everything loaded, a while of nothing, everything stored. See vector.h. */
#include "vector.h"

#define IN  0
#define OUT (RG_V_WORDS * 8)

	.text
	.globl rg_registers_round
rg_registers_round:
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	pushq %rdx                   /* avx */
	pushq %rdi                   /* r */
	movq %rsi, %rcx

	fninit
	fldcw IN + RG_V_FCW(%rdi)
	.irp n, 7, 6, 5, 4, 3, 2, 1, 0
	fildll IN + RG_V_X87 + 8 * \n(%rdi)
	.endr
	ldmxcsr IN + RG_V_MXCSR(%rdi)
	testq %rdx, %rdx
	jz 1f
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovdqu IN + RG_V_VECTOR + 32 * \n(%rdi), %ymm\n
	.endr
	jmp 2f
1:	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movdqu IN + RG_V_VECTOR + 32 * \n(%rdi), %xmm\n
	.endr
2:	pushq IN + RG_V_FLAGS(%rdi)
	movq IN + 0(%rdi), %rax
	movq IN + 8(%rdi), %rbx
	movq IN + 16(%rdi), %rdx
	movq IN + 24(%rdi), %rsi
	movq IN + 40(%rdi), %rbp
	movq IN + 48(%rdi), %r8
	movq IN + 56(%rdi), %r9
	movq IN + 64(%rdi), %r10
	movq IN + 72(%rdi), %r11
	movq IN + 80(%rdi), %r12
	movq IN + 88(%rdi), %r13
	movq IN + 96(%rdi), %r14
	movq IN + 104(%rdi), %r15
	movq IN + 32(%rdi), %rdi
	popfq
	/* lea and jrcxz leave the flags alone. */
3:	jrcxz 4f
	leaq -1(%rcx), %rcx
	jmp 3b
4:	pushq %rdi
	movq 8(%rsp), %rdi           /* r */
	movq %rax, OUT + 0(%rdi)
	pushfq
	popq OUT + RG_V_FLAGS(%rdi)
	cld
	movq %rbx, OUT + 8(%rdi)
	movq %rdx, OUT + 16(%rdi)
	movq %rsi, OUT + 24(%rdi)
	popq OUT + 32(%rdi)
	movq %rbp, OUT + 40(%rdi)
	movq %r8, OUT + 48(%rdi)
	movq %r9, OUT + 56(%rdi)
	movq %r10, OUT + 64(%rdi)
	movq %r11, OUT + 72(%rdi)
	movq %r12, OUT + 80(%rdi)
	movq %r13, OUT + 88(%rdi)
	movq %r14, OUT + 96(%rdi)
	movq %r15, OUT + 104(%rdi)
	movq %fs:0, %rax
	movq %rax, OUT + RG_V_FS(%rdi)
	movq %gs:0, %rax
	movq %rax, OUT + RG_V_GS(%rdi)
	stmxcsr OUT + RG_V_MXCSR(%rdi)
	fnstcw OUT + RG_V_FCW(%rdi)
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	fistpll OUT + RG_V_X87 + 8 * \n(%rdi)
	.endr
	popq %rdi
	popq %rdx
	testq %rdx, %rdx
	jz 5f
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovdqu %ymm\n, OUT + RG_V_VECTOR + 32 * \n(%rdi)
	.endr
	jmp 6f
5:	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movdqu %xmm\n, OUT + RG_V_VECTOR + 32 * \n(%rdi)
	.endr
6:	movq %rcx, %rax
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret

	.section .note.GNU-stack, "", @progbits
