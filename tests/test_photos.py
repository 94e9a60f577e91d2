"""Whole photographs: from a photo to a photo."""

import importlib.util
import itertools
import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gleansr.errors import ImageError, NoObjectError, RequestError
from gleansr.images.codec import DecodedImage
from gleansr.images.resize import resize
from gleansr.photos import Photo, PhotoConfig, extras, run, upscale_photo
from gleansr.photos.align import Frame, make_frame
from gleansr.photos.background import bicubic_bands
from gleansr.photos.config import MAX_MEGAPIXELS
from gleansr.photos.detect import Detection
from gleansr.photos.paste import Patch, paste
from tests.photo_parts import photo, pixels, smooth, stripes, upscaler


def difference(image: Image.Image, img: DecodedImage, factor: int) -> float:
    """The largest difference from the enlarged photo in 8-bit steps."""
    wanted = resize(img.pixels.double(), scale=factor).clamp(0, 1) * 255
    return float((pixels(image) - wanted).abs().max())


# ------------------------------------------------------------------------------------------------------- the identity


@settings(deadline=None, max_examples=25)
@given(
    boxes=st.lists(st.tuples(st.floats(-20, 50), st.floats(-20, 40), st.floats(21, 70), st.floats(21, 70)), min_size=1, max_size=3),
    factor=st.integers(1, 5),
    scale=st.sampled_from([1, 2, 8]),
    keep=st.sampled_from([None, 0.0, 0.5, 1.0]),
)
def test_a_model_that_adds_nothing_changes_nothing(boxes: Any, factor: int, scale: int, keep: float | None):
    img = photo(43, 58)
    result = run(Photo(upscaler(8, scale), PhotoConfig(tuple(boxes), scale=factor, keep_detail=keep)), img)
    assert result.image.size == (58 * factor, 43 * factor)
    assert difference(result.image, img, factor) <= 1


@settings(deadline=None, max_examples=25)
@given(
    x=st.floats(-5, 60),
    y=st.floats(-5, 50),
    side=st.floats(3, 80),
    angle=st.floats(-180, 180),
    factor=st.integers(1, 4),
    scale=st.sampled_from([1, 8]),
)
def test_rotated_frames_preserve_the_photo_too(x: float, y: float, side: float, angle: float, factor: int, scale: int):
    img = photo(43, 58)
    model = upscaler(8, scale)
    task = Photo(model, PhotoConfig(aligned=True, scale=factor))
    frame = make_frame(x, y, side, angle=angle)
    task._detect = lambda *_: ([Detection((0, 0, 1, 1), frame)], "")  # pyright: ignore[reportAttributeAccessIssue]
    left, top, right, bottom = frame.bounds
    if min(right, 58 - left, bottom, 43 - top) <= 0:
        return
    assert difference(run(task, img).image, img, factor) <= 1


def test_detail_is_added_only_within_the_object():
    img = DecodedImage(torch.full((3, 60, 80), 0.5))
    task = Photo(upscaler(8, 8, stripes), PhotoConfig(((20, 10, 16, 16),), scale=4))
    result = pixels(run(task, img).image)
    touched = (result - 127.5).abs().amax(0) > 1
    rows, columns = touched.nonzero().T
    assert rows.min() >= 40
    assert rows.max() < 104
    assert columns.min() >= 80
    assert columns.max() < 144
    middle = result[0, 60:84, 96:128]
    assert middle.std() == pytest.approx(0.1 * 255, rel=0.1)  # the stripes, as strong as the model made them
    assert middle.mean() == pytest.approx(127.5, abs=1)


def test_the_photo_keeps_its_colours():
    img = photo(40, 40, cell=8)
    shifted = Photo(upscaler(8, 8, lambda sr: sr * 0.7 + 0.2), PhotoConfig(((4, 4, 32, 32),), scale=2, keep_detail=0))
    assert difference(run(shifted, img).image, img, 2) > 2  # contrast below the coarse cells is the model's
    plain = DecodedImage(torch.full((3, 40, 40), 0.4))
    assert difference(run(shifted, plain).image, plain, 2) <= 1


def test_model_detail_replaces_photo_detail_unless_kept():
    """The photo is a checkerboard, invisible to the model, which paints stripes instead."""
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 0.2 + 0.4
    img = DecodedImage(board.expand(3, -1, -1).contiguous())

    def board_left(keep: float) -> float:
        task = Photo(
            upscaler(8, 2, lambda sr: sr + 0.2 * (torch.arange(16) % 2) - 0.1), PhotoConfig(((0, 0, 64, 64),), scale=1, keep_detail=keep)
        )
        middle = pixels(run(task, img).image)[0, 16:48, 16:48] - 127.5
        return float((middle * (board[16:48, 16:48] - 0.5)).mean() / (0.1 * 0.1 * 255))

    assert board_left(0) == pytest.approx(0, abs=0.05)
    assert board_left(0.5) == pytest.approx(0.5, abs=0.05)
    assert board_left(1) == pytest.approx(1, abs=0.05)


def sharp_and_blurred() -> list[DecodedImage]:
    """A photo of 96 x 96 that is sharp at its pixels, and one that was enlarged four times before."""
    noise = photo(96, 96, cell=1).pixels * 0.6 + 0.2
    return [DecodedImage(noise), DecodedImage(resize(resize(noise, scale=1 / 4), scale=4).clamp(0, 1))]


def test_photos_keep_resolved_detail():
    """The model sees 16 x 16 of 64 pixels and makes 128, all of it noise."""
    noise = torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(1)) * 0.4
    task = Photo(upscaler(16, 8, lambda sr: sr + noise), PhotoConfig(((16, 16, 64, 64),), scale=2))
    sharp, blurred = (run(task, img) for img in sharp_and_blurred())
    assert sharp.details["objects"][0]["resolved"] == 64
    assert sharp.notes[1] == "1 of 1 keep detail of the photo that the model does not see"
    assert blurred.details["objects"][0]["resolved"] is None
    assert blurred.notes == ("1 box given",)
    painted = run(Photo(task.upscaler, PhotoConfig(((16, 16, 64, 64),), scale=2, keep_detail=0)), sharp_and_blurred()[1])
    assert painted.image.tobytes() == blurred.image.tobytes()
    # What the sharp photo shows is in the result; the model's detail is in it only beyond that.
    img = sharp_and_blurred()[0]
    replaced = run(Photo(task.upscaler, PhotoConfig(((16, 16, 64, 64),), scale=2, keep_detail=0)), img)
    off = [(resize(pixels(one.image), scale=0.5) / 255 - img.pixels)[:, 32:64, 32:64].std() for one in (sharp, replaced)]
    assert off[0] < 0.5 * off[1]


def test_a_model_that_knows_the_ground_truth_restores_it():
    """The photo is a ground truth shrunk 4x; the model knows the square of the ground truth."""
    gt = smooth(160, 160, cell=3)
    lr = resize(gt, scale=1 / 4).clamp(0, 1)
    model = upscaler(16, 4, lambda _: gt[None, :, 48:112, 48:112] * 2 - 1)
    result = pixels(run(Photo(model, PhotoConfig(((12, 12, 16, 16),))), DecodedImage(lr)).image) / 255
    without = resize(lr, scale=4).clamp(0, 1)
    middle = slice(64, 96), slice(64, 96)
    error = [float((one - gt)[:, *middle].square().mean().sqrt()) for one in (result, without)]
    assert error[0] < 0.15 * error[1]


# ------------------------------------------------------------------------------------------- where frames meet and end


def test_the_order_of_overlapping_boxes_does_not_matter():
    img = photo(60, 60)
    boxes = [(5.0, 5.0, 30.0, 30.0), (20.0, 12.0, 30.0, 30.0), (12.0, 25.0, 30.0, 30.0)]
    results = [
        run(Photo(upscaler(8, 8, stripes), PhotoConfig(tuple(order), scale=2)), img).image.tobytes()
        for order in itertools.permutations(boxes)
    ]
    assert len(set(results)) == 1


def test_overlapping_objects_keep_their_centres():
    img = DecodedImage(torch.full((3, 64, 96), 0.5))
    patches = []
    for x, strength in ((32.0, 0.3), (56.0, -0.3)):
        lr = torch.zeros(3, 8, 8)
        lines = (torch.arange(64) // 4 % 2 * 2 - 1).expand(3, 64, 64) * strength
        patches.append(Patch(make_frame(x, 32, 48), lr, lines))
    alone = [pixels(paste(bicubic_bands(img.pixels, 2), (64, 96), 2, [patch])) for patch in patches]
    both = pixels(paste(bicubic_bands(img.pixels, 2), (64, 96), 2, patches))
    for one, x in zip(alone, (64, 112), strict=True):
        patch = slice(56, 72), slice(x - 8, x + 8)
        assert float((both - one)[:, *patch].abs().max()) <= 3
    assert float(alone[0][0, 56:72, 56:72].std()) > 30


@pytest.mark.parametrize("box", [(-10, -8, 30, 30), (50, 20, 40, 40), (-30, -30, 130, 130), (0, 0, 60, 44), (52, 38, 12, 12)])
def test_frames_across_the_border_are_pasted_up_to_it(box: Any):
    img = photo(44, 60)
    result = run(Photo(upscaler(8, 8, stripes), PhotoConfig((box,), scale=2, keep_detail=0)), img)
    assert result.image.size == (120, 88)
    assert difference(result.image, img, 2) > 5


def test_sides_at_the_border_of_the_photo_do_not_fade():
    img = DecodedImage(torch.full((3, 32, 32), 0.5))
    result = pixels(run(Photo(upscaler(8, 8, stripes), PhotoConfig(aligned=True, scale=2)), img).image)
    assert float(result[0, :, 12:52].std(1).min()) == pytest.approx(0.1 * 255, rel=0.2)  # in the first and last rows too


def test_fifty_boxes():
    boxes = tuple((x * 20.0, y * 24.0, 22.0, 22.0) for x in range(10) for y in range(5))
    img = photo(120, 200)
    result = run(Photo(upscaler(8, 8, stripes), PhotoConfig(boxes, scale=2)), img)
    assert len(result.details["objects"]) == 50
    assert result.notes[0] == "50 boxes given"
    few = run(Photo(upscaler(8, 8, stripes), PhotoConfig(boxes, scale=2, max_objects=7)), img)
    assert few.notes[0] == "50 boxes given, 7 of them enlarged by the model"
    assert len(few.details["objects"]) == 7


def test_models_with_black_bars():
    """Cars: the model's square holds an image of 16 x 12 between black bars of 2 rows."""
    seen = []

    def watch(sr: Any) -> Any:
        seen.append(sr)
        return stripes(sr)

    img = photo(48, 64)
    task = Photo(upscaler(16, 4, watch, content_height=48), PhotoConfig(((8, 6, 32, 24),), scale=2))
    prepared = task.prepare(img)
    assert (prepared.lrs[0][:, [0, 1, -2, -1]] == -1).all()
    assert torch.allclose(prepared.lrs[0][:, 2:-2], resize(img.pixels[:, 6:30, 8:40], size=(12, 16)).clamp(0, 1) * 2 - 1, atol=1e-6)
    assert difference(run(task, img).image, img, 2) > 5
    plain = Photo(upscaler(16, 4, content_height=48), PhotoConfig(((8, 6, 32, 24),), scale=2))
    assert difference(run(plain, img).image, img, 2) <= 1


# ------------------------------------------------------------------------------------------------------- transparency


def test_transparency_is_enlarged_by_bicubic_and_hides_no_colour():
    alpha = smooth(30, 40, channels=1, seed=3, cell=6)
    alpha[:, :, :8] = 0
    img = DecodedImage(photo(30, 40).pixels, alpha)
    result = pixels(run(Photo(upscaler(8, 8, stripes), PhotoConfig(((10, 5, 20, 20),), scale=3)), img).image)
    assert result.shape == (4, 90, 120)
    wanted = resize(alpha, scale=3).clamp(0, 1) * 255
    assert float((result[3:] - wanted).abs().max()) <= 1
    hidden = img.pixels.clone()
    hidden[:, :, :8] = 1
    again = run(Photo(upscaler(8, 8, stripes), PhotoConfig(((10, 5, 20, 20),), scale=3)), DecodedImage(hidden, alpha)).image
    assert torch.equal(pixels(again), result)


def test_the_identity_holds_for_transparent_photos():
    alpha = 0.2 + 0.8 * smooth(30, 40, channels=1, seed=3, cell=6)
    img = DecodedImage(photo(30, 40).pixels, alpha)
    result = pixels(run(Photo(upscaler(8, 8), PhotoConfig(((10, 5, 20, 20),), scale=1)), img).image)
    assert float((result[:3] - img.pixels * 255).abs().max()) <= 1


# -------------------------------------------------------------------------------------------------- options and report


def test_the_report_is_plain_json():
    img = photo(60, 80)
    task = Photo(upscaler(16, 4, stripes, note="looked at"), PhotoConfig(((10, 10, 32, 32), (-4, 30, 20, 16)), scale=2))
    result = run(task, img)
    details = json.loads(json.dumps(result.details))
    assert details["factor"] == 2
    first, second = details["objects"]
    assert first["box"] == [10, 10, 32, 32]
    assert first["scale"] == 2  # 32 pixels of the photo for 16 of the model's input
    assert first["frame"] == [[10, 10], [42, 10], [42, 42], [10, 42]]
    assert (first["angle"], first["landmarks"], first["score"]) == (0, None, None)
    assert 20 < first["consistency_db"] < 60
    assert second["frame"][0] == [-4, 28]
    assert json.loads(json.dumps(task.options))["boxes"] == [[10, 10, 32, 32], [-4, 30, 20, 16]]
    assert result.notes == ("2 boxes given", "1 of 2 keep detail of the photo that the model does not see", "looked at")
    assert (first["resolved"], second["resolved"]) == (32, None)
    silent = run(Photo(upscaler(16, 4), PhotoConfig(((10, 10, 32, 32),), measure_consistency=False)), img)
    assert silent.details["objects"][0]["consistency_db"] is None


def test_back_projected_objects_shrink_to_the_models_input():
    img = photo(60, 80)

    def consistency_db(strength: float) -> float | None:
        config = PhotoConfig(((10, 10, 32, 32),), scale=2, back_project=strength)
        return run(Photo(upscaler(16, 8, lambda sr: stripes(sr) * 0.9), config), img).details["objects"][0]["consistency_db"]

    plain, exact = consistency_db(0), consistency_db(1)
    assert plain is not None
    assert plain < 35
    assert exact is None or exact > 50


def test_the_default_scale_depends_on_the_size_of_the_photo(monkeypatch: pytest.MonkeyPatch):
    model = upscaler(8, 8)
    config = PhotoConfig(((2, 2, 8, 8),))
    small = run(Photo(model, config), photo(20, 30))
    assert small.image.size == (240, 160)
    assert Photo(model, config).factor == 8
    less = run(Photo(model, replace(config, max_megapixels=20 * 30 * 4 / 1e6)), photo(20, 30))
    assert less.image.size == (60, 40)
    assert less.details["factor"] == 2
    assert less.notes[1].startswith("enlarged 2x, as 8x would exceed ")
    smallest = replace(config, max_megapixels=20 * 30 / 1e6)
    assert run(Photo(model, smallest), photo(20, 30)).details["factor"] == 2  # a photo is enlarged by itself
    assert run(Photo(model, PhotoConfig(((2, 2, 8, 8),), scale=3)), photo(20, 30)).image.size == (90, 60)
    monkeypatch.setattr("gleansr.photos.task._MAX_PIXELS", 20 * 30 * 9)
    with pytest.raises(ImageError, match=r"photo: 30x20 pixels enlarged 4x exceed .* megapixels; use --scale 3 or less"):
        Photo(model, PhotoConfig(((2, 2, 8, 8),), scale=4)).prepare(photo(20, 30))
    assert MAX_MEGAPIXELS == 50


def test_notes_tell_of_objects_too_large_or_too_small_for_the_model():
    boxes = ((0, 0, 60, 60), (10, 10, 3, 3), (30, 10, 16, 16))
    notes = run(Photo(upscaler(16, 2), PhotoConfig(boxes, scale=1, keep_detail=0)), photo(60, 60)).notes
    assert notes[1:] == (
        "1 of 3 are larger in the result than the model's 32 pixels and get soft detail",
        "1 of 3 have less than a quarter of the model's 16 pixels: most of their detail is guessed",
    )


def test_a_photo_without_objects_is_enlarged():
    for category, said in (("faces", "0 faces found"), ("cats", "0 cats found")):
        task = Photo(upscaler(8, 4, category=category), PhotoConfig(((0, 0, 8, 8),), scale=2))
        task.config, task._detector = PhotoConfig(scale=2), Nothing()
        result = run(task, photo(20, 30))
        assert result.notes == (said,)
        assert result.details == {"factor": 2, "objects": []}
        assert difference(result.image, photo(20, 30), 2) <= 1
        task.config = PhotoConfig(scale=2, require_object=True)
        with pytest.raises(NoObjectError, match=f"photo: {said}; give --box x,y,w,h, or use --aligned if the whole image is a ") as caught:
            task.prepare(photo(20, 30))
        assert caught.value.exit_code == 3


class Nothing:
    """A detector that finds nothing."""

    def detect(self, *_: Any, **__: Any) -> list[Detection]:
        return []


@pytest.mark.parametrize("box", [(float("nan"), 0, 8, 8), (0, 0, 0, 8), (0, 0, 8, -1), (0, float("inf"), 8, 8), (0, 0, 1e9, 1), (0, 0, 8)])
def test_odd_boxes_are_refused(box: Any):
    with pytest.raises(RequestError, match="a box is left, top, width and height in pixels of the photo"):
        PhotoConfig((box,))


@pytest.mark.parametrize("box", [(-30, 0, 29, 10), (60, 0, 5, 5), (0, 44, 5, 5), (0, -20, 60, 20)])
def test_boxes_outside_of_the_photo_are_refused(box: Any):
    with pytest.raises(RequestError, match=r"photo: the box .* lies outside of the photo's 60x44 pixels"):
        Photo(upscaler(), PhotoConfig((box,))).prepare(photo(44, 60))
    with pytest.raises(RequestError, match="is much larger than the photo's"):
        Photo(upscaler(), PhotoConfig(((-500, -500, 1000, 1000),))).prepare(photo(44, 60))


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0},
        {"scale": 65},
        {"feather": 0.6},
        {"feather": float("nan")},
        {"back_project": 1.1},
        {"keep_detail": -1},
        {"max_objects": 0},
        {"overlap": 4},
    ],
)
def test_options_out_of_range_are_refused(options: Any):
    with pytest.raises(RequestError, match="must be"):
        PhotoConfig(**options)


def test_conflicting_arguments_are_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RequestError, match="use either --aligned or --box"):
        PhotoConfig(((0, 0, 8, 8),), aligned=True)
    with pytest.raises(RequestError, match=r"made is a model of cars, for which there is no detector.*--box x,y,w,h.*--aligned"):
        Photo(upscaler(category="cars"))
    with pytest.raises(RequestError, match="made is a model of an unnamed category"):
        Photo(upscaler(category=None))
    with pytest.raises(RequestError, match="--photo takes a model of objects, with an input size"):
        Photo(upscaler(None, 4, category="faces"))
    with pytest.raises(RequestError, match=r"the background takes a network of any size.*made takes 16 pixels exactly"):
        Photo(upscaler(), PhotoConfig(aligned=True), background=upscaler())


@pytest.mark.parametrize(("category", "needs"), [("faces", "dlib and its networks"), ("cats", "OpenCV, of a version below 5")])
def test_boxes_work_without_the_extra(monkeypatch: pytest.MonkeyPatch, category: str, needs: str):
    for name in ("cv2", "dlib", "face_recognition_models"):
        monkeypatch.setitem(sys.modules, name, None)
    model = upscaler(8, 4, category=category)
    with pytest.raises(RequestError, match=rf"finding {category} needs {needs}: .*`pip install 'gleansr\[photos\]'`.*--box.*--aligned"):
        Photo(model)
    run(Photo(model, PhotoConfig(((0, 0, 8, 8),))), photo(20, 20))
    run(Photo(model, PhotoConfig(aligned=True)), photo(20, 20))
    assert extras.optional_module("dlib") is None


def test_upscale_photo():
    image = Image.fromarray(pixels_of(photo(40, 40)))
    result = upscale_photo(image, upscaler(8, 4, stripes), boxes=((4, 4, 16, 16),), scale=2, keep_detail=0)
    assert result.size == (80, 80)
    assert result.info["gleansr"] == "1 box given"
    assert len(result.info["objects"]) == 1
    with pytest.raises(ImageError, match="the model made NaN or infinite values; try --precision float32"):
        upscale_photo(image, upscaler(8, 4, lambda sr: sr * float("nan")), boxes=((4, 4, 20, 20),), measure_consistency=False)


def pixels_of(img: DecodedImage) -> Any:
    return img.pixels.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()


def test_batching_keeps_the_order_of_objects(monkeypatch: pytest.MonkeyPatch):
    img = photo(64, 64)
    boxes = [(float(x), float(y), 16.0, 16.0) for x in (0, 20, 40) for y in (0, 20, 40)]
    boxes = boxes[::2] + boxes[1::2]
    model = upscaler(8, 8, lambda sr: stripes(sr) * (1 + sr.mean((1, 2, 3), keepdim=True)))
    whole = run(Photo(model, PhotoConfig(tuple(boxes), scale=2)), img)
    monkeypatch.setattr(type(model), "default_batch_size", lambda _: 2)
    parts = run(Photo(model, PhotoConfig(tuple(boxes), scale=2)), img)
    assert parts.image.tobytes() == whole.image.tobytes()
    assert parts.details == whole.details


def test_the_extra_is_not_imported_before_it_is_needed():
    assert importlib.util.find_spec("gleansr.photos")
    assert not {"cv2", "dlib"} & {name for name, module in vars(extras).items() if isinstance(module, type(sys))}


def test_corners_of_a_frame():
    frame = Frame(10, 20, 8, 4, 90)
    assert [tuple(round(v, 6) for v in corner) for corner in frame.corners] == [(12, 16), (12, 24), (8, 24), (8, 16)]


@pytest.mark.parametrize("border", ["repeat", None])
def test_a_model_with_bars_sees_in_photos_what_it_sees_of_whole_images(border: str | None):
    cars = upscaler(16, 4, category="cars", content_height=48, border=border)
    image = photo(12, 16)
    lr = Photo(cars, PhotoConfig(aligned=True)).prepare(image).lrs[0]
    assert torch.equal(lr, cars.fit(image).lr)
    assert bool((lr[:, 0] == lr[:, 2]).all()) == (border == "repeat")
    assert bool((lr[:, 0] == -1).all()) == (border is None)
