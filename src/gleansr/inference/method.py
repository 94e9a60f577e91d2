"""What a way to enlarge images is: a network's forward pass, or a search in a bank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

StepReport = Callable[[int, int], None]
"""Is told of the progress of a slow method: steps done, and steps in all."""


@dataclass(frozen=True)
class ModelOutput:
    """What a method made of a batch."""

    images: Tensor
    """(N, 3, scale * h, scale * w), RGB in [-1, 1], not clamped."""
    notes: Sequence[str] = ()
    """What to say of each image, "" if nothing; empty if there is nothing to say of any."""


class Model(Protocol):
    """A way to enlarge images: a network's forward pass, or a search in a bank."""

    name: str
    """GLEAN, PULSE, ..."""
    in_size: int | None
    """Height and width of the images that it takes, None: any."""
    scale: int
    device: torch.device

    def __call__(self, lr: Tensor, report: StepReport | None = None) -> ModelOutput:
        """low (N, 3, h, w), RGB in [-1, 1], float32, on `device`. What becomes of an image does not depend on the others."""
        ...
