# Every target works in a fresh clone. It needs make and Python 3.11 or newer.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

BIN := $(VENV)/bin
# A minute and more each: they run with the slow tests.
SLOW_NOTEBOOKS := $(addprefix notebooks/,$(addsuffix .ipynb, \
	autoregressive bayesian_boltzmann bayesian_ising deep_belief_networks evidence \
	restricted_boltzmann_machine temporal training))
NOTEBOOKS := $(filter-out $(SLOW_NOTEBOOKS),$(wildcard notebooks/*.ipynb))
BENCHMARKS := $(wildcard benchmarks/*.py)
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# What depends on the versions of Python, JAX, NumPyro and ArviZ more than on our arithmetic.
COMPATIBILITY := $(addprefix tests/test_,$(addsuffix .py, \
	imports convert kernel_arviz distribution_protocol guard losses_svi losses_state losses_guides \
	gibbs_blocks evidence_result plots random_bits modules checkpoint fit))

.PHONY: help quickstart test test-fast test-compatibility test-slow lint benchmarks clean
.NOTPARALLEL:

help:
	@echo "make quickstart   run the quickstart notebook; show its figures and results"
	@echo "make test         linters, types, fast tests, doctests, notebooks"
	@echo "make test-fast    fast tests and doctests only"
	@echo "make test-compatibility   those that depend on the versions of the dependencies"
	@echo "make test-slow    the tests marked slow, and long notebooks"
	@echo "make lint         linters, formatting, layers, types"
	@echo "make benchmarks   every script in benchmarks/, against the optional peers"
	@echo "make clean        remove all that the targets above create"
	@echo "Settings: PYTHON=$(PYTHON) VENV=$(VENV) JOBS=$(JOBS)"

# One stamp for each extra: reinstalled when pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing numpyro-ebm[$*] in $(VENV); this can take a few minutes"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -e '.[$*]'
	@touch $@

quickstart: $(VENV)/.installed-examples
	@$(BIN)/python notebooks/run_quickstart.py --output build/quickstart

lint: $(VENV)/.installed-test
	$(BIN)/lint-imports --no-logo
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(VENV)

test: lint
	$(PYTEST) $(if $(NOTEBOOKS),--nbmake $(NOTEBOOKS)) numpyro_ebm tests

test-fast: $(VENV)/.installed-test
	$(PYTEST)

test-compatibility: $(VENV)/.installed-test
	$(PYTEST) $(addprefix numpyro_ebm/,distributions evidence units) $(COMPATIBILITY)

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow
	$(PYTEST) --nbmake $(SLOW_NOTEBOOKS)

benchmarks: $(VENV)/.installed-benchmarks
	@for script in $(BENCHMARKS); do \
		echo "== $$script"; $(BIN)/python $$script || exit 1; \
	done

clean:
	rm -rf .venv .venv313 build dist .pytest_cache .ruff_cache .import_linter_cache
	find numpyro_ebm tests notebooks benchmarks -name __pycache__ -prune -exec rm -rf {} +
