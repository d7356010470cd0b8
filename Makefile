# `make demo`, `make test`, `make quick` and `make docs` set everything up themselves; only Python 3.11+ is needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DOCS_STAMP := .venv/.docs-installed

.PHONY: demo test quick check docs clean

demo: $(STAMP)  # a study on the synthetic test world: a LoRA and a report
	$(BIN)/autolora tune quickstart

test: check  # everything; also needs PostgreSQL's programs and chromium, otherwise their tests are skipped
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

quick: check  # lint, types and the tests that train nothing and start no server
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS_STAMP)  # the documentation as a site: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "autolora needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $(DOCS_STAMP)

clean:
	rm -rf .venv runs build dist .pytest_cache .mypy_cache .ruff_cache
