"""Groups the LR tensors of successive images into batches. The grouping depends on their order alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BatchItem:
    """One LR tensor of an image."""

    image: int
    """Number of the image."""
    part: int
    """Index among the LR tensors of the image."""
    lr: Tensor


class BatchCollector:
    """Collects LR tensors by shape. A batch closes when it is full, and the oldest one closes when the waiting images exceed a limit."""

    def __init__(self, size: int, count: int, weight: int):
        """`size`: LR tensors in a batch. At most `count` images, with a total weight of `weight`, wait."""
        self._size, self._count, self._weight = size, count, weight
        self._waiting: dict[torch.Size, list[BatchItem]] = {}
        self._weights: dict[int, int] = {}

    def add(self, image: int, weight: int, lrs: Sequence[Tensor]) -> Iterator[list[BatchItem]]:
        """Adds the LR tensors of an image; yields the batches to run now."""
        for part, lr in enumerate(lrs):
            self._weights[image] = weight
            waiting = self._waiting.setdefault(lr.shape, [])
            waiting.append(BatchItem(image, part, lr))
            if len(waiting) == self._size:
                yield self._close(lr.shape)
        while len(self._weights) > self._count or sum(self._weights.values()) > self._weight:
            yield self._close(self._oldest())

    def rest(self) -> Iterator[list[BatchItem]]:
        """The incomplete batches after the last image."""
        while self._waiting:
            yield self._close(self._oldest())

    def _oldest(self) -> torch.Size:
        return min(self._waiting, key=lambda shape: self._waiting[shape][0].image)

    def _close(self, shape: torch.Size) -> list[BatchItem]:
        batch = self._waiting.pop(shape)
        remaining = {item.image for waiting in self._waiting.values() for item in waiting}
        for image in {item.image for item in batch} - remaining:
            self._weights.pop(image, None)
        return batch
