"""Strips of rows of maps that never exist as a whole. Convolutions invalidate rows at the cuts."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Strip:
    """Some rows of a map."""

    map: Tensor
    """(1, C, rows, W)."""
    top: int
    """Index of its first row in the whole map."""
    height: int
    """Number of rows of the whole map."""

    @property
    def rows(self) -> slice:
        """Its rows in the whole map."""
        return slice(self.top, self.top + self.map.shape[2])

    def of(self, rows: slice) -> "Strip":
        """Some of its rows, given by their indices in the whole map."""
        return Strip(self.map[:, :, rows.start - self.top : rows.stop - self.top], rows.start, self.height)

    def above(self, below: "Strip") -> "Strip":
        """Its rows and those of the next strip."""
        return replace(self, map=torch.cat([self.map, below.map], 2))

    def convolved(self, map_: Tensor) -> "Strip":
        """The output `map_` of a 3x3 convolution, without the invalid row at each cut."""
        return Strip(map_, self.top, self.height)._without(1)

    def doubled(self, map_: Tensor) -> "Strip":
        """The output `map_` of an upsampling, without the two invalid rows at each cut."""
        return Strip(map_, 2 * self.top, 2 * self.height)._without(2)

    def _without(self, invalid: int) -> "Strip":
        above, below = invalid * (self.rows.start > 0), invalid * (self.rows.stop < self.height)
        return Strip(self.map[:, :, above : self.map.shape[2] - below], self.top + above, self.height)


class Pair(NamedTuple):
    """Strips of the same rows of two maps."""

    sr: Strip
    """The decoder's."""
    x: Strip | None
    """The bank's, if it is read."""

    def of(self, rows: slice) -> "Pair":
        """Some of its rows."""
        return Pair(self.sr.of(rows), self.x and self.x.of(rows))

    def above(self, below: "Pair") -> "Pair":
        """Its rows and those of the next strip."""
        return Pair(self.sr.above(below.sr), self.x and below.x and self.x.above(below.x))
