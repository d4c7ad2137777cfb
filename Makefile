# Every target that needs it makes and refreshes .venv itself. `make test` is what CI runs.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Processes of the suites that mostly wait for servers: three left two cores idle for most of the time.
WORKERS ?= 4
# Of `make chaos`; without a seed one is drawn, and printed.
ROUNDS ?= 20
SEED ?=
# Of `make bench`: `--full`, or parts of it by name.
BENCH ?=
OUT ?=

.DEFAULT_GOAL := help
# `make -j test` keeps the order in which the suites are named.
.NOTPARALLEL:
.PHONY: help setup test lint types imports unit model integration fault chaos docs docs-reference e2e bench format demo dev clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## install into .venv what is missing (the other targets do it themselves)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making .venv"; $(PYTHON) -m venv .venv; }
	@echo "Installing the packages of constraints.txt into .venv (the first time takes about two minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt hatchling
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[local,dev]'
	@touch $@

test: lint types imports unit model integration fault docs e2e ## everything, exactly what CI runs: lint, types, imports, then the six suites

lint: $(STAMP) ## ruff: rules and format
	@echo "== lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check . | grep -E '^ +--> ' ; echo "Not formatted: run 'make format'." >&2; exit 1; }

types: $(STAMP) ## mypy, strict
	@echo "== types"
	@$(BIN)/mypy

imports: $(STAMP) ## who may import whom (import-linter), and whether every test file can be imported
	@echo "== imports"
	@$(BIN)/lint-imports --no-logo
	@found=$$($(BIN)/python -m pytest -qq --collect-only tests 2>&1) || { echo "$$found"; exit 1; }

# A folder without a test would end pytest with exit code 5.
define suite
	@echo "== $@"
	@if [ -n "$$(find tests/$@ -name 'test_*.py' 2>/dev/null | head -1)" ]; then $(BIN)/python -m pytest tests/$@ $(1); else echo "tests/$@ has no test yet"; fi
endef

unit: $(STAMP) ## the unit tests: seconds, no server
	$(call suite)

model: $(STAMP) ## every interleaving of the money path within bounds, each safeguard taken away (MODEL_DEPTH=deep: more)
	$(call suite)

integration: $(STAMP) ## a real Temporal server, the simulator over HTTP, Dagster in process
	$(call suite,-n $(WORKERS) --dist worksteal)

fault: $(STAMP) ## one file per failure: kills, lost replies, full disks
	$(call suite,-n $(WORKERS) --dist worksteal)

chaos: $(STAMP) ## ROUNDS=20 SEED=n DEFERRED=1: random kills, cuts and vendor faults, judged by the vendor's books
	@$(BIN)/python -m tests.chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)) $(if $(DEFERRED),--deferred)

docs: $(STAMP) ## every command and code block of README and docs, and whether the generated pages are current
	$(call suite,-n $(WORKERS) --dist worksteal)

docs-reference: $(STAMP) ## write docs/reference.md, docs/api.md and docs/errors.md from the code
	@$(BIN)/python docs/generate.py

e2e: $(STAMP) ## Dagster's and Temporal's UIs in a headless Chromium or Chrome
	$(call suite,-rs)

bench: $(STAMP) ## OUT=figures.json: what it costs, against goals and other ways, a quarter of an hour; no suite, no figure fails it
	@$(BIN)/python -m bench $(BENCH) $(if $(OUT),--out $(OUT))

format: $(STAMP) ## let ruff sort imports, fix and format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

demo: $(STAMP) ## 300 real reviews, summarized and labelled: the simulator's answers unless ANTHROPIC_API_KEY is set
	@$(BIN)/claude-batch demo

# A shell started in the background ignores SIGINT and hands that on; --default-signal (GNU) takes it back.
dev: $(STAMP) ## the Dagster UI with everything it needs, until Ctrl-C
	@if env --default-signal=INT,TERM true 2>/dev/null; then exec env --default-signal=INT,TERM $(BIN)/claude-batch dev; else exec $(BIN)/claude-batch dev; fi

clean: ## remove .venv, caches and builds; data and .claude_batch stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find bench claude_batch_dagster temporal_worker tests -name __pycache__ -type d -prune -exec rm -rf {} +
