"""Light GLEANs: within their budget, nothing dead in them, and trained to imitate the full network."""

import dataclasses
import functools
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import gleansr
from gleansr import baselines as baselines
from gleansr.checkpoints import native
from gleansr.checkpoints.native import About
from gleansr.errors import GleansrError, RequestError
from gleansr.inference.cpu.frozen import FrozenGLEAN
from gleansr.models.glean import GLEAN, GLEANConfig, LightConfig, NoBankConfig, glean_full, glean_light, lighten
from gleansr.models.layers import to_channels_last
from gleansr.models.stylegan import StyleGANConfig
from gleansr.models.stylegan2 import StyleGAN2Config, stylegan2_channels
from gleansr.training.config import BankRecipe, NetworkRecipe, load_recipe, recipe_names
from gleansr.training.networks import GLEANNetworkConfig
from gleansr.training.parts import glean_config

CHANNELS = (12, 12, 10, 8, 8, 6)


def light(in_size: int = 8, bank: StyleGAN2Config | StyleGANConfig | None = None) -> GLEAN:
    """One whose noise and biases, which begin at zero, are not."""
    torch.manual_seed(0)
    full = GLEANConfig(in_size, bank or StyleGAN2Config(CHANNELS, code_dim=16), n_rrdb=2, features=8, growth=4, out_features=8)
    model = GLEAN(lighten(full)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "noise_strength" in name:
                parameter.fill_(0.3)
            elif name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return to_channels_last(model, torch.device("cpu"))


def lrs(count: int, size: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@functools.cache  # recipes share networks
def cost(config: GLEANConfig) -> tuple[int, int]:
    """Parameters and operations of a pass."""
    model = native.skeleton("glean", config).to("meta")
    lr = torch.empty(1, 3, config.in_size, config.in_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(lr)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()


def bank_of(recipe: NetworkRecipe, name: str) -> StyleGAN2Config | StyleGANConfig:
    """The bank that the recipe is meant for."""
    for size in ("compact", "medium"):
        if size in name:
            return load_recipe(BankRecipe, f"cats-bank-{size}").network
    channels = stylegan2_channels(recipe.network.out_size, 1 if recipe.bank == "stylegan" else 2)
    return StyleGANConfig(channels) if recipe.bank == "stylegan" else StyleGAN2Config(channels)


GLEANS = [
    name
    for name in recipe_names()
    if "bank" not in name and not name.startswith(("plain", "esrgan", "general", "light")) and not name.endswith("-light")
]


@pytest.mark.parametrize("name", GLEANS)
def test_of_every_recipe_the_light_form_keeps_its_budget(name: str):
    full, small = (load_recipe(NetworkRecipe, name + suffix) for suffix in ("", "-light"))
    assert small.about.name == f"{full.about.name}-light"
    assert isinstance(small.network, GLEANNetworkConfig)
    costs = [cost(glean_config(r.network, r.bank, bank_of(r, name))) for r in (full, small) if isinstance(r.network, GLEANNetworkConfig)]
    (parameters, operations), (few_parameters, few_operations) = costs
    assert few_parameters <= 0.21 * parameters
    assert few_operations <= 0.35 * operations


def test_the_presets_of_the_full_size():
    for sizes in ((64, 1024), (32, 256)):
        assert glean_light(*sizes) == lighten(glean_full(*sizes))
        assert glean_light(*sizes).bank == glean_full(*sizes).bank


@pytest.mark.parametrize(("in_size", "out_size"), list(itertools.combinations((4, 8, 16, 32, 64), 2)))
def test_every_pair_of_sizes(in_size: int, out_size: int):
    channels = tuple(range(9, 9 - int(math.log2(out_size)) + 1, -1))
    model = GLEAN(lighten(GLEANConfig(in_size, StyleGAN2Config(channels, code_dim=6), n_rrdb=1, features=8, growth=3)))
    with torch.inference_mode():
        assert model(lrs(2, in_size)).shape == (2, 3, out_size, out_size)
        assert model.encode(lrs(2, in_size)).shape == (2, 2 * len(channels) - 3, 6)  # the layers up to half of the size


@pytest.mark.parametrize(
    "bank", [StyleGAN2Config(CHANNELS, code_dim=16), StyleGANConfig(CHANNELS, code_dim=16)], ids=["StyleGAN2", "StyleGAN"]
)
def test_nothing_in_it_is_dead(bank: StyleGAN2Config | StyleGANConfig):
    model = light(bank=bank)
    model.bank.requires_grad_(True)
    model(lrs(1)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    lr, before = lrs(1), model(lrs(1))
    for name, noise in model.bank.named_buffers():
        if "noise" in name:
            noise.add_(1)
            assert not torch.allclose(model(lr), before), name
            noise.sub_(1)


@pytest.mark.parametrize("in_size", [4, 8, 32, 64])
def test_frozen_it_is_the_same_function(in_size: int):
    model = light(in_size)
    with torch.inference_mode():
        expected = model(lrs(2, in_size))
        found, half = (FrozenGLEAN(model, dtype)(lrs(2, in_size)).float() for dtype in (torch.float32, torch.bfloat16))
    assert (found - expected).abs().max() < 1e-5 * expected.std()
    assert 0 < (half - expected).square().mean().sqrt() < 0.05 * expected.std()


def test_a_file_of_it_is_the_model_and_no_bank(tmp_path: Path):
    path, model = tmp_path / "light.safetensors", light()
    native.save(path, {"generator": model}, About("light"))
    with torch.inference_mode():
        expected = model(lrs(3))
    assert (gleansr.load(path).method(lrs(3)).images - expected).abs().max() < 1e-4
    for method in ("pulse", "dgp"):
        with pytest.raises(GleansrError, match="holds only a part of its bank"):
            baselines.load(method, str(path), scale=8)


def test_without_a_bank_it_is_encoder_head_and_decoder(tmp_path: Path):
    model = GLEAN(lighten(GLEANConfig(8, NoBankConfig(CHANNELS), features=8, growth=4, n_rrdb=6))).eval()
    kept = {part for name in model.state_dict() for part in name.split(".")[:1]}
    assert kept == {"encoder", "decoder"}
    assert model.encoder.head.out_channels == 8
    path = tmp_path / "none.safetensors"
    native.save(path, {"generator": model}, About("none"))
    with torch.inference_mode():
        expected = model(lrs(2))
        assert gleansr.load_model(path)(lrs(2)).equal(expected)
        assert (FrozenGLEAN(model, torch.float32)(lrs(2)) - expected).abs().max() < 1e-5 * expected.std()


def test_what_no_light_network_can_be():
    full = GLEANConfig(8, StyleGAN2Config(CHANNELS))
    with pytest.raises(ValueError, match=r"must have 4 numbers for 8 -> 128, not \(4, 4\)"):
        dataclasses.replace(full, light=LightConfig(4, 4, (4, 4)))
    with pytest.raises(ValueError, match="must be positive"):
        dataclasses.replace(full, light=LightConfig(4, 0, (4, 4, 4, 4)))


def test_names_of_light_recipes():
    assert load_recipe(NetworkRecipe, "faces-16x-light").network == dataclasses.replace(
        load_recipe(NetworkRecipe, "faces-16x").network, light=True
    )
    with pytest.raises(RequestError, match="its light form"):
        load_recipe(NetworkRecipe, "dogs-8x-light")
    with pytest.raises(RequestError, match=r"unknown key network\.light"):
        load_recipe(NetworkRecipe, "plain-cats-8x-compact-light")
    with pytest.raises(RequestError, match=r"whole images, so leave out data\.patch"):
        load_recipe(NetworkRecipe, "esrgan+-cats-8x", ["teacher='cats-8x'"])
