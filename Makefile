# Two commands for a fresh clone: `make demo` and `make test`. Each builds its own virtual environment first.
# Where Python is told to write no bytecode, every process of a test would compile our modules anew.
export PYTHONDONTWRITEBYTECODE :=
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVE ?= 1
WORKERS ?= 2

.DELETE_ON_ERROR:
.PHONY: demo test lint types unit gpu evidence clean help

help:
	@echo 'make demo            train nine small looped models, print the verdicts, serve the dashboard'
	@echo 'make demo SERVE=0    the same without the dashboard'
	@echo 'make test            lint, types and all tests'
	@echo 'make gpu             what needs a CUDA device, in nine minutes; writes docs/gpu.md'
	@echo 'make evidence        every study of docs/evidence.md, from nothing; goes on after a kill'
	@echo 'make clean           remove the virtual environment and caches'

demo: $(VENV)/.runtime
	@$(BIN)/loopscope demo $(if $(filter 0 no,$(SERVE)),--no-serve)

# Types are checked beside the tests: mypy takes minutes of one core in a fresh clone.
test: lint
	@$(MAKE) --no-print-directory -j2 types unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow an editable install whose packages are renamed; a link of the right name shows it the same files.
types: $(VENV)/.test
	@mkdir -p $(VENV)/typed && ln -sfn $(CURDIR) $(VENV)/typed/loopscope
	MYPYPATH=$(VENV)/typed $(BIN)/mypy -p loopscope

unit: $(VENV)/.test
	@$(BIN)/python tests/browser.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# PARCAE=/path/to/a/checkout measures the authors' code as well.
gpu: $(VENV)/.test
	$(BIN)/python benchmarks/gpu.py

# What is finished in runs/evidence is kept. ACCEPT=1 makes what was measured what docs/ shows.
evidence: $(VENV)/.test
	$(BIN)/python examples/studies/everything.py runs/evidence $(if $(ACCEPT),--accept)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "loopscope needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo 'installing loopscope and its dependencies into $(VENV) (first time only)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[parquet,test]'
	@# A foreign looped model for the tests; it pins a torch of its own, so it comes without its dependencies.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps open-mythos
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
