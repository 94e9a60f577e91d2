"""What an image shows: `gleansr.classify` and the training of its classifier."""

import io
import itertools
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from skimage import data as skimage_data

import gleansr
from gleansr.checkpoints.native import About
from gleansr.checkpoints.zoo import asset
from gleansr.data.negatives import generate
from gleansr.errors import ImageError, RequestError
from gleansr.images.codec import decode, to_image
from gleansr.images.pixels import to_bytes
from gleansr.inference.categories import Category, category_of
from gleansr.models.categories import NAMES, CategoryHead
from gleansr.models.stylegan2 import StyleGAN2
from gleansr.photos.auto import describe
from gleansr.training.classifier import calibration_error, train_classifier
from gleansr.training.classifier_config import ClassifierConfig
from gleansr.training.classifier_views import small_view, view_of

CAT = Image.fromarray(skimage_data.chelsea()[:, 90:390])
FACE = Image.fromarray(skimage_data.astronaut()[20:200, 136:316])


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _drawn(bank: str, seed: int) -> Image.Image:
    model = cast("StyleGAN2", gleansr.load_model(bank, part="generator"))
    z = torch.randn(1, model.config.code_dim, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return to_image(to_bytes(model(z, truncation=0.7))[0])


@pytest.mark.parametrize(("image", "name"), [(CAT, "cats"), (FACE, "faces")])
@pytest.mark.parametrize(("side", "quality"), [(32, 90), (64, 75), (300, 75)])
def test_recognises_a_photo_at_many_sizes(image: Image.Image, name: str, side: int, quality: int):
    small = image.resize((side, side), Image.Resampling.BICUBIC)
    assert gleansr.classify(small).name == name
    assert gleansr.classify(_jpeg(small, quality)).name == name


@pytest.mark.parametrize("side", [24, 32])
@pytest.mark.parametrize("quality", [50, 75, 90])
def test_recognises_a_small_compressed_face(side: int, quality: int):
    assert gleansr.classify(_jpeg(FACE.resize((side, side), Image.Resampling.BICUBIC), quality)).name == "faces"


@pytest.mark.parametrize(("side", "quality"), [(24, 75), (32, 50), (40, 30), (44, 50)])
def test_a_compressed_cat_is_recognised(side: int, quality: int):
    with Image.open(Path(__file__).parents[1] / "examples/chelsea-256.png") as cat:
        small = _jpeg(cat.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), quality)
    assert gleansr.classify(small).name == "cats"


def test_a_mirrored_image_is_classified_alike():
    small = CAT.resize((30, 30), Image.Resampling.LANCZOS)
    assert gleansr.classify(small).confidence == pytest.approx(gleansr.classify(ImageOps.mirror(small)).confidence, abs=1e-6)


@pytest.mark.parametrize("bank", ["cats-bank", "faces-bank"])
def test_recognises_what_the_bundled_banks_draw(bank: str):
    for seed in range(6):
        assert gleansr.classify(_drawn(bank, seed).resize((32, 32), Image.Resampling.BICUBIC)).name == bank.removesuffix("-bank")


def test_other_photos_are_other():
    """But for the small rocket, whose launch tower passes for a tower."""
    taken: list[str] = []
    for name in ("coffee", "rocket", "page", "coins", "brick", "grass", "gravel", "text", "clock", "moon", "cell", "camera", "logo"):
        whole = Image.fromarray(getattr(skimage_data, name)()).convert("RGB")
        for side in (32, 48, max(whole.size)):
            copy = whole.copy()
            copy.thumbnail((side, side))
            taken += [f"{name} of {side}"] if gleansr.classify(copy).name != "other" else []
    assert set(taken) <= {"rocket of 32", "rocket of 48"}


def test_nearly_all_generated_images_are_other():
    names = [gleansr.classify(generate(seed)).name for seed in range(10_000, 10_060)]
    assert names.count("other") >= 58


def test_no_confidence_is_told_as_certain():
    told = {confidence: Category("cats", confidence).percent for confidence in (0.5, 0.984, 0.994, 0.996, 1.0)}
    assert told == {0.5: "50%", 0.984: "98%", 0.994: "99%", 0.996: ">99%", 1.0: ">99%"}


def test_every_kind_of_input_gives_the_same_category(tmp_path: Path):
    small = CAT.resize((32, 32), Image.Resampling.BICUBIC)
    path = tmp_path / "cat.png"
    small.save(path)
    pixels = np.array(small)
    planes = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    expected = gleansr.classify(small)
    assert isinstance(expected, gleansr.Category)
    assert 0.5 < expected.confidence <= 1
    for image in (path, str(path), path.read_bytes(), pixels, planes, decode(path)):
        assert gleansr.classify(image) == expected


def test_grey_and_transparent_images():
    small = CAT.resize((64, 64), Image.Resampling.BICUBIC)
    assert gleansr.classify(small.convert("L")).name == "cats"
    assert gleansr.classify(small.convert("LA")).name == "cats"
    opaque = small.copy()
    opaque.putalpha(255)
    assert gleansr.classify(opaque) == gleansr.classify(small)
    # Hidden colours have no influence: a fully transparent image is a white one.
    hidden = small.copy()
    hidden.putalpha(0)
    assert gleansr.classify(hidden) == gleansr.classify(Image.new("RGB", (64, 64), "white"))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3, 40), (17, 2000), (2000, 1500), (1999, 2)])
def test_images_of_any_size(size: tuple[int, int]):
    category = gleansr.classify(CAT.resize(size))
    assert category.name in NAMES
    assert 0 <= category.confidence <= 1


def test_the_state_of_torch_has_no_influence():
    small = FACE.resize((32, 32))
    expected = gleansr.classify(small)
    with torch.autocast("cpu"), torch.inference_mode():
        assert gleansr.classify(small) == expected


def test_an_unreadable_file_is_an_image_error(tmp_path: Path):
    path = tmp_path / "note.txt"
    path.write_text("no image")
    with pytest.raises(ImageError, match=r"note\.txt"):
        gleansr.classify(path)


def test_an_unsure_image_is_other():
    probabilities = torch.tensor([0.55, 0.05, 0, 0, 0, 0.4], dtype=torch.float64)
    assert category_of(probabilities, 0.5) == gleansr.Category("faces", 0.55)
    assert category_of(probabilities, 0.6) == gleansr.Category("other", 0.4, "faces")
    assert describe(category_of(probabilities, 0.6)) == "unsure, perhaps a face"
    assert describe(category_of(torch.tensor([0.2, 0.05, 0, 0, 0, 0.75], dtype=torch.float64), 0.5)) == "nothing recognised"


def test_calibration_error_of_known_cases():
    labels = torch.tensor([0] * 3 + [1])
    confident = torch.zeros(4, 6)
    confident[:, 0] = 1.0
    assert calibration_error(confident, labels) == pytest.approx(0.25)
    honest = confident * 0.75
    honest[:, 1] = 0.25
    assert calibration_error(honest, labels) == pytest.approx(0.0, abs=1e-6)


def test_the_bundled_weights_are_small_and_name_their_origin():
    path = asset("categories.safetensors")
    assert path.stat().st_size < 200_000
    with safe_open(path, "pt") as file:
        about = file.metadata()["about"]
    for part in ("CC-BY-NC-4.0", "AFHQ", "Stanford Cars", "Places365", "ImageNet"):
        assert part in about


# --------------------------------------------------------------------------------------------------------------- training


def test_generated_images_depend_on_their_seed_alone():
    for seed in range(30):
        image = generate(seed)
        assert image.mode == "RGB"
        assert min(image.size) >= 38
        assert image.tobytes() == generate(seed).tobytes()


def test_views_are_small_and_depend_on_their_seed_alone():
    for seed, detail in itertools.product(range(20), (False, True)):
        view = view_of(CAT, np.random.default_rng(seed), detail=detail)
        assert view.dtype == torch.uint8
        assert view.shape[0] == 3
        assert max(view.shape) <= 64
        assert torch.equal(view, view_of(CAT, np.random.default_rng(seed), detail=detail))


@pytest.mark.parametrize("size", [8, 16, 24, 32, 64])
@pytest.mark.parametrize("seed", [None, 5])
def test_small_views_have_the_asked_size(size: int, seed: int | None):
    assert max(small_view(CAT, size, seed).shape[1:]) == size
    assert max(small_view(CAT.resize((20, 20)), size, seed).shape[1:]) == min(size, 20)


@pytest.fixture
def coloured_sets(tmp_path: Path) -> dict[str, list[str]]:
    """Sets of images that differ in colour, so that they are told apart at once."""
    rng = np.random.default_rng(0)
    sets = {}
    colours = ((250, 20, 20), (20, 250, 20), (20, 20, 250), (240, 240, 20), (20, 240, 240), (90, 90, 90))
    for name, colour in zip(NAMES, colours, strict=True):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(12):
            noise = rng.normal(0, 20, (40, 40, 3)) + colour
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        sets[name] = [str(folder)]
    return sets


SMALL = ClassifierConfig(views=2, images=12, generated=10, details=0, epochs=30, dropout=0.1)


def test_training_writes_a_classifier(coloured_sets: dict[str, list[str]], tmp_path: Path):
    broken = Path(coloured_sets["cats"][0]) / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    calls: list[tuple[int, int]] = []
    about = About(name="categories", licence="CC0-1.0")
    summary = train_classifier(
        tmp_path / "a.safetensors", coloured_sets, coloured_sets, SMALL, about, lambda done, total: calls.append((done, total))
    )
    assert summary.unreadable
    assert "broken.png" in summary.unreadable[0]
    assert calls[-1][0] <= calls[-1][1]
    assert min(summary.accuracy.values()) > 0.5  # of noise on colours, at 8 to 64 pixels; a guess is right in one of six
    assert sum(summary.accuracy.values()) / len(NAMES) > 0.75
    head = gleansr.load_model(tmp_path / "a.safetensors", part="classifier")
    assert isinstance(head, CategoryHead)
    again = train_classifier(tmp_path / "b.safetensors", coloured_sets, coloured_sets, SMALL, about)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert again.accuracy == summary.accuracy


def test_training_refuses_unknown_and_missing_categories(coloured_sets: dict[str, list[str]], tmp_path: Path):
    with pytest.raises(RequestError, match="'dogs'"):
        train_classifier(tmp_path / "c.safetensors", coloured_sets | {"dogs": ["x"]}, {}, SMALL, About())
    del coloured_sets["towers"]
    with pytest.raises(RequestError, match="no images of towers"):
        train_classifier(tmp_path / "c.safetensors", coloured_sets, {}, SMALL, About())
