# The two commands that matter: `make demo` and `make test`. Both set everything up from nothing.
#
# TORCH_INDEX_URL: where pip finds torch, for people whose default torch is a CUDA build of several GB.

PYTHON ?= python3
TORCH_INDEX_URL ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# One thread: on small and shared machines torch's default burns several times the CPU for the same work.
export OMP_NUM_THREADS ?= 1
export HF_HUB_DISABLE_TELEMETRY := 1
export HF_HUB_DISABLE_PROGRESS_BARS := 1

# Modules are compiled when they are imported first: of most of what is installed that is never, and it would take half the time.
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format bench soak release clean

help: ## say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "skillhub needs Python 3.11 or newer; name one with: make PYTHON=python3.12 …" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is missing. Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	$(PIP_INSTALL) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) torch
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

.venv: $(INSTALLED) ## make the virtual environment

demo: $(INSTALLED) ## the whole story on a real model, in a few minutes
	$(BIN)/python examples/demo.py

# Three at a time, also on two cores: many tests wait for other processes.
test: $(INSTALLED) ## every test that needs no downloaded weights
	$(BIN)/python -m pytest -m 'not real' -n 3 --dist loadfile

# All in one run: what is short fills the gaps beside the long examples on real weights, which come first, in the order of their names;
# pytest-xdist would have files of few tests come last, and one worker finish alone.
test-all: lint ## the above, style and types, and the tests on real weights
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## measure, and write reports into benchmarks/reports/
	$(BIN)/python benchmarks/command_line.py
	$(BIN)/python benchmarks/packing.py

soak: $(INSTALLED) ## long kills and loads, by hand; the report goes into benchmarks/reports/
	$(BIN)/python benchmarks/soak.py
	$(BIN)/python benchmarks/registry_soak.py

release: lint test-all ## build the distribution into dist/
	$(PIP_INSTALL) build
	$(BIN)/python -m build

clean: ## remove what was made, but not downloaded models
	rm -rf $(VENV) build dist .demo *.egg-info
