# `make demo` and `make test` do everything on a fresh machine: they make .venv and install what they need, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -q

# Tests and the demo must not depend on a network, or on how many cores a machine happens to have.
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help demo smoke study-superclass study-superclass-long study-frontier study-frontier-long test test-slow test-dist test-gpu quality style clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "vlmkit needs Python 3.10 or newer: make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing vlmkit and what it needs into $(VENV) (once; torch is large) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,track]'
	@touch $@

demo: $(INSTALLED)  ## Pretrain, probe, train nine VLMs, evaluate, draw the frontier (7 to 11 minutes on 2 cores)
	$(BIN)/vlmkit pretrain-superclass --recipe recipes/demo_superclass.yaml --out runs/demo/superclass
	$(BIN)/vlmkit eval runs/demo/superclass
	$(BIN)/vlmkit sweep --recipe recipes/demo_sweep.yaml --out runs/demo/vlms --jobs 2
	$(BIN)/vlmkit frontier --measurements runs/demo/vlms --text-tokens 10 --plot runs/demo/frontier.png

smoke: $(INSTALLED)  ## One minute through all four commands
	@rm -rf build/smoke
	$(BIN)/vlmkit pretrain-superclass --recipe recipes/smoke_superclass.yaml --out build/smoke/superclass
	$(BIN)/vlmkit train-vlm --recipe recipes/smoke_vlm.yaml --vision-tower build/smoke/superclass --out build/smoke/vlm
	$(BIN)/vlmkit eval build/smoke/superclass build/smoke/vlm --limit 200
	$(BIN)/vlmkit frontier --budget 5e12

study-superclass: $(INSTALLED)  ## SuperClass against CLIP, three seeds (under 40 minutes on 2 cores)
	$(BIN)/vlmkit study --recipe recipes/study_superclass.yaml --out runs/study-superclass --jobs 2

study-superclass-long: $(INSTALLED)  ## All arms of pretraining, three seeds (57 runs, about 15 hours on 2 cores; resumable)
	$(BIN)/vlmkit study --recipe recipes/study_superclass_long.yaml --out runs/study-superclass-long --jobs 2

study-frontier: $(INSTALLED)  ## Reasoning and OCR over LLM size and visual tokens, three seeds (under 15 minutes on 2 cores; 5 more for the tower)
	$(BIN)/vlmkit pretrain-superclass --recipe recipes/demo_superclass.yaml --out runs/demo/superclass
	$(BIN)/vlmkit sweep --recipe recipes/study_frontier.yaml --out runs/study-frontier --jobs 2
	$(BIN)/vlmkit frontier

study-frontier-long: $(INSTALLED)  ## The same with ten times the steps (1 to 2 hours on 2 cores; resumable)
	$(BIN)/vlmkit pretrain-superclass --recipe recipes/demo_superclass.yaml --out runs/demo/superclass
	$(BIN)/vlmkit sweep --recipe recipes/study_frontier_long.yaml --out runs/study-frontier-long --jobs 2
	$(BIN)/vlmkit frontier

test: $(INSTALLED)  ## Fast tests (at most 3 minutes on 2 cores)
	@OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile -m 'not slow and not dist and not gpu'

test-slow: $(INSTALLED)  ## Tests that take longer
	@OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist load -m slow

test-dist: $(INSTALLED)  ## Tests that start several processes
	@OMP_NUM_THREADS=1 $(PYTEST) -m dist

test-gpu: $(INSTALLED)  ## Tests that need an NVIDIA GPU
	@$(PYTEST) -m gpu

quality: $(INSTALLED)  ## Lint, types, formatting, generated docs: checks only
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m typer vlmkit.cli.app utils docs --name vlmkit | diff -q - docs/cli.md > /dev/null || { echo "docs/cli.md is out of date: run make style"; exit 1; }

style: $(INSTALLED)  ## Format the code and write the generated docs
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python -m typer vlmkit.cli.app utils docs --name vlmkit > docs/cli.md

clean:  ## Remove what the other targets made, except runs
	@rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
