"""`gleansr.resize`'s bicubic in float32, for what is as large as a photo.

The exact one sums in float64, which takes seconds for a photo. Shrinking is PyTorch's here, whose kernel is the same where images are
antialiased, with borders mirrored as MATLAB's; enlarging is our own. Both agree with the exact one within float32's rounding.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.images.back_projection import psnr
from gleansr.images.resize import resize

_WINDOW = 8
_REACH = 2
"""Of the kernel, in pixels."""


def mirrored(first: int, last: int, length: int) -> Tensor:
    """The indices first..last - 1 of an axis of `length` pixels that goes on mirrored beyond its ends, its last pixel doubled."""
    index = torch.arange(first, last) % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def enlarged(planes: Tensor, factor: int, first: int = 0, last: int | None = None) -> Tensor:
    """Rows first..last - 1 (by default all) of planes (C, H, W), enlarged by a whole factor: (C, factor * rows, factor * W)."""
    count, height, width = planes.shape
    last = height if last is None else last
    if factor == 1:
        return planes[:, first:last].clone()
    # Windows of so many pixels, with those that the kernel reaches on both sides, times one small matrix, are several times as fast as sums
    # over single taps.
    down, across = -(-(last - first) // _WINDOW), -(-width // _WINDOW)
    rows = mirrored(first - _REACH, first + down * _WINDOW + _REACH, height)
    part = planes[:, rows][:, :, mirrored(-_REACH, across * _WINDOW + _REACH, width)]
    size = _WINDOW + 2 * _REACH
    matrix = _phases(factor).to(planes.dtype)
    plane, line, _ = part.stride()
    tall = matrix @ part.as_strided((count, down, size, part.shape[2]), (plane, _WINDOW * line, line, 1))
    tall = tall.view(count, down * _WINDOW * factor, part.shape[2])
    plane, line, _ = tall.stride()
    large = tall.as_strided((*tall.shape[:2], across, size), (plane, line, _WINDOW, 1)) @ matrix.T
    return large.view(*tall.shape[:2], -1)[:, : (last - first) * factor, : width * factor]


@functools.lru_cache(maxsize=16)
def _phases(factor: int) -> Tensor:
    """What a window's pixels, and those around it, weigh in the enlarged ones: (factor * window, window + 2 * reach), float64."""
    with torch.inference_mode(False):  # it is kept
        impulses = torch.eye(_WINDOW + 4 * _REACH, dtype=torch.float64)
        wide = resize(impulses, size=(len(impulses) * factor, len(impulses)))
    return wide[2 * _REACH * factor : -2 * _REACH * factor, _REACH:-_REACH]


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


def decibels(lr: Tensor, sr: Tensor) -> float | None:
    """`tasks.consistency_db` in float32: the consistency of a result (3, s * h, s * w) with its input (3, h, w), both in [-1, 1]; None
    where nothing differs."""
    stored = sr.clamp(-1, 1).add(1).mul(127.5).round()
    again = shrunk(stored, sr.shape[-1] // lr.shape[-1]) / 127.5 - 1
    value = float(psnr(lr[None], again[None])[0])
    return None if value == float("inf") else round(value, 2)
