# make help lists the targets. PYTHON: any Python from 3.11 on. For a GPU: make install JAX="jax[cuda13]".
PYTHON ?= python3
JAX ?= jax
BIN := .venv/bin
STAMP := .venv/installed-$(subst [,-,$(subst ],,$(JAX)))
DEMO := data/demo
DEMO_DATA := solo/hopper-v5/random-expert-v0
DEMO_RUN := --dataset $(DEMO_DATA) --steps 16000 --eval-every 4000 --seeds 0 1 2 3 4 --out $(DEMO)/runs
SHELL := /bin/bash

.PHONY: help install demo test check sync parity ogbench tables report

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

install: $(STAMP)  ## virtual environment .venv with everything; on a GPU machine: make install JAX="jax[cuda13]"

$(STAMP): requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -r requirements.txt -c constraints.txt "$(JAX)"
	@touch $@

demo: export MINARI_DATASETS_PATH = $(CURDIR)/$(DEMO)/minari
demo: install  ## from nothing to a score table and a learning curve, in some minutes
	@mkdir -p $(DEMO)/minari
	$(BIN)/python benchmarks/collect.py $(DEMO_DATA) --transitions 200000
	$(BIN)/python algorithms/bc.py $(DEMO_RUN)
	$(BIN)/python algorithms/td3_bc.py $(DEMO_RUN)
	$(BIN)/python benchmarks/tables.py --runs $(DEMO)/runs --out $(DEMO) --show
	$(BIN)/python benchmarks/plots.py --runs $(DEMO)/runs --out $(DEMO)

test: install .venv/ray .venv/optuna  ## all tests; a few need Ray or optuna, which nothing else does
	$(BIN)/python -m pytest tests -q -n 2

.venv/ray .venv/optuna: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -c constraints.txt $(@F) || \
		echo "$(@F) cannot be installed here: its tests are left out"
	@touch $@

check: install  ## formatting, lint, types, marked blocks, headers, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python benchmarks/blocks.py

sync: install  ## copy every marked block from its home
	$(BIN)/python benchmarks/blocks.py --write

parity: install  ## results/parity.json: the largest error of every update beside the official code's
	rm -f results/parity.json
	SOLO_PARITY=results/parity.json $(BIN)/python -m pytest tests/test_golden.py -q

ogbench: install  ## the 25 OGBench tasks whose data scripted oracles make: collect it, then run the grid (weeks on a CPU)
	$(BIN)/python benchmarks/collect.py cube-single-play-v0 cube-double-play-v0 scene-play-v0 puzzle-3x3-play-v0 puzzle-4x4-play-v0
	$(BIN)/python benchmarks/sweep.py --grid benchmarks/grids/ogbench_scripted.toml

tables: install  ## results/tables and results/figures from results/runs, and the README's tables
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/plots.py
	$(BIN)/python benchmarks/plots.py --runs results/runs/solo/hopper-v5-random-expert-v0 --out results/demo
	$(BIN)/python benchmarks/speed.py table > /dev/null
	$(BIN)/python benchmarks/equivalence/compare.py > /dev/null
	$(BIN)/python benchmarks/algorithms.py

report: install  ## all tables and figures in one file, results/report.html
	$(BIN)/python benchmarks/report.py
