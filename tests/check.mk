# What has to pass before a change lands: tests/check/run does it step by step (tests/check/run --list) and ends with a line that counts.
#   make check STEPS="lint unit"      some of the steps
#   make check-long                   the long scenarios and ten minutes of each fuzzer, too
.PHONY: check check-long
check: need
	@tests/check/run $(STEPS)
check-long: need
	@tests/check/run --long $(STEPS)

# Single steps, with all they say.
.PHONY: lint check-guests check-cli check-thread check-address
lint: all
	tests/check/lint $(BUILD)
# The test guests under the Debian QEMU: they must be right before they judge us.
check-guests: guests test-tools
	tests/guests/test-qemu
# Bad use: one clear sentence, the right exit code, nothing left behind (the lab's scenario bad-use has what needs KVM). A walk: what is seen of VMs
# that run and stand by.
check-cli: all
	python3 tests/cli/bad_use.py $(BUILD)/reprise build/guests
	python3 tests/cli/walk.py $(BUILD)/reprise build/guests
check-thread check-address:
	@tests/check/run $(@:check-%=%)

# The whole-host lab (docs/lab.md): images and boot snapshots, cached outside the tree; then its own tests.
.PHONY: lab lab-smoke
lab:
	tests/lab/build
	tests/lab/run --snapshots

lab-smoke: all
	tests/lab/run smoke-hosts smoke-client smoke-rdma smoke-kvm smoke-guest faults

# Writes golden streams; linked with the library.
$(BUILD)/tests/golden/make: $(BUILD)/tests/golden/make.o $(TOOLS_LIBS)
	$(CC) $(LDFLAGS) -o $@ $< $(TOOLS_LIBS) $(LDLIBS)
