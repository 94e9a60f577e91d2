"""Every method as an Upscaler, and its errors."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import gleansr
from gleansr import baselines
from gleansr.baselines.dgp import DGP
from gleansr.baselines.dgp_config import mse_biased
from gleansr.checkpoints import native
from gleansr.errors import CheckpointError, RequestError
from gleansr.inference.runner import FeedForwardModel
from gleansr.models.esrgan_plus import ESRGANPlus, ESRGANPlusConfig
from gleansr.models.residual import ResidualNet, ResidualNetConfig
from gleansr.models.rrdb import RRDBNet, RRDBNetConfig
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator


def saved(folder: Path, model: nn.Module, **others: nn.Module) -> Path:
    path = folder / "network.safetensors"
    native.save(path, {"generator": model, **others}, native.About("mine", "blobs", "CC0-1.0"))
    return path


def networks() -> list[tuple[str, nn.Module]]:
    torch.manual_seed(0)
    return [
        ("esrgan+", ESRGANPlus(ESRGANPlusConfig(scale=4, features=4, growth=2, n_blocks=1))),
        ("esrgan+", RRDBNet(RRDBNetConfig(scale=4, features=4, growth=2, n_blocks=1))),
        ("plain", ResidualNet(ResidualNetConfig(scale=4, features=4, n_blocks=1))),
    ]


def tiny_bank(folder: Path, **others: nn.Module) -> Path:
    torch.manual_seed(0)
    return saved(folder, StyleGAN2(StyleGAN2Config((4, 4, 4, 4), code_dim=4, mapping_layers=2)), **others)


@pytest.mark.parametrize(("method", "network"), networks(), ids=lambda value: type(value).__name__)
def test_networks_of_any_input_size_enlarge_what_they_are_given(method: str, network: nn.Module, tmp_path: Path, cat: Image.Image):
    path = saved(tmp_path, network)
    upscaler = baselines.load(method, path, device="cpu")
    assert (upscaler.input_size, upscaler.output_size, upscaler.scale, upscaler.category) == (None, None, 4, "blobs")
    image = cat.resize((12, 8))
    result = upscaler(image)
    assert result.size == (48, 32)
    assert "gleansr" not in result.info
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    unit = isinstance(network, ESRGANPlus | RRDBNet)
    with torch.inference_mode():
        wanted = network.eval()(pixels if unit else pixels * 2 - 1)
    wanted = (wanted if unit else (wanted + 1) / 2).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(np.array(result).astype(float) - wanted).max() <= 0.51
    assert gleansr.load(path, device="cpu")(image).tobytes() == result.tobytes()


def test_sides_that_a_folding_network_cannot_take_are_padded(tmp_path: Path, cat: Image.Image):
    torch.manual_seed(0)
    upscaler = baselines.load("esrgan+", saved(tmp_path, RRDBNet(RRDBNetConfig(scale=2, features=4, growth=2, n_blocks=0))), device="cpu")
    odd = cat.crop((0, 0, 13, 9))
    result = upscaler(odd)
    assert result.size == (26, 18)
    even = np.array(upscaler(cat.crop((0, 0, 14, 10))))
    assert np.array_equal(np.array(result)[:8, :8], even[:8, :8])  # far from the border nothing changes


def test_images_of_several_sizes_follow_each_other(cat: Image.Image):
    upscaler = baselines.load("bicubic", scale=3, device="cpu")
    sizes = [(5, 7), (8, 8), (1, 1)]
    assert [result.size for result in upscaler.upscale(cat.resize(size) for size in sizes)] == [(15, 21), (24, 24), (3, 3)]
    with pytest.raises(RequestError, match=r"several sizes.*--batch-size 1"):
        list(upscaler.upscale([cat.resize(size) for size in sizes], batch_size=3))


def test_bicubic_is_matlabs(cat: Image.Image):
    small = cat.resize((9, 6))
    planes = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
    wanted = gleansr.resize(planes, scale=8).clamp(0, 1).permute(1, 2, 0).numpy() * 255
    assert np.abs(np.array(baselines.load("bicubic", device="cpu")(small)).astype(float) - wanted).max() <= 0.51


def test_transparency_is_kept_at_any_size(cat: Image.Image):
    image = cat.resize((6, 4)).convert("RGBA")
    image.putalpha(Image.new("L", (6, 4), 100))
    result = baselines.load("bicubic", scale=2, device="cpu")(image)
    assert result.mode == "RGBA"
    assert result.size == (12, 8)
    assert np.abs(np.array(result)[..., 3].astype(int) - 100).max() <= 1


def test_glean_is_the_bundled_one_of_the_scale(tiny_model: Path):
    assert baselines.load("glean", scale=16, device="cpu").input_size == 16
    assert baselines.load("glean", device="cpu").input_size == 32
    assert baselines.load("glean", tiny_model, scale=4, device="cpu").output_size == 32


@pytest.mark.parametrize("method", baselines.SEARCHES)
def test_the_bundled_bank_serves_the_searches_at_every_scale(method: str):
    for scale in (2, 8, 64):
        assert baselines.load(method, scale=scale, device="cpu").input_size == 256 // scale


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "pules"}, "unknown method 'pules'; did you mean pulse"),
        ({"method": "bicubic", "model": "cats-8x"}, "bicubic takes no model"),
        ({"method": "bicubic", "scale": 65}, "scale must be 2 to 64, not 65"),
        ({"method": "bicubic", "settings": {"steps": 3}}, "bicubic has no settings: leave steps out"),
        ({"method": "glean", "scale": 32}, "no model of glean for cats at 32x is bundled"),
        ({"method": "glean", "model": "cats-8x", "scale": 16}, "has a scale of 8x, not 16x"),
        ({"method": "plain", "model": "cats-8x"}, "holds a GLEAN, not a network of the method plain"),
        ({"method": "pulse", "settings": {"stepps": 3}}, "settings of pulse: unknown key stepps, did you mean steps"),
        ({"method": "dgp", "model": "cats-8x"}, "DGP needs the bank's own discriminator"),
        ({"method": "dgp", "settings": {"preset": "best"}}, "preset must be discriminator or mse-biased, not 'best'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict, message: str):
    with pytest.raises((RequestError, CheckpointError), match=message):
        baselines.load(**arguments, device="cpu")


def test_searches_run_behind_the_same_call(tmp_path: Path, cat: Image.Image):
    bank = tiny_bank(tmp_path, discriminator=StyleGAN2Discriminator(StyleGAN2Config((4, 4, 4, 4))))
    steps: list[tuple[int, int]] = []
    for method, settings in (("pulse", {"steps": 2, "fit_samples": 64}), ("dgp", {"iterations": [1, 1, 1, 1, 1], "select_samples": 2})):
        upscaler = baselines.load(method, bank, scale=8, device="cpu", settings=settings)
        assert (upscaler.input_size, upscaler.output_size, upscaler.scale) == (4, 32, 8)
        (result,) = upscaler.upscale([cat], report=lambda done, total: steps.append((done, total)))
        assert result.size == (32, 32)
        assert steps[-1][0] == steps[-1][1]
        steps.clear()


def test_a_discriminator_may_lie_beside_its_bank_or_be_named(tmp_path: Path):
    other = tmp_path / "other.safetensors"
    native.save(other, {"discriminator": StyleGAN2Discriminator(StyleGAN2Config((4, 4, 4, 4)))}, native.About("d"))
    bank = tiny_bank(tmp_path)
    baselines.load("dgp", bank, scale=8, device="cpu", settings={"discriminator": str(other)})
    with pytest.raises(RequestError, match="discriminator"):
        baselines.load("dgp", bank, scale=8, device="cpu")
    bank = bank.rename(tmp_path / "G_ema_32.safetensors")
    other.rename(tmp_path / "D_32.safetensors")
    baselines.load("dgp", bank, scale=8, device="cpu")


def test_published_settings_of_dgp_have_names(tmp_path: Path):
    bank = tiny_bank(tmp_path, discriminator=StyleGAN2Discriminator(StyleGAN2Config((4, 4, 4, 4))))
    method = baselines.load("dgp", bank, scale=4, device="cpu", settings={"preset": "mse-biased", "seed": 3}).method
    assert isinstance(method, DGP)
    assert method.config == dataclasses.replace(mse_biased(), seed=3)


def test_a_bank_alone_is_no_feed_forward_network():
    with pytest.raises(RequestError, match="StyleGAN2 does not enlarge images by itself"):
        FeedForwardModel(StyleGAN2(StyleGAN2Config((4, 4), 4, 1)), device="cpu")
