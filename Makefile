# Reprise: one Makefile, one list of files per folder (FOLDER/files.mk).
#
#   make            the reprise command and the test guests   -> build/
#   make demo       a protected VM, its host's power is cut, a client goes on (demo-quick: with a small guest)
#   make check      everything that has to pass before a change lands
#   make fuzz       the fuzzers for longer: FUZZ_SECONDS=600 FUZZ="stream link"
#   make bench      figures, side by side with the Debian QEMU
#   make lab        build (once) the whole-host lab that tests/lab/run uses
#   make deps       install the Debian packages all of this needs (as root)
#   make man        the man pages, from the tables that drive the command line -> $(BUILD)/man
#   make install    the command to $(DESTDIR)$(PREFIX)/bin, its man pages to share/man
#
# SAN=address|thread|fuzzer builds a sanitizer variant into build-$(SAN).

SAN     ?=
BUILD   := build$(if $(SAN),-$(SAN))
CC      := gcc
WERROR  := $(if $(CI),-Werror)
# Messages are cut to their buffers on purpose.
WARN    := -Wall -Wextra -Wshadow -Wconversion -Wcast-qual -Wstrict-prototypes -Wmissing-prototypes -Wno-format-truncation
OPT     := -O2 -g
SANFLAGS_address := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SANFLAGS_thread  := -fsanitize=thread -Wno-tsan
SANFLAGS_fuzzer  := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined
ifeq ($(SAN),fuzzer)
CC      := clang
WARN    += -Wno-unknown-warning-option -Wno-missing-field-initializers
endif
CFLAGS  += -std=gnu17 $(OPT) $(WARN) $(WERROR) $(SANFLAGS_$(SAN))
CPPFLAGS += -D_GNU_SOURCE -I. -MMD -MP
LDFLAGS += $(SANFLAGS_$(SAN)) -pthread
LDLIBS  := -luring -llz4 -lxxhash -ljansson -llmdb -lrdmacm -libverbs -lcrypto -lseccomp -lm -lpthread

.DEFAULT_GOAL := all

# Every folder names its files: core_SRCS, vmm_SRCS, ...
include core/files.mk vmm/files.mk replicator/files.mk store/files.mk tools/files.mk tests/files.mk

LAYERS  := core vmm replicator store
objs     = $(patsubst %.c,$(BUILD)/%.o,$(1))
LIBS    := $(foreach l,store replicator vmm core,$(BUILD)/lib$(l).a)

.PHONY: all clean
all: $(BUILD)/reprise guests test-tools

include tests/guests/guests.mk tests/tools/files.mk

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<

define layer
$(BUILD)/lib$(1).a: $$(call objs,$$($(1)_SRCS))
	@rm -f $$@
	$$(AR) rcs $$@ $$^
endef
$(foreach l,$(LAYERS),$(eval $(call layer,$(l))))

# The command's parts are a library too, for tests and fuzzers; main.c has main().
tools_lib_SRCS := $(filter-out tools/main.c,$(tools_SRCS))
$(eval $(call layer,tools_lib))
TOOLS_LIBS := $(BUILD)/libtools_lib.a $(LIBS)

$(BUILD)/reprise: $(BUILD)/tools/main.o $(TOOLS_LIBS)
	$(CC) $(LDFLAGS) -o $@ $< $(TOOLS_LIBS) $(LDLIBS)

# Criterion tests, one program per file in tests/unit. ThreadSanitizer and Criterion's isolation exclude each other: there a small
# header of ours stands in for it.
UNIT_LIBS := $(if $(filter thread,$(SAN)),,-lcriterion)
$(BUILD)/tests/unit/%.o: CPPFLAGS += $(if $(filter thread,$(SAN)),-Itests/unit/plain)
UNIT    := $(foreach s,$(unit_SRCS),$(BUILD)/$(s:.c=))
$(BUILD)/tests/unit/%: $(BUILD)/tests/unit/%.o $(TOOLS_LIBS)
	$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(TOOLS_LIBS) $(LDLIBS) $(UNIT_LIBS)

.PHONY: unit
unit: $(UNIT)
	@rc=0; for t in $(UNIT); do echo "== $$t"; $$t -j2 || rc=1; done; exit $$rc

include tests/check.mk tests/fuzz/fuzz.mk tests/bench/bench.mk

# What is missing is installed (root), or said in one line.
.PHONY: deps need demo demo-quick
deps need:
	@tests/need

demo demo-quick: need
	@$(MAKE) --no-print-directory -s -j$$(nproc) all
	@tests/demo $(if $(filter demo-quick,$@),quick)

# DESTDIR and PREFIX as everywhere.
PREFIX  ?= /usr/local
.PHONY: install man
man: $(BUILD)/reprise
	@mkdir -p $(BUILD)/man
	@$< help --man > $(BUILD)/man/reprise.1
	@for verb in $$($< help | sed -n 's/^  \([a-z-]*\) .*/\1/p'); do $< help --man $$verb > $(BUILD)/man/reprise-$$verb.1 || exit 1; done

install: $(BUILD)/reprise man
	install -D -m 755 $(BUILD)/reprise $(DESTDIR)$(PREFIX)/bin/reprise
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 $(BUILD)/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1

clean:
	rm -rf build build-*

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
