"""Shared parts of the searches PULSE and DGP: checks of their input, and downsampling matrices."""

from collections.abc import Callable

import torch
from torch import Tensor

from gleansr.errors import RequestError


def check_scale(name: str, size: int, scale: int) -> None:
    """Raises RequestError unless the method `name` can use a bank of `size` px at `scale`."""
    if not (isinstance(scale, int) and 2 <= scale <= size // 2 and scale & (scale - 1) == 0):
        raise RequestError(f"{name} with a bank of {size} px takes scales that are powers of two from 2 to {size // 2}, not {scale}")


def check_lr(name: str, lr: Tensor, in_size: int | None) -> None:
    """Raises RequestError unless `lr` is (N, 3, in_size, in_size)."""
    if lr.ndim != 4 or lr.shape[1:] != (3, in_size, in_size):
        raise RequestError(f"{name} with this bank takes images (N, 3, {in_size}, {in_size}), not {tuple(lr.shape)}")


def downsampling_matrix(size: int, scale: int, kernel: Callable[[Tensor], Tensor], border: Callable[[Tensor], Tensor]) -> Tensor:
    """The matrix (size / scale, size), float64, that downsamples one axis by a strided convolution.

    Args:
        size: length of the axis.
        scale: downsampling scale, even.
        kernel: filter as a function of the distance in pixels of the result; its 4 * scale taps are normalised to a sum of 1.
        border: maps indices below 0 or from `size` on to pixels.
    """
    taps = kernel((torch.arange(4 * scale, dtype=torch.float64) - 2 * scale + 0.5) / scale)
    rows = torch.arange(size // scale)[:, None]
    columns = border(rows * scale + torch.arange(4 * scale) - 3 * scale // 2)
    return torch.zeros(size // scale, size, dtype=taps.dtype).scatter_add_(1, columns, (taps / taps.sum()).expand(len(rows), -1))
