"""Lows of successive pictures put together into batches, in a way that follows from their order alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Low:
    """One of the lows of a picture."""

    number: int
    """The picture's."""
    place: int
    """Among those of the picture."""
    tensor: Tensor


class Batches:
    """Collects lows by their shape. A batch is full, or the oldest of those that wait where all that wait would be too much."""

    def __init__(self, size: int, count: int, weight: int):
        """`count` pictures and `weight` of them may wait."""
        self._size, self._count, self._weight = size, count, weight
        self._waiting: dict[torch.Size, list[Low]] = {}
        self._weights: dict[int, int] = {}

    def add(self, number: int, weight: int, lows: Sequence[Tensor]) -> Iterator[list[Low]]:
        """Of a picture; yields the batches that are to be run now."""
        for place, low in enumerate(lows):
            self._weights[number] = weight
            waiting = self._waiting.setdefault(low.shape, [])
            waiting.append(Low(number, place, low))
            if len(waiting) == self._size:
                yield self._close(low.shape)
        while len(self._weights) > self._count or sum(self._weights.values()) > self._weight:
            yield self._close(self._oldest())

    def rest(self) -> Iterator[list[Low]]:
        """What waits after the last picture."""
        while self._waiting:
            yield self._close(self._oldest())

    def _oldest(self) -> torch.Size:
        return min(self._waiting, key=lambda shape: self._waiting[shape][0].number)

    def _close(self, shape: torch.Size) -> list[Low]:
        batch = self._waiting.pop(shape)
        still = {low.number for waiting in self._waiting.values() for low in waiting}
        for number in {low.number for low in batch} - still:
            self._weights.pop(number, None)
        return batch
