# Everything is reached from here; `make help` lists it. `make run` and `make test` do all that is needed on a fresh
# Debian 12 as root: Debian packages, a venv on /usr/bin/python3, the build. Outputs go to build/ and .venv/ only.

MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

PYTHON  ?= /usr/bin/python3
CC      := gcc
CLANG   := clang-16
FORMAT  := clang-format-16
VENV    := .venv
PY      := $(VENV)/bin/python
JOBS    ?= $(shell nproc 2>/dev/null || echo 2)

# What the user may say: make run FILE=path BACKEND=socket; make sim N=10000 SEED=7; make fuzz T=600
FILE    ?=
BACKEND ?= io_uring
N       ?= 1000
SEED    ?=
T       ?= 60

RUN_PACKAGES  := gcc libc6-dev pkg-config python3 python3-venv python3-dev liburing-dev libssl-dev iproute2 ethtool \
                 util-linux clang-16 libbpf-dev libxdp-dev bpftool linux-libc-dev
TEST_PACKAGES := clang-format-16 libclang-rt-16-dev tshark valgrind softhsm2 openssl
# anvil, a real chain, comes from the npm registry; npm stands in a package of its own where nodejs is Debian's.
ifeq ($(shell command -v npm),)
TEST_PACKAGES += npm
endif
ifeq ($(shell uname -m),x86_64)
RUN_PACKAGES  += libipsec-mb-dev
endif

# ---- C: one list of sources, three variants (plain with gcc; ASan + UBSan and fuzzing with clang) ----

SOURCES  := $(filter-out csrc/sim/main.c,$(wildcard csrc/crypto/*.c csrc/quic/*.c csrc/io/*.c csrc/worker/*.c \
            csrc/guard/*.c csrc/sim/*.c)) \
            $(wildcard csrc/stoq.c)
HEADERS  := $(wildcard csrc/*.h csrc/*/*.h)
TESTS    := $(wildcard tests/c/test_*.c)
FUZZERS  := $(wildcard tests/fuzz/fuzz_*.c)
BENCHES  := $(shell grep -ls '^int main' csrc/bench/*.c)
BENCH_COMMON := $(filter-out $(BENCHES),$(wildcard csrc/bench/*.c))

WARNINGS := -Wall -Wextra -Werror
# The empty value is what a file that defines it itself says too.
CPPFLAGS := -Icsrc -Ibuild -D_GNU_SOURCE= -MMD -MP
ifneq ($(wildcard /usr/include/intel-ipsec-mb.h /usr/local/include/intel-ipsec-mb.h),)
CPPFLAGS += -DSTOQ_HAVE_IPSEC_MB=1
IPSEC_MB := -lIPSec_MB
endif
LDLIBS   := -luring -lbpf -lcrypto $(IPSEC_MB) -lm -pthread

# Frame pointers and debug symbols: profilers and crash reports can be read, for under 1 % of speed. No -march=native: the
# result runs on other machines; what needs newer instructions chooses at run time (IPsec-MB, OpenSSL).
PLAIN_FLAGS := -std=gnu11 -O3 -g -fPIC -fno-omit-frame-pointer $(WARNINGS)
ASAN_FLAGS  := -std=gnu11 -O1 -g -fPIC -fno-omit-frame-pointer $(WARNINGS) -fsanitize=address,undefined \
               -fno-sanitize-recover=all
FUZZ_FLAGS  := $(ASAN_FLAGS) -fsanitize=fuzzer-no-link -DSTOQ_FUZZING=1

# The XDP program. Instruction set v3 (atomics that return, 32-bit jumps) is in every kernel from 5.12 on. Debian keeps
# <asm/types.h> in a folder of the architecture, which clang does not look into for another target.
BPF_FLAGS := --target=bpf -mcpu=v3 -std=gnu11 -O2 -g $(WARNINGS) -Icsrc -isystem /usr/include/$(shell $(CC) -print-multiarch)
BPFTOOL   := $(firstword $(wildcard /usr/sbin/bpftool /usr/local/sbin/bpftool) bpftool)
SKELETONS := $(patsubst csrc/bpf/%.bpf.c,build/bpf/%.skel.h,$(wildcard csrc/bpf/*.bpf.c))
SKELETON_USERS := $(wildcard csrc/guard/*.c tests/c/test_guard*.c)

PLAIN_LIB := build/libstoq.a
ASAN_LIB  := build/asan/libstoq.a
FUZZ_LIB  := build/fuzz/libstoq.a

PLAIN_TESTS := $(TESTS:tests/c/%.c=build/tests/%)
ASAN_TESTS  := $(TESTS:tests/c/%.c=build/asan/tests/%)
FUZZ_BINS   := $(FUZZERS:tests/fuzz/%.c=build/fuzz/%)
SEEDS       := $(if $(wildcard tests/fuzz/make_seeds.c),build/corpus/.made)
BENCH_BINS  := $(BENCHES:csrc/bench/%.c=build/bench/%)
HOSTILE     := $(wildcard tests/hostile/*.c)
HOSTILE_BINS := build/hostile/flood build/hostile/attack
SIM_BINS    := $(if $(wildcard csrc/sim/main.c),build/sim build/asan/sim)
MODULE      := build/.module

.PHONY: help soak peers bench-peers setup packages test-packages build lib run test test-build ctest asan sim fuzz hostile floods lint interop bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo
	@echo "  make run FILE=path BACKEND=socket   make sim N=10000 SEED=7   make fuzz T=600"

# ---- set-up ----

define install_packages
	@command -v dpkg-query >/dev/null || { echo "not Debian: please provide $(1)"; exit 0; }; \
	missing=$$(for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" != 0 ]; then \
	  echo "missing Debian packages:" $$missing >&2; \
	  echo "as root: apt-get install --no-install-recommends" $$missing >&2; exit 1; fi; \
	echo "== installing Debian packages:" $$missing; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get install -y -q --no-install-recommends $$missing || \
	  { apt-get update -q && apt-get install -y -q --no-install-recommends $$missing; }
endef

packages:
	$(call install_packages,$(RUN_PACKAGES))

test-packages: packages
	$(call install_packages,$(TEST_PACKAGES))

build/.venv: requirements.txt | packages
	@echo "== Python environment in $(VENV)"
	@[ -x $(PY) ] || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@mkdir -p build && touch $@

setup: build/.venv ## Debian packages (as root) and the Python environment

# ---- build ----

build: setup ## build the C library, the Python extension and the `stoq` command
	@flock build/.lock $(MAKE) -s -j$(JOBS) $(MODULE)

lib: $(PLAIN_LIB) ## build/libstoq.a only

build/obj/%.o: %.c
	@mkdir -p $(@D)
	@echo "   cc $<"
	@$(CC) $(CPPFLAGS) $(PLAIN_FLAGS) -c $< -o $@

# Tests copy to odd addresses and free from there, which -O3 takes for a mistake.
build/obj/tests/%.o: tests/%.c
	@mkdir -p $(@D)
	@$(CC) $(CPPFLAGS) $(PLAIN_FLAGS:-O3=-O2) -c $< -o $@

build/asan/obj/%.o: %.c
	@mkdir -p $(@D)
	@$(CLANG) $(CPPFLAGS) $(ASAN_FLAGS) -c $< -o $@

build/fuzz/obj/%.o: %.c
	@mkdir -p $(@D)
	@$(CLANG) $(CPPFLAGS) -Itests/fuzz $(FUZZ_FLAGS) -c $< -o $@

build/bpf/%.bpf.o: csrc/bpf/%.bpf.c $(wildcard csrc/bpf/*.h) csrc/quic/retry_token.h csrc/tables.h
	@mkdir -p $(@D)
	@echo "   bpf $<"
	@$(CLANG) $(BPF_FLAGS) -c $< -o $@
build/bpf/%.skel.h: build/bpf/%.bpf.o
	@$(BPFTOOL) gen skeleton $< > $@.new && mv $@.new $@
$(foreach variant,build build/asan build/fuzz,$(SKELETON_USERS:%.c=$(variant)/obj/%.o)): | $(SKELETONS)

$(PLAIN_LIB): $(SOURCES:%.c=build/obj/%.o)
	@rm -f $@ && ar rcs $@ $^
	@echo "   ar $@"
$(ASAN_LIB): $(SOURCES:%.c=build/asan/obj/%.o)
	@rm -f $@ && ar rcs $@ $^
	@echo "   ar $@"
$(FUZZ_LIB): $(SOURCES:%.c=build/fuzz/obj/%.o)
	@rm -f $@ && ar rcs $@ $^
	@echo "   ar $@"

$(MODULE): $(PLAIN_LIB) csrc/stoq.h csrc/tables.h dataplane/_build.py dataplane/_generate.py setup.py pyproject.toml
	@echo "== Python extension and the stoq command"
	@$(PY) dataplane/_generate.py
	@STOQ_LIBRARY=$(abspath $(PLAIN_LIB)) $(PY) -m pip install --quiet --disable-pip-version-check \
	  --no-build-isolation --no-deps --editable .
	@touch $@

build/tests/%: build/obj/tests/c/%.o $(PLAIN_LIB)
	@mkdir -p $(@D)
	@$(CC) -o $@ $< $(PLAIN_LIB) $(LDLIBS)
build/asan/tests/%: build/asan/obj/tests/c/%.o $(ASAN_LIB)
	@mkdir -p $(@D)
	@$(CLANG) -fsanitize=address,undefined -o $@ $< $(ASAN_LIB) $(LDLIBS)
build/fuzz/%: build/fuzz/obj/tests/fuzz/%.o $(FUZZ_LIB)
	@$(CLANG) -fsanitize=fuzzer,address,undefined -o $@ $< $(FUZZ_LIB) $(LDLIBS)
build/fuzz/make_seeds: build/fuzz/obj/tests/fuzz/make_seeds.o $(FUZZ_LIB)
	@$(CLANG) -fsanitize=address,undefined -o $@ $< $(FUZZ_LIB) $(LDLIBS)
build/corpus/.made: build/fuzz/make_seeds
	@mkdir -p build/corpus && build/fuzz/make_seeds build/corpus && touch $@
build/sim: build/obj/csrc/sim/main.o $(PLAIN_LIB)
	@$(CC) -o $@ $< $(PLAIN_LIB) $(LDLIBS)
build/asan/sim: build/asan/obj/csrc/sim/main.o $(ASAN_LIB)
	@$(CLANG) -fsanitize=address,undefined -o $@ $< $(ASAN_LIB) $(LDLIBS)
build/hostile/%: build/obj/tests/hostile/%.o build/obj/tests/hostile/garbage.o
	@mkdir -p $(@D)
	@$(CC) -o $@ $^
build/bench/%: build/obj/csrc/bench/%.o $(BENCH_COMMON:%.c=build/obj/%.o) $(PLAIN_LIB)
	@mkdir -p $(@D)
	@$(CC) -o $@ $^ $(LDLIBS)

.SECONDARY:
-include $(shell find build -name '*.d' 2>/dev/null)

# ---- use ----

run: build ## the main job: a file over mutually authenticated STOQ between two network namespaces (FILE=, BACKEND=)
	@$(VENV)/bin/stoq run --backend $(BACKEND) $(if $(FILE),"$(FILE)")

test-build: build test-packages
	@echo "== C tests, simulation, fuzzers: plain and with ASan + UBSan"
	@flock build/.lock $(MAKE) -s -j$(JOBS) $(PLAIN_TESTS) $(ASAN_TESTS) $(FUZZ_BINS) $(SEEDS) $(SIM_BINS) $(BENCH_BINS) $(HOSTILE_BINS)

test: test-build lint ## everything: lint, C tests (also under ASan + UBSan), simulation, fuzzing in short, Python, interop
	@$(PY) -m pytest -m "not slow"

ctest: test-build ## the C tests only
	@for t in $(PLAIN_TESTS); do echo "== $$t"; $$t; done

asan: test-build ## the C tests under ASan + UBSan only
	@for t in $(ASAN_TESTS); do echo "== $$t"; $$t; done

sim: ## N simulated whole connections on the virtual clock (N=1000, SEED=)
	@$(MAKE) build >/dev/null && $(MAKE) -j$(JOBS) build/sim
	@build/sim $(if $(SEED),--seed $(SEED),--count $(N))

fuzz: test-build ## every fuzzer for T seconds (T=60)
	@for f in $(FUZZ_BINS); do \
	  corpus=build/corpus/$$(basename $$f | sed s/^fuzz_//); echo "== $$f for $(T) s"; \
	  $$f -max_total_time=$(T) -print_final_stats=1 -artifact_prefix=build/corpus/ $$corpus; done

floods: build ## floods of N frames/s on a live node, with and without the guard (N=10000, SECONDS=0.3 a window), as root
	@$(MAKE) -s build/hostile/attack
	@$(PY) -m tests.hostile.floods --json build/floods.json --pps $(if $(filter file,$(origin N)),10000,$(N)) --seconds $(if $(filter environment command,$(origin SECONDS)),$(SECONDS),0.3)

hostile: build ## a live node under N garbage datagrams (N=10000000), as root
	@$(MAKE) -s build/hostile/flood
	@$(PY) -m tests.hostile.scene --backend $(BACKEND) --count $(if $(filter file,$(origin N)),10000000,$(N))

soak: build ## two nodes over AF_XDP for T seconds of random traffic; nothing may leak (T=3600), as root
	@$(PY) -m tests.soak.run --backend $(if $(filter file,$(origin BACKEND)),afxdp,$(BACKEND)) --seconds $(if $(filter file,$(origin T)),3600,$(T)) $(if $(SEED),--seed $(SEED))

peers: build ## the strangers that interoperability is tested with
	@$(PY) -m tests.peers.install
	@$(PY) -m tests.ctlog.anchor.anvil
	@$(PY) -m tests.peers_ct.install

interop: peers ## strangers, both directions: writes docs/INTEROP.md
	@$(PY) -m tests.interop.run --table docs/INTEROP.md
	@$(PY) -m tests.interop.run --backend afxdp --table docs/INTEROP.md

bench: build ## throughput, handshakes, latency, packets, a log, an authority beside their yardsticks
	@$(MAKE) -j$(JOBS) $(BENCH_BINS)
	@for what in throughput handshake latency packets "ct --seaweedfs" ca; do $(VENV)/bin/stoq bench $$what; done

bench-peers: build ## beside quic-go, quinn, s2n-quic, aiopquic, aioquic, qh3: builds their programs, then measures (as root)
	@$(PY) -m tests.peers.perf_install
	@$(VENV)/bin/stoq bench peers

C_FILES := $(SOURCES) $(wildcard csrc/sim/main.c) $(BENCHES) $(BENCH_COMMON) $(TESTS) $(FUZZERS) $(HOSTILE) \
           $(wildcard tests/fuzz/make_seeds.c)
lint: peers test-packages $(SKELETONS) ## ruff, mypy --strict, clang-format, warnings as errors with gcc and clang, file sizes
	@echo "== lint"
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/mypy --no-error-summary
	@$(FORMAT) --dry-run -Werror $(C_FILES) $(wildcard csrc/bpf/*.c) $(HEADERS) $(wildcard tests/c/*.h tests/fuzz/*.h tests/hostile/*.h)
	@printf '%s\n' $(C_FILES) | xargs -P$(JOBS) -I{} $(CC) -Icsrc -Ibuild -Itests/fuzz $(filter -D%,$(CPPFLAGS)) -std=gnu11 -O2 $(WARNINGS) -o /dev/null -c {}
	@printf '%s\n' $(C_FILES) | xargs -P$(JOBS) -I{} $(CLANG) -Icsrc -Ibuild -Itests/fuzz $(filter -D%,$(CPPFLAGS)) -std=gnu11 -O2 $(WARNINGS) -o /dev/null -c {}
	@long=$$(git ls-files --cached --others --exclude-standard | grep -vE '^(LICENSE|docs/)' | xargs wc -l | \
	  awk '$$1 > 800 && $$2 != "total"'); [ -z "$$long" ] || { echo "over 800 lines:"; echo "$$long"; exit 1; }

clean: ## remove build/, the extension and caches (the venv stays)
	@rm -rf build dataplane/_stoq.c dataplane/_stoq*.so dataplane/tables.py *.egg-info .mypy_cache .ruff_cache .pytest_cache
