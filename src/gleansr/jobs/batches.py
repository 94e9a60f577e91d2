"""Groups the LR tensors of successive images into batches. The grouping depends on their order alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from gleansr.inference.upscaler import Upscaler

Key = tuple[Upscaler | None, tuple[int, ...]]
"""What the LR tensors of a batch have in common: the model and the shape."""


@dataclass(frozen=True, eq=False)
class BatchItem:
    """One LR tensor of an image."""

    image: int
    """Number of the image."""
    part: int
    """Index among the LR tensors of the image."""
    lr: Tensor
    upscaler: Upscaler | None = None
    """Its model; None: the task's."""

    @property
    def key(self) -> Key:
        return self.upscaler, tuple(self.lr.shape)


def items_of(image: int, lrs: Sequence[Tensor], upscalers: Sequence[Upscaler] = ()) -> list[BatchItem]:
    """The LR tensors of an image, with the model of each if it is not the task's."""
    pairs = zip(lrs, upscalers or [None] * len(lrs), strict=True)
    return [BatchItem(image, part, lr, upscaler) for part, (lr, upscaler) in enumerate(pairs)]


class BatchCollector:
    """Collects LR tensors by model and shape.

    A batch closes when it is full, and the oldest one closes when the waiting images exceed a limit.
    """

    def __init__(self, size: int, count: int, weight: int):
        """`size`: LR tensors in a batch. At most `count` images, with a total weight of `weight`, wait."""
        self._size, self._count, self._weight = size, count, weight
        self._waiting: dict[Key, list[BatchItem]] = {}
        self._weights: dict[int, int] = {}

    def add(self, image: int, weight: int, lrs: Sequence[Tensor], upscalers: Sequence[Upscaler] = ()) -> Iterator[list[BatchItem]]:
        """Adds the LR tensors of an image, and the model of each if it is not the task's; yields the batches to run now."""
        for item in items_of(image, lrs, upscalers):
            self._weights[image] = weight
            waiting = self._waiting.setdefault(item.key, [])
            waiting.append(item)
            if len(waiting) == self._size:
                yield self._close(item.key)
        while len(self._weights) > self._count or sum(self._weights.values()) > self._weight:
            yield self._close(self._oldest())

    def rest(self) -> Iterator[list[BatchItem]]:
        """The incomplete batches after the last image."""
        while self._waiting:
            yield self._close(self._oldest())

    def _oldest(self) -> Key:
        return min(self._waiting, key=lambda key: self._waiting[key][0].image)

    def _close(self, key: Key) -> list[BatchItem]:
        batch = self._waiting.pop(key)
        remaining = {item.image for waiting in self._waiting.values() for item in waiting}
        for image in {item.image for item in batch} - remaining:
            self._weights.pop(image, None)
        return batch
