"""How much of an object a photo resolves: what it shows itself is better than what the model paints in its place.

A model sees an object shrunk to its input. Of an object with more pixels in the photo, it paints detail anew that the photo may have. Where
the photo is sharp, the result would be a worse likeness than the photo; where it is blurred or was enlarged before, the model's detail is
wanted. So both are compared, octave by octave from the finest that the model sees: the photo resolves an octave if it has there
about as much as the model puts there.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gleansr.photos.align import Frame, cut
from gleansr.photos.sampling import to_size

_SHARE = 0.9
"""Measured on heads of cats of 64 to 256 pixels with cats-8x: sharp ones have 1.05 to 3 times the model's detail in every octave; such as
were enlarged twice before have 0.5 to 0.8 in the last, or up to 1.0 where they were saved as JPEG of quality 60 after that."""
_LARGEST = 512
"""Columns at which a photo is looked at at most; what is finer is taken to be resolved as the last octave before."""


@dataclass(frozen=True)
class Octave:
    """What a photo has within a frame between two sizes."""

    coarse: tuple[int, int]
    """Height and width."""
    fine: tuple[int, int]
    amount: float
    """Root mean square, of values in [0, 1]."""


def octaves(planes: Tensor, frame: Frame, rows: int, columns: int) -> tuple[Octave, ...]:
    """What a photo (3, H, W) in [0, 1] has within a frame beyond what a model of rows x columns sees."""
    largest = min(_LARGEST, int(frame.width))
    sizes = [(rows, columns)]
    while sizes[-1][1] * 4 <= largest * 3:  # the last octave may be a part of one
        wide = min(2 * sizes[-1][1], largest)
        sizes.append((max(1, round(wide * rows / columns)), wide))
    if len(sizes) == 1:
        return ()
    photo = cut(planes, frame, *sizes[-1])
    return tuple(Octave(coarse, fine, _between(photo, coarse, fine)) for coarse, fine in itertools.pairwise(sizes))


def resolved(found: Sequence[Octave], sr: Tensor, frame: Frame) -> int | None:
    """Across how many columns of a frame a photo shows its own detail; None where no more than the model sees.

    Args:
        found: by `octaves`.
        high: what the model made, without bars, (3, h, w) in [-1, 1].
        frame: the same.
    """
    columns = None
    for octave in found:
        if octave.fine[1] > sr.shape[2] or octave.amount < _SHARE * _between(sr.clamp(-1, 1) / 2, octave.coarse, octave.fine):
            return columns
        columns = octave.fine[1]
    return columns and int(frame.width)


def _between(planes: Tensor, coarse: tuple[int, int], fine: tuple[int, int]) -> float:
    """The root mean square of what (3, h, w) has between two sizes, in its middle."""
    planes = to_size(planes, *fine)
    octave = planes - to_size(to_size(planes, *coarse), *fine)
    top, left = fine[0] // 8, fine[1] // 8
    return float(torch.sqrt(octave[:, top : fine[0] - top, left : fine[1] - left].square().mean()))
