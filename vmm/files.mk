# The machine: KVM, vCPUs, RAM, boot, chipset, state.
vmm_SRCS := \
	vmm/acpi.c \
	vmm/aml.c \
	vmm/boot.c \
	vmm/boot_bzimage.c \
	vmm/boot_elf.c \
	vmm/bus.c \
	vmm/chardev.c \
	vmm/chipset.c \
	vmm/cpuid.c \
	vmm/dirty.c \
	vmm/guard.c \
	vmm/guest_ram.c \
	vmm/irq.c \
	vmm/kvm.c \
	vmm/late_nbd.c \
	vmm/loop.c \
	vmm/machine.c \
	vmm/machine_make.c \
	vmm/machine_state.c \
	vmm/power.c \
	vmm/rtc.c \
	vmm/serial.c \
	vmm/source.c \
	vmm/tables.c \
	vmm/time.c \
	vmm/vcpu.c \
	vmm/vcpu_place.c \
	vmm/vcpu_state.c \
	vmm/vmgenid.c

# PCI and virtio, and what they stand on.
vmm_SRCS += \
	vmm/bounce.c \
	vmm/disk_nbd.c \
	vmm/disk_raw.c \
	vmm/disks.c \
	vmm/disks_copy.c \
	vmm/gate.c \
	vmm/net.c \
	vmm/net_dgram.c \
	vmm/net_stream.c \
	vmm/net_tap.c \
	vmm/pci.c \
	vmm/pci_msix.c \
	vmm/virtio_balloon.c \
	vmm/virtio_blk.c \
	vmm/virtio_console.c \
	vmm/virtio_net.c \
	vmm/virtio_net_rx.c \
	vmm/virtio_pci.c \
	vmm/virtio_vsock.c \
	vmm/virtio_rng.c \
	vmm/virtio_tx.c \
	vmm/virtq.c \
	vmm/vsock.c
