"""Recipes: strict, helpful, complete."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from gleansr.configs import from_dict, merge
from gleansr.errors import RequestError
from gleansr.models.esrgan_plus import ESRGANDiscriminatorConfig
from gleansr.training.config import BankRecipe, NetworkRecipe, load_recipe, recipe_names
from gleansr.training.networks import ESRGANPlusNetworkConfig, GLEANNetworkConfig, PlainNetworkConfig


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
    load_recipe(BankRecipe if "bank" in name else NetworkRecipe, name)


SUPPLEMENT = [
    name
    for name in recipe_names()
    if not name.endswith(("-compact", "-medium", "-light")) and not name.startswith(("esrgan+", "light-", "general-"))
]


@pytest.mark.parametrize("name", SUPPLEMENT)
def test_the_supplements_numbers_are_in_the_recipes(name: str):
    recipe = load_recipe(NetworkRecipe, name)
    assert isinstance(recipe.network, GLEANNetworkConfig)
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


@pytest.mark.parametrize("scale", [8, 16])
def test_the_numbers_of_esrgan_plus_are_in_its_recipes(scale: int):
    recipe = load_recipe(NetworkRecipe, f"esrgan+-cats-{scale}x")
    assert recipe.network == ESRGANPlusNetworkConfig(256 // scale, 256, features=64, growth=32, n_blocks=23)
    assert recipe.discriminator == ESRGANDiscriminatorConfig(128, 64)
    assert (recipe.run.iterations, recipe.run.batch_size, recipe.data.patch) == (500_000, 16, 128)
    assert (recipe.data.flip, recipe.data.rotate) == (True, True)
    assert (recipe.lr, recipe.betas, recipe.warm_up, recipe.ema_half_life) == (1e-4, (0.9, 0.999), 0, 0)
    assert (recipe.schedule, recipe.halve_at) == ("halving", (50_000, 100_000, 200_000, 300_000))
    assert (recipe.pixel, recipe.perceptual, recipe.adversarial) == ("l1", "vgg19", "relativistic")
    # An error of images in [-1, 1] is twice that of images in [0, 1].
    assert (2 * recipe.pixel_weight, recipe.perceptual_weight, recipe.adversarial_weight) == (0.01, 1, 5e-3)
    compact = load_recipe(NetworkRecipe, f"esrgan+-cats-{scale}x-compact")
    assert compact.network == ESRGANPlusNetworkConfig(256 // scale, 256, features=32, growth=16, n_blocks=4)


@pytest.mark.parametrize("scale", [8, 16])
def test_the_plain_network_is_trained_with_the_losses_of_the_compact_glean(scale: int):
    plain, glean = (load_recipe(NetworkRecipe, name) for name in (f"plain-cats-{scale}x-compact", f"cats-{scale}x-compact"))
    assert plain.network == PlainNetworkConfig(256 // scale, 256, features=48, n_blocks=12)
    own = ("about", "network", "run", "bank", "bank_file", "start")
    assert {key: value for key, value in vars(plain).items() if key not in own} == {
        key: value for key, value in vars(glean).items() if key not in own
    }
    assert (plain.run.batch_size, plain.run.precision) == (glean.run.batch_size, glean.run.precision)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_written_out_is_read_back(name: str):
    cls = BankRecipe if "bank" in name else NetworkRecipe
    recipe = load_recipe(cls, name)
    assert from_dict(cls, dataclasses.asdict(recipe), "itself") == recipe


def test_overrides(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text('[about]\nname = "x"\n[network]\nin_size = 8\nout_size = 16\n[run]\niterations = 5\n')
    recipe = load_recipe(NetworkRecipe, str(path), ["run.iterations=7", "bank_file=some/file", "lr=2e-4"], {"data": {"train": ["a"]}})
    assert (recipe.run.images, recipe.bank_file, recipe.lr, recipe.data.train) == (7 * 16, "some/file", 2e-4, ("a",))
    with pytest.raises(RequestError, match=r"must look like run.iterations=1000"):
        load_recipe(NetworkRecipe, str(path), ["run.iterations"])
    with pytest.raises(RequestError, match=r"did you mean run.iterations\?"):
        load_recipe(NetworkRecipe, str(path), ["run.iteration=7"])


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
        load_recipe(NetworkRecipe, "cats-8x", [f"{key}={value}" for key, value in wrong.items()])
    for problem in (
        "unknown key lrr, did you mean lr?",
        "lr must be 0 to 1000, not -1.0",
        "run.iterations must be int, not 'x'",
        "run: batch_size must be 1 or more, not -15",
        "unknown key run.devicez, did you mean run.devices?",
        "network: GLEAN takes powers of two with 4 <= in_size < out_size <= 1024, not 33 -> 256",
        "data.small must be 'refuse' or 'skip' or 'enlarge', not 'no'",
    ):
        assert problem in str(error.value)


@pytest.mark.parametrize("name", ["", "a/b", "../up", "a\\b", "c:d", ".hidden", "two\nlines", "nothing\0", "é" * 101, "\ud800"])
def test_a_model_has_a_name_that_a_file_can_have(name: str):
    with pytest.raises(RequestError, match=r"about: name is that of the model's file: 1 to 200 bytes"):
        load_recipe(NetworkRecipe, "cats-8x", changes={"about": {"name": name}})
    assert load_recipe(NetworkRecipe, "cats-8x", changes={"about": {"name": "é" * 100}}).about.name == "é" * 100


@pytest.mark.parametrize(
    ("change", "complaint"), [("lr=1e300", "lr must be 0 to 1000"), ("data.real.shift_by=[0, 2e4]", "shift_by must be 0 to 4")]
)
def test_numbers_that_no_step_can_take(change: str, complaint: str):
    with pytest.raises(RequestError, match=complaint):
        load_recipe(NetworkRecipe, "cats-8x", [change])


def test_values_that_do_not_go_together():
    with pytest.raises(RequestError, match="batch_size 16 cannot be shared evenly by devices 3"):
        load_recipe(NetworkRecipe, "cats-8x", ["run.devices=3"])
    with pytest.raises(RequestError, match=r"discriminator.channels are those of 16 px, but network.out_size is 256"):
        load_recipe(NetworkRecipe, "cats-8x", ["discriminator.channels=[4, 4, 4]"])
    with pytest.raises(RequestError, match="content_height must be at most out_size and an even number of low-resolution rows, not 388"):
        load_recipe(NetworkRecipe, "cars-8x", ["network.content_height=388"])
    with pytest.raises(RequestError, match="betas must be 0 to below 1"):
        load_recipe(NetworkRecipe, "cats-8x", ["betas=[0.9, 1.0]"])
    with pytest.raises(RequestError, match="a bank is trained on one device"):
        load_recipe(BankRecipe, "cats-bank-compact", ["run.devices=2"])


def test_the_table_of_the_network_is_told_by_its_kind():
    with pytest.raises(RequestError, match=r"network.kind must be 'glean' or 'plain' or 'esrgan\+', not 'esrgan'"):
        load_recipe(NetworkRecipe, "cats-8x", ["network.kind=esrgan"])
    with pytest.raises(RequestError, match=r"network.kind must be .*, not \['plain'\]"):
        load_recipe(NetworkRecipe, "cats-8x", ['network.kind=["plain"]'])
    with pytest.raises(RequestError, match=r"unknown key network\.n_rrdb"):
        load_recipe(NetworkRecipe, "plain-cats-8x-compact", ["network.n_rrdb=6"])
    with pytest.raises(RequestError, match=r"unknown key network\.n_blocks$"):
        load_recipe(NetworkRecipe, "cats-8x", ["network.n_blocks=6"])


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("plain-cats-8x-compact", "bank_file=some.safetensors", r'"plain", which has no bank, so leave out bank and bank_file \(--bank\)'),
        ("esrgan+-cats-8x", "bank=stylegan", r'"esrgan\+", which has no bank, so leave out bank'),
        ("esrgan+-cats-8x", "network.in_size=48", "out_size a multiple of in_size, not 48 -> 256"),
        ("esrgan+-cats-8x", "network.in_size=2", "a network takes 4 <= in_size"),
        ("esrgan+-cats-8x", "network={kind='esrgan+', in_size=100, out_size=300}", "scale must be one of 2, 4, 8"),
        ("esrgan+-cats-8x", "discriminator.size=64", r"discriminator.size is 64 px, but data.patch is 128"),
        ("esrgan+-cats-8x-compact", "discriminator.size=64", r"discriminator.size is 64 px, but network.out_size is 256"),
        ("esrgan+-cats-8x", "data.patch=132", "data.patch must be at most network.out_size, 256, and a multiple of the scale, 8, not 132"),
        ("esrgan+-cats-8x", "data.patch=0", "patch must be 1 or more, not 0"),
        ("plain-cats-8x-compact", "data={patch=32}", r"windows of 8x8 low-resolution pixels, but the images have fewer"),
        ("plain-cats-8x-compact", "data={patch=16}", r"patches of 32x32 px, but the images have 16"),
        ("cats-8x", "data.patch=128", "GLEAN is trained on whole images, so leave out data.patch"),
        ("esrgan+-cats-8x", "halve_at=[]", r"takes ascending iterations in halve_at.*'halving' and halve_at \[\]"),
        ("esrgan+-cats-8x", "halve_at=[2, 1]", r"halve_at \[2, 1\]"),
        ("esrgan+-cats-8x", "schedule=cosine", "schedule is 'cosine' and halve_at"),
    ],
)
def test_what_does_not_go_with_the_kind_of_network(name: str, change: str, complaint: str):
    with pytest.raises(RequestError, match=complaint):
        load_recipe(NetworkRecipe, name, [change])


@pytest.mark.parametrize(("patch", "refused"), [(8, True), (16, False)])
def test_the_checkerboard_penalty_needs_two_squares_a_side(patch: int, refused: bool):
    with pytest.raises(RequestError) as caught:  # of the discriminator's size at least
        load_recipe(NetworkRecipe, "plain-cats-8x-compact", ["checkerboard_weight=1", f"data.patch={patch}"])
    assert ("at least two a side, but the images have 8" in str(caught.value)) == refused


def test_something_must_tie_the_results_to_the_images():
    assert load_recipe(NetworkRecipe, "cats-8x", ["pixel_weight=0"]).pixel_weight == 0
    with pytest.raises(RequestError, match="pixel_weight and perceptual_weight are both 0"):
        load_recipe(NetworkRecipe, "cats-8x", ["pixel_weight=0", "perceptual_weight=0"])


def test_a_network_without_a_bank_needs_a_discriminator_of_its_own(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text('[about]\nname = "x"\n[network]\nkind = "plain"\nin_size = 8\nout_size = 16\n[run]\niterations = 5\n')
    with pytest.raises(RequestError, match=r"no bank to take a discriminator from, so give \[discriminator\] or adversarial_weight = 0"):
        load_recipe(NetworkRecipe, str(path))
    assert load_recipe(NetworkRecipe, str(path), ["adversarial_weight=0"]).discriminator is None


def test_missing_and_broken_recipes(tmp_path: Path):
    with pytest.raises(RequestError, match="no such recipe"):
        load_recipe(NetworkRecipe, str(tmp_path / "none.toml"))
    with pytest.raises(RequestError, match=r"no recipe is named 'none'; give a \.toml file or one of: "):
        load_recipe(NetworkRecipe, "none")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(RequestError, match="is not valid TOML"):
        load_recipe(NetworkRecipe, str(tmp_path / "bad.toml"))
