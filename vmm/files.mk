vmm_SRCS := \
	vmm/bus.c \
	vmm/guest_ram.c \
	vmm/irq.c \
	vmm/loop.c \
	vmm/pci.c \
	vmm/pci_msix.c \
	vmm/virtio_pci.c \
	vmm/virtq.c
