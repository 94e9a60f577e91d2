"""Exports networks as ONNX files, and compares each with the network before it is kept. Requires `pip install 'gleansr[export]'`."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gleansr.ambient import plain_torch
from gleansr.checkpoints import int8
from gleansr.errors import GleansrError, RequestError
from gleansr.files import replacing
from gleansr.inference.exportable import exportable
from gleansr.inference.onnx_runtime import KEY, OnnxModel
from gleansr.inference.runner import FeedForwardModel, enlarge, ensembled
from gleansr.inference.upscaler import Upscaler
from gleansr.models.network import SRNetwork
from gleansr.models.residual import ResidualNet

OPSET = 20
"""ONNX opset; onnxruntime supports it since 1.17."""
LARGEST = 2_000_000_000
"""Largest size in bytes of the weights in one ONNX file: protobuf ends at 2 GiB."""

_FEW = 64
"""Tensors of fewer values stay as they are."""

# The operators of demodulation: sums of squares, which exceed the range of float16.
_FLOAT32_OPERATORS = ("MatMul", "Pow", "ReduceSum", "ReduceSumSquare", "Sqrt", "Reciprocal")


@dataclass(frozen=True)
class Exported:
    """An exported file and its difference from the network."""

    path: Path
    size: int
    batch: int | None
    """Images per batch; None: any number."""
    difference: float
    """Largest difference from the network's clamped result, in steps of 255."""
    psnr: float
    """PSNR against the network's clamped result, in dB."""


class _ExportedNetwork(nn.Module):
    """A network with RGB in [-1, 1] as input and output."""

    def __init__(self, model: SRNetwork, *, self_ensemble: bool):
        super().__init__()
        self.model, self.self_ensemble = model, self_ensemble

    def forward(self, lr: Tensor) -> Tensor:
        return ensembled(partial(enlarge, self.model), lr, mirror=self.self_ensemble)


@plain_torch()
def export(upscaler: Upscaler, path: str | Path, *, batch: int | None = 1, half: bool = False, small_file: bool = False) -> Exported:
    """Writes the network of an Upscaler as an ONNX file, runs the file with ONNX Runtime on the CPU and compares the results.

    The file's input is "low" (N, 3, h, w), its output "high" (N, 3, scale * h, scale * w), both float32 RGB in [-1, 1]. h and w are the
    model's input size, or arbitrary for networks without one. `gleansr.load` and any ONNX program can read the file.

    Args:
        upscaler: with a network in float32 on the CPU, such as `gleansr.load(name, device="cpu")`.
        path: of the file; an existing file is replaced.
        batch: N; None: any number, which some programs cannot optimise as well.
        half: compute in float16, except demodulation. Half the size; intended for GPUs.
        small_file: store weights that float16 or 8 bits hold exactly, as all bundled ones, in those. The file is half or a quarter as
            large and computes the same, in float32.

    Raises:
        RequestError: the method is not a network, a package is missing, or the network is too large for one file.
        GleansrError: ONNX Runtime's result differs by more than 1e-3 (of values in [-1, 1]), in half precision by less than 45 dB.
    """
    method, path = upscaler.method, Path(path)
    if not isinstance(method, FeedForwardModel) or isinstance(method.model, OnnxModel):
        raise RequestError(f"{method.name} cannot be exported: it is not a network of gleansr that enlarges in one forward pass")
    if isinstance(method.model, ResidualNet):
        raise RequestError("a plain network cannot be exported: it adds to MATLAB's bicubic interpolation, which ONNX does not have")
    if method.device.type != "cpu" or method.precision != torch.float32:
        raise RequestError("export needs a network on the CPU in float32: gleansr.load(name, device='cpu', precision='float32')")
    if batch is not None and batch < 1:
        raise RequestError(f"batch must be at least 1, not {batch}")
    check_installed()
    network = _ExportedNetwork(method.model if half else exportable(method.model), self_ensemble=method.self_ensemble)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    if weights > LARGEST:
        raise RequestError(f"the weights have {weights:,} bytes, but one ONNX file holds at most {LARGEST:,}")
    proto = _proto(network, method, batch)
    if half:
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that float16 rounds to 0
            proto = convert_float_to_float16(proto, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FLOAT32_OPERATORS])
    _describe(proto, method, upscaler, batch)
    if small_file:
        store_compactly(proto)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        difference, psnr = _compare(OnnxModel(temporary, torch.device("cpu")), method)
        if not (psnr >= 45 if half else difference <= 1e-3):
            raise GleansrError(f"{path} was not written: ONNX Runtime's result differs by {difference:g} of [-1, 1], {psnr:.1f} dB")
    return Exported(path, path.stat().st_size, batch, difference * 127.5, psnr)


def check_installed() -> None:
    """Raises RequestError if a package that export needs is missing."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise RequestError(f"export requires {package}: pip install 'gleansr[export]'")


def store_compactly(proto: Any) -> None:
    """Stores the weights of an ONNX model that float16, or 8 bits with a scale for each channel, hold exactly in those.

    They become float32 again when the model is loaded.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    for tensor in list(proto.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values, name = numpy_helper.to_array(tensor), tensor.name
        if values.size < _FEW:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if np.array_equal(half.astype(np.float32), values):
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
            nodes.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
        elif found := _eight_bits(torch.from_numpy(values.copy())):
            steps, scale, axis = found
            tensor.CopyFrom(numpy_helper.from_array(steps.numpy(), f"{name}_int8"))
            proto.graph.initializer.append(numpy_helper.from_array(scale.numpy(), f"{name}_scale"))
            nodes.append(helper.make_node("DequantizeLinear", [tensor.name, f"{name}_scale"], [name], axis=axis))
    nodes += proto.graph.node
    proto.graph.ClearField("node")
    proto.graph.node.extend(nodes)


def _eight_bits(values: Tensor) -> tuple[Tensor, Tensor, int] | None:
    """Values as int8, their scales, and the axis of these; None if 8 bits do not hold them exactly."""
    if not int8.is_large(values):
        return None
    for axis in (0, values.ndim - 1):  # of the outputs: the exporter transposes linear layers
        rows = values.movedim(axis, 0)
        steps, scale = int8.steps(rows)
        if torch.equal(int8.weight_of(steps, scale), rows):
            return steps.movedim(0, axis).contiguous(), scale, axis
    return None


def _proto(model: nn.Module, method: FeedForwardModel, batch: int | None) -> Any:
    any_size = method.in_size is None
    shapes: dict[int, Any] = {} if batch else {0: torch.export.Dim("n", min=1, max=2**12)}
    if any_size:
        fold = method.model.fold
        for axis, name in ((2, "h"), (3, "w")):
            length = torch.export.Dim(name, min=2, max=2**14 // fold)
            shapes[axis] = fold * length if fold > 1 else length
    lr = _samples(method)[: batch or 2]
    lr = lr.repeat(-(-(batch or 2) // len(lr)), 1, 1, 1)[: batch or 2]
    return to_onnx(model, lr, {"lr": shapes or None}, "low", ["high"])


def to_onnx(model: nn.Module, example: Tensor, free: dict[str, Any] | None, given: str, made: Sequence[str]) -> Any:
    """A network of one input as an ONNX model. `free`: the free axes by the name of forward's argument; `given` and `made`: the names of
    the input and the outputs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is missing
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model, (example,), dynamo=True, input_names=[given], output_names=list(made), opset_version=OPSET,
                dynamic_shapes=free, verbose=False,
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    if program is None:
        raise GleansrError("PyTorch's exporter returned nothing for this network")
    return program.model_proto


def without_sources(proto: Any) -> None:
    """Removes source locations, which contain paths of this machine."""
    proto.producer_name = "gleansr"
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    proto.graph.ClearField("metadata_props")
    for values in (proto.graph.value_info, proto.graph.input, proto.graph.output, proto.graph.initializer):
        for value in values:
            value.ClearField("metadata_props")


def _describe(proto: Any, method: FeedForwardModel, upscaler: Upscaler, batch: int | None) -> None:
    facts = {
        "name": method.name,
        "scale": method.scale,
        "in_size": method.in_size,
        "fold": method.model.fold,
        "batch": batch,
        "about": upscaler.about.published(),
    }
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(facts)
    proto.doc_string = (
        f"{upscaler.about.name}: lr (N, 3, h, w) to high, RGB in [-1, 1], {method.scale} times larger; {upscaler.about.licence}"
    )
    without_sources(proto)


def _samples(method: FeedForwardModel) -> Tensor:
    """Three images: smooth, noisy and black."""
    size = method.in_size or 24
    generator = torch.Generator().manual_seed(0)
    smooth = nn.functional.interpolate(torch.rand(1, 3, 4, 4, generator=generator), size=(size, size), mode="bilinear") * 2 - 1
    return torch.cat([smooth, torch.rand(1, 3, size, size, generator=generator) * 2 - 1, -torch.ones(1, 3, size, size)])


@torch.inference_mode()
def _compare(exported: OnnxModel, method: FeedForwardModel) -> tuple[float, float]:
    lr = _samples(method)
    expected, result = method.in_float32(lr).clamp(-1, 1), exported(lr).clamp(-1, 1)
    error = (expected - result).double()
    return float(error.abs().max()), float(10 * torch.log10(4 / error.square().mean()))
