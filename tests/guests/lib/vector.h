/* All the register state that CPL 3 can hold, as memory; shared by registers.c and vector.S. */
#ifndef TESTS_GUESTS_LIB_VECTOR_H
#define TESTS_GUESTS_LIB_VECTOR_H

#define RG_V_GPR     0   /* 14 words: rax rbx rdx rsi rdi rbp r8 … r15; rcx counts, rsp is the stack */
#define RG_V_FLAGS   112 /* CF PF AF ZF SF DF OF */
#define RG_V_MXCSR   120
#define RG_V_FCW     128
#define RG_V_FS      136 /* what %fs:0 and %gs:0 hold */
#define RG_V_GS      144
#define RG_V_X87     152 /* 8 words: integers on the stack, st(0) first */
#define RG_V_VECTOR  224 /* 16 × 32 bytes: ymm, or the low half of each for xmm */
#define RG_V_WORDS   92

#ifndef __ASSEMBLER__
#include <stdint.h>

#define RG_V_FLAGS_MASK 0xcd5u

struct rg_registers {
	uint64_t in[RG_V_WORDS];
	uint64_t out[RG_V_WORDS];
};

_Static_assert(RG_V_VECTOR + 16 * 32 <= RG_V_WORDS * 8, "vectors fit");

/* Loads everything from r->in, counts `spins` down to 0, stores everything to r->out; 0 unless rcx came out wrong. */
uint64_t rg_registers_round(struct rg_registers *r, uint64_t spins, uint64_t avx);
#endif

#endif
