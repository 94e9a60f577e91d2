"""Imports between modules. The contracts in pyproject.toml, which `lint-imports` checks, keep the order of packages."""

import grimp
import pytest

from benchmarks import layers


@pytest.mark.parametrize("package", ["gleansr", "benchmarks"])
def test_no_module_imports_one_that_imports_it(package: str):
    """Also a module and the `__init__` of its own package, which import-linter's contract does not compare."""
    graph = grimp.build_graph(package, cache_dir=None)
    imports = [(module, other) for module in graph.modules for other in graph.find_modules_directly_imported_by(module)]
    assert imports
    assert [pair for pair in imports if graph.find_shortest_chain(importer=pair[1], imported=pair[0])] == []


def test_the_picture_of_the_layers_shows_the_imports():
    assert layers.PICTURE.read_text(encoding="utf-8") == layers.picture(), "run python -m benchmarks.layers"
