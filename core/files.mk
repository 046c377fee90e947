core_SRCS := \
	core/accept.c \
	core/bytes.c \
	core/codec.c \
	core/copy.c \
	core/digest.c \
	core/disk_mark.c \
	core/disk_sums.c \
	core/durable.c \
	core/epoch.c \
	core/error.c \
	core/event.c \
	core/fault.c \
	core/histogram.c \
	core/image.c \
	core/late.c \
	core/log.c \
	core/pool.c \
	core/queue.c \
	core/ram.c \
	core/sink_fd.c \
	core/staging.c \
	core/state.c \
	core/stream.c \
	core/thread.c \
	core/uffd.c \
	core/xxh3.c \
	core/xxh3_avx2.c

# Called only where the processor has it (core/xxh3.c).
$(BUILD)/core/xxh3_avx2.o: CFLAGS += -mavx2
