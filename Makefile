# PYTHON=… names the Python; without it bin/make-venv chooses.
VENV := .venv
BIN := $(VENV)/bin
# What is installed, by what it is for: to run, to test, to work on the project. Each has what the one before has.
RUN := $(VENV)/.installed-to-run
TEST := $(VENV)/.installed-to-test
DEV := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup check test test-quick test-long demo headers_install bench bench-compare bench-count referee bugs hosts fuzz waits soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z_-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(DEV) ## make .venv and install everything into it

check: $(DEV) ## ruff, format, mypy --strict, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two workers a processor: many tests wait for other processes. Each file is one worker's, with what its tests share.
JOBS ?= $(shell echo $$((2 * $$(nproc 2>/dev/null || echo 1))))

test: $(TEST) ## run the tests side by side (ARGS="-k name" to choose, JOBS=0 for one after the other)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# Rules of memory, of processes and of the wire, each in the test's own process; no daemon, no host as referee.
QUICK := tests/hw tests/mm tests/fs tests/task tests/syscalls tests/shadowpt tests/shared tests/inspector tests/target

test-quick: $(TEST) ## the tests that need no daemon, without the slow ones; under a minute
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not slow' $(QUICK) $(ARGS)

test-long: $(TEST) ## the tests with many times their random examples (EFFORT=10)
	KERNELD_TEST_EFFORT=$(EFFORT) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --timeout 3600 $(ARGS)

EFFORT ?= 10

demo: $(RUN) ## kerneld, target and inspector together; ends by itself
	@bin/demo

ABI ?= f24
INSTALL_HDR_PATH ?= build/usr
HEADERS_f24 := shared/include
HEADERS_f23 := shared/include/f23
HEADERS_f25 := shared/include/f25
HEADERS_f25-part1 := shared/include/f25-part1

headers_install: ## put linux/shadowpt.h to INSTALL_HDR_PATH/include (ABI=f23, f25 or f25-part1: that semester's)
	@if [ -z "$(HEADERS_$(ABI))" ]; then echo "make: ABI is f23, f24, f25 or f25-part1, not '$(ABI)'" >&2; exit 1; fi
	@mkdir -p "$(INSTALL_HDR_PATH)/include/linux"
	@cp "$(HEADERS_$(ABI))/linux/shadowpt.h" "$(INSTALL_HDR_PATH)/include/linux/shadowpt.h"
	@chmod 644 "$(INSTALL_HDR_PATH)/include/linux/shadowpt.h"
	@echo "  INSTALL $(INSTALL_HDR_PATH)/include/linux/shadowpt.h"

bench: $(RUN) ## measure beside the host's kernel; takes minutes (ROWS="1 3" to choose)
	@echo 'make: installing what the benchmark needs (psutil)'
	@$(INSTALL) -e '.[bench]'
	$(BIN)/python -m bench $(ROWS)

bench-count: $(RUN) ## count the instructions of the small calls, and keep them (ARGS=--parts: also where they go)
	$(BIN)/python -m bench.counting $(ARGS)

REV ?= HEAD
bench-compare: $(RUN) ## count them in another revision and here; fails if one is 5 % dearer (REV=main)
	$(BIN)/python -m bench.compare $(REV)

bugs: $(TEST) ## every check on every kernel with a planted mistake (ARGS="--right-runs 200 --load 2": on the right one)
	$(BIN)/python -m tests.bugs $(ARGS)

referee: $(RUN) ## the host's kernel as referee: random programs on both (ARGS="--programs 10000")
	$(BIN)/kerneld referee $(ARGS)

hosts: $(RUN) ## a command on Debian's 6.1 or 6.12 under QEMU, as root (ARGS="--kernel 6.12 -- kerneld referee")
	$(BIN)/python -m tests.hosts $(ARGS)

fuzz: $(TEST) ## the long run of the fuzzers; takes an hour (ARGS="--datagrams 50000 --seed 7")
	$(BIN)/python -m tests.hostile $(ARGS)

waits: $(TEST) ## how long one client makes others wait, call by call, at 16 GiB (ARGS="--only 'mremap*' --traced")
	$(BIN)/python -m tests.hostile.waits $(ARGS)

soak: $(RUN) ## 500 targets, heavy batches and an inspector at once (ARGS="--processes 50 --seconds 600")
	$(BIN)/python -m bench.soak $(ARGS)

clean: ## remove .venv, caches and build output
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv that is there already is kept and brought up to date. pip's warnings are about its own configuration: -qq.
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input

$(BIN)/python:
	@echo "make: making $(VENV), an environment of the project's own; nothing is installed outside it"
	@bin/make-venv $(VENV) $(PYTHON)

$(RUN): pyproject.toml | $(BIN)/python
	@echo 'make: installing what kerneld needs to run (numpy and four small packages)'
	@$(INSTALL) -e .
	@touch $@

$(TEST): pyproject.toml | $(BIN)/python
	@echo 'make: installing what the tests need (pytest, hypothesis, Unicorn, volatility3, perfetto, aiohttp, Textual)'
	@$(INSTALL) -e '.[perfetto,test,tui,web]'
	@touch $(RUN) $@

$(DEV): pyproject.toml | $(BIN)/python
	@echo 'make: installing what kerneld, its tests and its checks need (300 MB)'
	@$(INSTALL) -e '.[dev]'
	@touch $(RUN) $(TEST) $@
