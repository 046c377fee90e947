# Criterion programs, one per file and per line.
unit_SRCS := tests/unit/test_engine.c
unit_SRCS += tests/unit/test_aside.c
unit_SRCS += tests/unit/test_encoder.c
unit_SRCS += tests/unit/test_policy.c
unit_SRCS += tests/unit/test_pressure.c
$(BUILD)/tests/unit/test_pressure: $(BUILD)/tests/bench/source.o
unit_SRCS += tests/unit/test_cow.c
$(BUILD)/tests/unit/test_cow: $(BUILD)/tests/bench/source.o
unit_SRCS += tests/unit/test_cow_guest.c
$(BUILD)/tests/unit/test_cow_guest: $(BUILD)/tests/bench/source.o
unit_SRCS += tests/unit/test_lease.c
unit_SRCS += tests/unit/test_link.c
unit_SRCS += tests/unit/test_lanes.c
unit_SRCS += tests/unit/test_rdma.c
unit_SRCS += tests/unit/test_replica.c
unit_SRCS += tests/unit/test_replica_sums.c
unit_SRCS += tests/unit/test_journal.c
unit_SRCS += tests/unit/test_resync.c
# core
unit_SRCS += tests/unit/test_basics.c
unit_SRCS += tests/unit/test_state.c
unit_SRCS += tests/unit/test_codec.c
unit_SRCS += tests/unit/test_stream.c
unit_SRCS += tests/unit/test_image.c
unit_SRCS += tests/unit/test_sink_fd.c
# vmm: PCI, virtio and the output gate
unit_SRCS += tests/unit/test_loop.c
unit_SRCS += tests/unit/test_virtq.c
unit_SRCS += tests/unit/test_pci.c
unit_SRCS += tests/unit/test_virtio_blk.c
unit_SRCS += tests/unit/test_disks.c
unit_SRCS += tests/unit/test_disk_sums.c
unit_SRCS += tests/unit/test_gate.c
# vmm: the machine
unit_SRCS += tests/unit/test_machine.c
unit_SRCS += tests/unit/test_tools.c
unit_SRCS += tests/unit/test_qmp.c
unit_SRCS += tests/unit/test_partial.c
unit_SRCS += tests/unit/test_virtio_net.c
unit_SRCS += tests/unit/test_net_queues.c
unit_SRCS += tests/unit/test_virtio_rng.c
unit_SRCS += tests/unit/test_virtio_balloon.c
# the format: golden streams, every state table, and who prints streams
unit_SRCS += tests/unit/test_golden.c
unit_SRCS += tests/unit/test_inspect.c
# What they need beside themselves: the command, a copy of the golden streams.
$(BUILD)/tests/unit/test_inspect: | $(BUILD)/reprise
GOLDEN := $(patsubst %,$(BUILD)/%,$(wildcard tests/golden/*.rps tests/golden/*.json))
$(BUILD)/tests/golden/%: tests/golden/%
	@mkdir -p $(@D)
	cp $< $@
$(BUILD)/tests/unit/test_golden: | $(GOLDEN)
unit_SRCS += tests/unit/test_virtio_console.c
unit_SRCS += tests/unit/test_chardev.c
unit_SRCS += tests/unit/test_virtio_vsock.c
unit_SRCS += tests/unit/test_serial_rtc.c
unit_SRCS += tests/unit/test_no_lost_page.c
unit_SRCS += tests/unit/test_fence.c
unit_SRCS += tests/unit/test_boot.c
unit_SRCS += tests/unit/test_protect.c
unit_SRCS += tests/unit/test_guest_pages.c
unit_SRCS += tests/unit/test_guest_ram.c
unit_SRCS += tests/unit/test_faults.c
