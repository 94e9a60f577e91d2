"""What a way to enlarge pictures is: a network's forward pass, or a search in a bank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Report = Callable[[int, int], None]
"""Is told of the progress of a slow method: steps done, and steps in all."""


@dataclass(frozen=True)
class Enlarged:
    """What a method made of a batch."""

    pictures: Tensor
    """(N, 3, scale * h, scale * w), RGB in [-1, 1], not clamped."""
    notes: Sequence[str] = ()
    """What to say of each picture, "" if nothing; empty if there is nothing to say of any."""


class Method(Protocol):
    """A way to enlarge pictures: a network's forward pass, or a search in a bank."""

    name: str
    """GLEAN, PULSE, ..."""
    in_size: int | None
    """Height and width of the pictures that it takes, None: any."""
    scale: int
    device: torch.device

    def __call__(self, low: Tensor, report: Report | None = None) -> Enlarged:
        """low (N, 3, h, w), RGB in [-1, 1], float32, on `device`. What becomes of a picture does not depend on the others."""
        ...
