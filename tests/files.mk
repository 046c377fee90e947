# Criterion programs, one per file.
unit_SRCS := \
	tests/unit/test_engine.c
