"""The patches that figures show enlarged: where they lie in an image."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from gleansr.errors import RequestError
from gleansr.evaluation.figure_sheets import ComparedImage, PanelBox, RetouchedImage

T = TypeVar("T")

_PATCH_SHARE = 4  # an automatic patch is a quarter as wide as the image
_RETOUCHED = 8  # least difference of a retouched pixel, of 255; lossy files differ slightly everywhere


def differing_patch(images: Sequence[np.ndarray], size: int | None = None, step: int = 1) -> PanelBox:
    """The box with the largest sum of variances between images (H, W, 3) of one size; of equal ones the topmost, then leftmost.

    It is `size` wide, by default a quarter of the image, has the image's aspect, and begins at a multiple of `step`.
    """
    return _largest(_variance(images), size, step)


def retouched_patch(original: np.ndarray, retouched: np.ndarray, size: int | None = None) -> PanelBox:
    """The box with most of the retouched pixels.

    It is `size` wide; by default the smallest of an eighth, a quarter and a half of the image's width that is 1.25 times as wide as the
    retouch, at most a half.
    """
    height, width = original.shape[:2]
    changed = np.abs(original.astype(int) - retouched).max(-1) > _RETOUCHED
    rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    if not len(rows):
        return differing_patch([original, retouched], size)
    extent = max(columns[-1] - columns[0] + 1, (rows[-1] - rows[0] + 1) * width / height)
    sizes = [max(1, width // part) for part in (8, 4, 2)]
    size = size or next((side for side in sizes if side >= 1.25 * extent), sizes[-1])
    box = _largest(_variance([original, retouched]) * changed, size)
    if extent > size:
        return box
    x, y = (int(side[0] + side[-1] + 1) // 2 for side in (columns, rows))  # centre of the retouch
    x, y = x - box.width // 2, y - box.height // 2
    return PanelBox(min(max(x, 0), width - box.width), min(max(y, 0), height - box.height), box.width, box.height)


def check_box(box: PanelBox, image: np.ndarray) -> None:
    """Raises RequestError for a box that is not inside the image."""
    height, width = image.shape[:2]
    if not (0 <= box.x <= width - box.width and 0 <= box.y <= height - box.height and box.width >= 1 and box.height >= 1):
        text = f"{box.x},{box.y},{box.width}"
        raise RequestError(f"--patch {text}: is {box.width}x{box.height} at {box.x},{box.y}, outside of an image of {width}x{height}")


def _sized_box(x: int, y: int, size: int, image: np.ndarray) -> PanelBox:
    """A box `size` wide with the image's aspect."""
    height, width = image.shape[:2]
    return PanelBox(x, y, size, max(1, round(size * height / width)))


def _variance(images: Sequence[np.ndarray]) -> np.ndarray:
    """Variance between images, summed over channels, times a constant: (H, W) int64, so that sums are exact."""
    stack = np.stack(images).astype(np.int64)
    return (len(stack) * (stack**2).sum(0) - stack.sum(0) ** 2).sum(-1)


def _largest(values: np.ndarray, size: int | None, step: int = 1) -> PanelBox:
    box = _sized_box(0, 0, size or max(1, values.shape[1] // _PATCH_SHARE), values)
    sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    h, w = box.height, box.width
    inside = (sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w])[::step, ::step]
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    return PanelBox(int(x) * step, int(y) * step, w, h)


def patch_facts(images: Sequence[ComparedImage | RetouchedImage], boxes: Sequence[PanelBox]) -> list[str]:
    return [f"patch of {image.name}: {box.x},{box.y},{box.width}" for image, box in zip(images, boxes, strict=True)]


def place_patches(
    texts: Sequence[str], items: Sequence[T], images: Sequence[np.ndarray], auto: Callable[[T, int | None], PanelBox]
) -> list[PanelBox]:
    """The patch of each item, inside its image, as --patch says; `auto` places a patch of a given size."""
    texts = texts or ["auto"]
    if len(texts) not in (1, len(items)):
        raise RequestError(f"{len(items)} images have patches, but {len(texts)} are given with --patch: give one for all, or one for each")
    boxes = []
    for text, item, image in zip([*texts] * (len(items) // len(texts)), items, images, strict=True):
        numbers = [] if text == "auto" else text.split(",")
        if len(numbers) not in (0, 1, 3) or not all(number.isdecimal() and len(number) < 6 for number in numbers):
            raise RequestError(f"--patch takes auto, a size, or x,y,size, such as 80,96,64, not {text!r}")
        if not numbers:
            boxes.append(auto(item, None))
            continue
        x, y, size = (0, 0, int(numbers[0])) if len(numbers) == 1 else map(int, numbers)
        box = _sized_box(x, y, size, image)
        check_box(box, image)
        boxes.append(box if len(numbers) == 3 else auto(item, size))
    return boxes
