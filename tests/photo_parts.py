"""Made-up models for the tests of whole photographs."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gleansr.checkpoints.native import About
from gleansr.images.codec import Picture
from gleansr.images.resize import resize
from gleansr.inference.method import Enlarged, Report
from gleansr.inference.upscaler import Upscaler


@dataclass
class Made:
    """A method that enlarges by bicubic and does something to the result."""

    in_size: int | None
    scale: int
    change: Callable[[Tensor], Tensor] = lambda high: high
    note: str = ""
    name: str = "made"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __call__(self, low: Tensor, report: Report | None = None) -> Enlarged:  # noqa: ARG002
        return Enlarged(self.change(resize(low, scale=self.scale)), [self.note] * len(low) if self.note else [])


def upscaler(
    in_size: int | None = 16,
    scale: int = 8,
    change: Callable[[Tensor], Tensor] = lambda high: high,
    *,
    category: str | None = "cars",
    note: str = "",
    content_height: int | None = None,
) -> Upscaler:
    return Upscaler(Made(in_size, scale, change, note), About("made", category=category, content_height=content_height))


def smooth(height: int, width: int, *, channels: int = 3, seed: int = 0, cell: int = 5) -> Tensor:
    """(channels, height, width) in [0, 1], of random pixels enlarged."""
    seeds = torch.rand(channels, -(-height // cell), -(-width // cell), generator=torch.Generator().manual_seed(seed))
    return resize(seeds, size=(height, width)).clamp(0, 1)


def photo(height: int, width: int, *, seed: int = 0, cell: int = 2) -> Picture:
    """A photo with 8 bits."""
    return Picture(smooth(height, width, seed=seed, cell=cell).mul(255).round() / 255, name="photo")


def pixels(image: object) -> Tensor:
    """(channels, height, width) in 0..255 of a PIL image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def stripes(high: Tensor) -> Tensor:
    """What a model adds that invents detail: columns of 2 pixels, lighter and darker by 0.2 in [-1, 1]."""
    columns = torch.arange(high.shape[-1]) // 2 % 2
    return high + 0.4 * columns - 0.2
