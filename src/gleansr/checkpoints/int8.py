"""Weights stored in 8 bits, a scale for each output channel.

A weight of a convolution or linear layer becomes round(weight / scale), its scale being the largest magnitude of an output channel / 127.
All else is stored in float16. Symmetric and per channel, as in Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018, but for storage alone: networks compute with floating-point numbers.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gleansr.errors import CheckpointError

SUFFIX = ".int8_scale"
"""Ends the name of a weight's scales."""
MIN_NUMBERS = 4096
"""Smaller weights stay in float16: the first and last convolutions, whose error would be seen most."""


def quantise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name -> the same, with large weights (out, in, ...) as int8 beside scales (out,) in float32, and all else in float16."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or len(tensor) == 1 or tensor.numel() < MIN_NUMBERS:
            stored[name] = tensor.half()
            continue
        rows = tensor.detach().to("cpu", torch.float32).flatten(1)
        scale = rows.abs().amax(1) / 127
        safe = scale.where(scale > 0, 1)[:, None]
        stored[name] = (rows / safe).round().clamp(-127, 127).to(torch.int8).view(tensor.shape)
        stored[name + SUFFIX] = scale
    return stored


def dequantise(tensors: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The tensors of a file with int8 weights in float32, without their scales. Raises CheckpointError for scales that do not fit."""
    weights = {}
    for name, tensor in tensors.items():
        if name.endswith(SUFFIX) and name.removesuffix(SUFFIX) in tensors:
            continue
        scale = tensors.get(name + SUFFIX)
        if scale is not None:
            if tensor.dtype != torch.int8 or tensor.ndim < 2 or not scale.is_floating_point() or scale.shape != tensor.shape[:1]:
                held = f"{scale.dtype} {list(scale.shape)} for {tensor.dtype} {list(tensor.shape)}"
                raise CheckpointError(f"{source}: {name[:100]} must be int8 with a scale for each output, but its scales are {held}")
            tensor = tensor.float() * scale.float().view(-1, *[1] * (tensor.ndim - 1))
        weights[name] = tensor
    return weights
