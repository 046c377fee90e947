/* Numbers that boot.S and the C code share. */
#ifndef TESTS_GUESTS_LIB_LAYOUT_H
#define TESTS_GUESTS_LIB_LAYOUT_H

#define RG_CPUS_MAX      32     /* RG_VCPUS_MAX */
#define RG_MAP_GIB       64     /* identity-mapped guest-physical space */
#define RG_STACK_BYTES   16384
#define RG_KSTACK_BYTES  2048
#define RG_TRAMPOLINE    0x8000 /* real-mode start of the other processors: page 8 */
#define RG_FIRST_TSC     32     /* offsetof(struct rg_status, first_tsc) */

#define RG_SEL_KCODE64   0x08
#define RG_SEL_KDATA     0x10
#define RG_SEL_KCODE32   0x18
#define RG_SEL_UDATA     0x2b
#define RG_SEL_UCODE64   0x33
#define RG_SEL_TSS       0x40

#endif
