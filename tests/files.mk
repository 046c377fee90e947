# Criterion programs, one per file.
unit_SRCS := \
	tests/unit/test_engine.c
unit_SRCS :=
# vmm: PCI, virtio and the output gate
unit_SRCS += tests/unit/test_virtq.c tests/unit/test_pci.c
