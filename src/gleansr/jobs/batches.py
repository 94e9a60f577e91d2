"""Lows of successive images put together into batches, in a way that follows from their order alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Low:
    """One of the lrs of an image."""

    number: int
    """The image's."""
    place: int
    """Among those of the image."""
    tensor: Tensor


class BatchCollector:
    """Collects lrs by their shape. A batch is full, or the oldest of those that wait where all that wait would be too much."""

    def __init__(self, size: int, count: int, weight: int):
        """`count` images and `weight` of them may wait."""
        self._size, self._count, self._weight = size, count, weight
        self._waiting: dict[torch.Size, list[Low]] = {}
        self._weights: dict[int, int] = {}

    def add(self, number: int, weight: int, lrs: Sequence[Tensor]) -> Iterator[list[Low]]:
        """Of an image; yields the batches that are to be run now."""
        for place, lr in enumerate(lrs):
            self._weights[number] = weight
            waiting = self._waiting.setdefault(lr.shape, [])
            waiting.append(Low(number, place, lr))
            if len(waiting) == self._size:
                yield self._close(lr.shape)
        while len(self._weights) > self._count or sum(self._weights.values()) > self._weight:
            yield self._close(self._oldest())

    def rest(self) -> Iterator[list[Low]]:
        """What waits after the last image."""
        while self._waiting:
            yield self._close(self._oldest())

    def _oldest(self) -> torch.Size:
        return min(self._waiting, key=lambda shape: self._waiting[shape][0].number)

    def _close(self, shape: torch.Size) -> list[Low]:
        batch = self._waiting.pop(shape)
        still = {lr.number for waiting in self._waiting.values() for lr in waiting}
        for number in {lr.number for lr in batch} - still:
            self._weights.pop(number, None)
        return batch
