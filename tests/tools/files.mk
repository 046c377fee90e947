# Host-side programs of the tests, one source each: tests/tools/some_name.c -> $(BUILD)/tests/tools/some-name
TEST_TOOLS := ledger_client guest_probe frame_switch

test_tool = $(BUILD)/tests/tools/$(subst _,-,$(1))
define test_tool_rule
$(call test_tool,$(1)): $(BUILD)/tests/tools/$(1).o
	$$(CC) $$(LDFLAGS) -o $$@ $$<
endef
$(foreach t,$(TEST_TOOLS),$(eval $(call test_tool_rule,$(t))))

.PHONY: test-tools
test-tools: $(foreach t,$(TEST_TOOLS),$(call test_tool,$(t)))
