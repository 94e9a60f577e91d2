"""How much detail of an object a photo resolves, where its own detail is better than the model's.

A model sees an object shrunk to its input size and paints the detail of a larger object anew. For a sharp photo the result would be a worse
likeness than the photo itself; for a blurred or previously enlarged photo the model's detail is better. Both are compared per octave, from
the finest octave of the model's input upwards: a photo resolves an octave if it has about as much detail there as the model's output.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gleansr.photos.align import Frame, crop
from gleansr.photos.sampling import to_size

_SHARE = 0.9
"""Measured on heads of cats of 64 to 256 pixels with cats-8x: sharp ones have 1.05 to 3 times the model's detail in every octave; ones
enlarged 2x before have 0.5 to 0.8 in the last octave, or up to 1.0 if then saved as JPEG of quality 60."""
_MAX_COLUMNS = 512
"""Largest width of the analysis; finer octaves are assumed resolved if the last one is."""


@dataclass(frozen=True)
class Octave:
    """The detail of a photo within a frame between two sizes."""

    coarse: tuple[int, int]
    """Height and width."""
    fine: tuple[int, int]
    amount: float
    """Root mean square, for values in [0, 1]."""


def measure_octaves(planes: Tensor, frame: Frame, rows: int, columns: int) -> tuple[Octave, ...]:
    """The octaves of a photo (3, H, W) in [0, 1] within a frame, beyond a model's input of rows x columns."""
    largest = min(_MAX_COLUMNS, int(frame.width))
    sizes = [(rows, columns)]
    while sizes[-1][1] * 4 <= largest * 3:  # the last octave may be partial
        width = min(2 * sizes[-1][1], largest)
        sizes.append((max(1, round(width * rows / columns)), width))
    if len(sizes) == 1:
        return ()
    photo = crop(planes, frame, *sizes[-1])
    return tuple(Octave(coarse, fine, _detail(photo, coarse, fine)) for coarse, fine in itertools.pairwise(sizes))


def resolved_columns(octaves: Sequence[Octave], sr: Tensor, frame: Frame) -> int | None:
    """Number of columns of a frame that the photo resolves; None if no more than the model's input.

    Args:
        octaves: the result of `measure_octaves`.
        sr: the model's output without bars, (3, h, w) in [-1, 1].
        frame: the frame of `octaves`.
    """
    columns = None
    for octave in octaves:
        if octave.fine[1] > sr.shape[2] or octave.amount < _SHARE * _detail(sr.clamp(-1, 1) / 2, octave.coarse, octave.fine):
            return columns
        columns = octave.fine[1]
    return columns and int(frame.width)


def _detail(planes: Tensor, coarse: tuple[int, int], fine: tuple[int, int]) -> float:
    """Root mean square of the detail of (3, h, w) between two sizes, in its central part."""
    planes = to_size(planes, *fine)
    octave = planes - to_size(to_size(planes, *coarse), *fine)
    top, left = fine[0] // 8, fine[1] // 8
    return float(torch.sqrt(octave[:, top : fine[0] - top, left : fine[1] - left].square().mean()))
