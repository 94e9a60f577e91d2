"""Winograd's convolution: that of PyTorch, and frozen networks with it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gleansr.inference.cpu import fused, winograd
from gleansr.inference.cpu.fused import FusedConv, concat_convolution, convolution
from gleansr.inference.cpu.winograd import WinogradConv, pays, ready, transformed


@pytest.fixture(params=[0, 50, 5000], ids=["two rows", "few rows", "whole"])
def strips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Maps are made in strips of that many values."""
    monkeypatch.setattr(winograd, "_VALUES", request.param)


def weight_and_bias(n_out: int, n_in: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(n_out, n_in, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last), torch.randn(n_out, dtype=dtype)


@pytest.mark.usefixtures("strips")
@pytest.mark.parametrize(("n", "height", "width"), [(1, 8, 8), (1, 7, 6), (1, 1, 2), (3, 4, 10), (2, 5, 4)])
@pytest.mark.parametrize("slope", [None, 0.2])
def test_it_is_the_convolution(n: int, height: int, width: int, slope: float | None):
    weight, bias = weight_and_bias(5, 4)
    x = torch.randn(n, 4, height, width, dtype=torch.float64)
    expected = F.conv2d(x, weight, bias, padding=1)
    expected = expected if slope is None else F.leaky_relu(expected, slope)
    for layout in (torch.channels_last, torch.contiguous_format):
        found = WinogradConv.of(weight, bias, torch.float64, slope)(x.contiguous(memory_format=layout))
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(WinogradConv.of(weight, None, torch.float64)(x), F.conv2d(x, weight, padding=1))


@pytest.mark.usefixtures("strips")
def test_maps_side_by_side_need_not_be_laid_so():
    weight, bias = weight_and_bias(3, 7)
    x, y = torch.randn(1, 5, 6, 6, dtype=torch.float64), torch.randn(1, 2, 6, 6, dtype=torch.float64)
    expected = F.conv2d(torch.cat([x, y], 1), weight, bias, padding=1)
    torch.testing.assert_close(WinogradConv.of(weight, bias, torch.float64)(x, y), expected)
    torch.testing.assert_close(FusedConv(weight, bias)(x, y), expected)


def test_a_strip_of_a_map_is_left_as_it_is():
    """What it reads may be a part of a larger map."""
    weight, bias = weight_and_bias(4, 4)
    whole = torch.randn(1, 4, 12, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    before = whole.clone()
    torch.testing.assert_close(
        WinogradConv.of(weight, bias, torch.float64)(whole[:, :, 3:8]), F.conv2d(whole[:, :, 3:8], weight, bias, padding=1)
    )
    assert torch.equal(whole, before)


def test_its_weights_are_transformed_once_where_asked_for():
    weight, bias = weight_and_bias(4, 6)
    conv = WinogradConv.of(weight, bias, torch.float64)
    assert conv.weight.data_ptr() == weight.data_ptr()
    once = ready(conv)
    assert ready(once) is once
    x = torch.randn(1, 6, 4, 4, dtype=torch.float64)
    assert torch.equal(once(x), conv(x))
    other = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(once.with_bias(other)(x), F.conv2d(x, weight, other, padding=1))


def test_transformed_weights_are_those_of_the_paper():
    weight, _ = weight_and_bias(2, 3)
    line = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    expected = (line @ weight @ line.T).permute(2, 3, 0, 1).flatten(0, 1)
    torch.testing.assert_close(transformed(weight, torch.float64), expected)
    torch.testing.assert_close(transformed(weight, torch.bfloat16), expected.bfloat16())


def test_in_float32_it_errs_no_more_than_float32_must():
    weight, bias = weight_and_bias(96, 160)
    x = torch.randn(1, 160, 24, 24, dtype=torch.float64)
    expected = F.conv2d(x, weight, bias, padding=1)
    conv = WinogradConv.of(weight.float(), bias.float(), torch.float32)
    assert float((conv(x.float()) - expected).square().mean().sqrt()) < 1e-5 * float(expected.std())


def test_in_bfloat16_it_errs_as_bfloat16_does():
    """With the weights rounded too; less would mean that it was not in bfloat16."""
    weight, bias = weight_and_bias(96, 160)
    x = torch.randn(1, 160, 24, 24, dtype=torch.float64).bfloat16()
    expected = F.conv2d(x.double(), weight, bias, padding=1)
    conv = WinogradConv.of(weight.float(), bias.float(), torch.bfloat16)
    assert 1e-3 < float((conv(x) - expected).square().mean().sqrt() / expected.std()) < 0.02


def test_where_it_pays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(winograd, "bfloat16_instructions", lambda: "AVX-512")
    wide, narrow = torch.empty(512, 512, 3, 3), torch.empty(512, 32, 3, 3)
    for dtype in (torch.float32, torch.bfloat16):
        assert pays(wide, 64, dtype)
        assert not pays(wide, 8, dtype)
        assert not pays(narrow, 64, dtype)
    assert not pays(wide, 64, torch.float64)
    assert not pays(wide[..., :1, :1], 64, torch.float32)
    monkeypatch.setattr(winograd, "bfloat16_instructions", lambda: "AMX")
    assert pays(wide, 64, torch.float32)
    assert not pays(wide, 64, torch.bfloat16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not pays(wide, 64, torch.float32)


def test_only_convolutions_of_stride_1_are_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused, "pays", lambda *_: True)
    assert isinstance(convolution(nn.Conv2d(4, 4, 3, padding=1), 8, torch.float32), WinogradConv)
    assert isinstance(convolution(nn.Conv2d(4, 4, 3, stride=2, padding=1), 8, torch.float32), FusedConv)
    weight, bias = weight_and_bias(4, 6, torch.float32)
    x, y = torch.randn(1, 4, 6, 6), torch.randn(1, 2, 6, 6)
    with torch.inference_mode():
        expected = F.leaky_relu(F.conv2d(torch.cat([x, y], 1), weight, bias, padding=1), 0.2)
        for paying in (True, False):
            monkeypatch.setattr(fused, "pays", lambda *_, paying=paying: paying)
            torch.testing.assert_close(concat_convolution(weight, bias, 4, 8, torch.float32, 0.2)(x, y), expected)
