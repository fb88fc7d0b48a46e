# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Everything that is done to this tree, by name. Each target installs what it lacks (Debian 12, root)
# and redoes only what changed. Long logic is in lab/ (Rust), not here.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

TRIPLE := x86_64-unknown-linux-gnu
TARGET := $(CURDIR)/target
export CORACLE_CACHE ?= $(CURDIR)/.cache

# How long each fuzz target runs, in seconds; which ones.
T ?= 30
FUZZ ?= $(shell sed -n 's/^name = "\(.*\)"/\1/p' fuzz/Cargo.toml | tail -n +2)
# A filter for `make e2e`, as cargo test takes it: make e2e TESTS="--test streams"
TESTS ?= --test '*'
# `release` for what is measured, `lab` for what is only tested.
PROFILE ?= lab

# Where `make install` puts things, and for which root; the time that a package's files bear.
PREFIX ?= /usr
DESTDIR ?=
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

CARGO_FUZZ_VERSION := 0.13.2
TARPAULIN_VERSION := 0.37.5
SEMVER_CHECKS_VERSION := 0.51.0

LAB := $(TARGET)/lab/lab
GUEST_TOOL := $(TARGET)/lab/coracle-guest
GUEST := $(TARGET)/guest
IMAGES := $(CORACLE_CACHE)/images
CORACLE := $(TARGET)/$(TRIPLE)/$(PROFILE)/coracle
AGENT := $(TARGET)/$(TRIPLE)/agent/coracle-agent
HOSTILE := $(TARGET)/$(TRIPLE)/agent/hostile-agent
# Man pages and completions, laid out as /usr/share.
SHARE := $(TARGET)/share
EXAMPLE := $(TARGET)/$(TRIPLE)/release/shell-vmm
# What is installed and packed, and where it goes.
BUILT := CORACLE=$(CORACLE) GUEST=$(GUEST) SHARE=$(SHARE)
PLACE := PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)

# What runs virtual machines finds its parts by these variables: here, or handed into the lab.
SYMBOLS ?=
HERE := CORACLE_SYMBOLS=$(SYMBOLS) CORACLE_BIN=$(CORACLE) CORACLE_GUEST=$(GUEST) CORACLE_IMAGES=$(IMAGES)
IN_LAB := --payload $(CORACLE) --payload $(GUEST) --payload $(IMAGES) \
	--env CORACLE_BIN=/payload/coracle --env CORACLE_GUEST=/payload/guest \
	--env CORACLE_IMAGES=/payload/images --env RUST_BACKTRACE=1
# The small kernel's symbols, for the tests that read a dump of it.
IN_LAB += $(if $(SYMBOLS),--payload $(SYMBOLS):/payload/symbols --env CORACLE_SYMBOLS=/payload/symbols)
# A distribution's kernel as it comes.
VMLINUZ = $$(echo "$$($(LAB) kernel)"/boot/vmlinuz-*)

# Static: the agent runs where nothing else is, and the runtime starts without a dynamic loader. It may be anywhere in
# memory nevertheless, and what that takes is packed: it is done at each start of each process of a run.
STATIC_FLAGS := -C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs
STATIC := RUSTFLAGS="$(STATIC_FLAGS)" cargo build --target $(TRIPLE)

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: deps
deps: ## Install the packages that the other targets need
	@lab/deps.sh

.PHONY: build
build: guest ## Build everything: the runtime, the guest's files, the lab
	@echo "runtime  $(CORACLE)"
	@echo "guest    $(GUEST)"
	@echo "lab      $(LAB)"

.PHONY: programs
programs: deps
	@cargo build --profile lab -p coracle-lab -p coracle-guest --bin lab --bin coracle-guest
	@$(STATIC) --profile agent -p coracle-lab --bin lab-guest

.PHONY: runtime
runtime: deps
	@$(STATIC) --profile $(PROFILE) -p coracle

.PHONY: guest
guest: programs runtime ## Build the guest's kernel and initial file system
	@$(STATIC) --profile agent -p coracle-agent
	@mkdir -p $(GUEST)
	@kernel=$$($(LAB) kernel); \
	$(GUEST_TOOL) vmlinux --vmlinuz "$$(echo "$$kernel"/boot/vmlinuz-*)" --output $(GUEST)/vmlinux; \
	modules=$$(echo "$$kernel"/lib/modules/*); \
	$(GUEST_TOOL) initramfs --agent $(AGENT) --modules "$$modules" --output $(GUEST)/initramfs.cpio; \
	$(GUEST_TOOL) modules --modules "$$modules" --output $(GUEST)/modules

.PHONY: man
man: deps ## Write the man pages and shell completions
	@$(STATIC) --profile $(PROFILE) -p coracle-packaging
	@rm -rf $(SHARE)
	@SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(TARGET)/$(TRIPLE)/$(PROFILE)/coracle-packaging $(SHARE)

# Built optimised, whatever tests are run with.
.PHONY: install
install: ## Build everything and install it (PREFIX=/usr DESTDIR=)
	@$(MAKE) guest man PROFILE=release
	@$(MAKE) install-only PROFILE=release

.PHONY: install-only
install-only:
	@$(BUILT) $(PLACE) packaging/install.sh install

.PHONY: uninstall
uninstall: ## Remove what `make install` has installed
	@$(PLACE) packaging/install.sh uninstall

.PHONY: deb
deb: ## Build everything and make a Debian package of it
	@$(MAKE) guest man PROFILE=release
	@$(MAKE) deb-only PROFILE=release

.PHONY: deb-only
deb-only:
	@rm -rf $(TARGET)/deb
	@$(BUILT) SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) packaging/deb/build.sh $(TARGET)/deb

# Of what tests run: they need no optimised build.
.PHONY: test-deb
test-deb: guest man ## Install the package in a Debian of its own, use it, remove it
	@lab/deps.sh lintian
	@$(MAKE) deb-only
	@packaging/deb/test.sh $(TARGET)/deb/coracle_*.deb $(LAB)

.PHONY: test-packaging
test-packaging: man ## Check man pages, completions and the installation
	@lab/deps.sh man-db mandoc zsh fish
	@packaging/lint.sh $(SHARE)
	@packaging/test-install.sh

# The crates that are published, as they would be. Where a package is built, the others are its dependencies: they come
# from a registry, of which cargo keeps what it once unpacked and built, whatever there is now.
PUBLISHED := --workspace $(addprefix --exclude coracle-,benches lab packaging tests)

.PHONY: package
package: deps ## Make the crates' packages, and build each from its own
	@if [ -e $(TARGET)/package ]; then \
		rm -rf $(TARGET)/package $(TARGET)/debug/.fingerprint/coracle-* \
			"$${CARGO_HOME:-$$HOME/.cargo}"/registry/src/-*/coracle-*; fi
	CARGO_TARGET_DIR=$(TARGET) cargo package $(PUBLISHED) --allow-dirty

# What a version promises, against the revision named in packaging/semver-baseline.
.PHONY: semver
semver: deps ## Check that no crate breaks what its version promises
	@cargo semver-checks --version 2>/dev/null | grep -qw $(SEMVER_CHECKS_VERSION) || \
		cargo install -q --locked cargo-semver-checks --version $(SEMVER_CHECKS_VERSION)
	@packaging/semver.sh

.PHONY: example
example: deps ## Build the example VMM from the crates' packages alone
	@rm -rf $(TARGET)/package
	@cargo package $(PUBLISHED) --allow-dirty --no-verify --quiet
	@RUSTFLAGS="$(STATIC_FLAGS)" \
		examples/shell-vmm/build.sh $(TARGET) --target $(TRIPLE) --release --locked

.PHONY: kernel
kernel: guest ## Build the small kernel, which guests start from where it is there
	@guest/kernel/build.sh $(TARGET)/kernel
	@mkdir -p $(GUEST)/small
	@$(GUEST_TOOL) vmlinux --vmlinuz $(TARGET)/kernel/vmlinux --output $(GUEST)/small/vmlinux
	@$(GUEST_TOOL) initramfs --agent $(AGENT) --output $(GUEST)/small/initramfs.cpio
	@cp guest/kernel/command-line $(GUEST)/small/

# Where it is built, all end-to-end tests run with it.
.PHONY: test-kernel
test-kernel: kernel ## Run end-to-end tests with the small kernel, the example VMM's and a dump of it by crash among them
	@$(MAKE) e2e
	@$(MAKE) e2e TESTS="--test machine --test example -- --ignored" SYMBOLS=$(TARGET)/kernel/vmlinux.debug

.PHONY: images
images: programs ## Make the test images
	@tests/images/build.sh $(IMAGES) $(LAB)

.PHONY: lab
lab: programs ## Prepare the lab, an emulated KVM host, and its snapshots
	@$(LAB) prepare
	@$(LAB) prepare --icount
	@$(LAB) status

.PHONY: shell
shell: guest images ## Open a shell in the lab, with coracle and the images in /payload
	@$(LAB) shell $(IN_LAB)

.PHONY: demo
demo: guest images ## Run a real image's container in a microVM and show what it cost
	@cargo build --profile lab -p coracle-lab --bin demo
	@place=$$($(LAB) host); echo "this runs: $$place"; \
	if [ "$$place" = direct ]; then $(HERE) $(TARGET)/lab/demo; \
	else $(LAB) run $(IN_LAB) --host-program -- $(TARGET)/lab/demo; fi

.PHONY: test
test: deps ## Check format and lints, run unit, property, doc and end-to-end tests
	@rm -f $(TARGET)/test-*.log
	$(MAKE) lint
	$(MAKE) unit
	$(MAKE) doc
	$(MAKE) test-packaging
	$(MAKE) e2e
	@echo
	@echo "all tests, by program:"
	@grep -h '^test result:' $(TARGET)/test-*.log | sort | uniq -c | sort -rn
	@lab/sum-tests.sh $(TARGET)/test-*.log

.PHONY: test-all
test-all: ## Run all of `test`, then that with the small kernel, large files, packages, versions, coverage, and 20 s of each fuzz target
	$(MAKE) test
	$(MAKE) test-large
	$(MAKE) test-kernel
	$(MAKE) package
	$(MAKE) test-deb
	$(MAKE) semver
	$(MAKE) coverage
	$(MAKE) fuzz T=20

.PHONY: lint
lint: deps ## Check format and lints
	@lab/deps.sh g++
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --workspace --all-targets --features coracle-tests/vm -- -D warnings
	cargo clippy --manifest-path fuzz/Cargo.toml -- -D warnings
	cargo fmt --manifest-path examples/shell-vmm/Cargo.toml --check

.PHONY: unit
unit: deps ## Run unit, property and doc tests
	@mkdir -p $(TARGET)
	cargo test --workspace 2>&1 | tee $(TARGET)/test-unit.log

# Optimised: unoptimised it takes minutes to hash what it unpacks.
.PHONY: test-large
test-large: deps ## Run the tests of files too large for every day
	cargo test --profile lab -p coracle-oci --test store -- --ignored

.PHONY: doc
doc: deps ## Build the crates' documentation
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# One test at a time in the lab: what emulates it bears one busy virtual machine well, and two not always.
.PHONY: e2e
e2e: guest images example ## Run end-to-end tests with real virtual machines (TESTS="--test NAME")
	@$(STATIC) --profile agent -p coracle-tests --bin hostile-agent
	@place=$$($(LAB) host); \
	set -- cargo test -p coracle-tests --features vm --no-fail-fast $(TESTS); \
	if [ "$$place" = direct ]; then \
		export $(HERE) CORACLE_HOSTILE=$(HOSTILE) CORACLE_EXAMPLE=$(EXAMPLE) CORACLE_VMLINUZ=$(VMLINUZ); \
		"$$@" 2>&1 | tee $(TARGET)/test-e2e.log; \
	else \
		$(LAB) prepare; \
		export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(LAB) run $(IN_LAB) --payload $(HOSTILE) --payload $(EXAMPLE) \
			--env CORACLE_HOSTILE=/payload/hostile-agent --env CORACLE_EXAMPLE=/payload/shell-vmm \
			--payload $(VMLINUZ):/payload/vmlinuz --env CORACLE_VMLINUZ=/payload/vmlinuz \
			--env RUST_TEST_THREADS=1 \
			--attempts 3 --host-program --"; \
		lab/repeat-failed.sh $(TARGET)/test-e2e.log "$$@"; \
	fi

.PHONY: bench
bench: ## Measure what guests and containers cost, beside the floor and other runtimes
	@$(MAKE) bench-release PROFILE=release

.PHONY: bench-release
bench-release: kernel images
	@cargo build --release -p coracle-benches
	@failed=0; \
	echo "Instructions, in millions (counting lab):"; \
	$(LAB) bench $(IN_LAB) --payload $(TARGET)/release/floor --env CORACLE_FLOOR=/payload/floor \
		--timeout 1800 --host-program -- $(TARGET)/release/bench instructions || failed=1; \
	$(LAB) bench $(IN_LAB) --payload $(TARGET)/release/floor --env CORACLE_FLOOR=/payload/floor \
		--timeout 1800 --host-program -- $(TARGET)/release/bench runtimes || failed=1; \
	$(LAB) bench $(IN_LAB) --payload $(TARGET)/release/floor --env CORACLE_FLOOR=/payload/floor \
		--timeout 1800 --host-program -- $(TARGET)/release/bench processors || failed=1; \
	echo "Seconds (lab):"; \
	$(LAB) run $(IN_LAB) --payload $(TARGET)/release/floor --env CORACLE_FLOOR=/payload/floor \
		--host-program -- $(TARGET)/release/bench seconds || failed=1; \
	echo "Unpacking, beside umoci (this machine):"; \
	cargo bench -q -p coracle-oci --bench unpack -- $(IMAGES)/debian || failed=1; \
	echo "Memory (lab):"; \
	$(LAB) run $(IN_LAB) --payload $(TARGET)/release/floor --env CORACLE_FLOOR=/payload/floor \
		--memory 6144 --host-program -- $(TARGET)/release/bench memory || failed=1; \
	if [ -w /dev/kvm ]; then echo "Milliseconds (this machine's KVM):"; \
		$(HERE) CORACLE_FLOOR=$(TARGET)/release/floor $(TARGET)/release/bench milliseconds || failed=1; \
	else echo "Milliseconds: not measured, this machine has no /dev/kvm"; fi; \
	exit $$failed

# RUSTC_BOOTSTRAP lets the stable compiler take the sanitizer's flags. What libFuzzer says of every input
# that it keeps is left out. Inputs may soon be long: structured ones of a few bytes hold next to nothing.
.PHONY: fuzz
fuzz: ## Fuzz each parser for T seconds (T=30 FUZZ="chain mmio")
	@lab/deps.sh g++
	@cargo fuzz --version 2>/dev/null | grep -qw $(CARGO_FUZZ_VERSION) || \
		cargo install -q --locked cargo-fuzz --version $(CARGO_FUZZ_VERSION)
	@export RUSTC_BOOTSTRAP=1; \
	cargo fuzz build; \
	for target in $(FUZZ); do \
		mkdir -p $(CORACLE_CACHE)/fuzz/$$target; \
		echo "fuzz: $$target, $(T) s"; \
		cargo fuzz run $$target $(CORACLE_CACHE)/fuzz/$$target -- \
			-max_total_time=$(T) -len_control=10 -timeout=10 -rss_limit_mb=2048 -print_funcs=0 2>&1 | \
			grep -avE '^#[0-9]+\s+(READ|INITED|NEW|REDUCE|RELOAD|pulse)|^INFO:|# Uses:|^#+ .*ictionary'; \
	done

# How it is measured: coverage/tarpaulin.toml. What is left over is of processes that start without their environment.
.PHONY: coverage
coverage: deps ## Measure test coverage and check each crate's floor
	@cargo tarpaulin --version 2>/dev/null | grep -qw $(TARPAULIN_VERSION) || \
		cargo install -q --locked cargo-tarpaulin --version $(TARPAULIN_VERSION)
	@mkdir -p $(TARGET)/coverage
	@rm -f $(TARGET)/coverage/lcov.info
	@echo "coverage: the tests' output is in $(TARGET)/coverage/log"
	@cargo tarpaulin --config coverage/tarpaulin.toml >$(TARGET)/coverage/log 2>&1 || \
		{ grep -aE 'FAILED|panicked' $(TARGET)/coverage/log || true; tail -n 40 $(TARGET)/coverage/log; exit 1; }
	@rm -f build_rs_cov.profraw crates/*/default_*.profraw
	@kvm=$$(test ! -w /dev/kvm || echo yes); \
	awk -v kvm="$$kvm" -f coverage/check.awk coverage/floors.toml $(TARGET)/coverage/lcov.info

.PHONY: clean
clean: ## Remove what was built; the cache stays (lab clean empties it)
	cargo clean
