# Every target installs what it needs into .venv first; nothing is reinstalled when nothing changed.
# Needs python3 (3.11 or later), make and git. Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
unexport PYTHONPATH

# A virtual environment belongs to one interpreter and one folder; an installation also to the two files
# that say what is installed. Each is a stamp whose name holds a checksum of what it depends on.
PYTHON_KEY := $(shell { $(PYTHON) -c 'import sys; print(sys.version, sys.base_prefix)'; pwd; } 2>/dev/null | cksum | cut -d' ' -f1)
FILES_KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
PYTHON_STAMP := $(VENV)/.python-$(PYTHON_KEY)
RUN_STAMP := $(VENV)/.run-$(PYTHON_KEY)-$(FILES_KEY)
DEV_STAMP := $(VENV)/.dev-$(PYTHON_KEY)-$(FILES_KEY)
PEERS_STAMP := $(VENV)/.peers-$(PYTHON_KEY)-$(FILES_KEY)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Two workers with one thread each: with more, the thread pools of small tensors fight for the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

.DEFAULT_GOAL := help
.PHONY: help demo test check full pictures readme format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

# With --resume a run that was cut off goes on, and a finished one is scored again.
demo: $(RUN_STAMP) ## train a small model on Python's own library, score it, write runs/demo/report.html
	$(BIN)/mapformers train demo --data stdlib --output runs/demo --resume

test: $(DEV_STAMP) ## the whole test suite
	$(PYTEST)

check: $(DEV_STAMP) ## what every commit must pass: format, lint, types, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow and not peers"

full: check $(PEERS_STAMP) ## check, then the whole suite with the packages that it compares with installed
	$(PYTEST)

format: $(DEV_STAMP) ## put the code into ruff's format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

readme: $(RUN_STAMP) ## write the README's tables anew, from the catalog and from benchmarks/results
	$(BIN)/python tools/readme_table.py --write
	$(BIN)/python tools/readme_results.py --write
	$(BIN)/python tools/combinations.py --write

pictures: $(RUN_STAMP) ## draw docs/pictures anew
	$(BIN)/python tools/pictures.py docs/pictures
	$(BIN)/python tools/curves.py docs/pictures
	$(BIN)/python tools/table_pictures.py docs/pictures/results

clean: ## remove .venv and what the tools cached; runs/ stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(PYTHON_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: $(PYTHON) is missing or older than 3.11; name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(RUN_STAMP): $(PYTHON_STAMP)
	@echo "installing into $(VENV): some minutes the first time, nothing after that"
	$(PIP) --editable '.[all]'
	@rm -f $(VENV)/.run-* && touch $@

$(DEV_STAMP): $(RUN_STAMP)
	$(PIP) --editable '.[all,dev]'
	@rm -f $(VENV)/.dev-* && touch $@

$(PEERS_STAMP): $(DEV_STAMP)
	$(PIP) --editable '.[all,dev,peers]'
	@rm -f $(VENV)/.peers-* && touch $@
