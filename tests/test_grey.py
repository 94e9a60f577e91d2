"""A grey image stays grey, whatever model of colour it goes through."""

import dataclasses
import io

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import gleansr
from gleansr.images.codec import DecodedImage, decode, neutral
from gleansr.inference.tasks import Enlarge
from gleansr.inference.upscaler import Upscaler
from gleansr.retouching.refine import retouch
from tests.photo_parts import upscaler


@pytest.fixture(scope="module")
def model() -> Upscaler:
    return gleansr.load("cats-8x-light", device="cpu")


def cat(size):
    """A grey cat, mode L."""
    return Image.fromarray(skimage.data.chelsea()).convert("L").crop((100, 20, 380, 300)).resize((size, size), Image.Resampling.LANCZOS)


def chroma(image):
    """The largest difference between red, green and blue."""
    return int(np.ptp(np.asarray(image)[..., :3].astype(int), axis=-1).max())


def forms(image):
    """Grey in all the ways that it comes."""
    clear = image.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    hidden = np.array(clear)
    hidden[0, :, :] = (255, 0, 0, 0)  # not to be seen
    png = io.BytesIO()
    image.convert("RGB").convert("P").save(png, "PNG")
    deep = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    return {"L": image, "RGB": image.convert("RGB"), "RGBA": clear, "hidden colour": hidden, "file": png.getvalue(), "16 bits": deep}


@pytest.mark.parametrize("form", forms(Image.new("L", (4, 4))))
def test_a_grey_image_is_upscaled_to_grey(form, model):
    lr = cat(32)
    result = model(forms(lr)[form])
    assert result.size == (256, 256)
    assert chroma(result) == 0
    shrunk = np.asarray(result.convert("RGB").resize((32, 32), Image.Resampling.BOX), float)[..., 0]
    if form in ("L", "RGB", "16 bits"):
        assert np.abs(shrunk - np.asarray(lr, float)).mean() < 8  # it is the cat still


def test_the_model_tints_grey_and_colour_stays(model):
    lr = cat(32)
    image = decode(lr)
    assert image.grey
    fitted = model.fit(image)
    tinted = model.finish(dataclasses.replace(fitted, grey=False), model.runner([fitted.lr]).images[0])
    assert chroma(tinted) > 0  # otherwise this file tests nothing
    colour = np.asarray(lr.convert("RGB")).copy()
    colour[3, 4] = (90, 91, 90)
    assert not decode(colour).grey
    assert chroma(model(colour)) > 0


def test_every_size_every_task_and_back_projection_keep_grey(model):
    image = cat(70).resize((50, 70))
    assert chroma(model(image)) == 0
    assert chroma(model(image, back_projection=1.0)) == 0
    task = Enlarge(model, back_projection=0.5, measured=True)
    prepared = task.prepare(decode(image))
    result = prepared.finish(model.runner(prepared.lrs).images, [""])
    assert chroma(result.image) == 0


def test_a_grey_photo_stays_grey(model):
    pytest.importorskip("cv2")
    from gleansr.photos import upscale_photo

    photo = cat(160)
    result = upscale_photo(photo, model, boxes=((40.0, 40.0, 64.0, 64.0),), scale=2, keep_detail=0.0)
    assert result.size == (320, 320)
    assert chroma(result) == 0
    tinting = upscaler(None, 2, lambda sr: sr * torch.tensor([1, 0.9, 0.8])[:, None, None])
    result = upscale_photo(photo, model, background=tinting, boxes=((40.0, 40.0, 64.0, 64.0),), scale=2)
    assert chroma(result) == 0


def test_a_grey_retouch_stays_grey_and_a_coloured_one_does_not(model):
    original = cat(256).convert("RGB")
    edited = np.asarray(original).copy()
    edited[100:150, 80:160] = 200
    result = retouch(edited, original, model=model)
    assert chroma(result) == 0
    assert (np.asarray(result) != np.asarray(original)).any()
    edited[100:150, 80:160] = (200, 100, 100)
    assert chroma(retouch(edited, original, model=model)) > 0


def test_neutral_keeps_what_is_grey_and_its_alpha_and_info():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.dstack([values] * 3 + [values[::-1]]))
    image.info["gleansr"] = "said"
    same = neutral(image)
    np.testing.assert_array_equal(np.asarray(same), np.asarray(image))
    assert same.info == {"gleansr": "said"}


def test_grey_is_told_from_colour_by_a_single_pixel():
    planes = torch.full((3, 70, 50), 0.5)
    assert DecodedImage(planes).grey
    planes[1, 69, 48] = 0.51
    assert not DecodedImage(planes).grey
    alpha = torch.ones(1, 70, 50)
    alpha[0, 69, 48] = 0
    assert DecodedImage(planes, alpha).grey
