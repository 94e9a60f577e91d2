"""What a device's memory or half precision does not hold, and passes recorded once."""

import copy
import dataclasses
import logging
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gleansr.checkpoints.native import About
from gleansr.errors import PictureError, RequestError
from gleansr.images.codec import decode, to_bytes, to_image
from gleansr.inference.cuda_graphs import Recorded, Recording
from gleansr.inference.devices import bfloat16_instructions, find_precision
from gleansr.inference.feedforward import FeedForward
from gleansr.inference.method import Enlarged
from gleansr.inference.runner import Passes
from gleansr.inference.tasks import Enlarge
from gleansr.inference.upscaler import Upscaler
from gleansr.jobs.forward import Forward
from gleansr.models.glean import GLEAN, GLEANConfig
from gleansr.models.residual import ResidualNet, ResidualNetConfig
from gleansr.models.rrdb import RRDBNet, RRDBNetConfig
from gleansr.models.stylegan2 import StyleGAN2Config

CPU = torch.device("cpu")


class Small:
    """A method that doubles pictures, so many at once at most."""

    name, scale, device = "small", 2, CPU
    in_size: int | None = 4

    def __init__(self, most: int):
        self.most = most
        self.calls: list[int] = []

    def __call__(self, low: Tensor, report: Any = None) -> Enlarged:  # noqa: ARG002
        self.calls.append(len(low))
        if len(low) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes")
        return Enlarged(low.repeat_interleave(2, 2).repeat_interleave(2, 3), [f"of {len(low)}"] * len(low))


def lows(count: int, size: int = 4) -> list[Tensor]:
    return list(torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1)


def test_a_batch_is_halved_until_it_fits_and_later_ones_are_no_larger(caplog: pytest.LogCaptureFixture):
    method = Small(most=3)
    passes = Passes(method)
    with caplog.at_level(logging.WARNING):
        made = passes(lows(10))
        started = passes.start(lows(5))()
    assert torch.equal(made.pictures, Small(10)(torch.stack(lows(10))).pictures)
    assert torch.equal(started.pictures, made.pictures[:5])
    assert list(made.notes) == ["of 2"] * 10
    assert method.calls == [10, 5, 2, 2, 2, 2, 2, 2, 2, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory on cpu: batches of 5 instead of 10",
        "out of memory on cpu: batches of 2 instead of 5",
    ]


def test_one_that_does_not_fit_alone_says_what_may_help():
    with pytest.raises(PictureError, match="out of memory on cpu, by a picture of 4x4 alone; a model of smaller results may do"):
        Passes(Small(most=0))(lows(2))
    with pytest.raises(RuntimeError, match="of another kind"):
        Passes(_Broken(most=1))(lows(2))


class _Broken(Small):
    def __call__(self, low: Tensor, report: Any = None) -> Enlarged:  # noqa: ARG002
        raise RuntimeError("of another kind")


def test_the_upscaler_enlarges_all_that_it_is_given(caplog: pytest.LogCaptureFixture):
    pictures = [(np.random.default_rng(i).random((4, 4, 3)) * 255).astype("uint8") for i in range(5)]
    expected = [np.asarray(image) for image in Upscaler(Small(8), About("small")).upscale(pictures, batch_size=4)]
    with caplog.at_level(logging.WARNING):
        found = [np.asarray(image) for image in Upscaler(Small(1), About("small")).upscale(pictures, batch_size=4)]
    assert all(np.array_equal(*pair) for pair in zip(expected, found, strict=True))
    assert [np.asarray(picture).repeat(2, 0).repeat(2, 1).tolist() for picture in pictures] == [image.tolist() for image in found]
    assert len(caplog.records) == 2


def glean() -> GLEAN:
    torch.manual_seed(0)
    bank = StyleGAN2Config((8, 8, 8, 6), code_dim=8, mapping_layers=1)
    return GLEAN(GLEANConfig(8, bank, n_rrdb=1, features=6, growth=4, out_features=8))


def plain() -> ResidualNet:
    torch.manual_seed(0)
    model = ResidualNet(ResidualNetConfig(scale=4, features=8, n_blocks=1))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("model", [glean(), plain()], ids=["GLEAN", "plain"])
def test_what_is_not_finite_in_half_precision_is_computed_in_float32(model: GLEAN | ResidualNet, monkeypatch: pytest.MonkeyPatch):
    method = FeedForward(model, device="cpu", precision="bfloat16")
    inputs = lows(3, 8)
    good = method(torch.stack(inputs)).pictures.clone()
    exact = FeedForward(copy.deepcopy(model), device="cpu", precision="float32")(torch.stack(inputs)).pictures
    call = FeedForward.__call__

    def overflowing(self: FeedForward, low: Tensor, report: Any = None) -> Enlarged:
        pictures = call(self, low, report).pictures.clone()
        pictures[1, 0, 3, 3] = torch.inf
        return Enlarged(pictures)

    monkeypatch.setattr(FeedForward, "__call__", overflowing)
    made = Passes(method)(inputs)
    assert torch.equal(made.pictures[[0, 2]], good[[0, 2]])
    assert torch.allclose(made.pictures[1], exact[1], atol=1e-5)
    assert not torch.allclose(good[1], exact[1], atol=1e-5)
    assert list(made.notes) == ["", "computed in float32, since half precision did not suffice", ""]
    as_bytes = Passes(method)(inputs, eight_bits=True)
    assert torch.equal(as_bytes.pictures, to_bytes(made.pictures))
    images = list(Upscaler(method, About("half")).upscale([((low + 1) / 2) for low in inputs], batch_size=3))
    assert ["float32" in image.info.get("gleansr", "") for image in images] == [False, True, False]


def test_weights_beyond_half_precision_give_no_black_pictures():
    """In float16 itself, whose range ends at 65504; a CPU is not offered it, so the precision is set behind the method's back."""
    model = RRDBNet(RRDBNetConfig(scale=4, n_blocks=1, features=8, growth=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.1)
        model.trunk.first.weight.fill_(3e4)
    method = FeedForward(model, device="cpu", precision="float32")
    exact = method(torch.stack(lows(1, 8))).pictures
    method.precision = torch.float16
    assert not method(torch.stack(lows(1, 8))).pictures.isfinite().all()
    assert torch.equal(Passes(method)(lows(1, 8)).pictures, exact)


def test_nothing_that_is_not_finite_becomes_bytes():
    class Infinite(Small):
        def __call__(self, low: Tensor, report: Any = None) -> Enlarged:  # noqa: ARG002
            return Enlarged(low / 0)

    with pytest.raises(PictureError, match="NaN or infinite"):
        Passes(Infinite(9))(lows(1), eight_bits=True)


def test_bytes_are_those_of_the_image():
    high = torch.rand(3, 64, 64) * 2.2 - 1.1
    assert np.array_equal(np.asarray(to_image((high.clamp(-1, 1) + 1) / 2)), to_bytes(high).permute(1, 2, 0).numpy())
    assert np.array_equal(np.asarray(to_image(to_bytes(high))), to_bytes(high).permute(1, 2, 0).numpy())


# ---------------------------------------------------------------------------------------------------------------- recorded


def twice(low: Tensor) -> Tensor:
    return low * 2


def test_a_shape_is_recorded_once_and_the_oldest_is_forgotten():
    recorded: list[int] = []

    def record(call: Any, low: Tensor, beside: Recording | None = None) -> Recording:
        recorded.append(len(low))
        static, high = low.clone(), torch.empty_like(low)
        return Recording(static, high, lambda: high.copy_(call(static)))

    passes = Recorded(twice, record)
    for n in (1, 2, 1, 3, 4, 1, 5, 2, 1):
        low = torch.rand(n, 3)
        first = passes(low)
        assert torch.equal(first, low * 2)
        passes(low + 1)
        assert torch.equal(first, low * 2)  # not the tensor that the next pass writes
    assert recorded == [1, 2, 3, 4, 5, 2]  # 2 was the one unused for longest
    passes.forget()
    passes(torch.rand(1, 3))
    assert recorded[-1] == 1


def test_what_cannot_be_recorded_is_called_as_it_is():
    tries: list[int] = []

    def record(call: Any, low: Tensor, beside: Recording | None = None) -> Recording:
        tries.append(len(low))
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    passes = Recorded(twice, record)
    assert [float(passes(torch.ones(1))) for _ in range(2)] == [2, 2]
    assert tries == [1]
    assert passes.failed == "CUDA error: operation not permitted when stream is capturing"

    def too_large(call: Any, low: Tensor, beside: Any = None) -> Recording:
        raise torch.OutOfMemoryError("CUDA out of memory")

    passes = Recorded(twice, too_large)
    with pytest.raises(torch.OutOfMemoryError):
        passes(torch.ones(1))
    assert passes.failed is None


# ---------------------------------------------------------------------------------------------------------------- precision


def test_a_precision_that_the_device_lacks(monkeypatch: pytest.MonkeyPatch):
    assert find_precision("auto", CPU) == torch.float32
    with pytest.raises(RequestError, match=r"float16 is for GPUs; on a CPU take --precision bfloat16 or float32"):
        find_precision("float16", CPU)
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "T4")
    assert find_precision("auto", gpu) == torch.float32
    assert find_precision("float16", gpu) == torch.float16
    with pytest.raises(RequestError, match=r"T4 has no bfloat16 \(its compute capability is 7\.5, 8\.0 is needed\)"):
        find_precision("bfloat16", gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert find_precision("auto", gpu) == find_precision("bfloat16", gpu) == torch.bfloat16
    assert bfloat16_instructions() in ("AMX", "AVX-512", None)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_folders_finish_bytes_as_they_do_floats(mode: str):
    task = Enlarge(Upscaler(Small(9), About("small")))
    image = Image.effect_noise((7, 5), 90).convert("RGB")
    if mode == "RGBA":
        image.putalpha(Image.effect_noise((7, 5), 90))
    picture = decode(image)
    prepared = task.prepare(picture)
    assert prepared.eight_bits == (mode == "RGB")
    assert not dataclasses.replace(task, consistent=0.5).prepare(picture).eight_bits
    assert not dataclasses.replace(task, measured=True).prepare(picture).eight_bits
    high = torch.rand(3, 8, 8) * 2.2 - 1.1
    if prepared.eight_bits:
        assert prepared.finish([to_bytes(high)], [""]).image.tobytes() == prepared.finish([high], [""]).image.tobytes()
    forward = Forward(Small(9), 2)
    assert forward(lows(1), eight_bits=True)[0].high is not None
    forward._gpu = True
    expected = to_bytes(Small(9)(torch.stack(lows(2))).pictures)
    for made in (forward.start(lows(2), eight_bits=True)(), forward(lows(2), eight_bits=True)):
        assert torch.equal(torch.stack([cast("Tensor", one.high) for one in made]), expected)
