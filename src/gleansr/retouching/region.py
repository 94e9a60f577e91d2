"""The region of a retouched image that the model sees."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gleansr.errors import RequestError

_VIEWS = (0.75, 0.55)
"""Sides of smaller views of a region, as shares of its own: the classifier knows heads that fill an image."""


@dataclass(frozen=True)
class Region:
    """The region that the model sees. May extend beyond the image, whose border is then repeated."""

    left: int
    top: int
    width: int
    height: int

    def crop(self, planes: Tensor) -> Tensor:
        """(C, H, W) -> (C, height, width)."""
        rows = torch.arange(self.top, self.top + self.height).clamp(0, planes.shape[1] - 1)
        columns = torch.arange(self.left, self.left + self.width).clamp(0, planes.shape[2] - 1)
        return planes[:, rows[:, None], columns]

    def inside(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of an image of the given size that lie in the region."""
        rows = slice(max(0, self.top), min(height, self.top + self.height))
        return rows, slice(max(0, self.left), min(width, self.left + self.width))


def choose_region(
    box: tuple[int, int, int] | None, shape: tuple[int, int], size: tuple[int, int], edits: tuple[int, int, int, int] | None, name: str
) -> Region:
    """The region that the model sees, with the aspect ratio of `size` (rows, columns); `edits` is their bounding box."""
    height, width = shape
    if box is not None:
        left, top, across = box
        region = Region(left, top, across, round(across * size[0] / size[1]))
        if min(left, top) < 0 or across < 1 or left + across > width or top + region.height > height:
            raise RequestError(f"{name}: the box {left},{top},{across} is not within its {width}x{height} pixels")
        return region

    def centred(across: int) -> Region:
        down = round(across * size[0] / size[1])
        return Region((width - across) // 2, (height - down) // 2, across, down)

    across = round(height * size[1] / size[0])  # for a region as high as the image
    whole, part = centred(max(width, across)), centred(min(width, across))
    left, top, right, bottom = edits or (0, 0, width, height)
    if right - left > part.width or bottom - top > part.height or whole.width * whole.height <= 1.2 * width * height:
        return whole
    # As close to the centre as the edits allow: heads are there, and the region does not jump with every stroke.
    left = min(max(part.left, right - part.width), left)
    top = min(max(part.top, bottom - part.height), top)
    return Region(left, top, part.width, part.height)


def views_of(region: Region, edits: tuple[int, int, int, int] | None) -> list[Region]:
    """Squares in which the object may be, from the whole square region to the smallest: at its centre, above it, and around the edits."""
    left, top, right, bottom = edits or (region.left, region.top, region.left + region.width, region.top + region.width)
    views = [region]
    for share in _VIEWS:
        side = max(1, round(share * region.width))
        spare = region.width - side
        around = min(max((left + right - side) // 2 - region.left, 0), spare), min(max((top + bottom - side) // 2 - region.top, 0), spare)
        places = dict.fromkeys([(spare // 2, spare // 2), (spare // 2, spare // 4), around])
        views += [Region(region.left + x, region.top + y, side, side) for x, y in places]
    return views
