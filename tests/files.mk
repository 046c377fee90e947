# Criterion programs, one per file.
unit_SRCS := \
	tests/unit/test_engine.c
# vmm: PCI, virtio and the output gate
unit_SRCS += tests/unit/test_virtq.c tests/unit/test_pci.c tests/unit/test_virtio_blk.c
