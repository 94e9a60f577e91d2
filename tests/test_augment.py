"""Adaptive discriminator augmentation, against independent formulas in NumPy and SciPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.signal import upfirdn

from gleansr.errors import CheckpointError, RequestError
from gleansr.training.augment import SYM6, AdaptiveProbability, Augment, Augmentations, recolour, warp

ALL = tuple(Augmentations.__dataclass_fields__)
GEOMETRY, COLOUR = ALL[:7], ALL[7:]


def only(*names: str) -> Augment:
    return Augment(**{name: name in names for name in ALL})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded_for_colour(shape: torch.Size) -> torch.Generator:
    """`seeded()` as it is when `Augment` has drawn the geometry and comes to the colours."""
    generator = seeded()
    Augment().draw_geometry(shape, 1.0, generator)
    return generator


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64) * 2 - 1


def smooth(size: int) -> torch.Tensor:
    """(1, 3, size, size), without symmetry, even across the mirrored borders."""
    y, x = np.mgrid[:size, :size] / (size - 1) * np.pi
    return torch.tensor(np.stack([np.cos(x), np.cos(y), np.cos(x + 1) * np.sin(2 * y) ** 2]))[None]


def slow_warp(image: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """One channel (H, W), mirrored as far as possible, in the same three steps with SciPy."""
    height, width = image.shape
    taps = np.array(SYM6)
    x = np.pad(image, ((height - 1, height - 1), (width - 1, width - 1)), mode="reflect")
    for axis in (0, 1):
        x = upfirdn(taps * np.sqrt(2), x, up=2, axis=axis)
    column, row = np.meshgrid(np.arange(-5, 2 * width + 5) / 2, np.arange(-5, 2 * height + 5) / 2)
    centre = np.array([width - 1, height - 1]) / 2
    position = np.stack([column - centre[0], row - centre[1], np.ones_like(row)]).reshape(3, -1)
    column, row = (inverse @ position + centre[:, None]).reshape(2, *row.shape)
    # The filter's tap 5 lies on the pixel, and the padding has moved pixel 0.
    samples = [2 * (row + height - 1) + 5, 2 * (column + width - 1) + 5]
    y = map_coordinates(x, samples, order=1, mode="grid-constant")
    for axis in (0, 1):
        y = upfirdn(taps[::-1] / np.sqrt(2), y, down=1, axis=axis)
    return y[11:-11:2, 11:-11:2]


def test_filter_reconstructs():
    taps = np.array(SYM6)
    shifts = [taps[2 * k :] @ taps[: len(taps) - 2 * k] for k in range(6)]
    np.testing.assert_allclose(shifts, [1, 0, 0, 0, 0, 0], atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (13, 22)])
def test_warp_equals_the_slow_one(height, width):
    images = noise(3, 2, height, width)
    # Within what mirroring covers: the margins of the fast one have to suffice.
    angle, zoom = torch.tensor([0.3, -1.2, 2.5]).double(), torch.tensor([0.9, 1.0, 1.3]).double()
    shift = torch.tensor([[1.3, -0.4], [0.0, 2.0], [-2.2, 0.7]]).double()
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    inverse = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(3, 2, 3)
    expected = [[slow_warp(c.numpy(), m.numpy()) for c in image] for image, m in zip(images, inverse, strict=True)]
    np.testing.assert_allclose(warp(images, inverse).numpy(), expected, atol=1e-9)


def test_p_0_returns_the_input_and_draws_nothing():
    images, generator = noise(2, 3, 16, 16), seeded()
    before = generator.get_state()
    assert Augment()(images, 0.0, generator) is images
    assert torch.equal(generator.get_state(), before)


def test_identity_is_exact():
    images = noise(2, 3, 9, 14)
    torch.testing.assert_close(warp(images, torch.eye(2, 3).double().expand(2, 2, 3)), images, atol=1e-8, rtol=0)


def test_xflip():
    image = smooth(64)
    out = only("xflip")(image.expand(16, 3, 64, 64), 1.0, seeded())
    flipped = torch.tensor([not torch.equal(img, image[0]) for img in out])
    assert 0 < flipped.sum() < 16
    # Within 0.1 pixel: the filter is not symmetric.
    torch.testing.assert_close(out[flipped], image.flip(3).expand(16, 3, 64, 64)[flipped], atol=0.02, rtol=0)


@pytest.mark.parametrize("size", [64, 65])
def test_rotate90_turns_as_rot90_does(size):
    image = smooth(size)
    turned = torch.stack([torch.rot90(image[0], k, (1, 2)) for k in range(4)])
    out = only("rotate90")(image.expand(16, 3, size, size), 1.0, seeded())
    distance = (out[:, None] - turned).abs().amax((2, 3, 4))  # (16, 4)
    assert distance.amin(1).max() < 0.03  # within 0.1 pixel on each axis
    assert set(distance.argmin(1).tolist()) == {0, 1, 2, 3}


def test_translate_moves_whole_pixels_with_mirrored_borders():
    height, width = 24, 40
    images = noise(8, 3, height, width)
    augment = only("translate")
    inverse = augment.draw_geometry(images.shape, 1.0, seeded())
    out = augment(images, 1.0, seeded())
    shifts = (-inverse[:, :, 2]).int().tolist()
    assert {abs(x) for x, _ in shifts} <= set(range(6))
    assert {abs(y) for _, y in shifts} <= set(range(4))
    assert len({tuple(s) for s in shifts}) > 4
    for img, image, (x, y) in zip(out, images, shifts, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (3, 3), (5, 5)), mode="reflect")
        expected = padded[:, 3 - y : 3 - y + height, 5 - x : 5 - x + width]
        np.testing.assert_allclose(img.numpy(), expected, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "spread"), [("scale", 0.2), ("anisotropic", 0.2), ("rotate", np.pi / np.sqrt(3)), ("fraction", 0.125 * 32)]
)
def test_strengths_of_the_geometry(name, spread):
    """At p = 1 the inverse matrices have the paper's distribution."""
    inverse = only(name).draw_geometry(torch.Size([20_000, 3, 32, 64]), 1.0, seeded())
    linear, shift = inverse[:, :, :2], inverse[:, :, 2]
    if name == "rotate":  # a sum of two uniform angles is uniform on the circle
        drawn = torch.atan2(linear[:, 1, 0], linear[:, 0, 0])
        torch.testing.assert_close(linear @ linear.mT, torch.eye(2).double().expand_as(linear))
    elif name == "fraction":
        drawn = shift[:, 1]
        assert shift[:, 0].std() == pytest.approx(2 * spread, rel=0.03)
    else:
        drawn = linear[:, 0, 0].log2()
        sign = {"scale": 1, "anisotropic": -1}[name]
        torch.testing.assert_close(linear[:, 1, 1].log2(), sign * drawn)
    assert drawn.std() == pytest.approx(spread, rel=0.03)
    assert abs(drawn.mean()) < 0.03 * spread


def test_probability_of_either_rotation_is_p():
    inverse = only("rotate").draw_geometry(torch.Size([20_000, 3, 8, 8]), 0.4, seeded())
    turned = (inverse != torch.eye(2, 3)).flatten(1).any(1).double().mean()
    assert turned == pytest.approx(0.4, abs=0.015)


@pytest.mark.parametrize("name", ALL)
def test_each_change_happens_with_probability_p(name):
    """Counted on the matrices. A flip changes nothing in one case of two, a quarter turn in one of four."""
    shape, p = torch.Size([20_000, 3, 512, 512]), 0.3
    augment = only(name)
    for draw, names in ((augment.draw_geometry, GEOMETRY), (augment.draw_colour, COLOUR)):
        matrices = draw(shape, p, seeded())
        identity = torch.eye(*matrices.shape[1:])
        share = (matrices != identity).flatten(1).any(1).double().mean()
        visible = {"xflip": 0.5, "lumaflip": 0.5, "rotate90": 0.75}.get(name, 1.0) if name in names else 0.0
        assert share == pytest.approx(p * visible, abs=0.015)


def test_unchanged_images_keep_every_bit():
    images = noise(40, 3, 8, 8).float()
    augment = Augment()
    out = augment(images, 0.1, seeded())
    same = torch.tensor([torch.equal(a, b) for a, b in zip(out, images, strict=True)])
    # Twelve chances of 0.1; two show in one case of two and one in three of four.
    assert same.double().mean() == pytest.approx(0.9**9 * 0.95**2 * 0.925, abs=0.12)
    assert torch.equal(out, augment(images, 0.1, seeded()))


def rgb_rotation(angle: float) -> np.ndarray:
    """Rotate about (1, 1, 1): the circulant matrix of three shifted cosines."""
    weights = [(1 + 2 * np.cos(angle + k * 2 * np.pi / 3)) / 3 for k in (0, 1, 2)]
    return np.array([[weights[(j - i) % 3] for j in range(3)] for i in range(3)])


def test_brightness_contrast_and_saturation_against_numpy():
    images = noise(6, 3, 5, 7)
    x = images.numpy()
    luma = x.mean(1, keepdims=True)
    for name in ("brightness", "contrast", "saturation"):
        augment = only(name)
        matrix = augment.draw_colour(images.shape, 1.0, seeded_for_colour(images.shape)).numpy()
        amounts = {"brightness": matrix[:, 0, 3], "contrast": matrix[:, 0, 0], "saturation": 1 - 3 * matrix[:, 0, 1]}
        amount = amounts[name][:, None, None, None]
        expected = {"brightness": x + amount, "contrast": x * amount, "saturation": luma + amount * (x - luma)}
        np.testing.assert_allclose(augment(images, 1.0, seeded()).numpy(), expected[name], atol=1e-12)
        assert len(np.unique(amount)) == 6


@pytest.mark.parametrize(("name", "octaves"), [("contrast", 0.5), ("saturation", 1.0), ("brightness", None)])
def test_strengths_of_the_colours(name, octaves):
    matrix = only(name).draw_colour(torch.Size([20_000, 3, 8, 8]), 1.0, seeded())
    if octaves is None:
        assert matrix[:, 0, 3].std() == pytest.approx(0.2, rel=0.03)
    else:
        factor = matrix[:, 0, 0] - matrix[:, 0, 1]  # of a colour without grey
        assert factor.log2().std() == pytest.approx(octaves, rel=0.03)


def test_lumaflip_negates_the_luma_alone():
    images = noise(16, 3, 5, 7)
    out = only("lumaflip")(images, 1.0, seeded())
    flipped = torch.tensor([not torch.equal(a, b) for a, b in zip(out, images, strict=True)])
    assert 0 < flipped.sum() < 16
    expected = images - 2 * images.mean(1, keepdim=True)
    torch.testing.assert_close(out[flipped], expected[flipped])


def test_hue_rotates_about_grey():
    images = noise(8, 3, 5, 7)
    augment = only("hue")
    matrix = augment.draw_colour(images.shape, 1.0, seeded_for_colour(images.shape)).numpy()
    angles = np.arctan2((matrix[:, 0, 2] - matrix[:, 0, 1]) * np.sqrt(3) / 2, (3 * matrix[:, 0, 0] - 1) / 2)
    out = augment(images, 1.0, seeded())
    for img, image, angle in zip(out.numpy(), images.numpy(), angles, strict=True):
        np.testing.assert_allclose(img, np.einsum("ij,jhw->ihw", rgb_rotation(angle), image), atol=1e-12)
    assert np.ptp(angles) > np.pi  # both ways


def test_colours_are_changed_in_the_papers_order():
    """Brightness, contrast, luma flip, hue, saturation."""
    images = noise(32, 3, 4, 4)
    together = only(*COLOUR)(images, 1.0, seeded())
    # Every switch leaves the number of draws as it is, so that the draws of a single change are those of all together.
    one_by_one = images
    for name in COLOUR:
        one_by_one = recolour(one_by_one, only(name).draw_colour(images.shape, 1.0, seeded_for_colour(images.shape)))
    torch.testing.assert_close(together, one_by_one)


def test_geometry_is_changed_in_the_papers_order():
    shape = torch.Size([32, 3, 40, 40])
    bottom = torch.tensor([[[0.0, 0.0, 1.0]]]).double().expand(32, 1, 3)

    def square(augment: Augment) -> torch.Tensor:
        return torch.cat([augment.draw_geometry(shape, 1.0, seeded()), bottom], dim=1)

    # Inverses multiply in the order of application. The two rotations cannot be told apart by a switch: left out.
    names = [name for name in GEOMETRY if name != "rotate"]
    product = torch.eye(3).double()
    for name in names:
        product = product @ square(only(name))
    torch.testing.assert_close(square(only(*names)), product)


def test_stretching_has_any_direction_in_the_image_and_in_the_result():
    linear = only("rotate", "anisotropic").draw_geometry(torch.Size([100, 3, 8, 8]), 1.0, seeded())[:, :, :2]
    for squared in (linear @ linear.mT, linear.mT @ linear):  # each depends on one of the two rotations
        assert squared[:, 0, 1].abs().median() > 0.05


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 3, 32, 32), (3, 3, 21, 50), (1, 3, 2, 3), (0, 3, 8, 8)])
def test_finite_at_p_1(shape):
    images = noise(*shape).float()
    out = Augment()(images, 1.0, seeded())
    assert out.shape == images.shape
    assert out.isfinite().all()
    assert torch.equal(images, noise(*shape).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_type_is_kept_and_half_precision_computed_in_single(dtype):
    images = noise(4, 3, 48, 48).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = Augment()(images, 0.8, seeded())
    assert out.dtype == dtype
    expected = Augment()(images.double(), 0.8, seeded()).to(dtype)
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=1e-2)


def test_channels_last():
    images = noise(4, 3, 16, 20)
    out = Augment()(images.to(memory_format=torch.channels_last), 0.8, seeded())
    torch.testing.assert_close(out, Augment()(images, 0.8, seeded()))


def test_gradient():
    augment = Augment()
    images = noise(2, 3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, 0.7, seeded(3)), images, fast_mode=True)


def test_r1_at_the_augmented_images():
    """Second derivatives pass the discriminator only."""
    weight = noise(8, 3, 3, 3).requires_grad_()
    fake = Augment()(noise(4, 3, 16, 16), 0.8, seeded()).requires_grad_()
    logits = torch.nn.functional.conv2d(fake, weight).square().sum((1, 2, 3))
    (gradient,) = torch.autograd.grad(logits.sum(), fake, create_graph=True)
    gradient.square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_probability_out_of_range(p):
    with pytest.raises(RequestError, match=r"\[0, 1\]"):
        Augment()(noise(1, 3, 8, 8), p)
    with pytest.raises(RequestError, match=r"\[0, 1\]"):
        AdaptiveProbability(p)


@pytest.mark.parametrize("images", [torch.zeros(1, 1, 8, 8), torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8).byte()])
def test_wrong_images(images):
    with pytest.raises(RequestError, match=r"\(N, 3, H, W\)"):
        Augment()(images, 0.5)


def test_unknown_switch():
    with pytest.raises(TypeError, match="colour"):
        Augment(colour=False)


def fed(adaptive: AdaptiveProbability, *signs: float, images: int) -> float:
    """p after these mean signs, each of a batch of so many images."""
    for sign in signs:
        adaptive.add(torch.tensor(sign), images)
    return adaptive.p


def test_adaptive_probability_moves_and_stays_in_range():
    adaptive = AdaptiveProbability(target=0.5, adjust_images=1000)
    assert fed(adaptive, *4 * [0.2], images=25) == 0.0  # cannot fall below 0
    assert fed(adaptive, *4 * [0.9], images=25) == pytest.approx(0.1)
    assert fed(adaptive, *4 * [0.51], images=75) == pytest.approx(0.4)  # the distance from the target does not matter
    assert fed(adaptive, 0.25, 0.75, 0.5, 0.5, images=75) == pytest.approx(0.4)
    assert fed(adaptive, *4 * [-1.0], images=25) == pytest.approx(0.3)
    assert fed(adaptive, *4 * [1.0], images=5000) == 1.0


def test_adaptive_probability_moves_with_the_mean_of_each_four_batches():
    adaptive = AdaptiveProbability(adjust_images=1000)
    assert [fed(adaptive, 1.0, images=25) for _ in range(9)] == pytest.approx([0, 0, 0, 0.1, 0.1, 0.1, 0.1, 0.2, 0.2])
    assert fed(adaptive, -1.0, 0.9, 0.9, images=25) == pytest.approx(0.1)  # their mean with the ninth is below 0.6


def test_adaptive_probability_resumes_between_two_moves():
    source, target = AdaptiveProbability(0.25, adjust_images=1000), AdaptiveProbability(adjust_images=1000)
    fed(source, -1.0, 0.9, 0.9, images=25)
    target.load_state_dict(source.state_dict())
    assert (target.p, target.batches) == (0.25, 3)
    assert fed(target, 0.9, images=25) == fed(source, 0.9, images=25) == pytest.approx(0.15)
    target.load_state_dict({"p": 0.5})  # as earlier versions saved it
    assert (target.p, target.batches) == (0.5, 0)
    with pytest.raises(CheckpointError, match="probability"):
        target.load_state_dict({"probability": 0.5})
    with pytest.raises(RequestError, match="adjust_images"):
        AdaptiveProbability(adjust_images=0)
