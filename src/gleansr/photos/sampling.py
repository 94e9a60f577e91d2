"""`gleansr.resize`'s bicubic in float32, for what is as large as a photo.

The exact one sums in float64, which takes seconds for a photo; this one is PyTorch's, whose kernel is the same where pictures are
antialiased, with borders mirrored as MATLAB's. The two agree within float32's rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.fidelity import psnr


def mirrored(first: int, last: int, length: int) -> Tensor:
    """The indices first..last - 1 of an axis of `length` pixels that goes on mirrored beyond its ends, its last pixel doubled."""
    index = torch.arange(first, last) % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def enlarged(planes: Tensor, factor: int, first: int = 0, last: int | None = None) -> Tensor:
    """Rows first..last - 1 (by default all) of planes (C, H, W), enlarged by a whole factor: (C, factor * rows, factor * W)."""
    height, width = planes.shape[-2:]
    last = height if last is None else last
    if factor == 1:
        return planes[:, first:last].clone()
    margin = 2  # the kernel's reach
    part = planes[:, mirrored(first - margin, last + margin, height)][:, :, mirrored(-margin, width + margin, width)]
    size = (part.shape[1] * factor, part.shape[2] * factor)
    large = F.interpolate(part[None], size=size, mode="bicubic", antialias=True)[0]
    cut = margin * factor
    return large[:, cut:-cut, cut:-cut]


def shrunk(planes: Tensor, factor: int) -> Tensor:
    """planes (C, H, W) shrunk by a whole factor that divides both sides: (C, H / factor, W / factor)."""
    if factor == 1:
        return planes
    height, width = planes.shape[-2:]
    margin = 2 * factor  # the kernel's reach
    part = planes[:, mirrored(-margin, height + margin, height)][:, :, mirrored(-margin, width + margin, width)]
    small = F.interpolate(part[None], size=(part.shape[1] // factor, part.shape[2] // factor), mode="bicubic", antialias=True)[0]
    return small[:, 2:-2, 2:-2]


def to_size(planes: Tensor, height: int, width: int) -> Tensor:
    """planes (C, H, W) at another size, antialiased where that is smaller."""
    if planes.shape[-2:] == (height, width):
        return planes
    return F.interpolate(planes[None], size=(height, width), mode="bicubic", antialias=True)[0]


def decibels(low: Tensor, high: Tensor) -> float | None:
    """`tasks.decibels` in float32: the consistency of a result (3, s * h, s * w) with its input (3, h, w), both in [-1, 1]; None where
    nothing differs."""
    stored = high.clamp(-1, 1).add(1).mul(127.5).round()
    again = shrunk(stored, high.shape[-1] // low.shape[-1]) / 127.5 - 1
    value = float(psnr(low[None], again[None])[0])
    return None if value == float("inf") else round(value, 2)
