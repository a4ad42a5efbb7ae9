# SPDX-License-Identifier: Apache-2.0
# Two commands matter: `make run` and `make test`. Both set up what they need; both can be
# interrupted and repeated.

BIN := .venv/bin
UV := $(BIN)/uv
# Asked for only when .venv is made; `make run PYTHON=/opt/python3.11` chooses another.
PYTHON = $(shell for name in python3.11 python3 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
	&& command -v $$name && break; done)
LOCK := $(UV) pip compile --universal --python-version 3.11 --generate-hashes --quiet \
	--no-emit-index-url --custom-compile-command "make locks"

.PHONY: help setup run test lint docs locks compile clean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

run: setup  ## Run the whole loop on the sample project
	$(BIN)/kfloop sample-data
	$(BIN)/kfloop loop --config loop.yaml

test: setup  ## Check the style and run every test, in the environment of what it tests
	$(BIN)/python tests/run.py

setup: .venv/complete  ## Make the driver environment in .venv
	@true

lint: setup  ## Check style, format and types
	$(BIN)/python tests/run.py --section lint

docs: setup  ## Build the docs site in build/site; a warning is an error
	$(BIN)/python docs/generator/build.py

compile: setup  ## Refresh pipelines/compiled
	$(BIN)/kfloop compile

clean:  ## Remove what can be made again here; `kfloop envs clean --all` removes the environments
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# The stamp is made last: a .venv without it is one that was interrupted, and is made anew.
.venv/complete: scripts/requirements.txt scripts/uv.txt setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { \
	  echo "kfloop needs Python 3.11, and no python3.11 is on PATH; install it and repeat." >&2; \
	  exit 1; }
	@rm -f $@
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no ensurepip; install its venv package (Debian: python3.11-venv)." >&2; \
	  exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/uv.txt
	$(UV) pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python scripts/requirements.txt
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@touch $@

locks: setup  ## Lock every environment anew
	$(LOCK) --upgrade scripts/uv.in -o scripts/uv.txt
	$(LOCK) --upgrade setup.cfg scripts/requirements.in -c scripts/uv.txt -o scripts/requirements.txt
	$(LOCK) --upgrade setup.cfg docs/requirements.in -c scripts/requirements.txt -o docs/requirements.txt
	$(LOCK) --upgrade notebooks/requirements.in -c scripts/requirements.txt -o notebooks/requirements.txt
	$(LOCK) --upgrade tests/requirements.in -o tests/requirements.txt
	$(LOCK) --upgrade --no-deps components/kfp-runtime.in -o components/kfp-runtime.txt
	@for need in components/*/requirements*.in serving/requirements*.in; do \
	  overrides=$$(dirname $$need)/requirements-overrides.txt; \
	  test -f $$overrides && overrides="--override $$overrides" || overrides=; \
	  echo "$$need"; $(LOCK) --upgrade $$overrides $$need -o $${need%.in}.txt || exit 1; done
