vmm_SRCS := \
	vmm/bounce.c \
	vmm/bus.c \
	vmm/disk_nbd.c \
	vmm/disk_raw.c \
	vmm/gate.c \
	vmm/guest_ram.c \
	vmm/irq.c \
	vmm/loop.c \
	vmm/pci.c \
	vmm/pci_msix.c \
	vmm/virtio_blk.c \
	vmm/virtio_pci.c \
	vmm/virtq.c
