# Every target sets itself up: the environment is rebuilt when pyproject.toml or constraints.txt change.
#   make test ARGS="-k NAME"       ARGS is passed on to the command of any target that runs one
#   make test VENV=/somewhere/venv      use that folder for the environment instead of .venv
#   make test PYTHON=python3.12         build the environment with that interpreter
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PY := $(VENV)/bin/python
RUN := $(VENV)/.run
DEMO := $(VENV)/.demo
DEV := $(VENV)/.dev

# Large tensors are freed and asked for again at every step. With glibc's defaults each goes back to the system, and on
# CPU half of a training's time was page faults (system time 50 % before, 4 % after, of the VAE stage).
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 16000000000
export MALLOC_TOP_PAD_ ?= 268435456

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup check test test-slow test-faults run demo report zoo zoo-report clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# What a run needs; what tests and checks need besides (ray, submitit, optuna, the linters) comes with those targets.
$(RUN): pyproject.toml constraints.txt
	$(call install,.)

$(DEMO): pyproject.toml constraints.txt
	$(call install,.[demo])
	@touch $(RUN)

$(DEV): pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch $(RUN) $(DEMO)

define install
	@echo "setting up $(VENV) for $(1): PyTorch's CUDA build is several GB"
	@started=$$(date +%s); $(PYTHON) -m venv $(VENV) \
	&& $(PY) -m pip install --disable-pip-version-check -c constraints.txt -e "$(1)" \
	&& echo "set up in $$(( $$(date +%s) - started )) s, $$(du -sh $(VENV) | cut -f1)"
	@touch $@
endef

setup: $(RUN) ## make the environment of a run (the other targets set themselves up)

check: $(DEV) ## lint, formatting, types and import order
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

test: $(DEV) ## the fast tests, a file a core
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile $(ARGS)

test-slow: $(DEV) ## the slow tests alone
	$(PY) -m pytest -m slow $(ARGS)

test-faults: $(DEV) ## signals, hostile edits, damaged files, and any value of any setting: tried and survived
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto -m "slow or not slow" tests/test_faults_*.py $(ARGS)

run: $(RUN) ## make the zoo forget van Gogh from four shots: the report is in the run's folder
	$(PY) train.py concept=van_gogh shots=4 $(ARGS)

demo: $(DEMO) ## a page to try it: any prompt, before and after side by side: make demo ARGS=port=7861
	$(PY) -m unreel.demo $(ARGS)

report: $(RUN) ## one page over many runs: make report ARGS=runs/claims
	$(PY) report.py $(ARGS)

zoo: $(RUN) ## retrain every model of the zoo (continues after a kill), score it and write its cards
	$(PY) -m unreel.zoo.pretrain stage=all $(ARGS)
	$(PY) -m unreel.zoo.scorecard
	$(PY) -m unreel.zoo.cards runs/zoo_report/scores.jsonl

zoo-report: $(RUN) ## render and score the zoo's models
	$(PY) -m unreel.zoo.scorecard $(ARGS)

clean: ## remove caches and build output; keeps .venv and runs/
	rm -rf build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
