# Everything a newcomer runs. Needs Python >= 3.11 and the package index, nothing else.
# `make PYTHON=python3.12 test` takes another Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs snippets soak bench lock clean

help:  ## list what can be made
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/run.stamp  ## the shop under kills, its books checked (BROKER=URL for another broker, ARGS=... for options)
	@echo "== demo: three services, one bus, kill -9 at every window; under two minutes"
	$(BIN)/txbus demo $(if $(BROKER),--broker "$(BROKER)") $(ARGS)

test: $(VENV)/dev.stamp  ## unit, conformance, simulation and integration tests (ARGS=... for pytest)
	@echo "== test: pytest over tests/ without the documentation's snippets (make snippets) and long runs (make soak)"
	@echo "== servers: none needed by this version; txbus runs on its embedded broker"
	@echo "== first what runs in one process, shared out to all cores; then what kills real processes"
	$(BIN)/pytest --ignore=tests/test_docs.py --ignore=tests/integration --numprocesses=auto $(ARGS)
	$(BIN)/pytest tests/integration $(ARGS)

lint: $(VENV)/dev.stamp  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

docs: $(VENV)/dev.stamp  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

snippets: $(VENV)/dev.stamp  ## run every snippet of README and docs
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest tests/test_docs.py $(ARGS)

soak: $(VENV)/dev.stamp  ## the long runs under many kills
	$(BIN)/pytest -m soak --timeout=7200 $(ARGS)

bench: $(VENV)/dev.stamp  ## every benchmark, side by side ratios (ARGS=--json for a machine)
	@set -e; for file in bench/[a-z]*.py; do \
		name=$$(basename $$file .py); echo "== bench.$$name"; $(BIN)/python -m bench.$$name $(ARGS); \
	done

lock:  ## resolve requirements/ anew from pyproject.toml
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --upgrade pip-tools
	$(COMPILE) $(EXTRAS) --output-file requirements/run.txt pyproject.toml
	$(COMPILE) $(EXTRAS) --extra dev --constraint requirements/run.txt --output-file requirements/dev.txt pyproject.toml

COMPILE := CUSTOM_COMPILE_COMMAND="make lock" build/lock/bin/pip-compile --quiet --generate-hashes \
	--strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
# Named one by one: pip-compile would write the path of this checkout for `all`, which refers to itself.
EXTRAS := --extra sql --extra cli --extra settings --extra otel --extra sim

clean:  ## remove what was made here, the environment included
	rm -rf $(VENV) build dist site .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "txbus needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=python3.12 ..."; exit 1; }
	@echo "== environment: $(VENV) with $$($(PYTHON) --version)"
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "this Python cannot make environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

# The development environment holds everything that running needs, in the same versions.
$(VENV)/%.stamp: requirements/%.txt pyproject.toml | $(VENV)/bin/python
	@echo "== install: locked versions of requirements/$*.txt, then txbus itself"
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/$*.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
