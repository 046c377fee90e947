# Criterion programs, one per file.
unit_SRCS :=
