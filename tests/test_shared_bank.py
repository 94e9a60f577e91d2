"""A GLEAN's file that refers to a bundled bank instead of holding it."""

import dataclasses
import json
from typing import cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from gleansr import checkpoints
from gleansr.checkpoints import native, shared
from gleansr.cli import main
from gleansr.errors import CheckpointError, RequestError
from gleansr.models.glean import GLEAN, GLEANConfig, lighten
from gleansr.models.stylegan2 import StyleGAN2


def around(bank: StyleGAN2, *, light: bool = True) -> GLEAN:
    """A small GLEAN with random weights around the bank."""
    torch.manual_seed(1)
    config = GLEANConfig(32, bank.config, n_rrdb=1, features=8, growth=4, out_features=4)
    model = GLEAN(lighten(config) if light else config)
    model.bank.load_state_dict({name: bank.state_dict()[name] for name in model.bank.state_dict()})
    return model


@pytest.fixture(scope="module")
def bank() -> StyleGAN2:
    """What comes as cats-bank."""
    return cast("StyleGAN2", checkpoints.load_model("cats-bank"))


@pytest.fixture
def whole(bank, tmp_path):
    """A file of a GLEAN that holds its bank."""
    path = tmp_path / "whole.safetensors"
    native.save(path, {"generator": around(bank)}, native.About(name="cats", licence="CC0-1.0"), dtype=torch.float16)
    return path


@pytest.fixture
def small(whole, tmp_path):
    """The same, which refers to cats-bank."""
    path = tmp_path / "small.safetensors"
    main(["models", "convert", str(whole), "-o", str(path), "--bank", "cats-bank", "--dtype", "float16"])
    return path


def changed(path, **metadata):
    """A file with other metadata."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        save_file(tensors, path, file.metadata() | metadata)
    return path


def same(first: nn.Module, second: nn.Module) -> bool:
    theirs = second.state_dict()
    return all(tensor.equal(theirs[name]) for name, tensor in first.state_dict().items()) and len(theirs) == len(first.state_dict())


@pytest.mark.parametrize("light", [True, False])
def test_a_file_that_refers_to_a_bank_is_the_model_with_it(bank, tmp_path, light):
    whole, small = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    native.save(whole, {"generator": around(bank, light=light)}, native.About(name="cats"), dtype=torch.float16)
    native.write(small, shared.detach_bank(checkpoints.read(whole), "cats-bank", whole), dtype=torch.float16)
    assert same(checkpoints.load_model(whole), checkpoints.load_model(small))
    with safe_open(small, "pt") as file:
        assert not [name for name in list(file.keys()) if name.startswith("generator.bank")]
    assert checkpoints.read(small).about.name == "cats"


def test_the_command_leaves_the_bank_out(whole, small):
    assert small.stat().st_size < 0.2 * whole.stat().st_size
    assert same(checkpoints.load_model(whole), checkpoints.load_model(small))


def test_converting_puts_the_bank_in_again(whole, small, tmp_path):
    main(["models", "convert", str(small), "-o", str(tmp_path / "again.safetensors")])
    assert (tmp_path / "again.safetensors").stat().st_size > 1.9 * whole.stat().st_size  # float32
    assert same(checkpoints.load_model(whole), checkpoints.load_model(tmp_path / "again.safetensors"))


def test_another_bank_is_not_left_out(bank, tmp_path):
    path, model = tmp_path / "other.safetensors", around(bank)
    next(model.bank.parameters()).data.add_(0.1)
    native.save(path, {"generator": model}, native.About())
    with pytest.raises(CheckpointError, match=r"its bank is not cats-bank: bank\.synthesis\.constant differs"):
        shared.detach_bank(checkpoints.read(path), "cats-bank", path)
    smaller = dataclasses.replace(bank.config, channels=(8,) * 7)
    native.save(path, {"generator": around(StyleGAN2(smaller))}, native.About())
    with pytest.raises(CheckpointError, match="but cats-bank is StyleGAN2Config"):
        shared.detach_bank(checkpoints.read(path), "cats-bank", path)


@pytest.mark.parametrize(
    ("name", "error"),
    [("cats-8x", "is not a bundled bank"), ("stylegan2-cat", "is not a bundled bank"), ("dogs-bank", "no model is named")],
)
def test_only_bundled_banks_are_shared(whole, name, error):
    with pytest.raises(RequestError, match=error):
        shared.detach_bank(checkpoints.read(whole), name, whole)


def test_what_is_no_glean_shares_none():
    path = checkpoints.model_path("plain-cats-8x")
    with pytest.raises(CheckpointError, match="holds no GLEAN"):
        shared.detach_bank(checkpoints.read(path), "cats-bank", path)


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ({"name": "dogs-bank", "sha256": "0" * 16}, "needs the bank 'dogs-bank', which does not come"),
        ({"name": "stylegan2-cat", "sha256": "15bc485b"}, "needs the bank 'stylegan2-cat', which does not come"),
        ({"name": "cats-8x", "sha256": "0" * 16}, "needs the bank 'cats-8x', which does not come"),
        ({"name": "cats-bank", "sha256": "0" * 16}, "needs another version of cats-bank"),
        ({"name": "cats-bank", "sha256": ""}, "needs another version of cats-bank"),
        ({"name": "../cats-bank", "sha256": ""}, "does not come"),
        ({"name": "cats-bank"}, "its metadata is not that of a gleansr model"),
        ({"name": 3, "sha256": "0"}, "its metadata is not that of a gleansr model"),
        ([], "its metadata is not that of a gleansr model"),
    ],
)
def test_a_reference_to_no_bank_is_refused(small, reference, error):
    with pytest.raises(CheckpointError, match=error):
        checkpoints.read(changed(small, bank=json.dumps(reference)))


def test_a_bank_beside_a_reference_is_refused(whole, small):
    with safe_open(small, "pt") as file:
        reference = file.metadata()["bank"]
    with pytest.raises(CheckpointError, match="holds no GLEAN that lacks one"):
        checkpoints.read(changed(whole, bank=reference))


def test_a_reference_of_another_network_is_refused(small, tmp_path):
    with safe_open(small, "pt") as file:
        reference = file.metadata()["bank"]
    path = tmp_path / "plain.safetensors"
    path.write_bytes(checkpoints.model_path("plain-cats-8x").read_bytes())
    with pytest.raises(CheckpointError, match="holds no GLEAN that lacks one"):
        checkpoints.read(changed(path, bank=reference))
