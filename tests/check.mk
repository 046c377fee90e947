# What has to pass before a change lands. Each step is a target of its own.
.PHONY: check
check: all unit check-guests

# The test guests under the Debian QEMU: they must be right before they judge us.
.PHONY: check-guests
check-guests: guests test-tools
	tests/guests/test-qemu

# Where threads meet, under the thread sanitizer (tests/tsan says why not with Criterion).
TSAN_TESTS := test_engine test_encoder test_link test_lanes
.PHONY: check-thread
check-thread:
	$(MAKE) SAN=thread $(addprefix build-thread/tests/unit/,$(TSAN_TESTS))
	@rc=0; for t in $(TSAN_TESTS); do echo "== $$t (tsan)"; build-thread/tests/unit/$$t || rc=1; done; exit $$rc

# The whole-host lab (docs/lab.md): images and boot snapshots, cached outside the tree; then its own tests.
.PHONY: lab lab-smoke
lab:
	tests/lab/build
	tests/lab/run --snapshots

lab-smoke: all
	tests/lab/run smoke-hosts smoke-client smoke-rdma smoke-kvm smoke-guest faults

# Bad use: one clear sentence, the right exit code, nothing left behind. (The lab's scenario bad-use has what needs KVM.)
.PHONY: check-cli
check: check-cli
check-cli: all
	python3 tests/cli/bad_use.py $(BUILD)/reprise build/guests

# Writes golden streams; linked with the library.
$(BUILD)/tests/golden/make: $(BUILD)/tests/golden/make.o $(TOOLS_LIBS)
	$(CC) $(LDFLAGS) -o $@ $< $(TOOLS_LIBS) $(LDLIBS)
