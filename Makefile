# Everything that a contributor types. Each target sets up what it needs by itself.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Debian splits venv's own pip off (python3-venv): without it the host's pip installs into the environment.
PIP = $$([ -x $(BIN)/pip ] && echo $(BIN)/python -m pip || echo $(PYTHON) -m pip --python $(BIN)/python) \
	--disable-pip-version-check --quiet

.PHONY: run test lint mutation completions packaging clean

run: $(VENV)/.run  ## set up, then one healing cycle on this host, in a dry run
	@$(BIN)/luminous-healing check; echo; $(BIN)/luminous-healing heal; code=$$?; [ $$code -le 1 ]

test: $(VENV)/.dev  ## set up, system packages included when root on a Debian-like machine, then all tests
	@$(BIN)/python tools/system_packages.py
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.dev  ## formatting, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

mutation: $(VENV)/.dev  ## change the decisions one thing at a time, and see whether their tests notice
	@$(BIN)/python -c 'import cosmic_ray' 2>/dev/null || $(PIP) install 'cosmic-ray>=8.4,<9'
	$(BIN)/python tools/mutation.py $(MODULES)

completions: $(VENV)/.dev  ## generate the shell completions again
	$(BIN)/python tools/completions.py

packaging: $(VENV)/.dev  ## generate the unit files, users and polkit's rule of a default host again
	$(BIN)/python tools/packaging.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || $(PYTHON) -m venv --clear --without-pip $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis artefacts
