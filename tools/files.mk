tools_SRCS := tools/main.c
