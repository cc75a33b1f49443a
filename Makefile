# Every target explains itself: `make help`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.sottovoce-installed
VIEW := build/typing/sottovoce

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint typecheck bench docs clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | while IFS='|' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

setup: $(STAMP) ## Make .venv with everything that simulations, tests and checks need

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[simulation,ray,dev]'
	touch $(STAMP)

demo: $(STAMP) ## Run a private, federated, calibrated simulation on the embedded corpus
	$(BIN)/sottovoce simulate demo --out runs/demo

test: $(STAMP) ## Run all tests
	$(BIN)/python -m pytest -q

check: lint typecheck ## Check style and types of every room

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(STAMP)
	@mkdir -p $(VIEW)
	@for room in shared client server simulations; do ln -sfn "$(CURDIR)/$$room" $(VIEW)/$$room; done
	@for file in sottovoce/*; do test -f $$file && ln -sf "$(CURDIR)/$$file" $(VIEW)/ || true; done
	cd build/typing && "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" -p sottovoce

bench: $(STAMP) ## Measure speed and memory; writes docs/results/benchmarks.json
	$(BIN)/python -m sottovoce.simulations.benchmarks

docs: $(STAMP) ## Check that documented commands and links are true
	$(BIN)/python -m pytest -q tests/test_docs.py

clean: ## Remove what was built here; runs and the feature cache stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
