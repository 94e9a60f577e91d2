"""Pictures of any shape brought to the square size of a network, as the paper's data sets were."""

from typing import Literal

import torch
from torch import Tensor

from gleansr.errors import PictureError
from gleansr.resize import resize

Aspect = Literal["squash", "crop", "pad", "bars"]
"""What to do with pictures that are not square, see `fit`."""

Small = Literal["skip", "enlarge"]
"""What to do with pictures that would have to be enlarged."""


class SmallError(PictureError):
    """A picture would have to be enlarged."""


def fit(pixels: Tensor, size: int, aspect: Aspect, small: Small) -> Tensor:
    """A picture as bytes (3, size, size), uint8; one that has the size keeps its values.

    Args:
        pixels: (3, H, W) in [0, 1].
        size: of the result.
        aspect: "squash" scales each axis by itself; "crop" takes the centre square; "pad" adds black up to a square; "bars" takes the
            centre of aspect 4:3 and adds black bars above and below, as in the pictures of StyleGAN2's car network.
        small: with "skip", pictures that would have to be enlarged in either direction raise SmallError.
    """
    height, width = pixels.shape[-2:]
    rows = columns = size
    if aspect == "crop":
        pixels = _centre(pixels, min(height, width), min(height, width))
    elif aspect == "pad":
        rows, columns = (max(1, round(side * size / max(height, width))) for side in (height, width))
    elif aspect == "bars":
        rows = size * 3 // 4
        pixels = _centre(pixels, min(height, round(width * 3 / 4)), min(width, round(height * 4 / 3)))
    if small == "skip" and (pixels.shape[-2] < rows or pixels.shape[-1] < columns):
        raise SmallError(f"{width}x{height} is too small for {size}x{size}")
    canvas = torch.zeros(3, size, size, dtype=torch.uint8)
    top, left = (size - rows) // 2, (size - columns) // 2
    canvas[:, top : top + rows, left : left + columns] = _resize(pixels, rows, columns)
    return canvas


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
