PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup check test demo headers_install bench referee fuzz soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z_]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install everything into it

check: $(STAMP) ## ruff, format, mypy --strict, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(STAMP) ## run the tests (ARGS="-k name" to choose)
	$(BIN)/python -m pytest $(ARGS)

demo: $(STAMP) ## kerneld, target and inspector together; ends by itself
	bin/demo

ABI ?= f24
INSTALL_HDR_PATH ?= build/usr
HEADERS_f24 := shared/include
HEADERS_f23 := shared/include/f23
HEADERS_f25 := shared/include/f25

headers_install: ## put linux/shadowpt.h to INSTALL_HDR_PATH/include (ABI=f23 or f25: that semester's)
	@if [ -z "$(HEADERS_$(ABI))" ]; then echo "make: ABI is f23, f24 or f25, not '$(ABI)'" >&2; exit 1; fi
	@mkdir -p "$(INSTALL_HDR_PATH)/include/linux"
	@cp "$(HEADERS_$(ABI))/linux/shadowpt.h" "$(INSTALL_HDR_PATH)/include/linux/shadowpt.h"
	@chmod 644 "$(INSTALL_HDR_PATH)/include/linux/shadowpt.h"
	@echo "  INSTALL $(INSTALL_HDR_PATH)/include/linux/shadowpt.h"

bench: $(STAMP) ## measure beside the host's kernel; takes minutes (ROWS="1 3" to choose)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -e '.[bench]'
	$(BIN)/python -m bench $(ROWS)

referee: $(STAMP) ## the host's kernel as referee: random programs on both (ARGS="--programs 10000")
	$(BIN)/kerneld referee $(ARGS)

fuzz: $(STAMP) ## the long run of the fuzzers; takes an hour (ARGS="--datagrams 50000 --seed 7")
	$(BIN)/python -m tests.hostile $(ARGS)

soak: $(STAMP) ## 500 targets, heavy batches and an inspector at once (ARGS="--processes 50 --seconds 600")
	$(BIN)/python -m bench.soak $(ARGS)

clean: ## remove .venv, caches and build output
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv that is there already is kept and brought up to date.
$(STAMP): pyproject.toml
	@if [ ! -x $(BIN)/python ]; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	    { echo "make: '$(PYTHON)' is not Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }; \
	  $(PYTHON) -m venv $(VENV) || { echo "make: '$(PYTHON)' cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; rm -rf $(VENV); exit 1; }; \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -e '.[dev]'
	@touch $@
