"""Images of any kind: what they show, which models enlarge them, and the size of the results."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import gleansr
from gleansr.errors import ImageError, NoObjectError, RequestError
from gleansr.images.codec import DecodedImage, decode
from gleansr.images.resize import resize
from gleansr.inference import router
from gleansr.inference.categories import Category
from gleansr.inference.tasks import Enlarge
from gleansr.inference.upscaler import Upscaler
from gleansr.jobs import Work, destinations, process, walk
from gleansr.jobs.plan import plan_task
from gleansr.photos import AutoTask, Photo, PhotoConfig, auto, run, search
from gleansr.photos.align import frame_around
from gleansr.photos.detect import Detection
from tests.photo_parts import photo, pixels, smooth, stripes, upscaler


class Shows:
    """Sets what the images of a test show."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.category = "other"
        self.crops = "faces"
        self.boxes: Mapping[str, Sequence[tuple[float, float, float, float]]] = {}
        self.missing: set[str] = set()
        self.models: dict[str, Upscaler] = {"general-4x": upscaler(None, 4, category="any", called="general-4x")}
        for category, sizes in {"faces": (64, 32, 16, 8, 4), "cats": (64, 32, 16)}.items():
            for size in sizes:
                name = f"{category}-{256 // size}x"
                self.models[name] = upscaler(size, 256 // size, stripes, category=category, called=name)
        monkeypatch.setattr(auto, "Models", lambda **_: self.models)
        monkeypatch.setattr(auto, "classify", self.classify)
        monkeypatch.setattr(search, "classify", self.classify)
        for module in (auto, search):
            monkeypatch.setattr(module, "load_detector", self.load_detector)

    def classify(self, image: DecodedImage | Tensor) -> Category:
        return Category(self.category if isinstance(image, DecodedImage) else self.crops, 0.98)

    def load_detector(self, category: str | None, model: str, **_: Any) -> Any:  # noqa: ARG002
        if category in self.missing:
            raise RequestError(f"finding {category} needs an extra")
        return Found(self.boxes.get(category or "", []))


class Found:
    def __init__(self, boxes: Sequence[tuple[float, float, float, float]]):
        self.boxes = boxes

    def detect(self, photo: Tensor, *, min_score: float | None, rotated: bool) -> list[Detection]:  # noqa: ARG002
        height, width = photo.shape[-2:]
        inside = [(x, y, w, h) for x, y, w, h in self.boxes if x + w <= width and y + h <= height]
        return [Detection(box, frame_around(box), 1.0) for box in inside]


@pytest.fixture
def shows(monkeypatch: pytest.MonkeyPatch) -> Shows:
    return Shows(monkeypatch)


def details(task: AutoTask, image: DecodedImage) -> tuple[Image.Image, str, dict[str, Any], tuple[str, ...]]:
    result = run(task, image)
    return result.image, result.summary, dict(result.details), result.notes


@pytest.mark.parametrize(
    ("pixels", "name"),
    [
        (64, "faces-4x"),
        (41, "faces-4x"),
        (40, "faces-8x"),
        (32, "faces-8x"),
        (18, "faces-8x"),
        (16, "faces-16x"),
        (10, "faces-16x"),
        (8, "faces-32x"),
        (4, "faces-64x"),
    ],
)
def test_the_model_with_the_nearest_input_size(pixels: int, name: str):
    model = router.best_model("faces", pixels)
    assert model is not None
    assert model.name == name


def test_the_models_of_a_category():
    assert [model.name for model in router.models_of("cats")] == ["cats-4x", "cats-8x", "cats-16x"]  # neither the light one nor baselines
    assert router.models_of("horses") == ()
    assert router.best_model("horses", 32) is None
    assert router.thumbnail_size() == 2 * max(model.in_size or 0 for model in router.models_of("faces"))


def test_the_fingerprint_changes_with_the_models(monkeypatch: pytest.MonkeyPatch):
    before = router.fingerprint()
    assert router.fingerprint() == before
    monkeypatch.setattr(router, "models_of", lambda _: ())
    assert router.fingerprint() != before


@pytest.mark.parametrize("scale", [None, 1, 2, 3, 8, 20])
@pytest.mark.parametrize("size", [(32, 32), (32, 40), (40, 32), (17, 16), (64, 9), (8, 8), (5, 4), (24, 32), (63, 64)])
def test_a_thumbnail_becomes_exactly_so_many_times_larger(shows: Shows, size: tuple[int, int], scale: int | None):
    for shows.category in ("faces", "cats", "other"):
        task = AutoTask(PhotoConfig(scale=scale))
        image, summary, found, _ = details(task, photo(*size))
        factor = found["factor"]
        assert scale in (None, factor)
        assert image.size == (size[1] * factor, size[0] * factor)
        if shows.category == "other":
            assert summary == "nothing recognised, general-4x"
            assert (factor, found["objects"]) == (scale or 4, [])
        else:
            model = router.best_model(shows.category, max(size))
            assert model is not None
            assert summary == f"{shows.category[:-1]} (98%), {model.name}"
            assert factor == (scale or shows.models[model.name].scale)
            assert found["category"] == {"name": shows.category, "confidence": 0.98}


@pytest.mark.parametrize("size", [(40, 32), (20, 27), (48, 48), (33, 7)])
@pytest.mark.parametrize("scale", [3, 8])
def test_a_thumbnail_of_about_the_models_size_is_resized_around_the_model(shows: Shows, size: tuple[int, int], scale: int):
    """A model that adds nothing reproduces a smooth image in its place."""
    shows.category = "faces"
    for model, size_of in (("faces-4x", 64), ("faces-8x", 32)):
        shows.models[model] = upscaler(size_of, 256 // size_of, category="faces", called=model)
    image = photo(*size, cell=12)
    result = run(AutoTask(PhotoConfig(scale=scale)), image)
    expected = resize(image.pixels, scale=scale).clamp(0, 1) * 255
    assert result.image.size == (scale * size[1], scale * size[0])
    assert (pixels(result.image) - expected).abs().mean() < 2.5


@pytest.mark.parametrize("size", [(32, 32), (20, 32), (32, 31)])
def test_a_thumbnail_of_the_models_size_is_what_the_model_makes(shows: Shows, size: tuple[int, int]):
    shows.category = "faces"
    image = photo(*size)
    assert np.array_equal(np.array(run(AutoTask(), image).image), np.array(shows.models["faces-8x"](image)))
    back = run(AutoTask(PhotoConfig(back_project=1)), image)
    assert np.array_equal(np.array(back.image), np.array(shows.models["faces-8x"](image, back_projection=1)))
    assert (back.details["consistency_db"] or 100) > 40  # None: no difference at all


def test_detail_of_a_larger_thumbnail_comes_from_the_model(shows: Shows):
    shows.category = "faces"
    image = photo(64, 64, cell=16)
    plain = pixels(run(AutoTask(), DecodedImage(image.stored, name="a")).image)
    shows.models["faces-4x"] = upscaler(64, 4, category="faces", called="faces-4x")
    smoothed = pixels(run(AutoTask(), image).image)
    assert (plain - smoothed).abs().mean() > 5


def test_images_too_small_to_recognise_get_the_general_model(shows: Shows):
    shows.category = "faces"
    assert details(AutoTask(), photo(3, 3))[1] == "nothing recognised, general-4x"
    image, summary, _, _ = details(AutoTask(), photo(1, 4))
    assert (image.size, summary) == ((256, 64), "face (98%), faces-64x")


def test_objects_of_a_photo_get_the_models_of_their_sizes(shows: Shows):
    shows.boxes = {"faces": [(10, 10, 20, 20), (50, 10, 80, 80), (140, 10, 140, 140)], "cats": []}
    image, summary, found, notes = details(AutoTask(), photo(200, 300))
    assert image.size == (4 * 300, 4 * 200)
    assert summary == "3 faces, faces-8x, faces-4x, general-4x"
    assert [round(one["scale"], 2) for one in found["objects"]] == [0.62, 1.25]  # pixels of the photo per pixel of the model's input
    assert "1 of 3 enlarged like the rest: more pixels than the models take" in notes


def test_what_a_detector_takes_for_another_category_is_dropped(shows: Shows):
    shows.boxes = {"faces": [(10, 10, 30, 30)], "cats": [(60, 10, 30, 30)]}
    for shows.crops, summary in (
        ("faces", "1 face, faces-8x, general-4x"),
        ("cats", "1 cat, cats-8x, general-4x"),
        ("other", "no face or cat found, general-4x"),
    ):
        assert details(AutoTask(), photo(140, 120))[1] == summary


def test_pixels_beside_the_objects_are_those_of_the_general_model(shows: Shows):
    shows.boxes = {"faces": [(10, 10, 30, 30)]}
    image = photo(100, 120)
    result, general = (pixels(run(AutoTask(), image).image), pixels(shows.models["general-4x"](image)))
    assert (result[:, :, 160:] - general[:, :, 160:]).abs().max() <= 1
    assert (result[:, 60:140, 60:140] - general[:, 60:140, 60:140]).abs().mean() > 2


def test_a_head_that_does_not_fill_a_thumbnail_is_sought(shows: Shows):
    """A portrait with shoulders is no bedroom, though the classifier takes some for one."""
    shows.boxes = {"faces": [(14, 6, 24, 24)]}
    for shows.category in ("faces", "bedrooms", "other"):
        image, summary, found, notes = details(AutoTask(), photo(48, 48))
        assert (image.size, summary, notes) == ((192, 192), "1 face, faces-8x, general-4x", ())
        assert (len(found["objects"]), found["category"]) == (1, None)
    shows.crops = "other"  # a mistake of the detector
    assert details(AutoTask(), photo(48, 48))[1] == "nothing recognised, general-4x"


@pytest.mark.parametrize(("side", "whole"), [(37, True), (34, False)])
def test_a_head_that_fills_a_thumbnail_is_enlarged_as_a_whole(shows: Shows, side: int, whole: bool):
    shows.category, shows.boxes = "faces", {"faces": [(4, 4, side, side)]}
    assert details(AutoTask(), photo(48, 64))[1] == ("face (98%), faces-4x" if whole else "1 face, faces-8x, general-4x")
    shows.boxes = {"faces": [(4, 4, side, side), (41, 10, 20, 20)]}
    assert details(AutoTask(), photo(48, 64))[1] == "2 faces, faces-8x, general-4x"
    assert details(AutoTask(PhotoConfig(aligned=True)), photo(48, 64))[1] == "face (98%), faces-4x"


def test_a_thumbnail_with_more_pixels_than_the_models_of_its_category_take_is_a_larger_image(shows: Shows, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auto, "thumbnail_size", lambda: 128)
    shows.models["cars-8x"] = upscaler(32, 8, category="cars", called="cars-8x")
    shows.category = "cars"
    assert details(AutoTask(), photo(64, 64))[1] == "car (98%), cars-8x"
    assert details(AutoTask(), photo(65, 64))[1] == "no face or cat found, general-4x"
    assert details(AutoTask(PhotoConfig(aligned=True)), photo(65, 64))[1] == "car (98%), cars-8x"


def test_compression_is_removed_from_a_thumbnail_whose_own_detail_is_kept(shows: Shows):
    shows.category = "faces"
    cleaned: list[tuple[int, ...]] = []

    def record(sr: Tensor) -> Tensor:
        cleaned.append(tuple(sr.shape))
        return sr

    shows.models["general-4x"] = upscaler(None, 4, record, category="any", called="general-4x")
    for quality, size, removed in ((60, 110, True), (95, 110, False), (60, 80, False), (None, 110, False)):
        cleaned.clear()
        image = DecodedImage(photo(size, size).stored, jpeg_quality=quality)
        _, summary, _, notes = details(AutoTask(), image)
        assert summary == "face (98%), faces-4x"
        assert cleaned == ([(1, 3, 4 * size, 4 * size)] if removed else [])
        assert ("compression removed first, by the general model" in notes) == removed


def test_no_heads_are_sought_in_a_recognised_cat_or_for_a_given_model(shows: Shows):
    shows.category, shows.boxes, shows.crops = "cats", {"cats": [(4, 4, 20, 20)]}, "cats"
    task = AutoTask()
    assert details(task, photo(48, 48))[1] == "cat (98%), cats-4x"
    assert "detectors" not in vars(task)  # not even loaded
    assert details(AutoTask(model=shows.models["cats-8x"]), photo(48, 48))[1] == "cats-8x"
    shows.category = "cars"
    assert details(AutoTask(), photo(48, 48))[1] == "1 cat, cats-8x, general-4x"


def test_missing_detectors_are_noted_for_a_thumbnail_that_is_not_recognised(shows: Shows):
    shows.missing = {"faces", "cats"}
    task = AutoTask()
    shows.category = "faces"
    assert details(task, photo(48, 48))[3] == ()
    shows.category = "other"
    assert details(task, photo(48, 48))[3] == ("faces and cats are not looked for: pip install 'gleansr[photos]' adds that",)


def test_without_a_detector_a_portrait_is_not_taken_for_something_else(shows: Shows):
    shows.missing, shows.category = {"faces"}, "cars"
    shows.models["cars-8x"] = upscaler(32, 8, category="cars", called="cars-8x")
    assert details(AutoTask(), photo(48, 48))[1] == "nothing recognised, general-4x"  # its inner parts are faces
    shows.crops = "other"
    assert details(AutoTask(), photo(48, 48))[1] == "car (98%), cars-8x"


def test_a_required_object(shows: Shows):
    with pytest.raises(NoObjectError, match="no face or cat found; give --box"):
        run(AutoTask(PhotoConfig(require_object=True)), photo(140, 140))
    shows.boxes = {"cats": [(10, 10, 30, 30)]}
    shows.crops = "cats"
    run(AutoTask(PhotoConfig(require_object=True)), photo(140, 140))


def test_missing_detectors_are_noted_once(shows: Shows):
    shows.missing = {"faces"}
    task = AutoTask()
    task.scale_of(Image.new("RGB", (48, 48)))  # for the name of the result, before there is one
    first, second = (details(task, photo(140, 140)) for _ in range(2))
    assert first[1] == second[1] == "no cat found, general-4x"
    assert first[3] == ("faces are not looked for: pip install 'gleansr[photos]' adds that",)
    assert second[3] == ()
    shows.missing = {"faces", "cats"}
    assert details(AutoTask(), photo(140, 140))[1] == "general-4x"


def test_boxes_and_aligned_images_are_recognised_at_any_size(shows: Shows):
    _, summary, found, _ = details(AutoTask(PhotoConfig(boxes=((10, 10, 30, 30), (80, 20, 12, 12)))), photo(150, 150))
    assert summary == "2 boxes given, faces-8x, faces-16x, general-4x"
    assert len(found["objects"]) == 2
    shows.category = "cats"
    image, summary, _, _ = details(AutoTask(PhotoConfig(aligned=True, scale=2)), photo(150, 150))
    assert (image.size, summary) == ((300, 300), "cat (98%), cats-4x")
    with pytest.raises(RequestError, match="the box 500,0,10,10 lies outside of the photo's 150x150 pixels"):
        run(AutoTask(PhotoConfig(boxes=((500, 0, 10, 10),))), photo(150, 150))


def test_a_given_model_enlarges_thumbnails_and_what_its_detector_finds(shows: Shows):
    task = AutoTask(model=shows.models["faces-8x"])
    shows.category = "cats"
    assert details(task, photo(40, 40))[:2] == (details(task, photo(40, 40))[0], "faces-8x")
    assert details(task, photo(40, 40))[0].size == (320, 320)
    shows.boxes = {"faces": [(10, 10, 30, 30)], "cats": [(60, 10, 30, 30)]}
    image, summary, _, _ = details(AutoTask(model=shows.models["faces-8x"]), photo(100, 120))
    assert (image.size, summary) == ((480, 400), "1 face, faces-8x, general-4x")


def test_a_given_model_without_a_detector_enlarges_the_whole_image(shows: Shows):
    cars = upscaler(32, 8, stripes, category="cars", content_height=192)
    image, summary, found, _ = details(AutoTask(model=cars), photo(90, 120))
    assert (image.size, summary) == ((960, 720), "made")
    assert found["objects"][0]["frame"] == [[0, 0], [120, 0], [120, 90], [0, 90]]
    assert AutoTask(model=cars).common_scale == 8
    assert AutoTask(model=shows.models["faces-8x"]).common_scale is None


def test_a_given_model_of_any_size_enlarges_everything(shows: Shows):
    shows.boxes = {"faces": [(10, 10, 30, 30)]}
    shows.category = "faces"
    plain = upscaler(None, 2, category="any")
    for size in ((32, 32), (100, 130)):
        image, summary, found, _ = details(AutoTask(model=plain), photo(*size))
        assert (image.size, summary, found["objects"]) == ((2 * size[1], 2 * size[0]), "made", [])
    assert details(AutoTask(PhotoConfig(scale=5), model=plain), photo(20, 30))[0].size == (150, 100)
    with pytest.raises(RequestError, match="takes images of any size: it needs no box"):
        AutoTask(PhotoConfig(aligned=True), model=plain)


@pytest.mark.parametrize("size", [(700, 3), (3, 700), (2000, 3), (1000, 1), (1200, 14), (400, 30)])
def test_very_narrow_images_have_no_heads(size: tuple[int, int]):
    """OpenCV crashed on some, and a strip that is rotated takes seconds."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    result = gleansr.upscale(pixels, scale=2, device="cpu")
    assert result.size == (2 * size[0], 2 * size[1])


def test_a_large_image_in_tiles_is_the_same_as_in_one_pass(shows: Shows, monkeypatch: pytest.MonkeyPatch):
    image = photo(90, 120, cell=7)
    whole = pixels(run(AutoTask(), image).image)
    monkeypatch.setattr(auto, "_WHOLE", 1)
    assert (pixels(run(AutoTask(), image).image) - whole).abs().max() <= 1


@pytest.mark.parametrize("size", [(32, 32), (40, 32), (120, 100)])
def test_grey_stays_grey_and_alpha_stays(shows: Shows, size: tuple[int, int]):
    shows.category, shows.boxes = "faces", {"faces": [(10, 10, 30, 30)]}
    shows.models["faces-8x"] = upscaler(32, 8, lambda sr: stripes(sr) * torch.tensor([1.0, 0.8, 0.6])[:, None, None], category="faces")
    values = (smooth(*size, channels=1)[0].numpy() * 255).astype(np.uint8)
    grey = np.array(run(AutoTask(), decode(Image.fromarray(values))).image)
    assert (grey == grey[..., :1]).all()
    transparent = Image.fromarray(np.dstack([values] * 3 + [values]), "RGBA")
    result = run(AutoTask(), decode(transparent)).image
    assert result.mode == "RGBA"
    small = np.array(result.resize((size[1], size[0]), Image.Resampling.BOX))[..., 3].astype(int)
    assert np.abs(small - values).mean() < 3


def test_the_scale_of_an_image_is_known_before_it_is_enlarged(shows: Shows, tmp_path: Path):
    path = tmp_path / "a.png"
    for shows.category, size in (("faces", (40, 32)), ("faces", (16, 16)), ("other", (32, 32)), ("faces", (100, 80))):
        Image.new("RGB", size).save(path)
        scale = AutoTask().scale_of(path)
        assert run(AutoTask(), decode(path)).image.size == (scale * size[0], scale * size[1])
    Image.new("RGB", (5000, 4000)).save(path)
    assert AutoTask().scale_of(path) == 2
    Image.new("RGB", (3000, 2000)).save(path)
    assert AutoTask().scale_of(path) == 2
    assert AutoTask(PhotoConfig(scale=4)).scale_of(path) == 4
    cars = upscaler(32, 8, stripes, category="cars", content_height=192)  # whose images are enlarged as a whole, whatever their size
    for task in (AutoTask(model=shows.models["faces-8x"]), AutoTask(model=cars), AutoTask(PhotoConfig(max_megapixels=0.1), model=cars)):
        for size in ((32, 32), (90, 120)):
            assert run(task, photo(*size)).details["factor"] == task.scale_by_size(size, "a")
    with pytest.raises(ImageError, match="nothing"):
        AutoTask().scale_of(tmp_path / "nothing.png")


def test_a_run_over_images_of_all_kinds(shows: Shows, tmp_path: Path):
    shows.category, shows.boxes = "faces", {"faces": [(10, 10, 30, 30), (60, 60, 12, 12)]}
    folder = tmp_path / "in"
    folder.mkdir()
    for number, size in enumerate([(32, 32), (16, 16), (40, 40), (120, 100), (32, 32)]):
        values = photo(*size, seed=number).pixels.mul(255).round().to(torch.uint8).permute(1, 2, 0)
        Image.fromarray(values.numpy()).save(folder / f"{number}.png")
    work = Work(AutoTask(), 2)
    [place] = destinations([folder], tmp_path / "out", "")
    jobs = list(walk(place))
    results = {result.job.target_key: result for result in process(jobs, work)}  # pyright: ignore[reportArgumentType]
    for number in range(5):
        result = results[f"{number}.png"]
        alone = run(AutoTask(), decode(folder / f"{number}.png"))
        assert np.array_equal(np.array(Image.open(tmp_path / "out" / f"{number}.png")), np.array(alone.image))
        assert result.entry["model"] == ", ".join(alone.models)
    assert results["0.png"].summary == "32\N{MULTIPLICATION SIGN}32 → 256\N{MULTIPLICATION SIGN}256, face (98%), faces-8x"
    assert results["3.png"].entry["model"] == "faces-8x, faces-16x, general-4x"
    assert results["3.png"].entry["details"]["factor"] == 4


def test_the_task_travels_without_its_models(shows: Shows, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auto, "Models", router.Models)
    task = AutoTask(PhotoConfig(scale=2), device="cpu")
    _ = task.upscaler  # loads the general model
    data = pickle.dumps(task)
    assert len(data) < 10_000
    assert pickle.loads(data).options == task.options
    del shows


def test_a_task_moves_to_another_device_as_it_is(shows: Shows):
    faces, plain, boxes = shows.models["faces-8x"], upscaler(None, 2), PhotoConfig(boxes=((5, 5, 20, 20),))
    known = {"made": [Detection((5, 5, 20, 20), frame_around((5, 5, 20, 20)), 1.0)]}
    photos = Photo(faces, background=plain, detections=known), Photo(faces, boxes)
    models = router.Models(device="cpu")
    automatic = AutoTask(boxes, models=models, model=faces, background=plain), AutoTask(models=models, model=plain)
    for task in (Enlarge(faces, "pad"), *photos, *automatic):
        moved = task.moved("cpu", lambda one: Upscaler(one.method, one.about))
        assert (type(moved), moved.options) == (type(task), task.options)
        assert moved.upscaler is not task.upscaler
        assert (pixels(run(moved, photo(40, 40)).image) == pixels(run(task, photo(40, 40)).image)).all()


def test_names_of_results_have_the_scale_of_their_image(shows: Shows, tmp_path: Path):
    shows.category = "faces"
    for name, size in (("a.png", (32, 32)), ("b.png", (16, 16)), ("c.png", (100, 100))):
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "bad.png").write_text("x")
    plan = plan_task(None)
    names = ("a.png", "b.png", "c.png", "bad.png")
    found = destinations([tmp_path / name for name in names], None, plan.suffix(None))
    jobs = [job for place in found for job in walk(place)]
    targets = {Path(job.source).name: Path(job.target).name for job in jobs}  # pyright: ignore[reportAttributeAccessIssue]
    assert targets == {"a.png": "a_8x.png", "b.png": "b_16x.png", "c.png": "c_4x.png", "bad.png": "bad_4x.png"}
    [place] = destinations([tmp_path], None, plan.suffix(None))
    assert place.root.name == f"{tmp_path.name}_upscaled"
    assert plan.suffix(3) == "_3x"


def test_an_explicit_fit_needs_a_model_and_makes_nothing_smaller(shows: Shows):
    with pytest.raises(RequestError, match="--fit is for one model"):
        plan_task(None, fit="crop")
    task = plan_task(shows.models["faces-8x"], fit="crop").task
    assert task.prepare(photo(256, 200)).lrs[0].shape == (3, 32, 32)
    with pytest.raises(ImageError, match="300x200 is larger than what faces-8x makes, 256x256"):
        task.prepare(photo(200, 300))


def test_gleansr_upscale(shows: Shows, tmp_path: Path):
    import gleansr

    shows.category = "faces"
    Image.new("RGB", (40, 32), "orange").save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), Image.open(tmp_path / "a.png"), torch.rand(3, 32, 40)):
        image = gleansr.upscale(source)
        assert image.size == (320, 256)
        assert image.info["gleansr"] == "face (98%), faces-8x"
    assert gleansr.upscale(tmp_path / "a.png", scale=3).size == (120, 96)
    assert gleansr.upscale(tmp_path / "a.png", model=shows.models["cats-8x"]).info["gleansr"] == "cats-8x"
    with pytest.raises(RequestError, match="scale must be 1 to 64"):
        gleansr.upscale(tmp_path / "a.png", scale=0)
    with pytest.raises(ImageError):
        gleansr.upscale(b"no image")


def test_models_are_loaded_once():
    models = router.Models(device="cpu")
    assert models["general-4x"] is models["general-4x"]
    assert pickle.loads(pickle.dumps(models)).device == "cpu"
    with pytest.raises(RequestError, match="did you mean"):
        models["general-4"]
