replicator_SRCS := \
	replicator/arena.c \
	replicator/capture.c \
	replicator/encoder.c \
	replicator/engine.c \
	replicator/policy.c
