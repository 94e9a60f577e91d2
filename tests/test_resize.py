"""resize against MATLAB's algorithm written out with loops; degrade against the data preparation made of that."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gleansr.errors import RequestError
from gleansr.images.resize import degrade, resize


def cubic(x):
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    if x <= 2:
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return 0.0


def slow_line(line, length, scale):
    """imresize on one line, scalar by scalar, with MATLAB's numbering from 1."""
    n = len(line)
    mirrored = [*range(1, n + 1), *range(n, 0, -1)]
    shrink = min(scale, 1.0)
    width = 4 / shrink
    result = []
    for x in range(1, length + 1):
        u = x / scale + 0.5 * (1 - 1 / scale)
        left = math.floor(u - width / 2)
        weights, total = {}, 0.0
        for index in range(left, left + math.ceil(width) + 2):
            weights[index] = shrink * cubic(shrink * (u - index))
            total += weights[index]
        result.append(sum(w / total * line[mirrored[(i - 1) % (2 * n)] - 1] for i, w in weights.items()))
    return result


def slow(image, scale=1.0, size=None):
    """imresize of a float64 HW array."""
    scales = (scale, scale) if size is None else tuple(out / n for out, n in zip(size, image.shape, strict=True))
    size = size or tuple(math.ceil(scale * n) for n in image.shape)
    for factor, axis in sorted(zip(scales, (0, 1), strict=True)):
        image = np.apply_along_axis(slow_line, axis, image, size[axis], factor)
    return image


def img(*shape, seed=0):
    return np.random.default_rng(seed).random(shape)


SIDES = st.integers(1, 23)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.one_of(st.sampled_from([1 / 8, 1 / 16, 0.5, 1.0, 2.0, 1 / 3, 3.7]), st.floats(0.02, 4)))
def test_scale_equals_the_slow_imresize(height, width, scale):
    image = img(height, width)
    expected = slow(image, scale=scale)
    np.testing.assert_allclose(resize(image, scale=scale), expected, rtol=0, atol=1e-12)
    assert np.abs(resize(image.astype(np.float32), scale=scale) - expected).max() < 5e-7


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.tuples(SIDES, SIDES))
def test_size_equals_the_slow_imresize(height, width, size):
    image = img(height, width)
    expected = slow(image, size=size)
    np.testing.assert_allclose(resize(image, size=size), expected, rtol=0, atol=1e-12)
    result = resize(torch.from_numpy(image).float(), size=size)
    assert np.abs(result.numpy() - expected).max() < 5e-7


@pytest.mark.parametrize(
    ("shape", "request_"),
    [
        ((1, 1), {"size": (5, 3)}),
        ((2, 3), {"scale": 1 / 64}),
        ((3, 700), {"size": (2, 1)}),
        ((130, 7), {"scale": 1 / 4}),
        ((45, 2), {"size": (100, 3)}),
        ((5, 4), {"scale": 0.001}),
    ],
)
def test_extremes_equal_the_slow_imresize_in_float32(shape, request_):
    image = img(*shape)
    result = resize(image.astype(np.float32), **request_)
    assert result.dtype == np.float32
    assert np.abs(result - slow(image, **request_)).max() < 5e-7


def test_values_computed_by_hand():
    # Halving takes 4 taps on each side, at 1/4, 3/4, 5/4 and 7/4 of the widened kernel.
    taps = np.array([0.43359375, 0.11328125, -0.03515625, -0.01171875])
    step = np.array([[0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]])
    below = [taps[3:].sum(), taps[1:].sum()]
    expected = [*below, 1 - below[1], 1 - below[0]]
    np.testing.assert_allclose(resize(step, size=(1, 4))[0], expected, rtol=0, atol=1e-15)


def test_kinds_axes_and_dtypes_agree():
    image = img(9, 14, 3).astype(np.float32)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    expected = resize(image, size=(5, 20))
    assert expected.shape == (5, 20, 3)
    assert isinstance(expected, np.ndarray)
    np.testing.assert_array_equal(resize(tensor, size=(5, 20)).permute(1, 2, 0), expected)
    np.testing.assert_array_equal(resize(tensor[None, None], size=(5, 20))[0, 0].permute(1, 2, 0), expected)
    np.testing.assert_array_equal(resize(image[:, :, 1], size=(5, 20)), expected[:, :, 1])
    np.testing.assert_array_equal(resize(image[:, ::-1], size=(5, 20)).shape, expected.shape)
    assert resize(tensor.double(), size=7).shape == (3, 7, 7)
    assert resize(tensor.double(), size=7).dtype == torch.float64
    assert resize(torch.zeros(0, 3, 8, 8), scale=0.5).shape == (0, 3, 4, 4)


def test_read_only_arrays_are_taken_and_left_alone():
    image = img(6, 6)
    image.setflags(write=False)
    result = resize(image, scale=1)
    np.testing.assert_array_equal(result, image)
    assert not np.shares_memory(result, image)


def test_output_sizes_round_up():
    assert resize(torch.zeros(10, 17), scale=1 / 8).shape == (2, 3)
    assert resize(torch.zeros(10, 17), scale=1.01).shape == (11, 18)


@pytest.mark.parametrize("size", [(5, 5), (100, 100), (3, 90)])
def test_properties_of_an_interpolation(size):
    constant = resize(torch.full((37, 41), 0.3, dtype=torch.float64), size=size)
    torch.testing.assert_close(constant, torch.full_like(constant, 0.3), rtol=0, atol=1e-14)
    image = torch.from_numpy(img(40, 40))
    result = resize(image, size=size)
    assert abs(result.mean() - image.mean()) < 0.02
    for axis in (0, 1):
        torch.testing.assert_close(resize(image.flip(axis), size=size), result.flip(axis), rtol=0, atol=1e-13)
    for first in ((size[0], 40), (40, size[1])):  # one axis after the other, in either order
        torch.testing.assert_close(resize(resize(image, size=first), size=size), result, rtol=0, atol=1e-13)


def test_a_batch_equals_its_images_and_blocks_do_not_show():
    images = torch.from_numpy(img(2, 3, 70, 75))
    result = resize(images, scale=0.9)
    for image, expected in zip(images, result, strict=True):
        torch.testing.assert_close(resize(image, scale=0.9), expected, rtol=0, atol=1e-14)
    ramp = resize(torch.arange(100.0, dtype=torch.float64)[None], size=(1, 200))[0, 8:-8]
    torch.testing.assert_close(ramp.diff(), torch.full_like(ramp[1:], 0.5), rtol=0, atol=1e-12)


def test_gradients_flow_also_after_inference_mode():
    size = (9, 3)  # from 4x8: weights that no other test has left in the cache
    with torch.inference_mode():
        resize(torch.rand(4, 8), size=size)
    image = torch.rand(4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resize(x, size=size), (image,))


@pytest.mark.parametrize(
    ("image", "request_", "message"),
    [
        (torch.zeros(4, 4), {}, "scale=None and size=None"),
        (torch.zeros(4, 4), {"scale": 2, "size": 3}, "scale=2 and size=3"),
        (torch.zeros(4, 4), {"scale": 0}, "not 0"),
        (torch.zeros(4, 4), {"scale": -2.0}, "not -2.0"),
        (torch.zeros(4, 4), {"scale": math.nan}, "not nan"),
        (torch.zeros(4, 4), {"scale": math.inf}, "not inf"),
        (torch.zeros(4, 4), {"scale": "2"}, "not '2'"),
        (torch.zeros(4, 4), {"scale": 1e-9}, "1e-06 to 1e"),
        (torch.zeros(4, 4), {"size": 0}, "not 0"),
        (torch.zeros(4, 4), {"size": (3, -1)}, r"not \(3, -1\)"),
        (torch.zeros(4, 4), {"size": (3, 2.5)}, r"not \(3, 2.5\)"),
        (torch.zeros(4, 4), {"size": (3, 3, 3)}, r"not \(3, 3, 3\)"),
        (torch.zeros(4, 4), {"size": True}, "not True"),
        (torch.zeros(4, 4, dtype=torch.uint8), {"scale": 2}, r"image.float\(\) / 255"),
        (torch.zeros(4, 4, dtype=torch.bfloat16), {"scale": 2}, "bfloat16"),
        (torch.zeros(4), {"scale": 2}, r"\(4,\)"),
        (torch.zeros(3, 0, 4), {"scale": 2}, "empty"),
        (torch.tensor([[1.0, math.nan]]), {"scale": 2}, "NaN"),
        (torch.tensor([[1.0, math.inf]]), {"scale": 2}, "infinity"),
        (np.zeros((4, 4), np.uint8), {"scale": 2}, r"astype\('float32'\) / 255"),
        (np.zeros((1, 4, 4, 3)), {"scale": 2}, "HW or HWC"),
        ([[1.0]], {"scale": 2}, "list"),
    ],
)
def test_wrong_requests_are_named(image, request_, message):
    with pytest.raises(RequestError, match=message):
        resize(image, **request_)


def slow_degrade(steps, scale):
    """The data preparation on an HW uint8 array, down to the stored 8-bit values."""
    small = np.clip(slow(steps / 255, scale=1 / scale), 0, 1) * 255
    return np.rint(np.round(small, 9))


def normalised(steps):
    return torch.from_numpy((steps.astype(np.float32) - np.float32(127.5)) / np.float32(127.5))


@pytest.mark.parametrize("scale", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("size", [(32, 40), (19, 33)])
def test_degrade_equals_the_slow_data_preparation_bit_for_bit(scale, size):
    steps = np.random.default_rng(scale).integers(0, 256, (2, 3, *size), dtype=np.uint8)
    result = degrade(normalised(steps), scale)
    expected = np.stack([[slow_degrade(plane, scale) for plane in image] for image in steps])
    assert torch.equal(result, normalised(expected))


@pytest.mark.parametrize("scale", [6, 8, 10, 22])
def test_degrade_rounds_exact_halves_to_even_in_every_form(scale):
    # The edge is in the middle of an output pixel, which becomes (dark + bright) / 2.
    dark = np.arange(0, 254, 2)
    steps = np.zeros((len(dark), 3, 3 * scale, 3 * scale), np.uint8)
    middle = 3 * scale // 2
    steps[..., :middle] = dark[:, None, None, None]
    steps[..., middle:] = 255
    images = normalised(steps)
    expected = normalised(np.rint((dark + 255) / 2))
    for form in (images, images.double(), images.flip(-1), images.mT):
        assert torch.equal(degrade(form, scale)[:, 0, 1, 1].float(), expected)


def edges(left, right, scale=6):
    """Images (N, 3, 3 * scale, 3 * scale), in float64, with an edge in the middle of an output pixel."""
    steps = torch.empty(len(left), 3, 3 * scale, 3 * scale, dtype=torch.float64)
    middle = 3 * scale // 2
    steps[..., :middle] = torch.as_tensor(left, dtype=torch.float64)[:, None, None, None]
    steps[..., middle:] = torch.as_tensor(right, dtype=torch.float64)[:, None, None, None]
    return (steps - 127.5) / 127.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degrade_takes_8_bit_values_exactly_and_leaves_its_input(dtype):
    dark = np.arange(255)  # odd values too: in float32 they are a little off, which must not decide how a half is rounded
    images = edges(dark, dark + 1).to(dtype)
    before = images.clone()
    result = degrade(images, 6)
    assert result.dtype == dtype
    assert torch.equal(result[:, 0, 1, 1].float(), normalised(np.rint(dark + 0.5)))
    assert torch.equal(images, before)


def test_degrade_takes_other_values_as_they_are():
    result = degrade(edges([100.4], [101.3]), 6)  # 100.85, where 100 and 101 would give an exact half
    assert result[0, 0, 1, 1] * 127.5 + 127.5 == 101


def test_the_smallest_scale_is_taken():
    assert resize(torch.zeros(3, 5), scale=1e-6).shape == (1, 1)


def test_degrade_is_clipped_exact_and_independent_of_the_batch():
    steps = np.random.default_rng(0).integers(0, 2, (5, 3, 64, 64), dtype=np.uint8) * 255
    images = normalised(steps)
    result = degrade(images, 2)
    assert result.dtype == torch.float32
    assert result.min() == -1  # black and white noise overshoots on both sides
    assert result.max() == 1
    assert torch.isin(result, normalised(np.arange(256))).all()
    assert all(torch.equal(degrade(image[None], 2)[0], one) for image, one in zip(images, result, strict=True))
    assert torch.equal(degrade(images, 1), images)


@pytest.mark.parametrize("scale", [0, -8, 0.125, True])
def test_degrade_refuses_other_scales(scale):
    with pytest.raises(RequestError, match=str(scale)):
        degrade(torch.zeros(1, 3, 8, 8), scale)


@pytest.mark.parametrize("images", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), np.zeros((1, 3, 8, 8))])
def test_degrade_refuses_other_images(images):
    with pytest.raises(RequestError, match="N, 3, H, W"):
        degrade(images, 8)


@pytest.mark.gpu
def test_the_gpu_gives_the_same_bits_and_values():
    images = normalised(np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8))
    assert torch.equal(degrade(images.cuda(), 8).cpu(), degrade(images, 8))
    torch.testing.assert_close(resize(images.cuda(), scale=0.3).cpu(), resize(images, scale=0.3), rtol=0, atol=1e-7)
