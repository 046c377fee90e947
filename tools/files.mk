# The reprise command. The verbs are one file each.
tools_SRCS := \
	tools/args.c tools/args_help.c tools/args_value.c \
	tools/help.c tools/main.c
