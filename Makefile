# Two commands matter: `make demo` runs the example site, `make test` runs the tests.
# Each does all of its own set-up in .venv/; nothing outside the checkout is changed.
SHELL := /bin/bash
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --editable

.PHONY: demo test check bench matrix clean help

help:  ## This list.
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

$(BIN)/uv:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or newer."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) --version): Python 3.11 or newer is needed (make PYTHON=python3.12 ...)."; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "venv is missing: on Debian, apt-get install python3-venv."; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.demo: $(BIN)/uv pyproject.toml
	@$(INSTALL) '.[client]' --group demo
	@touch $@

$(VENV)/.test: $(BIN)/uv pyproject.toml
	@$(INSTALL) '.[client,redis]' --group check
	@touch $@

$(VENV)/.bench: $(BIN)/uv pyproject.toml
	@$(INSTALL) '.[client]' --group bench
	@touch $@

$(VENV)/.matrix: $(BIN)/uv pyproject.toml
	@$(INSTALL) . --group matrix
	@touch $@

demo: $(VENV)/.demo  ## Serve the example site at 127.0.0.1:8000 (PORT=8001 to choose).
	@$(BIN)/python example_project/manage.py demo --port $(PORT)

test: check  ## Lint, types, and every test.
	$(BIN)/python -m pytest -n auto -m "not e2e"
	$(BIN)/python -m pytest -n 4 --dist loadgroup -m e2e

check: $(VENV)/.test  ## Lint and types only.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench  ## Measure against other ways to upload; half an hour.
	$(BIN)/python -m tests.bench

matrix: $(VENV)/.matrix  ## The tests, on every Python and Django that are here.
	$(BIN)/nox

clean:  ## Remove what these commands made, but for uploaded files.
	rm -rf $(VENV) .nox .mypy_cache .pytest_cache .ruff_cache .hypothesis
