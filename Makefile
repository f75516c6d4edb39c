# Builds the module, the command line tool, the helper and the unit tests.  People call ./dev, which installs what is
# missing and then calls this.
#
#   make [BUILD=build] [NGINX_SRC=/usr/share/nginx/src] [SAN=1 | COV=1]      all | module | cli | helper |
#                                                                            unit | tools | fuzz
#
# SAN=1: address and undefined-behaviour sanitizers.  COV=1: gcov.  Give them a BUILD of their own.

BUILD     ?= build
NGINX_SRC ?= /usr/share/nginx/src
CC        ?= cc

list = $(shell BK_LIST=1 sh -c '. ./config; echo $$bk_$(1)')

FOLDERS := $(call list,core_folders)
LIBS    := $(call list,libs)
VERSION := $(shell cat VERSION)

# nginx's own Makefile has a CFLAGS, with flags that must not be lost: it gets ours by --with-cc-opt.
MAKEOVERRIDES :=

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
# Where NGINX_SRC has the whole server (Debian's nginx-dev has only its headers), tests run that one.
all: module cli helper $(if $(wildcard $(NGINX_SRC)/src/core/nginx.c),nginx)

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

# Of the helper's folder: what it is without its main, for tests, and what those who ask it hold.
$(BUILD)/libhelper.a: $(filter-out %/main.o,$(call objects,helper)) config
	@rm -f $@
	ar rcs $@ $(filter-out %/main.o,$(call objects,helper))
CLIENT := $(patsubst %,$(BUILD)/obj/helper/%.o,$(call list,helper_client))
$(BUILD)/libclient.a: $(CLIENT) config
	@rm -f $@
	ar rcs $@ $(CLIENT)

below_base    := base
below_crypto  := crypto base
below_storage := storage base
below_repo    := repo storage crypto base
below_sqlite  := sqlite client repo storage crypto base
below_files   := files client repo storage crypto base
below_engine  := engine sqlite files client repo storage crypto base
below_helper  := engine sqlite files client helper repo storage crypto base
archives = $(patsubst %,$(BUILD)/lib%.a,$(below_$(1)))

cli: $(BUILD)/ngx-backup
$(BUILD)/ngx-backup: $(call objects,cli) $(call archives,engine)
	$(CC) $(LDEXTRA) -o $@ $^ $(LIBS) -lcurl -pthread

# The helper is privileged: libc only, and of the base folder what needs no more.
helper: $(BUILD)/ngx-backup-helper
$(BUILD)/ngx-backup-helper: $(call objects,helper) $(BUILD)/libbase.a
	$(CC) $(LDEXTRA) -o $@ $^ -pthread

# A unit test is t/unit/<folder>/<name>_test.c: one cmocka program each, linked with its folder and those below.
UNIT := $(patsubst t/unit/%.c,$(BUILD)/unit/%,$(wildcard t/unit/*/*_test.c))
unit: $(UNIT)
define unittest
$(BUILD)/unit/$(1)/%_test: t/unit/$(1)/%_test.c $(call archives,$(1))
	@mkdir -p $$(@D)
	$(CC) $(BASE) $(CFLAGS) -Wall -Wextra -Werror -It -Wno-format-truncation -MMD -MP $(LDEXTRA) -o $$@ $$< $(call archives,$(1)) \
	    $(LIBS) -lcmocka -pthread
endef
$(foreach f,$(FOLDERS) helper,$(eval $(call unittest,$(f))))

# Helpers for tests, benchmarks and fuzzing: t/lib/<name>.c, one program each.
TOOLS := $(patsubst t/lib/%.c,$(BUILD)/tools/%,$(wildcard t/lib/*.c)) $(BUILD)/tools/failcall.so
.PHONY: tools
tools: $(TOOLS)
$(BUILD)/tools/%: t/lib/%.c $(BUILD)/libhelper.a $(call archives,engine)
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) -Wall -Wextra -Werror -Wno-format-truncation -MMD -MP $(LDEXTRA) -o $@ $< \
	    $(BUILD)/libhelper.a $(call archives,engine) $(LIBS) -lm -pthread

# Preloaded below other programs, so never with a sanitizer; it defines both forms of the calls with large offsets.
$(BUILD)/tools/failcall.so: t/fault/failcall.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -D_GNU_SOURCE -fPIC -shared $(CFLAGS) -Wall -Wextra -Werror -o $@ $<

# Fuzz targets: t/fuzz/<name>.c, one program each, by clang's libFuzzer with objects of their own.
.PHONY: fuzz fuzz-targets
fuzz:
	@command -v clang >/dev/null || { echo "make fuzz: clang is not installed (apt-get install clang)" >&2; exit 1; }
	$(MAKE) FUZZING=1 BUILD=$(BUILD)/fuzz-objects CC=clang CFLAGS='-O1 -g' WARN='-Wall -Wextra' FUZZ_OUT=$(BUILD)/fuzz \
	    fuzz-targets
ifdef FUZZING
BASE += -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
fuzz-targets: $(patsubst t/fuzz/%.c,$(FUZZ_OUT)/%,$(wildcard t/fuzz/*.c))
$(FUZZ_OUT)/%: t/fuzz/%.c $(call archives,engine) $(BUILD)/libhelper.a
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) $(WARN) -It/fuzz -MMD -MP -MF $(BUILD)/$*.fuzz.d -fsanitize=fuzzer -o $@ $< \
	    $(BUILD)/libhelper.a $(call archives,engine) $(LIBS) -pthread
endif

# The module is built by nginx's own configure and make, as packagers build it, in a tree of links: the sources of nginx
# stay untouched.  Debian's nginx-dev tells the flags of its nginx; for any other tree "make nginx" builds the server too.
NGX_OUT    := $(abspath $(BUILD))/nginx
NGX_FLAGS  := $(if $(wildcard $(NGINX_SRC)/conf_flags),$(shell bash -c \
    '. $(NGINX_SRC)/conf_flags; echo "$${NGX_CONF_FLAGS[@]}"'),--with-compat --with-threads --with-debug \
    --with-http_ssl_module --with-http_v2_module --with-http_realip_module --with-http_auth_request_module \
    --with-http_stub_status_module)
NGX_CC_OPT := $(CFLAGS) -Wformat -Werror=format-security -fstack-protector-strong
NGX_LD_OPT := -Wl,-z,relro -Wl,-z,now
ifdef SAN
NGX_CC_OPT += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
NGX_LD_OPT += -fsanitize=address,undefined
endif
ifdef COV
NGX_CC_OPT += --coverage
NGX_LD_OPT += --coverage
endif

.PHONY: nginx
module: $(BUILD)/ngx_http_backup_module.so
nginx: $(BUILD)/nginx/objs/nginx

# Configured again when a flag or the tree is another one.
NGX_KEY := $(NGINX_SRC) $(NGX_FLAGS) $(NGX_CC_OPT) $(NGX_LD_OPT)
.PHONY: force
$(BUILD)/nginx.key: force
	@mkdir -p $(@D) && echo "$(NGX_KEY)" | cmp -s - $@ || echo "$(NGX_KEY)" >$@

$(BUILD)/nginx/objs/Makefile: config config.make VERSION $(BUILD)/nginx.key
	@rm -rf $(NGX_OUT) && mkdir -p $(NGX_OUT)
	@ln -s $(addprefix $(abspath $(NGINX_SRC))/,auto src $(notdir $(wildcard $(NGINX_SRC)/conf $(NGINX_SRC)/contrib \
	    $(NGINX_SRC)/html $(NGINX_SRC)/man $(NGINX_SRC)/docs))) $(NGX_OUT)/
	@ln -s $(abspath $(firstword $(wildcard $(NGINX_SRC)/configure $(NGINX_SRC)/auto/configure))) $(NGX_OUT)/configure
	cd $(NGX_OUT) && ASAN_OPTIONS=detect_leaks=0 ./configure $(NGX_FLAGS) --with-cc-opt='$(NGX_CC_OPT)' \
	    --with-ld-opt='$(NGX_LD_OPT)' --add-dynamic-module=$(CURDIR) >configure.log || { cat configure.log; exit 1; }

MODULE_SOURCES := config.make src/nginx/exports.map $(wildcard src/*/*.h) $(call list,module_sources)
$(BUILD)/ngx_http_backup_module.so: $(BUILD)/nginx/objs/Makefile $(MODULE_SOURCES)
	$(MAKE) -C $(NGX_OUT) -f objs/Makefile modules
	@# A running nginx has the old file mapped: it must not change.
	cp $(NGX_OUT)/objs/ngx_http_backup_module.so $@.new && mv $@.new $@

$(BUILD)/nginx/objs/nginx: $(BUILD)/nginx/objs/Makefile
	$(MAKE) -C $(NGX_OUT) -f objs/Makefile objs/nginx

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

clean:
	rm -rf $(BUILD)
