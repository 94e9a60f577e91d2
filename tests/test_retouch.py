"""Retouching: the detection of edits, the region that the model sees, and blending."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from skimage import data as skimage_data
from torch import Tensor

import gleansr
from gleansr import baselines as baselines
from gleansr.checkpoints.native import About
from gleansr.cli import main
from gleansr.errors import ImageError, RequestError
from gleansr.images.resize import resize
from gleansr.inference.categories import Category
from gleansr.inference.method import ModelOutput
from gleansr.inference.router import Models
from gleansr.inference.upscaler import Upscaler
from gleansr.retouching.mask import _connected, bounding_box, dilate, feather_mask, find_edits
from gleansr.retouching.refine import RetouchConfig, prepare, refine, retouch


class Painter:
    """A model 8 -> 32 that enlarges by bicubic, adds stripes and a colour cast, and counts its images."""

    name, scale, device = "painter", 4, torch.device("cpu")
    in_size: int | None = 8

    def __init__(self, stripes: float = 0.0, cast: float = 0.0):
        self.stripes, self.cast, self.seen = stripes, cast, 0

    def __call__(self, lr: Tensor, report=None) -> ModelOutput:  # noqa: ARG002
        self.seen += len(lr)
        sr = resize(lr, size=32)
        return ModelOutput(sr + self.cast + self.stripes * torch.tensor([1.0, -1.0]).repeat(16))


def painter(stripes: float = 0.0, cast: float = 0.0, content_height: int | None = None) -> Upscaler:
    return Upscaler(Painter(stripes, cast), About("painter", content_height=content_height))


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(40, 215, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def painted(image: Image.Image, box: tuple[int, int, int, int], colour=(190, 70, 70)) -> Image.Image:
    copy = image.copy()
    ImageDraw.Draw(copy).ellipse(box, fill=colour)
    return copy


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def planes(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.mark.parametrize(("width", "height"), [(32, 32), (64, 64), (100, 41), (37, 90), (700, 600)])
@pytest.mark.parametrize("boxed", [False, True])
def test_the_result_equals_the_original_outside_of_the_mask(width: int, height: int, boxed: bool):
    box = (max(0, width // 3 - 12), max(0, height // 3 - 12), min(width - width // 3, height - height // 3, 35)) if boxed else None
    original = smooth(width, height)
    edited = painted(original, (width // 3, height // 3, width // 3 + 9, height // 3 + 7))
    upscaler = painter(stripes=0.3)
    prepared = prepare(edited, original, upscaler, RetouchConfig(box=box))
    mask, result = np.asarray(prepared.mask), array(retouch(edited, original, model=upscaler, box=box))
    changed = (result != array(original)).any(2)
    weights = prepared.weights.numpy()
    assert not changed[weights == 0].any()
    assert changed[weights == 1].mean() > 0.9
    assert 0 < (weights > 0).mean() < 1
    assert np.abs(mask - weights * 255).max() <= 0.5


def test_all_edits_are_refined_and_little_else():
    original = smooth(96, 96)
    edited = painted(original, (40, 50, 55, 60))
    weights = prepare(edited, original, painter(), RetouchConfig(feather=4)).weights.numpy()
    different = (array(edited) != array(original)).any(2)
    assert (weights[different] == 1).all()
    rows, columns = different.nonzero()
    far = np.ones_like(different)
    far[rows.min() - 8 : rows.max() + 9, columns.min() - 8 : columns.max() + 9] = False
    assert (weights[far] == 0).all()


@pytest.mark.parametrize(("kind", "quality"), [("JPEG", 75), ("JPEG", 90), ("WEBP", 80)])
def test_compression_noise_is_not_an_edit(kind: str, quality: int):
    noise = np.random.default_rng(1).normal(0, 6, (128, 128, 3))
    original = Image.fromarray((array(smooth(128, 128)) + noise).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    painted(original, (80, 30, 100, 50)).save(file, kind, quality=quality)
    found = find_edits(planes(Image.open(file).convert("RGB")), planes(original))
    inside = torch.zeros_like(found)
    inside[26:55, 76:105] = True
    assert found[33:48, 83:98].all()
    assert not found[~inside].any()


def test_without_edits_the_model_does_not_run():
    original, upscaler = smooth(50, 40), painter(stripes=0.5)
    result = retouch(original.copy(), original, model=upscaler)
    assert np.array_equal(array(result), array(original))
    assert result.info["gleansr"] == "no edits found"
    empty = retouch(painted(original, (5, 5, 15, 15)), original, model=upscaler, mask=Image.new("L", (50, 40)))
    assert np.array_equal(array(empty), array(original))
    assert upscaler.method.seen == 0  # pyright: ignore[reportAttributeAccessIssue]


def test_strength_blends_the_retouched_and_the_refined_image():
    original = smooth(64, 64)
    edited, upscaler = painted(original, (20, 20, 44, 44)), painter(stripes=0.4)
    core = prepare(edited, original, upscaler).weights.numpy() == 1
    distances = []
    for strength in (0, 0.25, 0.5, 0.75, 1):
        result = array(retouch(edited, original, model=upscaler, strength=strength))
        distances.append(np.abs(result - array(edited))[core].mean())
    assert distances[0] == 0
    steps = np.diff(distances)
    assert (steps > 3).all()  # visible, each of them
    assert np.allclose(steps, steps.mean(), rtol=0.02)


def test_the_result_keeps_the_colour_of_the_retouched_image():
    original = smooth(64, 64)
    edited = painted(original, (10, 10, 50, 50))
    plain, cast = (array(retouch(edited, original, model=painter(cast=value))) for value in (0, 0.2))
    assert np.abs(plain - cast).max() <= 2  # where the cast would be 25 of 255


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_shrunk_result_equals_the_shrunk_retouched_image(factor: int):
    edited = smooth(32, 32)
    result = retouch(edited, model=painter(stripes=0.2, cast=0.1), scale=factor)
    lr, wanted = (resize(planes(image), scale=1 / factor) for image in (result, edited))
    assert (lr - wanted).abs().max() < 0.04
    assert np.abs(array(result) - array(edited)).mean() > 5  # the stripes are there


def test_larger_scales_repaint_more():
    noise = np.random.default_rng(2).integers(0, 256, (32, 32, 3), np.uint8)
    edited = Image.fromarray(noise)
    upscaler = painter()
    distances = [np.abs(array(retouch(edited, model=upscaler, scale=factor)) - noise).mean() for factor in (2, 4, 8)]
    assert distances == sorted(distances)
    assert distances[0] < 0.95 * distances[2]


def test_without_the_original_the_whole_image_is_refined():
    for width, height in ((32, 32), (90, 40), (33, 70)):
        edited, upscaler = smooth(width, height), painter(stripes=0.5)
        prepared = prepare(edited, None, upscaler)
        assert (prepared.weights == 1).all()
        result = array(retouch(edited, model=upscaler))
        assert (np.abs(result - array(edited)).max(2) > 10).mean() > 0.5
    part = prepare(smooth(90, 40), None, upscaler, RetouchConfig(box=(30, 0, 40)))
    assert part.weights[:, :30].sum() == part.weights[:, 70:].sum() == 0
    assert (part.weights[:, 35:65] == 1).all()  # the image's own border does not fade


def test_the_region_contains_the_edits_and_has_the_models_aspect_ratio():
    original = smooth(200, 64)
    left, top, width = prepare(painted(original, (160, 20, 180, 40)), original, painter()).box
    assert (top, width) == (0, 64)
    assert 181 - 64 <= left <= 185 - 64  # as near to the middle as holds it
    assert prepare(painted(original, (80, 20, 100, 40)), original, painter()).box == ((200 - 64) // 2, 0, 64)
    prepared = prepare(painted(original, (10, 20, 190, 40)), original, painter())
    assert prepared.box == (0, -68, 200)  # only with its border repeated is it large enough
    assert prepared.lr is not None
    assert prepared.lr.shape == (3, 8, 8)
    assert prepare(original, None, painter(), RetouchConfig(box=(7, 3, 50))).box == (7, 3, 50)


def test_a_model_with_black_bars_sees_its_own_aspect_ratio():
    upscaler = painter(stripes=0.3, content_height=24)
    original = smooth(64, 48)
    prepared = prepare(painted(original, (20, 20, 40, 40)), original, upscaler)
    assert (prepared.region.width, prepared.region.height) == (64, 48)
    assert prepared.lr is not None
    assert (prepared.lr[:, 0] == -1).all()
    assert (prepared.lr[:, 7] == -1).all()
    assert (prepared.lr[:, 1:7] > -1).all()
    shown = array(retouch(painted(original, (20, 20, 40, 40)), original, model=upscaler))
    assert np.abs(shown - array(painted(original, (20, 20, 40, 40)))).max() > 20


def test_a_mask_limits_the_refined_area():
    original, upscaler = smooth(64, 64), painter(stripes=0.5)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (10, 10, 30, 30))
    mask.paste(128, (40, 40, 60, 60))
    prepared = prepare(original, None, upscaler, RetouchConfig(feather=0), mask=mask)
    assert torch.equal((prepared.weights * 255).round(), torch.from_numpy(np.array(mask)).float())
    result = np.abs(array(retouch(original, model=upscaler, mask=mask, feather=0)) - array(original)).mean(2)
    assert result[np.asarray(mask) == 0].max() == 0
    assert 1.8 < result[10:30, 10:30].mean() / result[40:60, 40:60].mean() < 2.2
    faded_in = prepare(original, None, upscaler, RetouchConfig(feather=6), mask=mask).weights
    assert faded_in[10, 10] < 0.2
    assert faded_in[20, 20] == 1


def test_transparency_is_kept():
    original = smooth(64, 64).convert("RGBA")
    alpha = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    original.putalpha(Image.fromarray(alpha))
    edited = original.copy()
    edited.paste((255, 0, 0, 255), (30, 30, 45, 45))
    result = retouch(edited, original, model=painter(stripes=0.2))
    weights = prepare(edited, original, painter()).weights.numpy()
    assert result.mode == "RGBA"
    assert np.array_equal(array(result)[weights == 0], array(original)[weights == 0])
    assert (array(result)[weights == 1][:, 3] == array(edited)[weights == 1][:, 3]).all()


def test_infinite_results_are_refused():
    with pytest.raises(ImageError, match="NaN or infinite"):
        retouch(smooth(32, 32), model=painter(cast=float("nan")))


def test_a_retouch_takes_one_pass_whatever_the_model_says(tiny_model: Path):
    """Strokes are awaited; the page in the browser does the same."""
    both, once = (gleansr.load(tiny_model, device="cpu", self_ensemble=asked) for asked in (True, False))
    prepared = prepare(smooth(64, 64), None, both)
    assert prepared.lr is not None
    assert prepared.upscaler is both.one_pass is both.one_pass.one_pass
    assert not prepared.upscaler.about.self_ensemble
    assert torch.equal(prepared.upscaler.runner([prepared.lr]).images, once.runner([prepared.lr]).images)
    assert not torch.equal(both.runner([prepared.lr]).images, once.runner([prepared.lr]).images)
    assert refine(prepared).tobytes() == retouch(smooth(64, 64), model=once).tobytes()
    assert once.one_pass is once


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"strength": 1.5}, "strength must be 0 to 1, not 1.5"),
        ({"scale": 3}, "the scale of a retouch must be a power of two from 2 to 8 with this model, not 3"),
        ({"scale": 16}, "the scale of a retouch must be a power of two from 2 to 8 with this model, not 16"),
        ({"feather": -1}, "feather must be 0 to 10000, not -1"),
        ({"tolerance": 2.0}, "tolerance must be 0 to 1, not 2"),
        ({"box": (10, 0, 60)}, "the box 10,0,60 is not within its 64x48 pixels"),
        ({"box": (0, 0, 7)}, "the region of 7x7 pixels is smaller than the model's input of 8"),
        ({"original": smooth(48, 64)}, "is 48x64, but the retouched image is 64x48; give images of one size"),
        ({"mask": Image.new("L", (3, 3))}, "is 3x3, but the retouched image is 64x48"),
        (
            {"model": baselines.load("bicubic", scale=4)},
            "retouching takes a model with an input size, a GLEAN; bicubic takes images of any",
        ),
    ],
)
def test_conflicting_arguments_are_refused(options: dict[str, Any], match: str):
    arguments: dict[str, Any] = {"model": painter()} | options
    with pytest.raises(RequestError, match=match):
        retouch(smooth(64, 48), **arguments)


def test_connected_components_equal_a_flood_fill():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        within = torch.rand(1, 14, 11, generator=generator) < 0.6
        seeds = (torch.rand(1, 14, 11, generator=generator) < 0.03) & within
        wanted, todo = torch.zeros_like(within), [tuple(place) for place in seeds[0].nonzero().tolist()]
        while todo:
            y, x = todo.pop()
            if 0 <= y < 14 and 0 <= x < 11 and within[0, y, x] and not wanted[0, y, x]:
                wanted[0, y, x] = True
                todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        assert torch.equal(_connected(seeds, within), wanted)


@pytest.mark.parametrize("size", [60, 1100])  # above 512 a cell is several pixels
def test_feathering_is_0_outside_and_1_further_inside(size: int):
    mask = torch.zeros(size, size + 30, dtype=torch.bool)
    step = size // 10
    mask[2 * step : 8 * step, 2 * step : 8 * step] = True
    mask[: 3 * step, : 3 * step] = True
    width = 3 * step // 2
    weights = feather_mask(mask, width)
    assert (weights[~mask] == 0).all()
    assert weights[5 * step, 5 * step] == 1
    assert weights[0, 0] == 1  # no fading at the border of the image
    row = weights[5 * step, 2 * step : 5 * step]
    assert (row.diff() >= 0).all()
    assert row[0] < 0.2
    assert (row.diff() < 3 / width).all()
    larger = dilate(mask, 4)
    assert larger[mask].all()
    assert larger[2 * step - 4, 4 * step]
    assert not larger[2 * step - 8 - size // 256, 4 * step]
    assert bounding_box(mask) == (0, 0, 8 * step, 8 * step)


def test_a_moved_uniform_patch_is_an_edit_inside_too():
    """Its inside equals the original, but is part of the edit."""
    original = painted(Image.new("RGB", (80, 80), (90, 120, 90)), (20, 20, 60, 60), (200, 180, 160))
    moved = painted(Image.new("RGB", (80, 80), (90, 120, 90)), (18, 18, 62, 62), (200, 180, 160))
    found = find_edits(planes(moved), planes(original))
    assert found[40, 40]
    assert not found[5, 5]


def test_command(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    original = smooth(40, 40)
    edited = painted(original, (15, 15, 25, 25))
    original.save(tmp_path / "before.png")
    edited.save(tmp_path / "after.png")
    arguments = ["retouch", str(tmp_path / "after.png"), "--original", str(tmp_path / "before.png"), "--model", str(tiny_model)]
    main([*arguments, "--save-mask", str(tmp_path / "mask.png"), "--strength", "0.5"])
    assert "of the image refined" in capsys.readouterr().err
    wanted = retouch(edited, original, model=str(tiny_model), strength=0.5)
    assert np.array_equal(array(Image.open(tmp_path / "after_retouched.png")), array(wanted))
    mask = np.asarray(Image.open(tmp_path / "mask.png"))[..., 0]
    assert np.array_equal(mask, np.asarray(prepare(edited, original, gleansr.load(tiny_model)).mask))
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(SystemExit):
        main([*arguments, "--save-mask", str(tmp_path / "link/after_retouched.png"), "--overwrite"])
    assert "is the result" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--box", "1,2", "--overwrite"])
    assert exit_.value.code == 2
    assert "--box takes left,top,width in pixels, such as 100,50,512, not '1,2'" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 1
    assert "already exists" in capsys.readouterr().err


def test_the_head_that_was_edited_is_found():
    """In a photo whose middle shows something else; far from any head the whole image is looked at."""
    pytest.importorskip("dlib", reason="the detectors are not installed: pip install 'gleansr[photos]'")
    original = Image.new("RGB", (900, 420), (120, 130, 140))
    original.paste(Image.fromarray(skimage_data.astronaut()[:420, 40:440]), (500, 0))
    models, edited = Models(device="cpu"), original.copy()
    edited.paste((190, 60, 70), (672, 152, 700, 160))  # the astronaut's lips
    prepared = prepare(edited, original, models)
    left, top, width = prepared.box
    assert prepared.summary == "face found, faces-4x"
    assert (left, top, width) == pytest.approx((600, 21, 173), abs=12)
    assert prepare(edited, original, models, RetouchConfig(box=(560, 0, 300))).box == (560, 0, 300)
    # Without the original there are no edits to go by: the whole image is refined.
    assert prepare(original, None, models).region.width >= 900


def test_the_model_suits_what_the_region_shows(monkeypatch: pytest.MonkeyPatch):
    models, examples = Models(device="cpu"), Path(__file__).parents[1] / "examples"
    cat, face = (Image.open(examples / f"{name}-256.png").convert("RGB") for name in ("chelsea", "astronaut"))
    for image, scale, chosen in (
        (cat, None, "cats-4x"),
        (cat, 8, "cats-8x"),
        (face, None, "faces-4x"),
        (face, 8, "faces-8x"),
        (face, 16, "faces-16x"),
    ):
        prepared = prepare(image, None, models, RetouchConfig(scale=scale))
        assert prepared.upscaler.about.name == chosen
        assert prepared.summary.endswith(f"%), {chosen}")
    # Of a collage, what the box shows; of the original, not of the edits on it.
    collage, edited = Image.new("RGB", (512, 256)), Image.new("RGB", (512, 256))
    for result, right in ((collage, face), (edited, cat)):
        result.paste(cat, (0, 0))
        result.paste(right, (256, 0))
    assert prepare(collage, None, models, RetouchConfig(box=(256, 0, 256))).upscaler.about.name == "faces-4x"
    assert prepare(edited, collage, models, RetouchConfig(box=(256, 0, 256))).upscaler.about.name == "faces-4x"
    monkeypatch.setattr("gleansr.retouching.refine.most_probable", lambda *_: Category("cats", 0.3))
    assert "unsure" in prepare(collage, None, models).summary
    monkeypatch.setattr("gleansr.retouching.refine.most_probable", lambda *_: Category("cats", 0.01))
    with pytest.raises(RequestError, match="nothing recognised"):
        prepare(collage, None, models)
