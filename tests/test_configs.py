"""Recipes: strict, helpful, complete."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from gleansr.configs import from_dict, merge
from gleansr.errors import RequestError
from gleansr.training.config import BankRecipe, GLEANRecipe, load_recipe, recipe_names


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


@pytest.mark.parametrize("name", recipe_names())
def test_every_bundled_recipe_is_valid(name: str):
    load_recipe(BankRecipe if "bank" in name else GLEANRecipe, name)


@pytest.mark.parametrize("name", [name for name in recipe_names() if not name.endswith(("-compact", "-medium"))])
def test_the_supplements_numbers_are_in_the_recipes(name: str):
    recipe = load_recipe(GLEANRecipe, name)
    category, scale = name.split("-")[0], int(name.split("-")[-1].removesuffix("x"))
    out = {"faces": 1024, "cars": 512}.get(category, 256)
    assert (recipe.network.out_size, recipe.network.in_size) == (out, out // scale)
    assert recipe.run.iterations == 300_000
    assert recipe.run.batch_size == (8 if category == "faces" else 16)
    assert recipe.run.devices == (4 if "blind" in name else 2)
    assert (recipe.lr, recipe.betas, recipe.warm_up, recipe.ema_half_life) == (1e-4, (0.9, 0.99), 0, 0)
    assert recipe.perceptual_weight == recipe.adversarial_weight == 1e-2
    assert recipe.lattice_weight == recipe.spectrum_weight == 0
    assert recipe.perceptual == "vgg16"
    assert recipe.bank == ("stylegan" if category in ("bedrooms", "towers") else "stylegan2")
    assert recipe.network.content_height == (384 if category == "cars" else None)
    assert recipe.data.degradation == ("blind" if "blind" in name else "bicubic")


def test_every_experiment_of_the_supplement_has_a_recipe():
    wanted = {f"faces-{scale}x" for scale in (8, 16, 32, 64)}
    wanted |= {f"{category}-{scale}x" for category in ("cats", "cars", "bedrooms", "towers") for scale in (8, 16)}
    assert wanted | {"faces-blind-8x", "cats-8x-compact", "cats-16x-compact"} <= set(recipe_names())


def test_overrides(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text('[about]\nname = "x"\n[network]\nin_size = 8\nout_size = 16\n[run]\niterations = 5\n')
    recipe = load_recipe(GLEANRecipe, str(path), ["run.iterations=7", "bank_file=some/file", "lr=2e-4"], {"data": {"train": ["a"]}})
    assert (recipe.run.images, recipe.bank_file, recipe.lr, recipe.data.train) == (7 * 16, "some/file", 2e-4, ("a",))
    with pytest.raises(RequestError, match=r"must look like run.iterations=1000"):
        load_recipe(GLEANRecipe, str(path), ["run.iterations"])
    with pytest.raises(RequestError, match=r"did you mean run.iterations\?"):
        load_recipe(GLEANRecipe, str(path), ["run.iteration=7"])


def test_all_that_is_wrong_is_said_at_once():
    wrong = {
        "lrr": 3,
        "lr": -1.0,
        "run.iterations": '"x"',
        "run.batch_size": -15,
        "run.devicez": 3,
        "network.in_size": 33,
        "data.small": '"no"',
    }
    with pytest.raises(RequestError) as error:
        load_recipe(GLEANRecipe, "cats-8x", [f"{key}={value}" for key, value in wrong.items()])
    for problem in (
        "unknown key lrr, did you mean lr?",
        "lr must be 0 or more, not -1.0",
        "run.iterations must be int, not 'x'",
        "run: batch_size must be 1 or more, not -15",
        "unknown key run.devicez, did you mean run.devices?",
        "network: GLEAN takes powers of two with 4 <= in_size < out_size <= 1024, not 33 -> 256",
        "data.small must be 'refuse' or 'skip' or 'enlarge', not 'no'",
    ):
        assert problem in str(error.value)


def test_values_that_do_not_go_together():
    with pytest.raises(RequestError, match="batch_size 16 cannot be shared evenly by devices 3"):
        load_recipe(GLEANRecipe, "cats-8x", ["run.devices=3"])
    with pytest.raises(RequestError, match=r"discriminator.channels are those of 16 px, but network.out_size is 256"):
        load_recipe(GLEANRecipe, "cats-8x", ["discriminator.channels=[4, 4, 4]"])
    with pytest.raises(RequestError, match="content_height must be at most out_size and an even number of low-resolution rows, not 388"):
        load_recipe(GLEANRecipe, "cars-8x", ["network.content_height=388"])
    with pytest.raises(RequestError, match="betas must be 0 to below 1"):
        load_recipe(GLEANRecipe, "cats-8x", ["betas=[0.9, 1.0]"])
    with pytest.raises(RequestError, match="a bank is trained on one device"):
        load_recipe(BankRecipe, "cats-bank-compact", ["run.devices=2"])


def test_missing_and_broken_recipes(tmp_path: Path):
    with pytest.raises(RequestError, match="no such recipe"):
        load_recipe(GLEANRecipe, str(tmp_path / "none.toml"))
    with pytest.raises(RequestError, match=r"no recipe 'none'; give a \.toml file or one of: "):
        load_recipe(GLEANRecipe, "none")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(RequestError, match="not valid TOML"):
        load_recipe(GLEANRecipe, str(tmp_path / "bad.toml"))
