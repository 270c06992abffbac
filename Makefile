# Needs python3 (3.11 or newer) and make, nothing else. `make` alone prints the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
ARGS ?=
KERNELS = $(shell grep -rlE '^(from|import) numba' --include='*.py' collectors lab pipeline 2>/dev/null)

LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run install dev test check lint needs bench fuzz lock docs clean

help: ## print this list
	@echo 'Weft: telemetry and analytics for the back-end fabric of GPU clusters'
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'
	@echo
	@echo '  PYTHON=python3.12 names another Python; ARGS="--port 9000" goes to weft (run, bench) or pytest (test)'

run: $(VENV)/.compiled ## install what is missing, show a virtual fabric and this machine, print the dashboard's address
	@exec $(BIN)/weft demo $(ARGS)

install: $(VENV)/.compiled ## create a virtual environment with Weft

dev: $(VENV)/.developed ## the same, with the tools for tests and checks

test: $(VENV)/.developed needs ## install what the tests need, then run them
	@exec $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: lint test ## format, lint, types, import rules, then the tests

lint: $(VENV)/.developed ## check without the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@mkdir -p $(VENV)/types && ln -sfn ../.. $(VENV)/types/weft
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(VENV)/.compiled ## print the benchmark tables
	@exec $(BIN)/weft bench $(ARGS)

fuzz: $(VENV)/.developed ## fuzz every decoder, ten minutes each (ARGS="--seconds 60 roce" for one decoder, one minute)
	@exec $(BIN)/python tests/fuzz/fuzzing.py $(ARGS)

lock: $(VENV)/.developed ## take the newest allowed dependencies into both locks
	$(LOCK) --upgrade --group build --output-file requirements.lock
	$(LOCK) --upgrade --group dev --constraint requirements.lock --output-file requirements-dev.lock

docs: $(VENV)/.developed ## regenerate the generated pages of the docs
	$(BIN)/python tests/reference.py

clean: ## remove the virtual environment and everything built; keeps weft-data and weft-demo
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find analytics collectors commands dashboards lab pipeline tests __pycache__ -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

needs:
	@missing() { echo "note: no $$1 here, so $$2 tests are skipped (Debian: apt install $$3)"; }; \
	command -v java >/dev/null && command -v mvn >/dev/null || test -n "$$WEFT_TEST_KAFKA" || missing 'Java with Maven' Kafka 'default-jre-headless maven'; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
		|| missing Chromium browser chromium; \
	command -v tshark >/dev/null || missing tshark 'packet comparison' tshark

# The stamps make a second run quick: each is renewed only when the lock or the project file it stands for has changed.
$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { echo 'error: no $(PYTHON) found: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1), Weft needs 3.11 or newer: name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'error: $(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)' >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: requirements.lock pyproject.toml $(VENV)/.made
	@echo 'installing Weft and its dependencies (about 260 MB to download, once)'
	@$(PIP) install --quiet --require-hashes -r requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.compiled: $(KERNELS) $(VENV)/.installed
	@$(BIN)/python -m weft.commands.compile
	@touch $@

$(VENV)/.developed: requirements-dev.lock $(VENV)/.compiled
	@echo 'installing what the tests and checks need'
	@$(PIP) install --quiet --require-hashes -r requirements-dev.lock
	@touch $@
