# The freestanding PVH test guests (tests/guests/README.md): build/guests/*.elf, the same whatever SAN is.
GUESTS       := dirtier idle ledger blkwriter registers ipis
GUEST_BUILD  := build/guests
GUEST_LIB    := start text cmdline memory clock cpl0 smp mem
GUEST_dirtier :=
GUEST_idle    :=
GUEST_ledger  := pci virtio net net_ip tcp
GUEST_blkwriter := pci virtio
GUEST_registers := vector
GUEST_ipis    :=

GUEST_CFLAGS := -std=gnu17 -O2 -g $(WARN) $(WERROR) -ffreestanding -fno-pic -fno-pie -mcmodel=small -mno-red-zone \
                -mgeneral-regs-only -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none \
                -fno-tree-loop-distribute-patterns -fno-strict-aliasing -I. -MMD -MP
# What guests and host agree on, tested on the host.
unit_SRCS += tests/unit/test_guest_pages.c

GUEST_CC     := gcc
GUEST_ELFS   := $(GUESTS:%=$(GUEST_BUILD)/%.elf)

.PHONY: guests
guests: $(GUEST_ELFS)

$(GUEST_BUILD)/lib/%.o: tests/guests/lib/%.S
	@mkdir -p $(@D)
	$(GUEST_CC) -I. -MMD -MP -c -o $@ $<

$(GUEST_BUILD)/%.o: tests/guests/%.c
	@mkdir -p $(@D)
	$(GUEST_CC) $(GUEST_CFLAGS) -c -o $@ $<

define guest
$(GUEST_BUILD)/$(1).elf: $(GUEST_BUILD)/$(1).o $(GUEST_BUILD)/lib/boot.o \
		$(patsubst %,$(GUEST_BUILD)/lib/%.o,$(GUEST_LIB) $(GUEST_$(1))) tests/guests/lib/link.ld
	$(GUEST_CC) -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments \
		-T tests/guests/lib/link.ld -o $$@ $$(filter %.o,$$^)
endef
$(foreach g,$(GUESTS),$(eval $(call guest,$(g))))

-include $(wildcard $(GUEST_BUILD)/*.d $(GUEST_BUILD)/lib/*.d)
