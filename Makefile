# Every target creates the virtual environment it needs; nothing has to be installed before but
# Python 3.11+ with venv, a C++ compiler and make. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The fast tests run in several processes, which share the processor's cores.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc src -type f -not -name '*.so' -not -path '*__pycache__*' 2>/dev/null)

.PHONY: demo test test-all test-gpu bench lint types docs clean

demo: $(VENV)/.installed  ## train a CNN, an adder net and a distilled adder net on real digits
	$(BIN)/torchadder demo

test: $(VENV)/.installed-dev  ## the tests, nine minutes on two cores
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: $(VENV)/.installed-dev  ## the slow tests too, among them the sanitizers
	$(BIN)/python -m pytest

test-gpu: $(VENV)/.installed-dev  ## the tests that need a GPU; they fail where there is none
	$(BIN)/python -m pytest --require-gpu -m gpu

bench: $(VENV)/.installed  ## time the operator against convolution, write results/
	$(BIN)/torchadder bench --seconds 0.3 --json results/bench_cpu.json

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev
	$(BIN)/pyright

docs: $(VENV)/.installed-docs  ## the documentation, into site/
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The package is installed as a user gets it: built into a wheel, not linked to the sources.
$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check .
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[docs]'
	touch $@ $(VENV)/.installed
