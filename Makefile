# Everything that people and CI do here, by the same commands.
# The work is done by scripts/ and by the tools in .venv; nothing else is installed for one user.

SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
STACK ?= examples/three-servers.yaml
PYTEST_ARGS ?=

.PHONY: help setup up down test test-kvm test-xen test-systemd test-lab test-power-cut check newcomer bench
.PHONY: bench-plan clean docs lock wheel

help: ## show this list
	@echo "Hanok: one server, many machines. What you can make:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing: system packages by apt, and .venv (seconds when all is there)
	@scripts/setup.sh $(SETUP_ARGS)

up: setup ## run the three servers of examples/three-servers.yaml (STACK=file for another stack)
	@scripts/as-root.sh $(BIN)/hanok up $(STACK)

down: ## stop and delete them
	@scripts/as-root.sh $(BIN)/hanok down $(STACK)

test: SETUP_ARGS = --tests
test: setup ## run the whole suite, real VMs included (PYTEST_ARGS="-k name" for a part)
	@scripts/test.sh $(PYTEST_ARGS)

test-kvm: setup ## the tests of QEMU and clones on real KVM, in a nested host (more than an hour)
	@scripts/as-root.sh $(BIN)/python -m tests.nested $(PYTEST_ARGS)

test-xen: setup ## the conformance suite in each mode of Xen, in the Dom0 of a nested host
	@scripts/as-root.sh $(BIN)/python -m tests.nested --on xen $(PYTEST_ARGS)

test-systemd: setup ## the tests of the service, in a host with a real systemd (quarter of an hour)
	@scripts/as-root.sh env HANOK_TEST_SYSTEMD=1 $(BIN)/python -m pytest -v -ra tests/systemd \
	  $(PYTEST_ARGS)

test-lab: setup ## the tests of lab hosts, with KVM in an emulated one (ten minutes)
	@scripts/as-root.sh env HANOK_TEST_LAB=1 $(BIN)/python -m pytest -v -ra tests/lab $(PYTEST_ARGS)

test-power-cut: setup ## two lab hosts lose power under load, 100 times in all (an hour)
	@scripts/as-root.sh env HANOK_TEST_LAB=1 HANOK_POWER_CUTS=100 $(BIN)/python -m pytest -v -s -ra \
	  tests/lab/test_power_cut.py $(PYTEST_ARGS)

newcomer: ## 'make up' and a first VM in a clean Debian 12 (DEBIAN=13: in that; as root, ten minutes)
	@scripts/newcomer.sh $(or $(DEBIAN),12)

check: setup ## quick checks: lint, format, types, import rules, tests without VMs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -m "not vm" --ignore tests/test_code_rules.py

bench: setup ## measure against plain QEMU in the same run; writes build/bench/
	@scripts/as-root.sh $(BIN)/python -m bench $(BENCH_ARGS)

bench-plan: setup ## measure the planner on the data in DATA=folder, a fixed sample (20 minutes)
	@test -n "$(DATA)" || { echo "say where the data lies: make bench-plan DATA=folder"; exit 2; }
	$(BIN)/python -m bench.ganeti "$(DATA)/ganeti-htools"
	$(BIN)/python -m bench.vecpack "$(DATA)/vecpack" --sample 25 --out build/bench/vecpack
	$(BIN)/python -m bench.planetlab "$(DATA)/planetlab" --out build/bench/planetlab
	for n in 1000 10000 100000; do $(BIN)/python -m bench.fleet $$n --data "$(DATA)" || exit; done

docs: setup ## make the reference and the manual page anew, after a change of a command or the API
	$(BIN)/python -m scripts.docs

wheel: setup ## build dist/hanok-*.whl, which pipx installs anywhere (docs/ordinary-user.md)
	@scripts/wheel.sh

lock: setup ## pin the dependencies anew in requirements.lock
	@scripts/lock.sh

clean: ## remove .venv, caches and build results (not the VMs: 'make down' does that)
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
