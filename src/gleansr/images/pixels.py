"""Pixel values: floats in [-1, 1], as in networks, and 8-bit values, as in files."""

from typing import Literal

import torch
from torch import Tensor

from gleansr.errors import RequestError

Rounding = Literal["8-bit", "none"]


def to_bytes(images: Tensor) -> Tensor:
    """Floats in [-1, 1] of any shape -> uint8: clamped, rounded half to even in float32. NaN gives any value."""
    return images.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)


def from_bytes(values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values in 0..255 of any shape -> floats in [-1, 1], exactly (k - 127.5) / 127.5 on every device."""
    values = values.to(dtype)
    # Divided by a tensor: CUDA would multiply by the reciprocal of a number, which is not always the same.
    return (values - 127.5) / torch.full_like(values, 127.5)


def to_byte_range(images: Tensor, rounding: Rounding) -> Tensor:
    """Floats in [-1, 1], clamped, as float64 in 0..255; whole numbers with `rounding="8-bit"`."""
    if rounding not in ("8-bit", "none"):
        raise RequestError(f"rounding is {rounding!r}, but must be '8-bit' or 'none'")
    images = images.cpu() if images.device.type == "mps" else images  # which has no float64
    values = images.double().clamp(-1, 1).add(1).mul(127.5)
    return values.round() if rounding == "8-bit" else values


def quantize(images: Tensor) -> Tensor:
    """Images in [-1, 1] as they are after being stored with 8 bits: clamped, then (k - 127.5) / 127.5 for whole k from 0 to 255."""
    return from_bytes(to_byte_range(images, "8-bit"), torch.float64).to(images.device, images.dtype)
