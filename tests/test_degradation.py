"""The degradation "real": what it is made of, that it is repeatable, and that a network sees in training what it sees in use."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import gleansr
from gleansr.checkpoints.native import About
from gleansr.configs import from_dict
from gleansr.data.choices import Border
from gleansr.data.degradation import KERNELS, RealConfig, degrade_real, fixed_seed
from gleansr.errors import RequestError
from gleansr.evaluation.ground_truth import EvaluationTask, GroundTruth
from gleansr.images.codec import decode
from gleansr.images.resize import degrade
from gleansr.inference.runner import FeedForwardModel
from gleansr.inference.upscaler import Fit, Upscaler
from gleansr.models.glean import GLEAN, GLEANConfig
from gleansr.models.stylegan2 import StyleGAN2Config
from gleansr.training.batches import Share, TrainingBatches
from gleansr.training.config import DataConfig
from gleansr.training.data import open_images

NONE = RealConfig(clean=0, blur=0, shift=0, kernels=("box",), two_steps=0, noise=0, compression=0)
"""Boxes alone."""


def smooth(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth coloured image (3, height, width), uint8."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].round().clamp(0, 255).to(torch.uint8)


def means(image: Tensor, scale: int) -> Tensor:
    return torch.nn.functional.avg_pool2d(image[None].float(), scale)[0]


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().mean())


def test_each_step_does_what_it_says():
    image = smooth(64, 48)
    boxes = degrade_real(image, 8, 0, NONE)
    assert boxes.shape == (3, 8, 6)
    assert boxes.dtype == torch.uint8
    assert float((boxes.float() - means(image, 8)).abs().max()) <= 1  # Pillow rounds twice
    for kernel in KERNELS:
        assert apart(degrade_real(image, 8, 0, dataclasses.replace(NONE, kernels=(kernel,))), boxes) < 6
    nearest = degrade_real(image, 8, 0, dataclasses.replace(NONE, kernels=("nearest",)))
    assert torch.equal(nearest, image[:, 4::8, 4::8])
    aliased = degrade_real(image, 8, 0, dataclasses.replace(NONE, kernels=("aliased-bilinear",)))
    four = sum(image[:, y::8, x::8].float() for y in (3, 4) for x in (3, 4)) / 4
    assert float((aliased - four).abs().max()) <= 1
    clean = degrade_real(image, 8, 0, dataclasses.replace(NONE, clean=1))
    expected = degrade(image[None].float() / 127.5 - 1, 8)[0] * 127.5 + 127.5
    assert torch.equal(clean, expected.round().to(torch.uint8))


def test_aliasing_and_blur_are_those_of_their_names():
    """A fine checkerboard: averaged it is grey, aliased it is not, and a blur makes grey of it first."""
    board = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).mul(255).to(torch.uint8).expand(3, 64, 64)
    assert apart(degrade_real(board, 8, 0, NONE), torch.full((3, 8, 8), 127.5)) < 1
    nearest = dataclasses.replace(NONE, kernels=("nearest",))
    assert set(degrade_real(board, 8, 0, nearest).unique().tolist()) <= {0, 255}
    blurred = dataclasses.replace(nearest, blur=1, blur_sigma=(0.5, 0.5), strong_blur=0)
    assert apart(degrade_real(board, 8, 0, blurred), torch.full((3, 8, 8), 127.5)) < 2


def test_blur_has_the_deviation_that_was_asked_for():
    dot = torch.zeros(3, 129, 129, dtype=torch.uint8)
    dot[:, 57:72, 57:72] = 255
    config = dataclasses.replace(NONE, blur=1, blur_sigma=(6, 6), strong_blur=0, anisotropic=0)
    spread = degrade_real(dot, 1, 0, config)[0].double()
    weights = spread.sum(0) / spread.sum()
    position = torch.arange(129).double()
    variance = float((weights * position**2).sum() - (weights * position).sum() ** 2)
    assert variance == pytest.approx(36 + (15**2 - 1) / 12, rel=0.03)  # of the Gaussian and of the square


def test_a_shift_moves_the_grid_by_parts_of_a_pixel():
    ramp = torch.arange(64).mul(3).to(torch.uint8).expand(3, 64, 64)
    config = dataclasses.replace(NONE, shift=1, shift_by=(0.25, 0.25))
    moved = {
        round(float((degrade_real(ramp, 8, seed, config).float() - degrade_real(ramp, 8, 0, NONE).float())[0, 4, 4])) for seed in range(20)
    }
    assert moved == {-6, 6}  # a quarter of 8 px, 3 steps each


def test_noise_is_as_strong_as_asked_for_and_grey_or_coloured():
    grey = torch.full((3, 256, 256), 120, dtype=torch.uint8)
    config = dataclasses.replace(NONE, noise=1, noise_sigma=(8, 8), grey_noise=0)
    coloured = degrade_real(grey, 2, 1, config).float()
    assert float(coloured.std()) == pytest.approx(8, rel=0.05)
    assert abs(float(np.corrcoef(coloured[0].flatten(), coloured[1].flatten())[0, 1])) < 0.05
    same = degrade_real(grey, 2, 1, dataclasses.replace(config, grey_noise=1))
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], same[2])


@pytest.mark.parametrize("webp", [0, 1])
def test_compression_costs_more_at_low_quality(webp: int):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8))
    config = dataclasses.replace(NONE, compression=1, twice=0, webp=webp)
    costs = [apart(degrade_real(image, 1, 0, dataclasses.replace(config, quality=(q, q))), image) for q in (98, 70, 40)]
    assert 0 < costs[0] < costs[1] < costs[2]


def test_everything_follows_from_the_seed_and_little_from_anything_else():
    image = smooth(64, 64)
    drawn = [degrade_real(image, 8, seed) for seed in range(40)]
    assert all(torch.equal(lr, degrade_real(image, 8, seed)) for seed, lr in enumerate(drawn))
    assert len({lr.numpy().tobytes() for lr in drawn}) > 25  # a fifth are the paper's
    torch.manual_seed(0)
    state = torch.get_rng_state()
    degrade_real(image, 8, 3)
    assert torch.equal(state, torch.get_rng_state())
    assert all(apart(lr, means(image, 8)) < 25 for lr in drawn)


@pytest.mark.parametrize(("scale", "size"), [(64, 256), (32, 256), (16, 64), (4, 16), (8, 8)])
def test_smallest_images(scale: int, size: int):
    for seed in range(25):
        assert degrade_real(smooth(size, size), scale, seed).shape == (3, size // scale, size // scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quality": [90, 40]}, r"recipe x: data\.real\.quality must be \[lowest, highest\], not \[90, 40\]|quality must be"),
        ({"quality": [0, 40]}, "quality must be 1 to 100"),
        ({"noise_sigma": [-1, 4]}, "noise_sigma must be 0 or more"),
        ({"blur": 1.5}, "blur must be 0 to 1"),
        ({"kernels": ["cubic"]}, "kernels must be of bicubic, lanczos"),
        ({"kernels": []}, "kernels must not be empty"),
        ({"nois": 0.5}, "noise"),
    ],
)
def test_impossible_ranges_are_one_line_with_the_key(change: dict[str, object], message: str):
    with pytest.raises(RequestError, match=message) as caught:
        from_dict(DataConfig, {"real": change}, "recipe x")
    assert "\n" not in str(caught.value)
    assert "real" in str(caught.value)


# ------------------------------------------------------------------------------------------------- as in training, so in use


def batch(folder: Path, config: DataConfig, size: int, in_size: int, start: int = 0, content_height: int | None = None):
    images = open_images(config, size, in_size, content_height)
    end = start + len(images)
    made = TrainingBatches(images, in_size=in_size, start=start, end=end, batch_size=len(images), seed=0, device=torch.device("cpu"))
    return next(iter(made))


def upscaler(content_height: int | None = None, border: Border = "repeat") -> Upscaler:
    torch.manual_seed(0)
    model = GLEAN(GLEANConfig(8, StyleGAN2Config((8, 8, 6, 4), code_dim=8, mapping_layers=1), n_rrdb=1, features=4, growth=3))
    return Upscaler(FeedForwardModel(model, device="cpu"), About("x", content_height=content_height, border=border))


def lr_of(image: Tensor) -> Tensor:
    """What a person has of `image`: it shrunk by 4, in [0, 1]."""
    return (degrade(image[None].float() / 127.5 - 1, 4)[0] + 1) / 2


@pytest.mark.parametrize(
    ("aspect", "fit", "size", "content_height", "border"),
    [
        ("crop", "crop", (32, 48), None, "repeat"),
        ("crop", "exact", (32, 32), None, "repeat"),
        ("squash", "stretch", (32, 32), None, "repeat"),
        ("pad", "pad", (32, 24), None, "repeat"),
        ("pad", "pad", (20, 32), None, "repeat"),
        ("bars", "pad", (24, 32), 24, "repeat"),
        ("bars", "crop", (24, 32), 24, "repeat"),
        ("bars", "exact", (24, 32), 24, "black"),
        ("bars", "stretch", (24, 32), 24, "black"),
    ],
)
def test_what_a_network_sees_in_training_it_sees_in_use(
    tmp_path: Path, aspect: str, fit: Fit, size: tuple[int, int], content_height: int | None, border: Border
):
    image = smooth(*size, seed=3)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "0.png")
    config = from_dict(DataConfig, {"train": [str(tmp_path)], "flip": False, "aspect": aspect, "border": border}, "x")
    gt, lr = batch(tmp_path, config, 32, 8, content_height=content_height)
    wanted = image[:, :, 8:40] if size == (32, 48) else image
    used = upscaler(content_height, border).fit(decode(lr_of(wanted)), fit)
    assert torch.allclose(lr[0], used.lr, atol=1e-6)
    top, left, height, width = used.keep
    assert torch.allclose((gt[0, :, top : top + height, left : left + width] + 1) * 127.5, wanted.float(), atol=1e-3)
    assert (height, width) == tuple(wanted.shape[-2:])


def test_bars_that_come_with_the_images_do_not_bleed_into_them(tmp_path: Path):
    """A set of 4:3 images between black bars, as LSUN's cars are prepared: the lr image is made of the content, in training and in use."""
    image = smooth(24, 32, seed=3)
    barred = torch.nn.functional.pad(image, (0, 0, 4, 4))
    Image.fromarray(barred.permute(1, 2, 0).numpy()).save(tmp_path / "0.png")
    content = lr_of(image) * 2 - 1
    for border, bars in (("repeat", content[:, :1]), ("black", torch.full((3, 1, 8), -1.0))):
        config = from_dict(DataConfig, {"train": [str(tmp_path)], "flip": False, "border": border}, "x")
        gt, lr = batch(tmp_path, config, 32, 8, content_height=24)
        assert torch.allclose(lr[0, :, 1:7], content, atol=1e-6)
        assert torch.allclose(lr[0, :, :1], bars, atol=1e-6)
        assert torch.allclose((gt[0, :, 4:28] + 1) * 127.5, image.float(), atol=1e-3)
    own_bars = torch.nn.functional.pad(lr_of(image), (0, 0, 1, 1))
    enlarge = upscaler(24)
    fit_image = enlarge.fit(decode(own_bars), "exact")
    assert torch.allclose(fit_image.lr, torch.cat([content[:, :1], content, content[:, -1:]], 1), atol=1e-6)
    result = np.asarray(enlarge(own_bars))
    assert result.shape == (32, 32, 3)
    assert not result[:4].any()
    assert not result[28:].any()
    assert np.array_equal(result[4:28], np.asarray(enlarge(lr_of(image))))


def test_real_batches_resume_anywhere_and_do_not_depend_on_workers(tmp_path: Path):
    for i in range(6):
        Image.fromarray(smooth(24, 32, i).permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    config = DataConfig(train=(str(tmp_path),), degradation="real", aspect="bars", workers=0)
    images = open_images(config, 32, 8, 24)

    def batches(start: int, config: DataConfig = config, batch_size: int = 2) -> list[tuple[Tensor, Tensor]]:
        images.config = config
        return list(TrainingBatches(images, in_size=8, start=start, end=24, batch_size=batch_size, seed=5, device=torch.device("cpu")))

    whole = batches(0)
    for start in (2, 10, 22):
        assert all(torch.equal(a, b) for x, y in zip(whole[start // 2 :], batches(start), strict=True) for a, b in zip(x, y, strict=True))
    others = batches(0, dataclasses.replace(config, workers=2))
    assert all(torch.equal(a, b) for x, y in zip(whole, others, strict=True) for a, b in zip(x, y, strict=True))
    first, again = whole[0][1], batches(0)[3][1]  # the same six images in a later epoch are degraded anew
    assert not torch.equal(first, again)


def test_crops_turns_and_patches_of_real_images_resume(tmp_path: Path):
    for i in range(4):
        Image.fromarray(smooth(40, 56, i).permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    config = DataConfig(train=(str(tmp_path),), degradation="real", random_crop=0.3, rotate=True, patch=16, workers=0)

    def batches(start: int, share: Share) -> list[tuple[Tensor, Tensor]]:
        images = open_images(config, 32, 8)
        return list(TrainingBatches(images, in_size=8, start=start, end=24, batch_size=4, seed=5, device=torch.device("cpu"), share=share))

    whole, even = batches(0, Share()), batches(0, Share(0, 2))
    assert all(torch.equal(a, b) for x, y in zip(whole[4:], batches(16, Share()), strict=True) for a, b in zip(x, y, strict=True))
    assert all(torch.equal(a[::2], b) for x, y in zip(whole, even, strict=True) for a, b in zip(x, y, strict=True))


def test_random_crops_are_sharp_where_the_images_allow_and_resume(tmp_path: Path):
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    source = torch.from_numpy(np.array(Image.open(tmp_path / "0.png"))).permute(2, 0, 1)
    config = DataConfig(train=(str(tmp_path),), random_crop=0.1, flip=False)
    held, read = open_images(config, 40, 10), open_images(dataclasses.replace(config, memory=0.0), 40, 10)
    assert held.in_memory
    assert not read.in_memory
    for seed in range(5):  # no side is below 40 px, so all are 40 px: cut out, not resized
        cut = held.random_crop(0, seed).gt
        assert any(torch.equal(cut, source[:, :, left : left + 40]) for left in range(17))
        assert torch.equal(cut, read.random_crop(0, seed).gt)
    assert len({held.random_crop(0, seed).gt.numpy().tobytes() for seed in range(20)}) > 3
    with pytest.raises(RequestError, match="random_crop cuts out squares"):
        from_dict(DataConfig, {"random_crop": 0.5, "aspect": "pad"}, "x")


def test_test_sets_are_always_degraded_alike():
    assert fixed_seed(0) == 8668861027912758289
    assert len({fixed_seed(i) for i in range(100)}) == 100


# ------------------------------------------------------------------------------------------------------------- and in figures


def test_test_images_have_borders_as_in_use_and_are_degraded_with_fixed_seeds(tmp_path: Path):
    Image.fromarray(smooth(24, 32, 1).permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    Image.fromarray(smooth(24, 32, 2).permute(1, 2, 0).numpy()).save(tmp_path / "b.png")
    edges: list[tuple[Border, float | None]] = [("repeat", None), ("black", -1.0)]
    for border, edge in edges:
        example = GroundTruth(str(tmp_path), EvaluationTask(32, 4, "bars", border=border))[1]
        content = lr_of(smooth(24, 32, 2)) * 2 - 1
        assert torch.allclose(example.lr[0, :, 1:7], content, atol=1e-6)
        assert torch.allclose(example.lr[0, :, 0], content[:, 0] if edge is None else torch.tensor(edge), atol=1e-6)
        assert torch.equal(example.inside(example.lr)[0], example.lr[0, :, 1:7])
        assert torch.equal(example.inside(example.gt)[0], example.gt[0, :, 4:28])
    real = GroundTruth(str(tmp_path), EvaluationTask(32, 4, "bars", degradation="real"))
    for i, example in enumerate(real):
        lr = degrade_real(smooth(24, 32, i + 1), 4, fixed_seed(i)).float() / 127.5 - 1
        assert torch.allclose(example.inside(example.lr)[0], lr, atol=1e-6)
    with pytest.raises(RequestError, match="leave out --degradation real"):
        GroundTruth(str(tmp_path), EvaluationTask(32, 4, degradation="real"), lr=str(tmp_path))


def test_borders_are_not_judged(tmp_path: Path, tiny_model: Path, command: Callable[..., tuple[int, str]]):
    """Figures of images of several shapes, in batches and one by one, are those of what the model makes of each in use."""
    images = [smooth(*size, seed) for seed, size in enumerate([(24, 32), (24, 32), (32, 20), (32, 32)])]
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    figures = []
    for size in (1, 4):
        output = tmp_path / f"{size}.json"
        options = ("--aspect", "pad", "--batch-size", size, "--metrics", "psnr,squeezenet_frechet", "--json", output)
        status, said = command("evaluate", tiny_model, tmp_path, *options)
        assert status == 0, said
        figures.append(json.loads(output.read_text())["methods"][1]["means"])
    assert figures[0]["psnr"] == pytest.approx(figures[1]["psnr"], abs=1e-3)
    assert figures[0]["squeezenet_frechet"] == pytest.approx(figures[1]["squeezenet_frechet"], rel=1e-3)
    enlarge = gleansr.load(tiny_model, device="cpu")
    errors = [(np.asarray(enlarge(lr_of(image)), float) - image.permute(1, 2, 0).numpy()) ** 2 for image in images]
    assert figures[0]["psnr"] == pytest.approx(np.mean([10 * np.log10(255**2 / e.mean()) for e in errors]), abs=1e-3)


def test_preview_shows_what_training_starts_with(tmp_path: Path, command: Callable[..., tuple[int, str]]):
    for i in range(3):
        Image.fromarray(smooth(64, 64, i).permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[about]\nname = 'x'\n[network]\nkind = 'plain'\nin_size = 8\nout_size = 64\n[run]\niterations = 1\nbatch_size = 4\n")
    sheet = tmp_path / "sheet.png"
    options = ("--count", 3, "-o", sheet, "--option", "adversarial_weight=0", "data.degradation=real", "data.workers=0")
    status, said = command("data", "preview", recipe, tmp_path, *options)
    assert status == 0, said
    assert "4 images as the network sees them" in said
    shown = np.asarray(Image.open(sheet))
    assert shown.shape == (64, 8 * 64, 3)
    config = DataConfig(train=(str(tmp_path),), degradation="real", workers=0)
    made = TrainingBatches(open_images(config, 64, 8), in_size=8, start=0, end=4, batch_size=4, seed=0, device=torch.device("cpu"))
    gt, lr = next(iter(made))
    assert np.array_equal(shown[:, 64:128], ((gt[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    assert np.array_equal(shown[4::8, 4:64:8], ((lr[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    status, said = command("data", "preview", recipe, tmp_path, "--option", "adversarial_weight=0", "data.real.quality=[90, 40]")
    assert status == 2
    assert "quality must be [lowest, highest]" in said
    status, said = command("data", "preview", recipe, tmp_path, "-o", tmp_path / "notes.txt")
    assert status == 2
    assert "notes.png" in said
