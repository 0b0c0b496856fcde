# Everything a developer does, from a clean machine with Python 3.11 or newer, make and a C compiler.
# What is installed is what requirements.lock names, into .venv; nothing else on the machine changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help run test test-databases test-browser test-clients test-alerts soak bench bench-full bench-compare
.PHONY: lint format check lock clean

help:
	@echo 'make run     start the demo: an indexer and a sidecar on loopback, until Ctrl-C'
	@echo 'make test    run all tests; PYTEST_ARGS="-k name" narrows them'
	@echo 'make test-databases'
	@echo '             run those of the registry on PostgreSQL and on MariaDB, which must be installed'
	@echo 'make test-browser'
	@echo '             ask from a web page of another origin, in Chromium, which must be installed'
	@echo 'make test-clients'
	@echo '             run the published client of the LMS (edx-enterprise) against a sidecar and an indexer'
	@echo 'make test-alerts'
	@echo '             check the alerts of deploy/, and that each fires when it should; needs promtool (Prometheus)'
	@echo 'make soak    ten minutes of traffic through one fault after another, every answer judged;'
	@echo '             then whatever may happen, in 2,000 sequences; SOAK_MINUTES=1 SOAK_SEQUENCES=9000 is less of'
	@echo '             the one and more of the other, SOAK_ARGS="--seed 7 --json FILE", or --help, says more'
	@echo 'make bench   measure everything once, short; needs nginx, wrk, redis-server and two cores'
	@echo 'make bench-full'
	@echo '             measure it as benchmarks/README.md wants it believed'
	@echo 'make bench-compare BASE=...'
	@echo '             tell where the newest results differ from those of a commit or file; NEW=... names others'
	@echo 'make lint    check style (ruff), types (mypy) and the Dockerfile (hadolint)'
	@echo 'make format  put the code into that style'
	@echo 'make check   lint, then test'
	@echo 'make lock    renew requirements*.lock from setup.py; UPGRADE=1 takes the newest versions'
	@echo 'make clean   remove .venv, var and all caches'
	@echo 'PYTHON=...   the Python to make .venv with (now: $(PYTHON))'

# exec: Ctrl-C then reaches the demo and make alone, and make stays silent when the demo ends with 0.
run: $(VENV)/installed
	@exec $(BIN)/catalog-indexer demo

# Two files at a time, each in one process: most of a test of processes is waiting.
test: $(VENV)/installed
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

# Each on a server of its own, in a temporary folder: a server that runs here already is left alone.
test-databases: $(VENV)/installed
	@$(BIN)/python -m tests.databases $(PYTEST_ARGS)

test-browser: $(VENV)/installed
	@$(BIN)/python -m pytest tests/in_a_browser.py $(PYTEST_ARGS)

# What today's client needs, Django and more, has an environment of its own: it is no part of ours.
CLIENTS := build/clients
test-clients: $(VENV)/installed $(CLIENTS)/locked
	@$(BIN)/python -m pytest tests/clients $(PYTEST_ARGS)

$(CLIENTS)/locked: tests/clients/requirements.lock
	@echo 'Installing what tests/clients/requirements.lock names into $(CLIENTS); this happens once.'
	@$(PYTHON) -m venv --clear $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip -qq --disable-pip-version-check --no-input install --require-hashes \
		--requirement tests/clients/requirements.lock
	@touch $@

test-alerts:
	@command -v promtool >/dev/null || { echo 'promtool is missing: it comes with Prometheus' >&2; exit 1; }
	@promtool check rules deploy/alerts.yml
	@promtool test rules deploy/alerts_test.yml

SOAK_MINUTES ?= 10
SOAK_SEQUENCES ?= 2000
soak: $(VENV)/installed
	@$(BIN)/python -m tests.soak --minutes $(SOAK_MINUTES) $(SOAK_ARGS)
	@test $(SOAK_SEQUENCES) = 0 || \
		SEQUENCES=$(SOAK_SEQUENCES) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -q -rP tests/stateful

bench: $(VENV)/installed
	@$(BIN)/python -m benchmarks.suite $(BENCH_ARGS)

bench-full: $(VENV)/installed
	@$(BIN)/python -m benchmarks.suite --full $(BENCH_ARGS)

bench-compare: $(VENV)/installed
	@test -n "$(BASE)" || { echo 'make bench-compare BASE=<commit, or file of results> [NEW=<the same>]' >&2; exit 1; }
	@$(BIN)/python -m benchmarks.compare $(BASE) $(NEW)

lint: $(VENV)/installed
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@MYPYPATH=.ci $(BIN)/mypy .ci/image.py
	@$(BIN)/hadolint Dockerfile

format: $(VENV)/installed
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

check: lint
	@$(MAKE) --no-print-directory test

# Two steps, so that a change of setup.py alone does not install everything anew.
$(VENV)/installed: $(VENV)/locked setup.py pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# Built anew rather than updated: what has left the lock must leave the environment too.
$(VENV)/locked: requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo 'catalog-sidecar needs Python 3.11 or newer, and there is no $(PYTHON): make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "catalog-sidecar needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1): make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo 'Installing what requirements.lock names into $(VENV); this happens once.'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes --requirement requirements.lock
	@touch $@

# uv is no part of the environment, so it gets one of its own; UV=/path/to/uv takes another.
UV ?= build/uv/bin/uv
COMPILE = $(UV) pip compile --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --quiet
LOCK = $(COMPILE) setup.py
# What an image installs: a part of requirements.lock, at its versions (--upgrade: not at an older lock's).
LOCK_IMAGE = $(LOCK) --constraint requirements.lock --upgrade --no-annotate
lock:
	@test -x "$$(command -v $(UV))" || { $(PYTHON) -m venv build/uv && build/uv/bin/python -m pip install -qq --disable-pip-version-check uv; }
	@$(LOCK) --all-extras $(if $(UPGRADE),--upgrade) --output-file requirements.lock
	@$(LOCK_IMAGE) --extra build --extra sidecar --extra redis --output-file requirements-sidecar.lock
	@$(LOCK_IMAGE) --extra build --extra redis --extra indexer --extra postgresql --extra mysql \
		--output-file requirements-indexer.lock
	@$(COMPILE) tests/clients/requirements.in --no-annotate $(if $(UPGRADE),--upgrade) \
		--output-file tests/clients/requirements.lock

clean:
	rm -rf $(VENV) var build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
