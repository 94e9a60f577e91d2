"""LPIPS against its formula written out position by position, with its real heads on networks of random weights."""

import pytest
import torch
from torch import Tensor

from gleansr.checkpoints.bundled import lpips_heads
from gleansr.errors import RequestError
from gleansr.evaluation.perceptual import LPIPS
from gleansr.models.features import AlexNet, VGG16Stages


@pytest.fixture(scope="module", params=["alex", "vgg"])
def lpips(request: pytest.FixtureRequest) -> LPIPS:
    torch.manual_seed(0)
    return LPIPS(AlexNet() if request.param == "alex" else VGG16Stages()).eval().requires_grad_(False)


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 33, 35, generator=generator) * 2 - 1
    return a, (a + torch.randn(a.shape, generator=generator) * torch.tensor([0.1, 0.5]).view(2, 1, 1, 1)).clamp(-1, 1)


def by_hand(lpips: LPIPS, a: Tensor, b: Tensor) -> float:
    """The distance of two images (3, H, W)."""
    total = 0.0
    heads = lpips_heads(lpips.net)
    for x, y, head in zip(lpips.backbone(a[None]), lpips.backbone(b[None]), heads, strict=True):
        positions = []
        for u, v in zip(x[0].flatten(1).double().T, y[0].flatten(1).double().T, strict=True):
            u, v = u / max(float(u.norm()), 1e-10), v / max(float(v.norm()), 1e-10)
            positions.append(float((head.double() * (u - v) ** 2).sum()))
        total += sum(positions) / len(positions)
    return total


def test_lpips_agrees_with_its_formula(lpips: LPIPS):
    a, b = pair()
    found = lpips(a, b)
    assert found.shape == (2,)
    for i in range(2):
        assert float(found[i]) == pytest.approx(by_hand(lpips, a[i], b[i]), rel=1e-4)
    assert 0 < float(found[0]) < float(found[1])
    assert lpips(a, a).tolist() == [0, 0]
    assert torch.equal(lpips(b, a), found)


def test_the_bundled_heads_are_those_of_version_0_1():
    # The sums of each layer's weights in the files of the package lpips 0.1.4.
    sums = {
        "alex": [2.349532, 16.143027, 39.268439, 27.197178, 20.317177],
        "vgg": [6.925992, 8.858334, 17.515006, 51.521323, 47.034854],
    }
    for net, wanted in sums.items():
        heads = lpips_heads(net)
        assert [len(head) for head in heads] == ([64, 192, 384, 256, 256] if net == "alex" else [64, 128, 256, 512, 512])
        assert all(bool((head >= 0).all()) for head in heads)
        assert [float(head.double().sum()) for head in heads] == pytest.approx(wanted, rel=1e-6)


def test_lpips_needs_images_that_reach_the_last_layer(lpips: LPIPS):
    side = {"alex": 31, "vgg": 16}[lpips.net]
    image = torch.zeros(1, 3, side, side + 5)
    assert float(lpips(image, image)) == 0
    with pytest.raises(RequestError, match=f"lpips_{lpips.net} needs images of at least {side}x{side} pixels, not {side - 1}x{side}"):
        lpips(image[:, :, :, : side - 1], image[:, :, :, : side - 1])
