"""What the searches in a bank share: which images they take, and the matrices by which they shrink."""

from collections.abc import Callable

import torch
from torch import Tensor

from gleansr.errors import RequestError


def check_scale(name: str, size: int, scale: int) -> None:
    """Raises RequestError unless `scale` is one at which the method `name` can use a bank of `size` px."""
    if not (isinstance(scale, int) and 2 <= scale <= size // 2 and scale & (scale - 1) == 0):
        raise RequestError(f"{name} with a bank of {size} px takes a scale that is a power of two from 2 to {size // 2}, not {scale}")


def check_lr(name: str, lr: Tensor, in_size: int | None) -> None:
    """Raises RequestError unless `lr` is (N, 3, in_size, in_size)."""
    if lr.ndim != 4 or lr.shape[1:] != (3, in_size, in_size):
        raise RequestError(f"{name} with this bank takes images (N, 3, {in_size}, {in_size}), not {tuple(lr.shape)}")


def reduction(size: int, factor: int, kernel: Callable[[Tensor], Tensor], border: Callable[[Tensor], Tensor]) -> Tensor:
    """The reduction of one axis by a convolution with stride, (size / factor, size), float64, for an even factor.

    Args:
        size: of the axis.
        factor: by which it shrinks.
        kernel: the filter as a function of the distance in pixels of the result; 4 * factor taps of it are taken, and sum up to 1.
        border: the pixel that stands for one of an index below 0 or from `size` on.
    """
    taps = kernel((torch.arange(4 * factor, dtype=torch.float64) - 2 * factor + 0.5) / factor)
    rows = torch.arange(size // factor)[:, None]
    columns = border(rows * factor + torch.arange(4 * factor) - 3 * factor // 2)
    return torch.zeros(size // factor, size, dtype=taps.dtype).scatter_add_(1, columns, (taps / taps.sum()).expand(len(rows), -1))
