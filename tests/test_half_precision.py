"""Half precision: what it cannot express, held casts, recorded passes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.checkpoints.native import About
from gleansr.inference.cuda_graphs import CapturedGraph, GraphedCall
from gleansr.inference.runner import FeedForwardModel
from gleansr.inference.upscaler import Upscaler
from gleansr.models.glean import GLEAN, GLEANConfig
from gleansr.models.layers import autocast_copy
from gleansr.models.residual import ResidualNet, ResidualNetConfig
from gleansr.models.stylegan2 import StyleGAN2Config


class Large(ResidualNet):
    """Makes of white what float32 holds and bfloat16 does not."""

    def __init__(self):
        super().__init__(ResidualNetConfig(scale=2))
        self.weight = nn.Parameter(torch.full((3, 3, 1, 1), 1.699e38))
        self.weight.data[:, 2] = 0

    def forward(self, lr: Tensor) -> Tensor:
        return F.interpolate(F.conv2d(lr, self.weight).float(), scale_factor=2)


def test_what_overflows_is_made_in_float32_in_a_halved_batch_too(monkeypatch: pytest.MonkeyPatch):
    one_pass = FeedForwardModel.__call__

    def limited(self: FeedForwardModel, lr: Tensor, report: Any = None) -> Any:
        if len(lr) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return one_pass(self, lr, report)

    monkeypatch.setattr(FeedForwardModel, "__call__", limited)
    upscaler = Upscaler(FeedForwardModel(Large(), device="cpu", precision="bfloat16"), About("large"))
    made = list(upscaler.upscale([torch.full((3, 4, 4), value) for value in (0.6, 0.6, 1.0, 0.6)], batch_size=4))
    assert ["float32" in image.info.get("gleansr", "") for image in made] == [False, False, True, False]
    assert made[2].getpixel((0, 0)) == (255, 255, 255)


def test_held_casts_give_the_same_bits_and_leave_the_model_as_it_is():
    torch.manual_seed(0)
    model = GLEAN(GLEANConfig(8, StyleGAN2Config((8, 8, 6, 4), code_dim=8, mapping_layers=1), n_rrdb=1, features=4, growth=3)).eval()
    twin, lr = autocast_copy(model, torch.bfloat16), torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(lr), twin(lr))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in twin.encoder.parameters()} == {torch.bfloat16}
    theirs = dict(model.bank.named_parameters())
    assert all(parameter is theirs[name] for name, parameter in twin.bank.named_parameters())


def test_recordings_share_memory_and_results_outlive_the_next_pass():
    asked: list[CapturedGraph | None] = []

    def record(call: Any, lr: Tensor, beside: CapturedGraph | None) -> CapturedGraph:
        asked.append(beside)
        lr = lr.clone()
        sr = call(lr)
        return CapturedGraph(lr, sr, lambda: sr.copy_(call(lr)), "pool")

    recorded = GraphedCall(lambda lr: lr * 2, record)
    first = recorded(torch.ones(1, 1))
    recorded(torch.full((1, 1), 5.0))
    assert first.item() == 2
    recorded(torch.ones(2, 1))
    assert [beside and beside.pool for beside in asked] == [None, "pool"]
