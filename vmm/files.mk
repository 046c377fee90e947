vmm_SRCS :=
