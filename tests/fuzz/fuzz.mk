# Fuzzers: one per parser, linked to the real library. SAN=fuzzer (clang, libFuzzer, ASan, UBSan) builds them.
#   make fuzz [FUZZ_SECONDS=n] [FUZZ="stream link"]     each for that long, as many at once as there are processors
FUZZERS := codec stream virtq devices qmp kernel link lease journal mark vsock
FUZZ ?= $(FUZZERS)
FUZZ_SECONDS ?= 60

fuzzer = $(BUILD)/tests/fuzz/fuzz_$(1)
$(BUILD)/tests/fuzz/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(TOOLS_LIBS)
	$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $< $(TOOLS_LIBS) $(LDLIBS)
.PRECIOUS: $(BUILD)/tests/fuzz/fuzz_%.o

.PHONY: fuzzers fuzz
fuzzers: $(foreach f,$(FUZZERS),$(call fuzzer,$(f)))

fuzz:
	$(MAKE) SAN=fuzzer fuzzers
	tests/fuzz/run $(FUZZ_SECONDS) $(FUZZ)
