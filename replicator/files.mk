replicator_SRCS :=
