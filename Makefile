# make help lists the targets. Everything is installed into .venv by the first target that needs it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON   ?= python3
VENV     ?= .venv
WORKFLOW ?= atypical_mitosis
CONFIG   ?= configs/$(WORKFLOW).yaml
DATA     ?= data/$(WORKFLOW)
ARGS     ?=
PROCESSES ?= 1

RUN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LAUNCH := $(if $(filter-out 1,$(PROCESSES)),$(RUN)/torchrun --standalone --nproc-per-node=$(PROCESSES) -m medmtl,$(RUN)/medmtl)

.PHONY: help install doctor demo test check format ingest deidentify prepare train single crossval sweep evaluate predict ui config bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  variables: WORKFLOW=$(WORKFLOW) CONFIG=$(CONFIG) ARGS=\"optim.epochs=30\" SOURCE= BUNDLE= SCANS= OUT= PROCESSES=1"

$(STAMP): pyproject.toml constraints.txt medmtl/__init__.py  # the version is in the last
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "medmtl needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

install: $(STAMP) ## set up .venv with the pinned versions

doctor: $(STAMP) ## look at this machine: versions, codecs, GPU, memory, disk, locks, MLflow [ARGS=--json]
	$(RUN)/medmtl doctor $(ARGS)

demo: $(STAMP) ## four studies on synthetic data: train, evaluate, predict, one table [ARGS="--only skin_lesions"]
	$(RUN)/medmtl demo $(ARGS)

test: $(STAMP) ## run the tests
	$(RUN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

check: $(STAMP) ## format, lint and type checks
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

format: $(STAMP) ## format the code
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

ingest: $(STAMP) ## a folder of scans -> a study: SOURCE=folder OUT=folder [ARGS="--labels t.csv --label-key id"]
	@test -n "$(SOURCE)" -a -n "$(OUT)" || { echo "make ingest SOURCE=/folder OUT=/folder" >&2; exit 2; }
	$(RUN)/medmtl ingest "$(SOURCE)" "$(OUT)" $(ARGS)

deidentify: $(STAMP) ## a folder of DICOM files without anybody's name, and the proof: SOURCE=folder OUT=folder
	@test -n "$(SOURCE)" -a -n "$(OUT)" || { echo "make deidentify SOURCE=/folder OUT=/folder" >&2; exit 2; }
	$(RUN)/medmtl deidentify "$(SOURCE)" "$(OUT)" $(ARGS)
	$(RUN)/medmtl deidentify --verify "$(OUT)"

prepare: $(STAMP) ## raw data set -> manifest: SOURCE=folder [DATA=folder] [ARGS="--masks none"]
	@test -n "$(SOURCE)" || { echo "say where the raw data are: make prepare WORKFLOW=$(WORKFLOW) SOURCE=/path" >&2; exit 2; }
	$(RUN)/python -m workflows.$(WORKFLOW).prepare "$(SOURCE)" "$(DATA)" $(ARGS)

train: $(STAMP) ## train CONFIG; the same command continues [ARGS="optim.epochs=30"] [PROCESSES=2]
	$(LAUNCH) train $(CONFIG) $(ARGS)

single: $(STAMP) ## the single-task control of a study: TASK=atypical
	@test -n "$(TASK)" || { echo "say which task: make single TASK=atypical" >&2; exit 2; }
	$(LAUNCH) train $(CONFIG) $(ARGS) --single-task $(TASK)

crossval: $(STAMP) ## every fold of CONFIG, pooled [ARGS="--single-tasks"]
	$(RUN)/medmtl crossval $(CONFIG) $(ARGS)

sweep: $(STAMP) ## one study, several settings: FILE=configs/sweeps/skin_lesions_alpha.yaml [ARGS=--test]
	@test -n "$(FILE)" || { echo "make sweep FILE=configs/sweeps/skin_lesions_alpha.yaml" >&2; exit 2; }
	$(RUN)/medmtl sweep "$(FILE)" $(ARGS)

evaluate: $(STAMP) ## evaluate CONFIG's run on its test cases
	$(RUN)/medmtl evaluate $(CONFIG) $(ARGS)

predict: $(STAMP) ## BUNDLE=runs/.../bundle SCANS=folder OUT=folder
	@test -n "$(BUNDLE)" -a -n "$(SCANS)" -a -n "$(OUT)" || { echo "make predict BUNDLE=runs/.../bundle SCANS=/folder OUT=/folder" >&2; exit 2; }
	$(RUN)/medmtl predict "$(BUNDLE)" "$(SCANS)" "$(OUT)" $(ARGS)

ui: $(STAMP) ## MLflow on 127.0.0.1
	$(RUN)/medmtl ui $(ARGS)

config: $(STAMP) ## check CONFIG and print the resolved tree
	$(RUN)/medmtl config $(CONFIG) $(ARGS)

bench: $(STAMP) ## benchmarks: ratios measured in one run
	$(RUN)/python benchmarks/step_overhead.py
	$(RUN)/python benchmarks/hold_memory.py
	$(RUN)/python benchmarks/augment_cost.py
	$(RUN)/python benchmarks/volume_memory.py
	$(RUN)/python benchmarks/inference.py
	$(RUN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(RUN)/python benchmarks/ingest_throughput.py --series 4
	$(RUN)/python benchmarks/dicom_correctness.py

clean: ## remove .venv and caches, keep data and runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
