# Everything that people and CI do here, by the same commands.
# The work is done by scripts/ and by the tools in .venv; nothing else is installed for one user.

SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
STACK ?= examples/three-servers.yaml
PYTEST_ARGS ?=

.PHONY: help setup up down test test-kvm test-systemd test-lab check bench clean lock

help: ## show this list
	@echo "Hanok: one server, many machines. What you can make:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing: system packages by apt, and .venv (seconds when all is there)
	@scripts/setup.sh

up: setup ## run the three servers of examples/three-servers.yaml (STACK=file for another stack)
	@scripts/as-root.sh $(BIN)/hanok up $(STACK)

down: ## stop and delete them
	@scripts/as-root.sh $(BIN)/hanok down $(STACK)

test: setup ## run the whole suite, real VMs included (PYTEST_ARGS="-k name" for a part)
	@scripts/test.sh $(PYTEST_ARGS)

test-kvm: setup ## the tests of QEMU and clones on real KVM, in a nested host (more than an hour)
	@scripts/as-root.sh $(BIN)/python -m tests.nested $(PYTEST_ARGS)

test-systemd: setup ## the tests of the service, in a host with a real systemd (quarter of an hour)
	@scripts/as-root.sh env HANOK_TEST_SYSTEMD=1 $(BIN)/python -m pytest -v -ra tests/systemd \
	  $(PYTEST_ARGS)

test-lab: setup ## the tests of lab hosts, with KVM in an emulated one (ten minutes)
	@scripts/as-root.sh env HANOK_TEST_LAB=1 $(BIN)/python -m pytest -v -ra tests/lab $(PYTEST_ARGS)

check: setup ## quick checks: lint, format, types, import rules, tests without VMs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -m "not vm" --ignore tests/test_code_rules.py

bench: setup ## measure against plain QEMU in the same run; writes build/bench/
	@scripts/as-root.sh $(BIN)/python -m bench $(BENCH_ARGS)

lock: setup ## pin the dependencies anew in requirements.lock
	@scripts/lock.sh

clean: ## remove .venv, caches and build results (not the VMs: 'make down' does that)
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
