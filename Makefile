# The commands of the README. Everything lives in .venv; one set-up rule, run again only when its inputs change.
# Paths are relative on purpose: the checkout may lie in a folder with spaces in its name.

SHELL := /bin/sh
BIN := .venv/bin
PY := $(BIN)/python
BOOK := examples/northanger-abbey.txt
QUESTION := How many pineapples did the pinery yield last year?

.PHONY: help setup demo test test-gpu lint lock clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

setup: .venv/.ready  ## make .venv with everything in it, and the demo model

.venv/.ready: pyproject.toml requirements/lock.txt requirements/torch.txt requirements/demo-model.txt scripts/setup_venv.py
	@for python in "$(PYTHON)" python3 python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    exec "$$python" scripts/setup_venv.py; \
	  fi; \
	done; \
	echo "salalocal needs Python 3.11 or newer: install it, or name it with 'make PYTHON=/path/to/python3.12'." >&2; exit 1

demo: .venv/.ready  ## read a whole book and chat about it; without a terminal, ask one question
	@if [ -t 0 ] && [ -t 1 ]; then \
	  $(BIN)/salalocal chat --model salalocal-pocket "$(BOOK)"; \
	else \
	  $(BIN)/salalocal ask --model salalocal-pocket --evidence "$(BOOK)" "$(QUESTION)"; \
	fi

test: .venv/.ready  ## the tests, without the slow ones and those that need a GPU
	@$(PY) -m pytest $(ARGS)

test-gpu: .venv/.ready  ## the tests that need an NVIDIA GPU
	@$(PY) -m pytest -m gpu $(ARGS)

lint: .venv/.ready  ## ruff and mypy, as the CI runs them
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

lock: .venv/.ready  ## resolve the dependencies anew into requirements/lock.txt
	@$(PY) scripts/lock.py $(ARGS)

clean:  ## remove what the builds and the tests leave behind; .venv stays
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
