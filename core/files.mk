core_SRCS :=
