"""Exports what a page in a browser needs beside the GLEANs: the classifier, and residual networks without their bicubic interpolation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.ambient import plain_torch
from gleansr.errors import GleansrError
from gleansr.files import replacing
from gleansr.inference.categories import ENLARGED, classifier
from gleansr.inference.export import check_installed, store_compactly, to_onnx, without_sources
from gleansr.models.categories import CHANNELS, GRID
from gleansr.models.features import EfficientNetLite0
from gleansr.models.residual import ResidualNet

_TOLERANCE = 1e-3
"""Largest difference from the network, as a share of its largest value."""


class _Features(nn.Module):
    """The layers of EfficientNet-Lite0 that the classifier's head reads."""

    def __init__(self, network: EfficientNetLite0):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """image (1, 3, 128, 128), RGB in [-1, 1] -> the outputs of blocks 5, 11 and 16."""
        return tuple(self.network(image)[2:])


class _Residual(nn.Module):
    """What a residual network adds to bicubic enlargement."""

    def __init__(self, model: ResidualNet):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """image (1, 3, H, W), RGB in [-1, 1] -> (1, 3, scale * H, scale * W)."""
        model = self.model
        return F.pixel_shuffle(model.last(model.body(model.first(image))), model.scale)


@plain_torch()
def export_residual(model: ResidualNet, path: Path) -> None:
    """Writes what the network adds to MATLAB's bicubic, for an image "low" (1, 3, H, W) in [-1, 1], as "residual".

    Raises:
        GleansrError: ONNX Runtime's result differs.
    """
    free = {"image": {2: torch.export.Dim("h", min=2, max=2**14), 3: torch.export.Dim("w", min=2, max=2**14)}}
    _write(_Residual(model), torch.rand(1, 3, 24, 20) * 2 - 1, free, "low", ["residual"], path)


@plain_torch()
def export_features(path: Path) -> None:
    """Writes the network whose features the classifier reads.

    For an image "image" (1, 3, 128, 128) in [-1, 1] it gives the outputs of blocks 5, 11 and 16: "block5", "block11" and "block16".

    Raises:
        GleansrError: ONNX Runtime's result differs.
    """
    image = torch.rand(1, 3, ENLARGED, ENLARGED) * 2 - 1
    _write(_Features(classifier()[0]), image, None, "image", ["block5", "block11", "block16"], path)


@plain_torch()
def export_head(path: Path) -> None:
    """Writes the classifier's head: for the means of those layers in 3x3 cells, "cells" (1, 472, 3, 3), the "logits" (1, 6).

    Raises:
        GleansrError: ONNX Runtime's result differs.
    """
    _write(classifier()[1], torch.rand(1, CHANNELS, GRID, GRID), None, "cells", ["logits"], path)


def threshold() -> float:
    """The least probability of a category, see `models.categories.choose`."""
    return float(classifier()[1].threshold)


def _write(network: nn.Module, example: Tensor, free: dict[str, Any] | None, given: str, made: Sequence[str], path: Path) -> None:
    check_installed()
    proto = to_onnx(network, example, free, given, made)
    without_sources(proto)
    store_compactly(proto)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        difference = _difference(network, example, given, temporary)
        if difference > _TOLERANCE:
            raise GleansrError(f"{path} was not written: ONNX Runtime's result differs by {difference:g} of the largest value")


@torch.inference_mode()
def _difference(network: nn.Module, example: Tensor, given: str, path: Path) -> float:
    import onnxruntime

    results = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {given: example.numpy()})
    expected = network(example)
    pairs = zip(expected if isinstance(expected, tuple) else (expected,), results, strict=True)
    return max(float((torch.from_numpy(result) - one).abs().max() / one.abs().max().clamp(min=1e-6)) for one, result in pairs)
