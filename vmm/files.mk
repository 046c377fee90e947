vmm_SRCS := \
	vmm/bus.c \
	vmm/guest_ram.c \
	vmm/irq.c \
	vmm/loop.c
