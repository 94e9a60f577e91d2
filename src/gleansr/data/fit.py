"""Fits images of any shape to the square size of a network, as in the paper's data sets."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gleansr.data.choices import Aspect, Border, Small
from gleansr.errors import ImageError
from gleansr.images.resize import resize


class SmallError(ImageError):
    """An image is too small and would have to be enlarged."""


@dataclass(frozen=True)
class Content:
    """The part of a square image within its border, in pixels."""

    size: int
    """Side of the square."""
    top: int
    left: int
    rows: int
    columns: int

    @property
    def whole(self) -> bool:
        """Whether there is no border."""
        return (self.rows, self.columns) == (self.size, self.size)

    def shrunk(self, scale: int) -> "Content":
        """The same part of the square at 1 / `scale` of its size; all sides must be multiples of `scale`."""
        return Content(*(side // scale for side in (self.size, self.top, self.left, self.rows, self.columns)))

    def of(self, square: Tensor) -> Tensor:
        """Crops a square (..., size, size) to (..., rows, columns)."""
        return square[..., self.top : self.top + self.rows, self.left : self.left + self.columns]

    def framed(self, content: Tensor, border: Border, black: float = 0) -> Tensor:
        """Adds the border around `content` (3, rows, columns): (3, size, size)."""
        below, right = self.size - self.top - self.rows, self.size - self.left - self.columns
        pad = (self.left, right, self.top, below)
        if border == "black":
            return functional.pad(content, pad, value=black)
        return functional.pad(content[None].float(), pad, mode="replicate")[0].to(content.dtype)


def content_of(height: int, width: int, size: int, aspect: Aspect, grid: int = 1) -> Content:
    """Where `fit` places an image of that height and width. All values are multiples of `grid` px, and remain integers when downscaled by
    `grid`."""
    rows = columns = size
    if aspect == "pad":
        rows, columns = (max(grid, round(side * size / max(height, width) / grid) * grid) for side in (height, width))
    elif aspect == "bars":
        rows = size * 3 // 4 // grid * grid
    return Content(size, (size - rows) // grid // 2 * grid, (size - columns) // grid // 2 * grid, rows, columns)


def fit(pixels: Tensor, size: int, aspect: Aspect, small: Small, *, border: Border = "black", grid: int = 1) -> Tensor:
    """Fits an image to (3, size, size), uint8; an image of that size keeps its values.

    Args:
        pixels: (3, H, W) in [0, 1].
        size: of the result.
        aspect: "squash" scales each axis separately; "crop" takes the centre square; "pad" adds a border up to a square; "bars" takes the
            centre of aspect 4:3 and adds a border above and below, as in the images of StyleGAN2's car network.
        small: with "skip", an image that would have to be enlarged in either direction raises SmallError.
        border: filling of "pad" and "bars".
        grid: see `content_of`.
    """
    height, width = pixels.shape[-2:]
    content = content_of(height, width, size, aspect, grid)
    if aspect == "crop":
        pixels = _crop_centre(pixels, min(height, width), min(height, width))
    elif aspect == "bars":
        pixels = _crop_centre(pixels, min(height, round(width * 3 / 4)), min(width, round(height * 4 / 3)))
    if small == "skip" and (pixels.shape[-2] < content.rows or pixels.shape[-1] < content.columns):
        raise SmallError(f"{width}x{height} is too small for {size}x{size}")
    return content.framed(_resize(pixels, content.rows, content.columns), border)


def _crop_centre(pixels: Tensor, rows: int, columns: int) -> Tensor:
    top, left = (pixels.shape[-2] - rows) // 2, (pixels.shape[-1] - columns) // 2
    return pixels[:, top : top + rows, left : left + columns]


def _resize(pixels: Tensor, rows: int, columns: int) -> Tensor:
    """Resizes to (3, rows, columns), uint8, rounded half to even.

    Values are kept on a fine grid of binary fractions that contains the halves of 8-bit values. Otherwise numerical noise of 1e-8, which
    differs between machines, would decide how exact halves are rounded.
    """
    planes = []
    for plane in pixels:  # one at a time: a photograph in float64 takes much memory
        values = plane.double().mul_(255 * 2**10).round_().div_(2**10)
        if plane.shape != (rows, columns):
            values = resize(values, size=(rows, columns)).clamp_(0, 255).mul_(2**20).round_().div_(2**20)
        planes.append(values.round_().to(torch.uint8))
    return torch.stack(planes)
