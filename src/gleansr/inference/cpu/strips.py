"""Strips of rows of maps that need not exist as a whole, with the rows that convolutions spoil where a map was cut."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Strip:
    """Some rows of a map that does not exist as a whole."""

    map: Tensor
    """(1, C, rows, W)."""
    top: int
    """The place of its first row in the whole map."""
    height: int
    """Rows of the whole map."""

    @property
    def rows(self) -> slice:
        """Its place in the whole map."""
        return slice(self.top, self.top + self.map.shape[2])

    def of(self, rows: slice) -> "Strip":
        """Those rows of the whole map, which it has."""
        return Strip(self.map[:, :, rows.start - self.top : rows.stop - self.top], rows.start, self.height)

    def above(self, below: "Strip") -> "Strip":
        """Its rows and those that follow."""
        return replace(self, map=torch.cat([self.map, below.map], 2))

    def convolved(self, made: Tensor) -> "Strip":
        """What a 3x3 convolution made of it, without the row that it spoilt at each edge where the map was cut."""
        return Strip(made, self.top, self.height)._without(1)

    def doubled(self, made: Tensor) -> "Strip":
        """What an enlargement made of it, without the two rows that it spoilt."""
        return Strip(made, 2 * self.top, 2 * self.height)._without(2)

    def _without(self, spoilt: int) -> "Strip":
        above, below = spoilt * (self.rows.start > 0), spoilt * (self.rows.stop < self.height)
        return Strip(self.map[:, :, above : self.map.shape[2] - below], self.top + above, self.height)


class Pair(NamedTuple):
    """Strips of the same rows of two maps."""

    sr: Strip
    """Of the decoder's."""
    x: Strip | None
    """Of the bank's, if there is one that is read."""

    def of(self, rows: slice) -> "Pair":
        """Those rows, which it has."""
        return Pair(self.sr.of(rows), self.x and self.x.of(rows))

    def above(self, below: "Pair") -> "Pair":
        """Its rows and those that follow."""
        return Pair(self.sr.above(below.sr), self.x and below.x and self.x.above(below.x))
