# The reprise command. The verbs are one file each.
tools_SRCS := \
	tools/args.c \
	tools/args_help.c \
	tools/args_value.c \
	tools/client.c \
	tools/control.c \
	tools/help.c \
	tools/job.c \
	tools/main.c \
	tools/qmp_input.c \
	tools/qmp_server.c \
	tools/runtime.c \
	tools/status.c \
	tools/vm_options.c
