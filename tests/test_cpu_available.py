"""The fast CPU path is used only where PyTorch's private operators compute what they should."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gleansr
from gleansr.inference import cpu
from gleansr.inference.cpu import fused
from gleansr.inference.runner import FeedForwardModel, enlarge

pytestmark = pytest.mark.skipif(torch.float32 not in fused._FUSED, reason="PyTorch was built without oneDNN")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    cpu.available.cache_clear()
    yield
    cpu.available.cache_clear()


def network(path: Path) -> FeedForwardModel:
    method = gleansr.load(path, device="cpu", precision="float32").method
    assert isinstance(method, FeedForwardModel)
    return method


def test_the_operators_of_this_version_are_used(tiny_model: Path):
    for dtype in (torch.float32, torch.bfloat16):
        assert cpu.available(dtype)
    assert network(tiny_model)._frozen


def raises(*_: Any) -> Any:
    raise TypeError("_op() takes 9 positional arguments but 10 were given")


def wrong_values(*args: Any) -> Any:
    x = next(arg for arg in args if isinstance(arg, torch.Tensor))
    return torch.zeros(*x.shape[:-3], 8, *x.shape[-2:]) if x.shape[-3:-2] != (8,) else torch.zeros_like(x)


@pytest.mark.parametrize("broken", [raises, wrong_values, lambda *_: None], ids=["raises", "wrong values", "returns nothing"])
@pytest.mark.parametrize("name", ["_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight", "_linear_pointwise"])
def test_a_broken_operator_means_the_plain_network(
    name: str, broken: Callable[..., Any], tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    replacement = SimpleNamespace(binary=broken) if name == "_convolution_pointwise_" else broken
    monkeypatch.setattr(torch.ops.mkldnn, name, replacement)
    lr = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    with caplog.at_level(logging.WARNING, "gleansr"):
        methods = [network(tiny_model) for _ in range(2)]
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["the fast CPU path is off"]
    for method in methods:
        assert method._frozen is None
        with torch.inference_mode():
            expected = enlarge(gleansr.load_model(tiny_model), lr)  # type: ignore[arg-type]
        assert torch.allclose(method(lr).images, expected, atol=1e-6)
