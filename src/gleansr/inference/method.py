"""The interface of upscaling methods: a network's forward pass, or a search in a bank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

StepReport = Callable[[int, int], None]
"""Receives the progress of a slow method: completed steps and all steps."""


@dataclass(frozen=True)
class ModelOutput:
    """The results of a batch."""

    images: Tensor
    """(N, 3, scale * h, scale * w), RGB in [-1, 1], not clamped."""
    notes: Sequence[str] = ()
    """A note for each image, "" for none; empty if no image has one."""


class Model(Protocol):
    """An upscaling method: a network's forward pass, or a search in a bank."""

    name: str
    """GLEAN, PULSE, ..."""
    in_size: int | None
    """Height and width of its input, None: any."""
    scale: int
    device: torch.device

    def __call__(self, lr: Tensor, report: StepReport | None = None) -> ModelOutput:
        """lr (N, 3, h, w), RGB in [-1, 1], float32, on `device`. The result of an image does not depend on the others."""
        ...
