"""Weights stored in 8 bits, with a scale for each output channel.

A weight of a convolution or linear layer becomes round(weight / scale), its scale being the largest magnitude of an output channel / 127.
All else is stored in float16. Symmetric and per channel, as in Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018, but for storage alone: networks compute with floating-point numbers.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gleansr.errors import CheckpointError

SUFFIX = ".int8_scale"
"""Ends the name of a weight's scales."""
MIN_NUMBERS = 4096
"""Smaller weights stay in float16: the first and last convolutions, whose error would be seen most."""


def quantise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name -> the same, with large weights (out, in, ...) as int8 beside scales (out,) in float32, and all else in float16."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if is_large(tensor):
            stored[name], stored[name + SUFFIX] = steps(tensor.detach().to("cpu", torch.float32))
        else:
            stored[name] = tensor.half()
    return stored


def is_large(tensor: Tensor) -> bool:
    """Whether a tensor is stored in 8 bits."""
    return tensor.ndim >= 2 and len(tensor) > 1 and tensor.numel() >= MIN_NUMBERS


def steps(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (out, in, ...) in float32 as int8 and scales (out,)."""
    rows = weight.flatten(1)
    scale = rows.abs().amax(1) / 127
    safe = scale.where(scale > 0, 1)[:, None]
    return (rows / safe).round().clamp(-127, 127).to(torch.int8).view(weight.shape), scale


def weight_of(steps: Tensor, scale: Tensor) -> Tensor:
    """The weight in float32 that int8 numbers and their scales stand for."""
    return steps.float() * scale.float().view(-1, *[1] * (steps.ndim - 1))


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Rounds the large weights of a model in float32 as storing them in 8 bits does."""
    for parameter in model.parameters():
        if is_large(parameter):
            parameter.copy_(weight_of(*steps(parameter)))


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
            tensor = weight_of(tensor, scale)
        weights[name] = tensor
    return weights
