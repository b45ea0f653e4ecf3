# make demo   explain the bundled sample with the bundled model
# make test   all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint types docs examples

demo: $(VENV)/.installed
	$(BIN)/hf-gmar explain --top-k 2

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal tests hf_gmar benchmarks
	$(BIN)/python -m pytest README.md docs  # the blocks of a page go on from each other

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q README.md CONTRIBUTING.md docs hf_gmar tests/test_docs.py

examples: $(VENV)/.installed
	$(BIN)/python examples/captum_side_by_side.py explanations
	$(BIN)/python examples/relevance_in_masks.py --scenes 20

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e .[dev]
	@touch $@
