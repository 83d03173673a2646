# Everything a person does with this repository, one target each. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

SWIFT ?= swift
BUILD := $(SWIFT) build -c release
ROOST := .build/release/roost
BENCH := .build/release/roost-bench
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/roost
# Where `make bench` leaves its table, chart and JSON, and what else it is told; see docs/performance.md.
BENCH_OUT ?= .build/bench
BENCH_OPTIONS ?=
# What the tests that run Debian's programs in a guest have there; `scripts/setup` brings the same to the host.
GUEST_PROGRAMS := gcc,libc6-dev,openssl,perl,python3,libpython3.11-testsuite,sqlite3,gdb
PREFIX ?= /usr/local
SOURCES := Sources Tests Package.swift

# What the guests of `make bench` and `make stress` have there.
LOAD_PROGRAMS := gcc,libc6-dev,make,fio,iperf3,stress-ng

.PHONY: help all setup setup-run setup-bench kernels build install run test test-kvm bench bench-kvm load-image repeat litmus stress docs \
    format lint fuzz clean

help: ## Lists the targets.
	@echo "Roost: virtual machines for x86-64 Linux hosts. Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

all: build ## Same as build.

setup: ## Installs what building, image making and testing need (idempotent; says what it installs).
	@scripts/setup

setup-run: ## Installs what building and image making need.
	@scripts/setup run

kernels: ## Fetches the Debian kernels that boot tests start, into ~/.cache/roost (idempotent).
	@scripts/fetch-kernels

build: ## Builds .build/release/roost, optimized.
	$(BUILD) --product roost-agent
	$(BUILD) --product roost

install: build ## Installs roost, its manual pages and completions below PREFIX (/usr/local); DESTDIR is put before.
	@scripts/install "$(ROOST)" "$(DESTDIR)$(PREFIX)"

run: setup-run build ## From nothing to a login shell in a Debian guest.
	@$(ROOST) image build debian --if-missing
	@$(ROOST) run debian

test: setup kernels ## Runs every test, optimized.
	$(BUILD) --build-tests
	@$(ROOST) image build debian --if-outdated --output $(CACHE)/images/debian
	@$(ROOST) image build debian --if-outdated --output $(CACHE)/images/debian-programs --include $(GUEST_PROGRAMS)
	$(SWIFT) test -c release --skip-build

test-kvm: setup kernels build ## Tests the hardware engine in a machine with nested virtualization, without hardware.
	@scripts/test-kvm

bench-kvm: setup kernels build ## Boots the same kernel by Roost and QEMU's microvm, both on nested KVM, and compares.
	@scripts/bench-kvm

setup-bench: setup ## Installs what the benchmarks need besides: QEMU, gcc, static libraries (idempotent).
	@scripts/setup bench

load-image: build
	@$(ROOST) image build debian --if-outdated --output $(CACHE)/images/debian-load --include $(LOAD_PROGRAMS)

bench: setup-bench kernels load-image ## Compares native, Roost and QEMU's TCG: programs, devices; machines, boots, idle cost.
	$(BUILD) --product roost-bench
	@$(ROOST) image build debian --if-outdated --output $(CACHE)/images/debian
	$(MAKE) --no-print-directory -C Benchmarks/Guest
	$(BENCH) compare --json $(BENCH_OUT)/performance.json --svg $(BENCH_OUT)/performance.svg \
	    --markdown $(BENCH_OUT)/performance.md $(BENCH_OPTIONS); status=$$?; \
	    $(BENCH) devices --image $(CACHE)/images/debian-load --markdown $(BENCH_OUT)/performance.md || status=1; \
	    $(BENCH) machines --image $(CACHE)/images/debian || status=1; \
	    $(BENCH) figures && exit $$status

fuzz: ## Runs the differential and device fuzzers until interrupted.
	$(BUILD) --build-tests
	@while ROOST_FUZZ_SEED=$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ') ROOST_FUZZ=1 \
	    $(SWIFT) test -c release --skip-build --filter '[Ff]uzz|[Dd]ifferential|[Hh]ostil|DecoderTests'; do :; done

repeat: kernels build ## Boots three times with virtual time, on both engines, and compares every count.
	@scripts/repeat-boot

litmus: kernels build ## Ten million rounds of the memory-ordering tests on each engine (ROUNDS=, CPUS=).
	@scripts/litmus

stress: setup load-image ## Runs stress-ng in a guest, every class, and looks at the kernel's log (MINUTES=60 CPUS=2).
	@scripts/stress

docs: ## Writes docs/instructions.md from the instruction table.
	$(BUILD) --build-tests
	ROOST_WRITE_DOCS=1 $(SWIFT) test -c release --skip-build --filter InstructionDocument

format: ## Formats every source file in place.
	$(SWIFT) format format --in-place --parallel --recursive $(SOURCES)

lint: ## Checks formatting and style, strictly.
	$(SWIFT) format lint --strict --parallel --recursive $(SOURCES)

clean: ## Removes what was built (images and fetched kernels stay).
	$(SWIFT) package clean
