# Criterion programs, one per file and per line.
unit_SRCS := tests/unit/test_engine.c
unit_SRCS += tests/unit/test_link.c
# vmm: PCI, virtio and the output gate
unit_SRCS += tests/unit/test_virtq.c
unit_SRCS += tests/unit/test_pci.c
unit_SRCS += tests/unit/test_virtio_blk.c
unit_SRCS += tests/unit/test_gate.c
