"""What a device's memory or half precision does not hold, and passes recorded once."""

import copy
import dataclasses
import logging
import pickle
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import gleansr
from gleansr import baselines
from gleansr.checkpoints import native
from gleansr.checkpoints.native import About
from gleansr.errors import ImageError, RequestError
from gleansr.images.codec import decode, to_image
from gleansr.images.pixels import to_bytes
from gleansr.inference.cuda_graphs import CapturedGraph, GraphedCall
from gleansr.inference.devices import bfloat16_instructions, find_precision
from gleansr.inference.method import ModelOutput
from gleansr.inference.runner import BatchRunner, FeedForwardModel, Runner
from gleansr.inference.tasks import Enlarge
from gleansr.inference.upscaler import Upscaler
from gleansr.models.glean import GLEAN, GLEANConfig
from gleansr.models.residual import ResidualNet, ResidualNetConfig
from gleansr.models.rrdb import RRDBNet, RRDBNetConfig
from gleansr.models.stylegan2 import StyleGAN2Config

CPU = torch.device("cpu")


class Small:
    """A method that doubles images, so many at once at most."""

    name, scale, device = "small", 2, CPU
    in_size: int | None = 4

    def __init__(self, most: int):
        self.most = most
        self.calls: list[int] = []

    def __call__(self, lr: Tensor, report: Any = None) -> ModelOutput:  # noqa: ARG002
        self.calls.append(len(lr))
        if len(lr) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes")
        return ModelOutput(lr.repeat_interleave(2, 2).repeat_interleave(2, 3), [f"of {len(lr)}"] * len(lr))


def lrs(count: int, size: int = 4) -> list[Tensor]:
    return list(torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1)


def test_a_batch_is_halved_until_it_fits_and_later_ones_are_no_larger(caplog: pytest.LogCaptureFixture):
    method = Small(most=3)
    passes = Runner(method)
    with caplog.at_level(logging.WARNING):
        made = passes(lrs(10))
        started = passes.start(lrs(5))()
    assert torch.equal(made.images, Small(10)(torch.stack(lrs(10))).images)
    assert torch.equal(started.images, made.images[:5])
    assert list(made.notes) == ["of 2"] * 10
    assert method.calls == [10, 5, 2, 2, 2, 2, 2, 2, 2, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory on cpu: batches of 5 instead of 10",
        "out of memory on cpu: batches of 2 instead of 5",
    ]


def test_one_that_does_not_fit_alone_says_what_may_help():
    with pytest.raises(ImageError, match="out of memory on cpu with a single image of 4x4; try a model of a smaller scale"):
        Runner(Small(most=0))(lrs(2))
    with pytest.raises(RuntimeError, match="of another kind"):
        Runner(_Broken(most=1))(lrs(2))


class _Broken(Small):
    def __call__(self, lr: Tensor, report: Any = None) -> ModelOutput:  # noqa: ARG002
        raise RuntimeError("of another kind")


def test_the_upscaler_enlarges_all_that_it_is_given(caplog: pytest.LogCaptureFixture):
    imgs = [(np.random.default_rng(i).random((4, 4, 3)) * 255).astype("uint8") for i in range(5)]
    expected = [np.asarray(image) for image in Upscaler(Small(8), About("small")).upscale(imgs, batch_size=4)]
    with caplog.at_level(logging.WARNING):
        found = [np.asarray(image) for image in Upscaler(Small(1), About("small")).upscale(imgs, batch_size=4)]
    assert all(np.array_equal(*pair) for pair in zip(expected, found, strict=True))
    assert [np.asarray(img).repeat(2, 0).repeat(2, 1).tolist() for img in imgs] == [image.tolist() for image in found]
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
    method = FeedForwardModel(model, device="cpu", precision="bfloat16")
    inputs = lrs(3, 8)
    good = method(torch.stack(inputs)).images.clone()
    exact = FeedForwardModel(copy.deepcopy(model), device="cpu", precision="float32")(torch.stack(inputs)).images
    call = FeedForwardModel.__call__

    def overflowing(self: FeedForwardModel, lr: Tensor, report: Any = None) -> ModelOutput:
        imgs = call(self, lr, report).images.clone()
        imgs[1, 0, 3, 3] = torch.inf
        return ModelOutput(imgs)

    monkeypatch.setattr(FeedForwardModel, "__call__", overflowing)
    made = Runner(method)(inputs)
    assert torch.equal(made.images[[0, 2]], good[[0, 2]])
    assert torch.allclose(made.images[1], exact[1], atol=1e-5)
    assert not torch.allclose(good[1], exact[1], atol=1e-5)
    assert list(made.notes) == ["", "overflowed in bf16; recomputed in float32", ""]
    as_bytes = Runner(method)(inputs, eight_bits=True)
    assert torch.equal(as_bytes.images, to_bytes(made.images))
    images = list(Upscaler(method, About("half")).upscale([((lr + 1) / 2) for lr in inputs], batch_size=3))
    assert ["float32" in image.info.get("gleansr", "") for image in images] == [False, True, False]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", [glean(), plain()], ids=["GLEAN", "plain"])
def test_a_self_ensemble_is_the_mean_of_both_views_and_mirrors_exactly(
    model: GLEAN | ResidualNet, precision: Literal["float32", "bfloat16"]
):
    """For the frozen network of the CPU and for others, in one pass and where half precision overflowed."""
    once = FeedForwardModel(model, device="cpu", precision=precision)
    both = FeedForwardModel(model, device="cpu", precision=precision, self_ensemble=True)
    lr = torch.stack(lrs(2, 8))
    result, mirrored = both(lr).images, both(lr.flip(3)).images
    assert torch.equal(result, (once(lr).images + once(lr.flip(3)).images.flip(3)) / 2)
    assert torch.equal(result, mirrored.flip(3))
    assert not torch.allclose(result, once(lr).images, atol=1e-3)
    assert torch.equal(both.in_one_pass()(lr).images, once(lr).images)
    assert both.in_one_pass().model is both.model
    assert torch.equal(both(lr).images, result)
    assert torch.equal(both.in_float32(lr), (once.in_float32(lr) + once.in_float32(lr.flip(3)).flip(3)) / 2)
    again = pickle.loads(pickle.dumps(both))  # as for the workers of a cluster
    assert torch.equal(again(lr).images, result)


def test_a_file_and_the_one_who_loads_it_say_whether_there_is_a_self_ensemble(tmp_path: Path):
    lr, model = torch.stack(lrs(1, 8)), glean()
    means = {}
    for stored in (False, True):
        native.save(tmp_path / "g.safetensors", {"generator": model}, About("g", self_ensemble=stored))
        for asked in (None, False, True):
            upscaler = gleansr.load(tmp_path / "g.safetensors", device="cpu", self_ensemble=asked)
            assert upscaler.about.self_ensemble == (stored if asked is None else asked)
            means[stored, asked] = upscaler.method(lr).images
        named = baselines.load("glean", tmp_path / "g.safetensors", device="cpu")
        assert torch.allclose(named.method(lr).images, means[stored, None], atol=1e-5)
    with pytest.raises(RequestError, match="must be True, False or None, not 'off'"):
        gleansr.load(tmp_path / "g.safetensors", self_ensemble="off")  # pyright: ignore[reportArgumentType]
    assert torch.allclose(means[False, None], means[True, False], atol=1e-5)
    assert torch.allclose(means[True, None], means[False, True], atol=1e-5)
    assert not torch.allclose(means[True, True], means[True, False], atol=1e-3)


def test_weights_beyond_half_precision_give_no_black_images():
    """In float16 itself, whose range ends at 65504; a CPU is not offered it, so the precision is set behind the method's back."""
    model = RRDBNet(RRDBNetConfig(scale=4, n_blocks=1, features=8, growth=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.1)
        model.trunk.first.weight.fill_(3e4)
    method = FeedForwardModel(model, device="cpu", precision="float32")
    exact = method(torch.stack(lrs(1, 8))).images
    method.precision = torch.float16
    assert not method(torch.stack(lrs(1, 8))).images.isfinite().all()
    assert torch.equal(Runner(method)(lrs(1, 8)).images, exact)


def test_nothing_that_is_not_finite_becomes_bytes():
    class Infinite(Small):
        def __call__(self, lr: Tensor, report: Any = None) -> ModelOutput:  # noqa: ARG002
            return ModelOutput(lr / 0)

    with pytest.raises(ImageError, match="NaN or infinite"):
        Runner(Infinite(9))(lrs(1), eight_bits=True)


def test_bytes_are_those_of_the_image():
    sr = torch.rand(3, 64, 64) * 2.2 - 1.1
    assert np.array_equal(np.asarray(to_image((sr.clamp(-1, 1) + 1) / 2)), to_bytes(sr).permute(1, 2, 0).numpy())
    assert np.array_equal(np.asarray(to_image(to_bytes(sr))), to_bytes(sr).permute(1, 2, 0).numpy())


# ---------------------------------------------------------------------------------------------------------------- recorded


def twice(lr: Tensor) -> Tensor:
    return lr * 2


def test_a_shape_is_recorded_once_and_the_oldest_is_forgotten():
    recorded: list[int] = []

    def record(call: Any, lr: Tensor, beside: CapturedGraph | None = None) -> CapturedGraph:
        recorded.append(len(lr))
        static, sr = lr.clone(), torch.empty_like(lr)
        return CapturedGraph(static, sr, lambda: sr.copy_(call(static)))

    passes = GraphedCall(twice, record)
    for n in (1, 2, 1, 3, 4, 1, 5, 2, 1):
        lr = torch.rand(n, 3)
        first = passes(lr)
        assert torch.equal(first, lr * 2)
        passes(lr + 1)
        assert torch.equal(first, lr * 2)  # not the tensor that the next pass writes
    assert recorded == [1, 2, 3, 4, 5, 2]  # 2 was the one unused for longest
    passes.clear()
    passes(torch.rand(1, 3))
    assert recorded[-1] == 1


def test_what_cannot_be_recorded_is_called_as_it_is():
    tries: list[int] = []

    def record(call: Any, lr: Tensor, beside: CapturedGraph | None = None) -> CapturedGraph:
        tries.append(len(lr))
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    passes = GraphedCall(twice, record)
    assert [float(passes(torch.ones(1))) for _ in range(2)] == [2, 2]
    assert tries == [1]
    assert passes.failed == "CUDA error: operation not permitted when stream is capturing"

    def too_large(call: Any, lr: Tensor, beside: Any = None) -> CapturedGraph:
        raise torch.OutOfMemoryError("CUDA out of memory")

    passes = GraphedCall(twice, too_large)
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
    img = decode(image)
    prepared = task.prepare(img)
    assert prepared.eight_bits == (mode == "RGB")
    assert not dataclasses.replace(task, back_projection=0.5).prepare(img).eight_bits
    assert not dataclasses.replace(task, measured=True).prepare(img).eight_bits
    sr = torch.rand(3, 8, 8) * 2.2 - 1.1
    if prepared.eight_bits:
        assert prepared.finish([to_bytes(sr)], [""]).image.tobytes() == prepared.finish([sr], [""]).image.tobytes()
    forward = BatchRunner(Small(9), 2)
    assert forward(lrs(1), eight_bits=True)[0].sr is not None
    forward._gpu = True
    expected = to_bytes(Small(9)(torch.stack(lrs(2))).images)
    for made in (forward.start(lrs(2), eight_bits=True)(), forward(lrs(2), eight_bits=True)):
        assert torch.equal(torch.stack([cast("Tensor", one.sr) for one in made]), expected)
