# Every target sets itself up: the environment is rebuilt when pyproject.toml or constraints.txt change.
#   make test ARGS="-k NAME"       ARGS is passed on to the command of any target that runs one
#   make test VENV=/somewhere/venv      use that folder for the environment instead of .venv
#   make test PYTHON=python3.12         build the environment with that interpreter
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PY := $(VENV)/bin/python
STAMP := $(VENV)/.stamp

# Large tensors are freed and asked for again at every step. With glibc's defaults each goes back to the system, and on
# CPU half of a training's time was page faults (system time 50 % before, 4 % after, of the VAE stage).
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 16000000000
export MALLOC_TOP_PAD_ ?= 268435456

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup check test test-slow run report zoo zoo-report clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

setup: $(STAMP) ## make the environment (the other targets do so by themselves)

check: $(STAMP) ## lint, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: $(STAMP) ## the fast tests
	$(PY) -m pytest $(ARGS)

test-slow: $(STAMP) ## the slow tests alone
	$(PY) -m pytest -m slow $(ARGS)

run: $(STAMP) ## make the zoo forget van Gogh from four shots: the report is in the run's folder
	$(PY) train.py concept=van_gogh shots=4 $(ARGS)

report: $(STAMP) ## one page over many runs: make report ARGS=runs/claims
	$(PY) report.py $(ARGS)

zoo: $(STAMP) ## retrain every model of the zoo (continues after a kill), score it and write its cards
	$(PY) -m unreel.zoo.pretrain stage=all $(ARGS)
	$(PY) -m unreel.zoo.report
	$(PY) -m unreel.zoo.cards runs/zoo_report/scores.jsonl

zoo-report: $(STAMP) ## render and score the zoo's models
	$(PY) -m unreel.zoo.report $(ARGS)

clean: ## remove caches and build output; keeps .venv and runs/
	rm -rf build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
