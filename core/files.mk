core_SRCS := \
	core/bytes.c \
	core/codec.c \
	core/digest.c \
	core/epoch.c \
	core/error.c \
	core/fault.c \
	core/histogram.c \
	core/log.c \
	core/pool.c \
	core/queue.c \
	core/ram.c \
	core/state.c
