store_SRCS :=
