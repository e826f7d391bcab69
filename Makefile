# `make` lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# What the tests need and is made once: base image, StudioML client.
CACHE := $(or $(HPCRUNNER_TEST_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/hpcrunner-test)

.PHONY: help venv demo test lint services soak docs clean

help: ## list the targets
	@sed -En 's/^([a-z%-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(VENV)/.ready ## make .venv with hpcrunner and the tools of its tests (PYTHON=python3.12 chooses)

$(VENV)/.ready: setup.py pyproject.toml
	@PYTHON='$(PYTHON)' scripts/make-venv $(VENV)
	@touch $@

demo: venv ## run one sample experiment from queue to results
	@scripts/demo

test: lint services ## run all checks and tests; PYTEST_ARGS="-k image" chooses
	@$(PY) -m pytest $(PYTEST_ARGS)

lint: venv ## check style and types
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/mypy
	@! command -v shellcheck >/dev/null || grep -lrE '^#.*bash$$' scripts .ci | xargs shellcheck

services: venv ## get the real services for the tests; as root installs Apptainer and Slurm (Debian)
	@PYTHON=$(PY) scripts/prepare-services '$(CACHE)'

soak: services ## run the tests that take minutes, and those of Slurm also beside a newer release
	@$(PY) -m pytest -s -m soak $(PYTEST_ARGS)
	@if ((EUID != 0)); then echo 'not root: nothing is run beside a newer Slurm'; else \
		HPCRUNNER_TEST_CACHE='$(CACHE)' HPCRUNNER_REQUIRE='apptainer slurm slurm-plain' \
		scripts/newer-slurm .venv/bin/python -m pytest $(wildcard tests/test_slurm*.py) $(PYTEST_ARGS); fi

bench-%: venv ## run benchmarks/%.py
	@$(PY) benchmarks/$*.py

bench-submit bench-rpc bench-transfer bench-completion: services

docs: venv ## write docs/site-config.md anew from the schema
	@$(PY) -m hpcrunner.config.reference >docs/site-config.md

clean: ## remove everything that was made here; the cache of `make services` stays
	rm -rf $(VENV) $(VENV).log build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
