"""Slices of tests/fuzz/recipes.py and tests/fuzz/manifests.py."""

from collections import Counter
from itertools import islice

from tests.fuzz import findings, manifests, recipes, trials


def test_damaged_recipes_are_read_or_refused():
    counts = recipes.run(islice(trials(1), 3000))
    assert not findings(counts), counts
    assert counts["recipe: no document"]
    assert counts["record: no document"]


def test_damaged_data_sets_are_read_or_refused_and_lead_nowhere():
    counts = manifests.run(islice(trials(1), 300))
    assert not findings(counts), counts
    assert sum(number for what, number in counts.items() if what.endswith("refused")) > 3


def test_an_error_of_another_kind_is_found():
    counts: Counter[str] = Counter()
    recipes.check("recipe", lambda: [].pop(), b"", counts)
    assert "recipe: IndexError" in findings(counts)[0]
