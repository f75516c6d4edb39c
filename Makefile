# Builds the module, the command line tool, the helper and the unit tests.  People call ./dev, which installs what is
# missing and then calls this.
#
#   make [BUILD=build] [NGINX_SRC=/usr/share/nginx/src] [SAN=1 | COV=1]      all | module | cli | helper | unit
#
# SAN=1: address and undefined-behaviour sanitizers.  COV=1: gcov.  Give them a BUILD of their own.

BUILD     ?= build
NGINX_SRC ?= /usr/share/nginx/src
CC        ?= cc

list = $(shell BK_LIST=1 sh -c '. ./config; echo $$bk_$(1)')

FOLDERS := $(call list,core_folders)
LIBS    := $(call list,libs)
VERSION := $(shell cat VERSION)

WARN   := -Wall -Wextra -Werror -Wshadow -Wpointer-arith -Wcast-qual -Wwrite-strings \
          -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition -Wvla -Wundef \
          -Wformat=2 -Wimplicit-fallthrough
CFLAGS ?= -O2 -g
# _GNU_SOURCE: openat2, statx, renameat2, copy_file_range.  _FILE_OFFSET_BITS: the same off_t everywhere.
BASE   := -std=gnu11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -Isrc -fPIC -pthread -fstack-protector-strong \
          -DBK_VERSION='"$(VERSION)"'
ifdef SAN
BASE    += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
LDEXTRA += -fsanitize=address,undefined
endif
ifdef COV
BASE    += --coverage
LDEXTRA += --coverage
endif

objects = $(patsubst %,$(BUILD)/obj/$(1)/%.o,$(call list,$(1)))

.PHONY: all cli helper module unit clean
all: module cli helper

$(BUILD)/obj/%.o: src/%.c Makefile VERSION
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) $(WARN) -MMD -MP -c -o $@ $<

# One archive a folder; a program links its own folder and those below it.
define archive
$(BUILD)/lib$(1).a: $(call objects,$(1)) config
	@rm -f $$@
	ar rcs $$@ $(call objects,$(1))
endef
$(foreach f,$(FOLDERS),$(eval $(call archive,$(f))))

below_base    := base
below_crypto  := crypto base
below_storage := storage base
below_repo    := repo storage crypto base
below_sqlite  := sqlite repo storage crypto base
below_files   := files repo storage crypto base
below_engine  := engine sqlite files repo storage crypto base
archives = $(patsubst %,$(BUILD)/lib%.a,$(below_$(1)))

cli: $(BUILD)/ngx-backup
$(BUILD)/ngx-backup: $(call objects,cli) $(call archives,engine)
	$(CC) $(LDEXTRA) -o $@ $^ $(LIBS) -lcurl -pthread

# The helper is privileged: libc only.
helper: $(BUILD)/ngx-backup-helper
$(BUILD)/ngx-backup-helper: $(call objects,helper)
	$(CC) $(LDEXTRA) -o $@ $^

# A unit test is t/unit/<folder>/<name>_test.c: one cmocka program each, linked with its folder and those below.
UNIT := $(patsubst t/unit/%.c,$(BUILD)/unit/%,$(wildcard t/unit/*/*_test.c))
unit: $(UNIT)
define unittest
$(BUILD)/unit/$(1)/%_test: t/unit/$(1)/%_test.c $(call archives,$(1))
	@mkdir -p $$(@D)
	$(CC) $(BASE) $(CFLAGS) -Wall -Wextra -Werror -It -It/unit -MMD -MP $(LDEXTRA) -o $$@ $$< $(call archives,$(1)) \
	    $(LIBS) -lcmocka -pthread
endef
$(foreach f,$(FOLDERS),$(eval $(call unittest,$(f))))

# Helpers for tests, benchmarks and fuzzing: t/lib/<name>.c, one program each.
TOOLS := $(patsubst t/lib/%.c,$(BUILD)/tools/%,$(wildcard t/lib/*.c))
.PHONY: tools
tools: $(TOOLS)
$(BUILD)/tools/%: t/lib/%.c $(call archives,engine)
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) -Wall -Wextra -Werror -Wno-format-truncation -MMD -MP $(LDEXTRA) -o $@ $< \
	    $(call archives,engine) $(LIBS) -lm -pthread

module: $(BUILD)/ngx_http_backup_module.so

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

clean:
	rm -rf $(BUILD)
