"""`gleansr.resize`'s bicubic in float32, for whole photos.

The exact version sums in float64, which takes seconds for a photo. This one shrinks with PyTorch, whose antialiasing kernel is the same,
after mirroring the borders as MATLAB does, and enlarges with its own code. Both agree with the exact version within float32's rounding.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.images.pixels import to_bytes
from gleansr.images.resize import resize

_WINDOW = 8
_REACH = 2
"""Of the kernel, in pixels."""


def mirrored_indices(first: int, last: int, length: int) -> Tensor:
    """Indices first..last - 1 of an axis of `length` pixels, mirrored beyond its ends with the end pixels doubled."""
    index = torch.arange(first, last) % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def enlarge(planes: Tensor, scale: int, first: int = 0, last: int | None = None) -> Tensor:
    """Enlarges rows first..last - 1 (by default all) of planes (C, H, W) by an integer: (C, scale * rows, scale * W)."""
    count, height, width = planes.shape
    last = height if last is None else last
    if scale == 1:
        return planes[:, first:last].clone()
    # Windows of pixels plus the kernel's reach on both sides, times one small matrix, are several times as fast as sums over taps.
    down, across = -(-(last - first) // _WINDOW), -(-width // _WINDOW)
    rows = mirrored_indices(first - _REACH, first + down * _WINDOW + _REACH, height)
    part = planes[:, rows][:, :, mirrored_indices(-_REACH, across * _WINDOW + _REACH, width)]
    size = _WINDOW + 2 * _REACH
    matrix = _weights(scale).to(planes.dtype)
    plane, line, _ = part.stride()
    tall = matrix @ part.as_strided((count, down, size, part.shape[2]), (plane, _WINDOW * line, line, 1))
    tall = tall.view(count, down * _WINDOW * scale, part.shape[2])
    plane, line, _ = tall.stride()
    large = tall.as_strided((*tall.shape[:2], across, size), (plane, line, _WINDOW, 1)) @ matrix.T
    return large.view(*tall.shape[:2], -1)[:, : (last - first) * scale, : width * scale]


@functools.lru_cache(maxsize=16)
def _weights(scale: int) -> Tensor:
    """Weights of a window and its surroundings in the enlarged pixels: (scale * window, window + 2 * reach), float64."""
    with torch.inference_mode(False):  # the cached tensor outlives the caller's mode
        impulses = torch.eye(_WINDOW + 4 * _REACH, dtype=torch.float64)
        wide = resize(impulses, size=(len(impulses) * scale, len(impulses)))
    return wide[2 * _REACH * scale : -2 * _REACH * scale, _REACH:-_REACH]


def shrink(planes: Tensor, scale: int) -> Tensor:
    """Shrinks planes (C, H, W) by an integer that divides both sides: (C, H / scale, W / scale)."""
    if scale == 1:
        return planes
    height, width = planes.shape[-2:]
    margin = 2 * scale  # the kernel's reach
    part = planes[:, mirrored_indices(-margin, height + margin, height)][:, :, mirrored_indices(-margin, width + margin, width)]
    small = F.interpolate(part[None], size=(part.shape[1] // scale, part.shape[2] // scale), mode="bicubic", antialias=True)[0]
    return small[:, 2:-2, 2:-2]


def to_size(planes: Tensor, height: int, width: int) -> Tensor:
    """Resizes planes (C, H, W), with antialiasing."""
    if planes.shape[-2:] == (height, width):
        return planes
    return F.interpolate(planes[None], size=(height, width), mode="bicubic", antialias=True)[0]


def shrink_stored(sr: Tensor, scale: int) -> Tensor:
    """Shrinks a result (3, s * h, s * w) in [-1, 1] as its 8-bit file would be, without rounding: (3, h, w) in [-1, 1]."""
    return shrink(to_bytes(sr).float(), scale) / 127.5 - 1
