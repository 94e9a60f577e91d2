# make demo: install and upscale a cat.  make test: install what tests need and check everything.  make docs: the documentation as a site, in
# build/site.  make coverage: the lines that the tests run.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Compiled modules are kept, whatever the environment says: the tests start some two hundred processes that import the package.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test docs coverage clean

demo: .venv/demo
	$(BIN)/python examples/demo.py

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

docs: .venv/docs
	rm -rf build/site
	$(BIN)/python docs/site.py build/pages
	$(BIN)/zensical build --strict --config-file mkdocs.yml

coverage: .venv/test
	mkdir -p .coverage
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --cov --cov-report=term

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e .
	@touch $@

.venv/test: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[test]'
	@touch $@ .venv/demo

.venv/docs: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[docs]'
	@touch $@ .venv/demo

clean:
	rm -rf .venv demo build dist .cache .pytest_cache .ruff_cache
