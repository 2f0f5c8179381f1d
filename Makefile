# Every target sets up what it needs, once: `.venv/.ready` marks a `.venv` that is as pyproject.toml and constraints.txt
# say. Another interpreter: `make PYTHON=python3.12 ...`.
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-lmms lint ui
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

BIN := .venv/bin
EXTRAS := demo,serve,test,lint
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
# More words for pytest, such as PYTEST_ARGS="-x tests/core"; PYTEST_ARGS="-n 0" has one process after another.
PYTEST_ARGS ?=
# Two processes, each with whole files; tests/conftest.py says which.
WORKERS := -n 2

# One thread per process: two beside a busy neighbour are many times slower, and another number gives other bits.
test test-slow test-lmms: export OMP_NUM_THREADS := 1
test test-slow: export MKL_NUM_THREADS := 1
test test-slow: export OPENBLAS_NUM_THREADS := 1
test test-slow: export TOKENIZERS_PARALLELISM := false

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: .venv/.ready ## train, score and compare three fusions on the demo set; about 11 minutes on two cores
	$(BIN)/fvl demo

test: .venv/.ready ## every test that is not slow
	$(BIN)/python -m pytest -m "not slow" $(WORKERS) $(PYTEST_ARGS)

test-slow: .venv/.ready ## the tests that take minutes
	$(BIN)/python -m pytest -m slow $(WORKERS) $(PYTEST_ARGS)

test-lmms: .venv-lmms/.ready ## metrics and plugin against lmms-eval itself, captions against pycocoevalcap
	.venv-lmms/bin/python -m pytest --noconftest tests/lmms $(PYTEST_ARGS)

lint: .venv/.ready ## ruff, mypy, and that torchvision is not installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torchvision") and \
		"torchvision is installed in .venv: take it out, torchmetrics fails to import beside one that does not match")'

ui: .venv/.ready ## the MLflow pages of the runs made here
	$(BIN)/fvl ui

.venv/.ready: pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "fvl-lightning needs Python 3.11 or newer, and $(or $(PYTHON),python3) is not: name one with make PYTHON=..." >&2; exit 1; }
	@echo "installing the packages of constraints.txt into .venv; this takes some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

# lmms-eval asks for torchvision and much else that is not needed here, so it has an environment of its own.
.venv-lmms/.ready: tests/lmms/requirements.txt tests/lmms/requirements-no-deps.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-lmms
	.venv-lmms/bin/python -m pip install --quiet -r tests/lmms/requirements.txt
	.venv-lmms/bin/python -m pip install --quiet -c constraints.txt -e .
	.venv-lmms/bin/python -m pip install --quiet --no-deps -r tests/lmms/requirements-no-deps.txt
	@touch $@
