"""What comes with the package: the model that the README promises, light, licensed, and better than bicubic."""

import hashlib
import io
import itertools
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

import gleansr
from benchmarks.gallery import EXAMPLES, photo
from gleansr.checkpoints import native, zoo
from gleansr.checkpoints.bundled import squeezenet
from gleansr.evaluation.ground_truth import EvaluationTask
from gleansr.images.resize import degrade, resize
from gleansr.models.features import feature_distance
from gleansr.models.stylegan2 import StyleGAN2

FAINT = {"bedrooms-16x", "towers-16x"}
"""Models whose results are not much nearer than bicubic: 0.82 and 0.86 times its distance."""


@pytest.fixture(scope="module", params=[model.name for model in zoo.named_models() if model.asset and model.kind == "glean"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def scale(name: str) -> int:
    entry = zoo.find(name)
    return entry.out_size // (entry.in_size or 1)


@pytest.fixture(scope="module")
def gt(name: str, scale: int) -> torch.Tensor:
    """An image (1, 3, 256, 256) of the model's category: a photo, of cars with bars. So few pixels as 8x8 and 4x4 are a face only if
    it is framed as those of the training set, as the bank's are."""
    category = zoo.find(name).category
    if scale <= 16:
        return EvaluationTask(256, scale, "bars" if category == "cars" else "crop").fit(photo(category))[0]
    bank = cast("StyleGAN2", gleansr.load_model(f"{category}-bank", part="generator"))
    with torch.inference_mode():
        z = torch.randn(1, bank.config.code_dim, generator=torch.Generator().manual_seed(0))
        drawn = bank(z).clamp(-1, 1)
    return (drawn * 127.5 + 127.5).round() / 127.5 - 1


@pytest.fixture(scope="module")
def upscaler(name: str) -> gleansr.Upscaler:
    return gleansr.load(name, device="cpu")


def test_it_is_small_and_says_what_may_be_done_with_it(upscaler: gleansr.Upscaler, name: str, scale: int):
    path = zoo.model_path(name)
    assert path.stat().st_size < 40e6
    assert sum(p.stat().st_size for p in path.parent.iterdir()) < 80e6
    about = native.read(path).about
    assert about.name == name
    assert about.licence == "CC-BY-NC-4.0" == upscaler.license
    assert about.credit is not None
    assert "NAVER" in about.credit  # with whose cats the training of all of them began
    assert about.training["images"] > 0
    assert "recipe" in about.training
    facts = (upscaler.input_size, upscaler.output_size, upscaler.scale, upscaler.category)
    entry = zoo.find(name)
    assert facts == (256 // scale, 256, scale, entry.category)
    assert name.startswith(f"{entry.category}-{scale}x")
    assert (entry.in_size, entry.out_size, entry.licence) == (256 // scale, 256, about.licence)


def test_it_beats_bicubic(upscaler: gleansr.Upscaler, name: str, scale: int, gt: torch.Tensor):
    lr = degrade(gt, scale)
    bicubic = resize(lr, size=256).clamp(-1, 1)
    result = _tensor(upscaler((lr[0] + 1) / 2))
    network = squeezenet()
    with torch.inference_mode():
        wanted = network(gt)
        distances = [float(feature_distance(network(img), wanted)) for img in (bicubic, result)]
    assert distances[1] < (0.9 if name in FAINT else 0.8) * distances[0]
    errors = [float((img - gt).square().mean()) for img in (bicubic, result)]
    assert errors[1] < 1.05 * errors[0]
    # Detail is added, the image is not changed: it still looks like the input from afar.
    share = 0.1 if scale > 4 else 0.12  # at 4x bicubic's own error is small
    assert float((degrade(result, scale) - lr).square().mean()) < share * errors[0]


def test_it_leaves_no_grid(upscaler: gleansr.Upscaler, scale: int, gt: torch.Tensor):
    """On an image without edges, gradients must not depend on the position within the block that an input pixel becomes, nor within
    8x8 px, the period of three pixel shuffles. There are too few larger blocks to average out what the image shows."""
    lr = degrade(gt, scale)
    assert max(_grid(_tensor(upscaler((lr[0] + 1) / 2)), min(scale, 8))) < 1.6


@pytest.mark.parametrize(("photo", "share"), [("astronaut-256.png", 0.85), ("chelsea-256.png", 1.13)])  # it paints fur with strokes
@pytest.mark.parametrize("quality", [None, 75])
def test_general_4x_sharpens_any_image_and_leaves_no_grid(photo: str, share: float, quality: int | None):
    gt, network = _tensor(EXAMPLES / photo), squeezenet()
    lr = degrade(gt, 4)
    if quality:
        data = io.BytesIO()
        Image.fromarray(((lr[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(data, "JPEG", quality=quality)
        lr = _tensor(Image.open(data))
    result = _tensor(gleansr.load("general-4x", device="cpu")((lr[0] + 1) / 2))
    bicubic = resize(lr, size=256).clamp(-1, 1)
    with torch.inference_mode():
        distances = [float(feature_distance(network(img), network(gt))) for img in (bicubic, result)]
    assert distances[1] < share * distances[0]
    errors = [float((img - gt).square().mean()) for img in (bicubic, result)]
    assert errors[1] < 1.05 * errors[0]
    assert max(_grid(result, 4)) < 1.6


def test_general_4x_leaves_flat_colours_flat():
    """In screenshots and drawings: no weave of 4 pixels, and the same colour."""
    steps = torch.linspace(0, 1, 4)
    colours = torch.cartesian_prod(steps, steps, steps)[..., None, None]
    upscaler = gleansr.load("general-4x", device="cpu", precision="float32")
    for colour in colours:
        result = _tensor(upscaler(colour.expand(3, 20, 20)))[0, :, 24:56, 24:56]
        lattice = torch.nn.functional.pixel_unshuffle(result, 4).mean((1, 2)).reshape(3, 16) * 127.5
        assert float((lattice.amax(1) - lattice.amin(1)).max()) < 3
        assert float((lattice.mean(1) - colour.flatten() * 255 + 127.5).abs().max()) < 2


def test_the_light_one_is_within_its_budget_and_near_the_full_one():
    full, light = (gleansr.load_model(name, part="generator") for name in ("cats-8x", "cats-8x-light"))
    count = [sum(p.numel() for p in model.parameters()) for model in (full, light)]
    assert count[1] <= 0.21 * count[0]
    gt = _tensor(EXAMPLES / "chelsea-256.png")
    lr = degrade(gt, 8)
    with torch.inference_mode():
        results = [model(lr).clamp(-1, 1) for model in (full, light)]
    errors = [float((result - gt).square().mean()) for result in results]
    assert errors[1] < 10**0.05 * errors[0]  # half a decibel, for a single cat
    assert float((results[1] - results[0]).square().mean()) < 0.5 * errors[0]


BANKS = [model.name for model in zoo.named_models() if model.asset and model.kind == "stylegan2"]


@pytest.mark.parametrize("name", BANKS)
def test_a_bank_draws_many_images(name: str):
    """Two true cats are 6.1 apart, two true faces 4.8; a bank that draws the same cat in other colours comes to 3."""
    bank, network = cast("StyleGAN2", gleansr.load_model(name, part="generator")), squeezenet()
    with torch.inference_mode():
        drawn = bank(torch.randn(6, bank.config.code_dim, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
        pairs = [network(drawn[list(pair)]) for pair in itertools.combinations(range(6), 2)]
        apart = [float(feature_distance(*([level[i : i + 1] for level in pair] for i in range(2)))) for pair in pairs]
    mean, least = {"cats-bank": (4, 3), "cats-bank-first": (2.8, 1.5)}.get(name, (3.3, 1.5))
    assert sum(apart) / len(apart) > mean
    assert min(apart) > least
    entry = zoo.find(name)
    assert (entry.kind, entry.in_size, entry.out_size) == ("stylegan2", None, 256)
    checkpoint = native.read(zoo.model_path(name))
    assert set(checkpoint.networks) == set(entry.parts)
    about = checkpoint.about
    assert (about.name, about.category, about.licence, about.credit) == (name, entry.category, entry.licence, entry.credit)


@pytest.mark.parametrize("name", [model.name for model in zoo.named_models() if model.asset])
def test_its_file_is_the_one_that_the_code_knows(name: str):
    entry = zoo.find(name)
    assert hashlib.sha256(zoo.model_path(name).read_bytes()).hexdigest().startswith(str(entry.sha256_prefix))


def test_the_bank_of_cats_has_the_discriminator_that_dgp_compares_with():
    with torch.inference_mode():
        logits = gleansr.load_model("cats-bank", part="discriminator")(torch.zeros(4, 3, 256, 256))
    assert logits.shape == (4, 1)


def _grid(image: torch.Tensor, period: int) -> list[float]:
    """The strongest over the weakest mean gradient by offset within `period` px, of an image (1, 3, 256, 256), down and across."""
    ratios = []
    for axis in (1, 2):
        steps = image.mean(1).diff(dim=axis).abs().mean(dim=(0, 3 - axis))[: 256 - period]
        by_phase = steps.view(-1, period).mean(0)
        ratios.append(float(by_phase.max() / by_phase.min()))
    return ratios


def _tensor(img: Path | Image.Image) -> torch.Tensor:
    image = Image.open(img) if isinstance(img, Path) else img
    with image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1
