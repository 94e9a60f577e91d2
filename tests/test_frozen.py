"""Frozen networks: the same function as the plain formulation, whatever is cut, merged and computed once."""

import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.inference.cpu import frozen, fused
from gleansr.inference.cpu.frozen import FrozenGLEAN, freezable
from gleansr.inference.cpu.fused import NarrowConv, merged
from gleansr.inference.cpu.shuffled import shuffled
from gleansr.inference.runner import FeedForwardModel
from gleansr.models.glean import GLEAN, GLEANConfig, NoBankConfig
from gleansr.models.layers import Blur, to_channels_last
from gleansr.models.stylegan import StyleGANConfig
from gleansr.models.stylegan2 import StyleGAN2Config

CHANNELS = (12, 12, 10, 8, 8, 6)
BANK = StyleGAN2Config(CHANNELS, code_dim=16, mapping_layers=1)
SMALL = replace(BANK, channels=CHANNELS[:5])  # 64 px


def network(bank: StyleGAN2Config | StyleGANConfig | NoBankConfig, in_size: int = 8) -> GLEAN:
    """Its noise and biases, which begin at zero, are not."""
    torch.manual_seed(0)
    model = GLEAN(GLEANConfig(in_size, bank, n_rrdb=1, features=6, growth=4, out_features=8)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "noise_strength" in name:
                parameter.fill_(0.3)
            elif name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return to_channels_last(model, torch.device("cpu"))


def lrs(count: int, size: int = 8) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("way", ["direct", "winograd"])
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("bank", [SMALL, replace(SMALL, clamp=0.5), NoBankConfig(SMALL.channels)], ids=["bank", "clamped", "none"])
def test_it_is_the_plain_function(bank: StyleGAN2Config | NoBankConfig, rows: int, way: str, monkeypatch: pytest.MonkeyPatch):
    """Whatever the strips, and however convolutions are computed."""
    monkeypatch.setattr(frozen, "_STRIP", 0)
    for module in (frozen, fused):
        monkeypatch.setattr(module, "pays", lambda weight, *_: way == "winograd" and weight.shape[2:] == (3, 3))
    monkeypatch.setattr(frozen, "_LEAST_ROWS", rows)
    model = network(bank)
    for count in (1, 3):
        with torch.inference_mode():
            expected, found = model(lrs(count)), FrozenGLEAN(model, torch.float32)(lrs(count))
        assert (found - expected).abs().max() < 1e-5 * expected.std()


@pytest.mark.parametrize("in_size", [4, 16, 64])
def test_for_any_size(in_size: int):
    model = network(BANK, in_size)
    with torch.inference_mode():
        expected, found = model(lrs(2, in_size)), FrozenGLEAN(model, torch.float32)(lrs(2, in_size))
    assert found.shape == (2, 3, 128, 128)
    assert (found - expected).abs().max() < 1e-5 * expected.std()


@pytest.mark.parametrize("processor", ["AMX", "AVX-512"])
def test_in_bfloat16_it_errs_no_more_than_the_plain_function(processor: str, monkeypatch: pytest.MonkeyPatch):
    """Up-convolutions are merged on the one and not on the other."""
    monkeypatch.setattr(frozen, "bfloat16_instructions", lambda: processor)
    model = network(BANK)
    with torch.inference_mode():
        expected, found = model(lrs(4)), FrozenGLEAN(model, torch.bfloat16)(lrs(4)).float()
        with torch.autocast("cpu", torch.bfloat16):
            plain = model(lrs(4)).float()
    error, error_of_plain = (float((one - expected).square().mean().sqrt() / expected.std()) for one in (found, plain))
    assert 0 < error < max(0.01, 1.2 * error_of_plain)


def test_without_onednn(monkeypatch: pytest.MonkeyPatch):
    model = network(BANK)
    with torch.inference_mode():
        expected = FrozenGLEAN(model, torch.float32)(lrs(1))
        monkeypatch.setattr(fused, "_FUSED", frozenset())
        found = FrozenGLEAN(model, torch.float32)(lrs(1))
    assert (found - expected).abs().max() < 1e-5 * expected.std()


def test_a_merged_convolution_is_the_transposed_one_and_its_blur():
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    expected = Blur(padding=1, gain=4.0).double()(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
    torch.testing.assert_close(shuffled(F.conv2d(x, merged(weight), padding=1)), expected)


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (1, 5)])
def test_a_convolution_to_few_channels_is_the_plain_one(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    conv, x = torch.nn.Conv2d(20, 3, 3, padding=1), torch.randn(2, 20, *size)
    with torch.inference_mode():
        for types in (fused._FUSED, frozenset()):
            monkeypatch.setattr(fused, "_FUSED", types)
            torch.testing.assert_close(NarrowConv(conv, torch.float32)(x), conv(x), rtol=0, atol=2e-6)


def test_a_result_does_not_depend_on_its_batch():
    model = network(BANK)
    frozen_model = FrozenGLEAN(model, torch.float32)
    with torch.inference_mode():
        batch = frozen_model(lrs(3))
        alone = torch.cat([frozen_model(lr[None]) for lr in lrs(3)])
    assert (batch - alone).abs().max() < 1e-5 * alone.std()


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 3, 8, 8\), not \(1, 3, 9, 8\)"):
        FrozenGLEAN(network(NoBankConfig(CHANNELS)), torch.float32)(torch.zeros(1, 3, 9, 8))


def test_which_networks_are_frozen(monkeypatch: pytest.MonkeyPatch):
    assert not freezable(network(StyleGANConfig(CHANNELS, code_dim=16, mapping_layers=1)))
    calls: list[int] = []
    monkeypatch.setattr(FrozenGLEAN, "__call__", lambda _, lr: calls.append(len(lr)) or lr)
    method = FeedForwardModel(network(BANK), device="cpu")
    method(lrs(2))
    method = pickle.loads(pickle.dumps(method))
    method(lrs(3))
    assert calls == [2, 3]
