# Two commands matter: `make demo` runs the example site, `make test` runs the tests.
# Each does all of its own set-up in .venv/; nothing outside the checkout is changed.
SHELL := /bin/bash
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench matrix clean

$(BIN)/uv:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or newer."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) --version): Python 3.11 or newer is needed (make PYTHON=python3.12 ...)."; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "venv is missing: on Debian, apt-get install python3-venv."; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.demo: $(BIN)/uv pyproject.toml
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[client]' --group demo
	@touch $@

$(VENV)/.test: $(BIN)/uv pyproject.toml
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[client,redis]' --group check
	@touch $@

$(VENV)/.bench: $(BIN)/uv pyproject.toml
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[client]' --group bench
	@touch $@

test: $(VENV)/.test check  ## Lint, types, and every test.
	$(BIN)/python -m pytest

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
