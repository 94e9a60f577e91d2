# make demo: install and upscale a cat.  make test: install what tests need and check everything.  make docs: the documentation as a site, in
# build/site.  make site: the same with the page that runs in the browser.  make coverage: the lines that the tests run.
# make dist: what is released, in dist (docs/releasing.md).
PYTHON ?= python3
BIN := .venv/bin
INSTALL := install --quiet --disable-pip-version-check -c constraints.txt
PIP := $(BIN)/python -m pip $(INSTALL)

# Compiled modules are kept, whatever the environment says: the tests start many processes that import the package.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test docs site coverage dist clean

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
	$(BIN)/python docs/site.py build/pages $(PAGE)
	$(BIN)/zensical build --strict --config-file mkdocs.yml

site: .venv/site
	$(BIN)/gleansr page -o build/page --overwrite
	$(MAKE) docs PAGE=build/page

coverage: .venv/test
	mkdir -p .coverage
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --cov --cov-report=term

# The time of the commit makes files of the same bytes each time. The wheel is built from the sdist.
dist: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
dist: .venv/release
	rm -rf dist build/sbom
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/python -m venv --without-pip build/sbom
	$(BIN)/python -m pip --python build/sbom/bin/python $(INSTALL) "$$(echo dist/*.whl)[all]"
	$(BIN)/python release/inventory.py build/sbom sbom "$$(echo dist/*.whl | sed s/-py3-none-any.whl/.cdx.json/)"
	build/sbom/bin/gleansr upscale examples/chelsea-32.png -o build/sbom/cat.png
	cd dist && sha256sum *

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

.venv/site: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[docs,export]'
	@touch $@ .venv/demo .venv/docs

.venv/release: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[release]'
	@touch $@ .venv/demo

clean:
	rm -rf .venv demo build dist .cache .pytest_cache .ruff_cache
