# On a fresh machine with Python 3.11 or later:   make demo      make test
# Stamp files in the virtual environment make every later call start at once, with or without a network.

# the first Python that is new enough and can make virtual environments; or name one: make PYTHON=/opt/python/bin/python3 demo
PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11; do \
  $$candidate -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$candidate && break; \
  done || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST_ARGS ?=
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup demo test lint type arch tensorrt bench check clean
.DEFAULT_GOAL := help

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/test.stamp  ## the virtual environment with everything that development needs

demo: $(VENV)/run.stamp  ## install, start the daemon on a temporary folder, optimize a real model, show what came out
	$(BIN)/edgeopt demo

test: $(VENV)/test.stamp  ## install (torch too, which training needs) and run the tests
	$(PYTEST) $(PYTEST_ARGS)

lint: $(VENV)/dev.stamp  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/test.stamp  ## types
	$(BIN)/mypy

arch: $(VENV)/dev.stamp  ## who may import whom
	$(BIN)/lint-imports

tensorrt: $(VENV)/dev.stamp  ## what edgeopt uses of TensorRT against its real releases, whose bindings pip fetches
	$(BIN)/python tools/check_tensorrt.py

bench: $(VENV)/dev.stamp  ## the benchmarks on real models, whose folder is in EDGEOPT_CORPUS
	@test -n "$$EDGEOPT_CORPUS" || { echo "name the folder of the real models: make bench EDGEOPT_CORPUS=DIR" >&2; exit 2; }
	@for script in $(filter-out benchmarks/corpus_models.py benchmarks/peers.py benchmarks/pruning.py,$(wildcard benchmarks/*.py)); do \
	  echo "== $$script"; $(BIN)/python "$$script" "$$EDGEOPT_CORPUS" || exit 1; done

check: lint type arch test  ## all of it, as continuous integration does

clean:  ## remove the virtual environment and what the tools leave behind
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "edgeopt needs Python 3.11 or later; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
	  { echo "python3-venv is missing; on Debian: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/run.stamp

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable '.[dev,train]'
	@touch $@ $(VENV)/dev.stamp $(VENV)/run.stamp
