# Two commands matter: `make demo` runs the example site, `make test` runs the tests.
# Each does all of its own set-up in .venv/; nothing outside the checkout is changed.
SHELL := /bin/bash
PYTHON ?= python3
PORT ?= 8000
WORKERS ?= 1
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --editable

.PHONY: demo test check types docs-js messages bundle dist npm mutants crash bench bench-browser bench-load bench-network matrix django-suite clean help

help:  ## This list.
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

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

$(VENV)/.js: tests/js/package.json js/package.json | $(BIN)/uv
	@command -v npm >/dev/null && node -e 'process.exit(Number(process.versions.node.split(".")[0] < 20))' \
		|| { echo "Node 20 or newer with npm is missing: on Debian, apt-get install nodejs npm."; exit 1; }
	@cd tests/js && npm install --silent --no-package-lock --no-audit --no-fund
	@cd js && npm install --silent --no-package-lock --no-audit --no-fund
	@touch $@

$(VENV)/.sidecar: $(BIN)/uv pyproject.toml
	@$(INSTALL) '.[client]' --group sidecar
	@touch $@

demo: $(VENV)/.demo $(if $(SIDECAR),$(VENV)/.sidecar)  ## Serve the example site at 127.0.0.1:8000 (PORT=8001 to choose; WORKERS=2: two processes; SIDECAR=1: on WSGI).
	@$(BIN)/python example_project/manage.py demo --port $(PORT) --workers $(WORKERS) $(if $(SIDECAR),--sidecar $(filter nginx caddy,$(SIDECAR)))

dist: $(BIN)/uv  ## Build the wheel and the sdist into dist/.
	rm -rf dist
	$(BIN)/uv build --quiet --out-dir dist

CHURN ?= 60
NPM := dist
npm: $(VENV)/.js  ## Build the npm package into dist/.
	node js/build.mjs package
	mkdir -p $(NPM)
	cd js/package && npm pack --silent --pack-destination $(abspath $(NPM))

test: check  ## Lint, types, and every test.
	node --test tests/js/*.test.js
	$(BIN)/python -m pytest -n auto -m "not e2e and not browser and not dist"
	$(BIN)/python -m pytest -m dist
	@# Real servers and browsers on a busy machine: what fails is tried once more, and the summary counts it.
	$(BIN)/python -m pytest -n 4 --dist loadgroup --reruns 1 -m e2e
	$(BIN)/python -m pytest -n 2 --dist loadgroup --reruns 1 -m browser

check: types  ## Lint and types only.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	node js/build.mjs check

types: $(VENV)/.test $(VENV)/.js  ## Types only.
	$(BIN)/mypy
	tests/js/node_modules/.bin/tsc --project tests/js

bundle: $(VENV)/.js  ## Make the script and the styles that pages load from the modules; commit them.
	node js/build.mjs bundle

docs-js: $(VENV)/.test  ## Write docs/reference/javascript.md from the JSDoc.
	$(BIN)/python -m tests.javascript_reference

messages: $(VENV)/.test  ## Gather the texts to translate, and compile the translations (needs GNU gettext).
	cd src/django_async_upload && ../../$(BIN)/django-admin makemessages --all --no-location --no-wrap --no-obsolete
	sed -i '/^"POT-Creation-Date/d' src/django_async_upload/locale/*/LC_MESSAGES/django.po
	cd src/django_async_upload && ../../$(BIN)/django-admin compilemessages
	$(BIN)/python -m tests.javascript_texts

mutants: $(VENV)/.test $(VENV)/.js  ## Break critical lines one at a time: do the tests notice each? ten minutes.
	$(BIN)/python -m tests.mutants

bench: $(VENV)/.bench  ## Measure against other ways to upload; half an hour.
	$(BIN)/python -m tests.bench

bench-browser: $(VENV)/.bench  ## The same for the browser client, in Chromium; three minutes.
	$(BIN)/python -m tests.bench.browser

bench-load: $(VENV)/.bench  ## A thousand uploads at once, uploads that come and go, two workers; root; eight minutes.
	$(BIN)/python -m tests.bench.load
	$(BIN)/python -m tests.bench.flat --seconds $(CHURN)
	$(BIN)/python -m tests.bench.workers

bench-network: $(VENV)/.bench  ## One file over 100 Mbit/s and 100 ms, with loss and cuts; root; six minutes.
	$(BIN)/python -m tests.bench.network

KILLS := 1000
crash: $(VENV)/.test  ## Kill servers at every step, and a thousand times at random (KILLS=50); an hour.
	$(BIN)/python -m tests.e2e.crashes --matrix --kills $(KILLS)

matrix: $(VENV)/.matrix  ## The tests, on every Python and Django that are here.
	$(BIN)/nox

SUITE_PYTHON ?= 3.12
django-suite: $(VENV)/.matrix  ## Django's own tests with this app in each of their projects, on 5.2 and 6.1; half an hour.
	$(BIN)/nox --session django_suite --error-on-missing-interpreters --force-python $(SUITE_PYTHON)

clean:  ## Remove what these commands made, but for uploaded files.
	rm -rf dist $(VENV) js/node_modules tests/js/node_modules .nox .mypy_cache .pytest_cache .ruff_cache .hypothesis
