# Every target explains itself: `make help`. Python 3.11 or newer and make are all it needs.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$name; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.sottovoce-installed
VIEW := build/typing/sottovoce
ARGS ?=
SECONDS ?= 3600

# Nothing that is started here reports home, looks for updates or installs anything by itself.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz mutants check lint typecheck format bench bench-others docs loopback results hooks clean

help: ## Show what can be made
	@echo 'Sottovoce: federated, differentially private speech emotion recognition.'
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | \
		while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done
	@echo
	@echo 'Everything installs itself into $(VENV) first, once: 2-3 minutes, 6 GB.'

setup: $(STAMP) ## Make .venv with everything that simulations, tests and checks need

$(STAMP): pyproject.toml
	@test -n '$(PYTHON)' || test -x $(BIN)/python || \
		{ echo 'no Python 3.11 or newer found; install one, or name it: make setup PYTHON=/path/to/python3' >&2; exit 1; }
	@echo 'installing into $(VENV): 2-3 minutes, 6 GB, once'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --quiet --editable '.[simulation,ray,service,dev,docs]'
	@touch $(STAMP)

demo: $(STAMP) ## Run a private, federated, calibrated simulation on embedded voices (anew)
	@rm -rf runs/demo
	$(BIN)/sottovoce simulate demo --out runs/demo

test: $(STAMP) ## Run all tests, on all cores, and print coverage; make test ARGS="-k ledger" runs some
	$(BIN)/python -m pytest -q --numprocesses=auto --dist=worksteal --cov $(ARGS)

fuzz: $(STAMP) ## Fuzz every reader of foreign bytes for an hour; make fuzz SECONDS=600 ARGS="wire" for less
	$(BIN)/python tests/fuzzing/run.py --seconds $(SECONDS) $(ARGS)

mutants: $(STAMP) ## Break the code promises rest on, change by change, and see tests fail (hours)
	nice -n 19 $(BIN)/python tests/mutants/run.py $(ARGS)

check: lint typecheck ## Check style and types of every room

lint: $(STAMP) ## Check style only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(STAMP) ## Check types only
	@mkdir -p $(VIEW)
	@for room in shared client server simulations; do ln -sfn "$(CURDIR)/$$room" $(VIEW)/$$room; done
	@for file in sottovoce/*; do ln -sfn "$(CURDIR)/$$file" $(VIEW)/$${file#sottovoce/}; done
	cd build/typing && "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" -p sottovoce

format: $(STAMP) ## Put style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Measure speed and memory; writes docs/results/benchmarks.json
	$(BIN)/python -m sottovoce.simulations.benchmarks $(ARGS)

bench-others: $(STAMP) ## Measure Flower's Ray engine and apple/pfl-research beside the local engine
	$(BIN)/python -m sottovoce.simulations.benchmarks.harnesses $(ARGS)

docs: $(STAMP) ## Build the documentation site into site/, strictly and without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)
	@echo 'built: site/index.html'

loopback: $(STAMP) ## Run the two apps as separate processes on this machine: SuperLink, 3 SuperNodes
	$(BIN)/python -m sottovoce.simulations.engines.loopback $(ARGS)

results: $(STAMP) ## Run the claimed protocols on real corpora (hours); writes docs/results
	$(BIN)/sottovoce reproduce accuracy $(ARGS)

hooks: $(STAMP) ## Check style and types before every commit
	$(BIN)/pre-commit install

clean: ## Remove what was built here; .venv, runs and the feature cache stay
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
