"""Recipes: strict, helpful, complete."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from gleansr.configs import from_dict, merge
from gleansr.errors import RequestError
from gleansr.training.config import BankRecipe, GLEANRecipe, load_recipe


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    sizes: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = dataclasses.field(default_factory=Inner)
    kind: Literal["a", "b"] = "a"
    limit: int | None = None


def test_values_are_converted_and_defaults_kept():
    outer = from_dict(Outer, {"name": "x", "inner": {"rate": 2, "sizes": [1, 2], "pair": [1, 2]}, "limit": 3}, "test")
    assert outer == Outer("x", Inner(2.0, (1, 2), (1.0, 2.0)), "a", 3)
    assert isinstance(outer.inner.rate, float)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({}, "missing key name"),
        ({"name": "x", "inner": {"rat": 1}}, r"unknown key inner.rat, did you mean inner.rate\?"),
        ({"name": 3}, "name must be str, not 3"),
        ({"name": "x", "kind": "c"}, "kind must be 'a' or 'b', not 'c'"),
        ({"name": "x", "limit": "many"}, "limit must be int | None, not 'many'"),
        ({"name": "x", "limit": True}, "limit must be"),
        ({"name": "x", "inner": {"sizes": [1, "b"]}}, r"inner.sizes\[1\] must be int"),
        ({"name": "x", "inner": {"pair": [1]}}, "inner.pair must be"),
        ({"name": "x", "inner": 3}, "inner. must be a table"),
    ],
)
def test_complaints_name_the_key_and_the_wanted(data: dict, complaint: str):
    with pytest.raises(RequestError, match=complaint):
        from_dict(Outer, data, "recipe test")


def test_all_complaints_come_at_once():
    with pytest.raises(RequestError) as caught:
        from_dict(Outer, {"nam": "x", "kind": "c"}, "recipe test")
    assert str(caught.value).startswith("recipe test: ")
    for part in ("unknown key nam, did you mean name?", "kind must be", "missing key name"):
        assert part in str(caught.value)


def test_merge_goes_table_by_table():
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": 5}) == {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}


def test_every_bundled_recipe_is_valid():
    import gleansr.recipes

    folder = Path(next(iter(gleansr.recipes.__path__)))
    names = sorted(path.stem for path in folder.glob("*.toml"))
    assert names
    for name in names:
        load_recipe(BankRecipe if "bank" in name else GLEANRecipe, name)


def test_overrides(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text('[about]\nname = "x"\n[network]\nin_size = 8\n[run]\nimages = 5\n')
    recipe = load_recipe(GLEANRecipe, str(path), ["run.images=7", "bank=some/file", "lr=2e-4"], {"data": {"train": ["a"]}})
    assert (recipe.run.images, recipe.bank, recipe.lr, recipe.data.train) == (7, "some/file", 2e-4, ("a",))
    with pytest.raises(RequestError, match=r"must look like run.images=1000"):
        load_recipe(GLEANRecipe, str(path), ["run.images"])
    with pytest.raises(RequestError, match=r"did you mean run.images\?"):
        load_recipe(GLEANRecipe, str(path), ["run.image=7"])


def test_missing_and_broken_recipes(tmp_path: Path):
    with pytest.raises(RequestError, match="no such recipe"):
        load_recipe(GLEANRecipe, str(tmp_path / "none.toml"))
    with pytest.raises(RequestError, match=r"no recipe 'none'; give a \.toml file or one of: "):
        load_recipe(GLEANRecipe, "none")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(RequestError, match="not valid TOML"):
        load_recipe(GLEANRecipe, str(tmp_path / "bad.toml"))
