"""Images of any shape brought to the square size of a network, as the paper's data sets were."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from gleansr.errors import ImageError
from gleansr.images.resize import resize

Aspect = Literal["squash", "crop", "pad", "bars"]
"""What to do with images that are not square, see `fit`."""

Small = Literal["skip", "enlarge"]
"""What to do with images that would have to be enlarged."""


class SmallError(ImageError):
    """An image would have to be enlarged."""


Border = Literal["repeat", "black"]
"""What fills the border that makes an image square: its outermost pixels, as in use, or black, as LSUN's cars are published."""


@dataclass(frozen=True)
class Content:
    """The part of a square image that is no border, in pixels."""

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
        """The same part of the square at 1 / `scale` of its size; all sides are multiples of that."""
        return Content(*(side // scale for side in (self.size, self.top, self.left, self.rows, self.columns)))

    def of(self, square: Tensor) -> Tensor:
        """That part (..., rows, columns) of a square (..., size, size)."""
        return square[..., self.top : self.top + self.rows, self.left : self.left + self.columns]

    def framed(self, content: Tensor, border: Border, black: float = 0) -> Tensor:
        """The square (3, size, size) around `content` (3, rows, columns)."""
        below, right = self.size - self.top - self.rows, self.size - self.left - self.columns
        pad = (self.left, right, self.top, below)
        if border == "black":
            return functional.pad(content, pad, value=black)
        return functional.pad(content[None].float(), pad, mode="replicate")[0].to(content.dtype)


def content_of(height: int, width: int, size: int, aspect: Aspect, grid: int = 1) -> Content:
    """Where `fit` puts an image of that height and width. Sides and place are multiples of `grid` px, so that shrunk by as much they still
    are whole pixels."""
    rows = columns = size
    if aspect == "pad":
        rows, columns = (max(grid, round(side * size / max(height, width) / grid) * grid) for side in (height, width))
    elif aspect == "bars":
        rows = size * 3 // 4 // grid * grid
    return Content(size, (size - rows) // grid // 2 * grid, (size - columns) // grid // 2 * grid, rows, columns)


def fit(pixels: Tensor, size: int, aspect: Aspect, small: Small, *, border: Border = "black", grid: int = 1) -> Tensor:
    """An image as bytes (3, size, size), uint8; one that has the size keeps its values.

    Args:
        pixels: (3, H, W) in [0, 1].
        size: of the result.
        aspect: "squash" scales each axis by itself; "crop" takes the centre square; "pad" adds a border up to a square; "bars" takes the
            centre of aspect 4:3 and adds a border above and below, as in the images of StyleGAN2's car network.
        small: with "skip", images that would have to be enlarged in either direction raise SmallError.
        border: what "pad" and "bars" add.
        grid: see `content_of`.
    """
    height, width = pixels.shape[-2:]
    content = content_of(height, width, size, aspect, grid)
    if aspect == "crop":
        pixels = _centre(pixels, min(height, width), min(height, width))
    elif aspect == "bars":
        pixels = _centre(pixels, min(height, round(width * 3 / 4)), min(width, round(height * 4 / 3)))
    if small == "skip" and (pixels.shape[-2] < content.rows or pixels.shape[-1] < content.columns):
        raise SmallError(f"{width}x{height} is too small for {size}x{size}")
    return content.framed(_resize(pixels, content.rows, content.columns), border)


def _centre(pixels: Tensor, rows: int, columns: int) -> Tensor:
    top, left = (pixels.shape[-2] - rows) // 2, (pixels.shape[-1] - columns) // 2
    return pixels[:, top : top + rows, left : left + columns]


def _resize(pixels: Tensor, rows: int, columns: int) -> Tensor:
    """(3, rows, columns) of 8-bit values, rounded half to even.

    Values are kept on a fine grid of binary fractions, on which 8-bit values and their halves lie. Without it exact halves would be rounded
    as noise of 1e-8 decides, which differs between machines.
    """
    planes = []
    for plane in pixels:  # one by one, because in float64 a photograph takes much memory
        values = plane.double().mul_(255 * 2**10).round_().div_(2**10)
        if plane.shape != (rows, columns):
            values = resize(values, size=(rows, columns)).clamp_(0, 255).mul_(2**20).round_().div_(2**20)
        planes.append(values.round_().to(torch.uint8))
    return torch.stack(planes)
