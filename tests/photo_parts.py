"""Fake models for the tests of whole photographs."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gleansr.checkpoints.native import About
from gleansr.images.codec import DecodedImage
from gleansr.images.resize import resize
from gleansr.inference.method import ModelOutput, StepReport
from gleansr.inference.upscaler import Upscaler


@dataclass
class Made:
    """Enlarges by bicubic and applies `change`."""

    in_size: int | None
    scale: int
    change: Callable[[Tensor], Tensor] = lambda sr: sr
    note: str = ""
    name: str = "made"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __call__(self, lr: Tensor, report: StepReport | None = None) -> ModelOutput:  # noqa: ARG002
        return ModelOutput(self.change(resize(lr, scale=self.scale)), [self.note] * len(lr) if self.note else [])


def upscaler(
    in_size: int | None = 16,
    scale: int = 8,
    change: Callable[[Tensor], Tensor] = lambda sr: sr,
    *,
    category: str | None = "cars",
    note: str = "",
    content_height: int | None = None,
    border: str | None = None,
    called: str = "made",
) -> Upscaler:
    about = About(called, category=category, content_height=content_height, border=border)
    return Upscaler(Made(in_size, scale, change, note), about)


def smooth(height: int, width: int, *, channels: int = 3, seed: int = 0, cell: int = 5) -> Tensor:
    """(channels, height, width) in [0, 1], of random pixels enlarged."""
    seeds = torch.rand(channels, -(-height // cell), -(-width // cell), generator=torch.Generator().manual_seed(seed))
    return resize(seeds, size=(height, width)).clamp(0, 1)


def photo(height: int, width: int, *, seed: int = 0, cell: int = 2) -> DecodedImage:
    """A photo with 8 bits."""
    return DecodedImage(smooth(height, width, seed=seed, cell=cell).mul(255).round() / 255, name="photo")


def pixels(image: object) -> Tensor:
    """(channels, height, width) in 0..255 of a PIL image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def stripes(sr: Tensor) -> Tensor:
    """Adds invented detail: columns of 2 pixels, lighter and darker by 0.2 in [-1, 1]."""
    columns = torch.arange(sr.shape[-1]) // 2 % 2
    return sr + 0.4 * columns - 0.2
