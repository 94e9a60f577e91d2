"""Back-projection: results that shrink to their input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import gleansr
from gleansr.errors import RequestError
from gleansr.images.back_projection import back_project, consistency
from gleansr.images.codec import decode
from gleansr.images.resize import degrade, resize
from gleansr.inference.tasks import Enlarge

STEP = 2 / 255


def img(seed: int, size: int) -> torch.Tensor:
    """(1, 3, size, size) in [-1, 1] with structure of all sizes, as images have."""
    generator = torch.Generator().manual_seed(seed)
    layers = [resize(torch.randn(1, 3, side, side, generator=generator), size=size) / side**0.5 for side in (2, 4, 8, 16, 32, size)]
    return torch.tanh(sum(layers, torch.zeros(())))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 3, 4, 8, 16]), st.integers(0, 1000))
def test_the_result_shrinks_to_the_input(scale: int, seed: int):
    lr = degrade(img(seed, 8 * scale), scale)
    guess = resize(img(seed + 1, 4 * scale), size=8 * scale)  # of nothing that is in the input
    result = back_project(lr, guess)
    assert result.abs().max() <= 1
    stored = ((result + 1) * 127.5).round() / 127.5 - 1
    assert (resize(stored, scale=1 / scale) - lr).abs().max() < STEP
    assert consistency(lr, result) > 45
    assert consistency(lr, guess.clamp(-1, 1)) < 25


def test_strength_is_how_much_of_the_difference_goes():
    lr, guess = degrade(img(1, 64), 8), img(2, 64) * 0.5
    before = (resize(guess, scale=1 / 8) - lr).abs().mean()
    for strength in (0.0, 0.3, 1.0):
        left = (resize(back_project(lr, guess, strength=strength), scale=1 / 8) - lr).abs().mean()
        assert left / before == pytest.approx(1 - strength, abs=0.01)
    assert torch.equal(back_project(lr, guess, strength=0), guess)


def test_what_is_consistent_stays_and_detail_is_kept():
    gt = img(3, 64)
    lr = resize(gt, scale=1 / 8).clamp(-1, 1)
    assert torch.equal(back_project(lr, gt), gt)
    fine = gt + 0.2 * (torch.randn(gt.shape, generator=torch.Generator().manual_seed(0)))
    kept = back_project(lr, fine.clamp(-1, 1))
    smooth = kept - resize(resize(kept, scale=1 / 8), size=64)
    assert smooth.std() > 0.9 * (fine.clamp(-1, 1) - resize(resize(fine.clamp(-1, 1), scale=1 / 8), size=64)).std()


def test_an_input_that_no_image_shrinks_to_is_approached():
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1).expand(1, 3, 8, 8)
    result = back_project(board, torch.zeros(1, 3, 64, 64))
    assert result.isfinite().all()
    assert result.abs().max() <= 1
    assert consistency(board, result) > consistency(board, resize(board, scale=8).clamp(-1, 1)) + 1.5


def test_of_images_each_is_its_own():
    lr, guess = degrade(torch.cat([img(seed, 32) for seed in (4, 5)]), 4), torch.zeros(2, 3, 32, 32)
    together = back_project(lr, guess)
    for i in range(2):
        assert (back_project(lr[i], guess[i]) - together[i]).abs().max() < STEP / 2


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_bad_strengths(strength: float, tiny_model: str):
    with pytest.raises(RequestError, match="from 0 to 1"):
        back_project(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8), strength=strength)
    with pytest.raises(RequestError, match="from 0 to 1"):
        Enlarge(gleansr.load(tiny_model), back_projection=strength)
    with pytest.raises(RequestError, match="not a whole multiple"):
        back_project(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 9, 8))


def test_the_upscaler_and_the_task_make_the_same(tiny_model: str):
    upscaler = gleansr.load(tiny_model)
    side = upscaler.input_size or 0
    image = Image.fromarray(np.random.default_rng(0).integers(60, 200, (side, side, 3), np.uint8))
    task = Enlarge(upscaler, back_projection=1.0, measured=True)
    prepared = task.prepare(decode(image))
    srs = upscaler.method(torch.stack(prepared.lrs)).images
    result = prepared.finish(list(srs), [""])
    assert np.array_equal(np.asarray(result.image), np.asarray(upscaler(image, back_projection=1)))
    assert result.details["consistency_db"] is None  # no pixel differs
    assert 5 < float(consistency(prepared.lrs[0][None], srs[0][None])) < 40
    lr = np.asarray(result.image, np.float32)
    assert np.abs(gleansr.resize(lr, size=side) - np.asarray(image)).max() <= 1
    assert np.array_equal(np.asarray(upscaler(image, back_projection=0)), np.asarray(upscaler(image)))
