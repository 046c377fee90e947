/* The other vCPUs' way in. */
#ifndef TESTS_GUESTS_LIB_SMP_H
#define TESTS_GUESTS_LIB_SMP_H

/* Called by a vCPU that boot.S has brought to CPL 3; runs what rg_smp_start() was given. */
__attribute__((noreturn)) void rg_smp_arrive(unsigned cpu);

#endif
