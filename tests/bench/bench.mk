# Figures, not judgements: what the engine costs here. Side by side with QEMU, and why the lab may be needed for that: docs/benchmarks.md.
.PHONY: bench bench-engine bench-beside
bench: bench-engine bench-beside

# Beside the Debian QEMU, ratios first: on this machine's KVM, or in a lab host. Linux guests want one that runs kernels at speed.
BENCH_NATIVE := $(shell [ -r /dev/kvm ] && [ -w /dev/kvm ] && echo --native)
BENCH_LINUX  := $(if $(BENCH_NATIVE),$(shell grep -qEw 'svm|vmx' /proc/cpuinfo && echo --native))
bench-beside: all $(BUILD)/tests/bench/bench-engine
	tests/lab/run $(BENCH_NATIVE) --build $(BUILD) bench-machine bench-snapshot bench-colo
	tests/lab/run $(BENCH_LINUX) --build $(BUILD) bench-boot bench-io

BENCH_OBJS := $(addprefix $(BUILD)/tests/bench/,bench.o pages.o encode.o cow.o link.o resync.o source.o machine.o)
$(BUILD)/tests/bench/bench-engine: $(BENCH_OBJS) $(LIBS)
	$(CC) $(LDFLAGS) -o $@ $(BENCH_OBJS) $(LIBS) $(LDLIBS)

bench-engine: $(BUILD)/tests/bench/bench-engine
	$<

# One side of a link, for scenarios with two hosts.
LINK_PEER_OBJS := $(addprefix $(BUILD)/tests/bench/,link_peer.o source.o)
$(BUILD)/tests/bench/link-peer: $(LINK_PEER_OBJS) $(LIBS)
	$(CC) $(LDFLAGS) -o $@ $(LINK_PEER_OBJS) $(LIBS) $(LDLIBS)
test-tools: $(BUILD)/tests/bench/link-peer
