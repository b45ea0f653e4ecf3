PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint types docs site examples browser package release

help: ## say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

demo: $(VENV)/.installed ## explain the bundled sample with the bundled model
	$(BIN)/hf-gmar explain --target heart --target cross

test: $(VENV)/.installed-dev ## run the tests
	$(BIN)/python -m pytest -n auto --dist worksteal tests hf_gmar benchmarks

test-all: $(VENV)/.installed-dev ## run the full products of the tests, too
	$(BIN)/python -m pytest -n auto --dist worksteal -m "" tests hf_gmar benchmarks

lint: $(VENV)/.installed-dev ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## check types
	$(BIN)/mypy

docs: site ## run the code on the pages, and check their pictures and the site
	$(BIN)/python -m pytest README.md CONTRIBUTING.md docs  # blocks of a page go on from each other
	$(BIN)/python -m pytest -n auto -m extended tests/project/test_figures.py tests/project/test_tour.py
	$(BIN)/python -m pytest -m extended tests/project/test_site.py

site: $(VENV)/.installed-dev ## build the documentation as a site in build/site, readable from disk
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

examples: $(VENV)/.installed-dev ## run every example and benchmark
	$(BIN)/python -m pytest -n auto -m example tests

browser: $(VENV)/.installed-dev ## open the web page and the reports in Chromium
	$(BIN)/python -m pytest -n auto --dist loadfile -m browser tests  # one server of the page

package: $(VENV)/.installed-dev ## build what is released, install it, and run it
	$(BIN)/python -m pytest -m package tests

release: $(VENV)/.installed-dev ## set version, changelog and tag: make release PART=minor
	$(BIN)/bump-my-version bump $(PART)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e .[dev]
	@touch $@
