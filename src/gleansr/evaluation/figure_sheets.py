"""Sheets of images: arranges arrays as in the supplement's figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from gleansr.errors import RequestError
from gleansr.images.codec import to_image

TITLES = {
    "low": "Input",
    "truth": "Ground truth",
    "glean": "GLEAN",
    "esrgan+": "ESRGAN+",
    "plain": "Plain network",
    "dgp": "DGP",
    "pulse": "PULSE",
    "bicubic": "Bicubic",
}
"""Headings of the columns; other methods are headed by their labels."""

TIMES = "\N{MULTIPLICATION SIGN}"

_ACROSS = 2
"""Images side by side in figures 1, 3 and 8."""


@dataclass(frozen=True)
class PanelBox:
    """A rectangle in an image, in pixels."""

    x: int
    y: int
    width: int
    height: int

    def of(self, image: np.ndarray) -> np.ndarray:
        """The part of an image (H, W, 3) in the box."""
        return image[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True, eq=False)
class Panel:
    """An image in a sheet."""

    pixels: np.ndarray
    """(h, w, 3) uint8, sRGB. All panels have one size on the sheet: smaller images are enlarged by repeating pixels."""
    box: PanelBox | None = None
    """Box drawn onto the image."""
    framed: bool = False
    """Whether to draw a frame of the box's colour."""


@dataclass(frozen=True)
class Heading:
    """Text above one or more columns."""

    text: str
    first: int
    """Index of the first column."""
    columns: int = 1
    rule: bool = False
    """Whether to draw a line below the text."""


@dataclass(frozen=True)
class Row:
    """A row of panels with headings."""

    panels: Sequence[Panel | None]
    """One per column; None leaves the space empty."""
    headings: Sequence[Sequence[Heading]] = ()
    """Lines of text above the row."""
    near: bool = False
    """Whether the row belongs to the one above, at the distance of columns."""


@dataclass(frozen=True)
class Sheet:
    """Images of one size in rows and columns."""

    rows: Sequence[Row]
    group: int
    """Number of columns in a group; gaps between groups are wider."""

    @property
    def columns(self) -> int:
        return len(self.rows[0].panels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the largest images."""
        shapes = [panel.pixels.shape[:2] for row in self.rows for panel in row.panels if panel]
        return max(shapes, key=lambda shape: shape[1])


@dataclass(frozen=True, eq=False)
class ComparedImage:
    """An image with the results of methods; arrays (H, W, 3) uint8, sRGB."""

    name: str
    lr: np.ndarray
    """The methods' input, smaller by a whole factor."""
    gt: np.ndarray
    results: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By method, of the ground truth's size."""


@dataclass(frozen=True, eq=False)
class RetouchedImage:
    """A retouched image with its original; arrays (H, W, 3) uint8, sRGB, of one size."""

    name: str
    original: np.ndarray
    retouched: np.ndarray
    result: np.ndarray
    """The retouched image, downsampled and upscaled again."""


def to_pixels(image: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1], clamped, as (H, W, 3) uint8. Raises ImageError for NaN and infinity."""
    return np.array(to_image((image + 1) / 2))


def without_bars(images: Sequence[ComparedImage]) -> list[ComparedImage]:
    """The images without black bars of an eighth of the height, if all ground truths have them, as LSUN's cars do."""
    height, lr_height = images[0].gt.shape[0], images[0].lr.shape[0]
    _check(images, [])
    if lr_height % 8 or any(image.gt[rows].any() for image in images for rows in (slice(height // 8), slice(-height // 8, None))):
        return list(images)

    def content(pixels: np.ndarray) -> np.ndarray:
        return pixels[len(pixels) // 8 : -len(pixels) // 8]

    return [ComparedImage(i.name, content(i.lr), content(i.gt), {label: content(r) for label, r in i.results.items()}) for i in images]


def random_examples(images: Sequence[ComparedImage], methods: Sequence[str]) -> Sheet:
    """Figure 1: rows of input, results and ground truth, two images side by side."""
    _check(images, methods)
    columns = len(methods) + 2
    rows = []
    for line in _lines(images, _ACROSS):
        panels = [Panel(pixels) for image in line for pixels in _columns(image, methods)]
        headings = () if rows else [_headings(methods, len(line))]
        rows.append(Row(_filled(panels, min(_ACROSS, len(images)) * columns), headings, near=True))
    return Sheet(rows, columns)


def comparison(images: Sequence[ComparedImage], methods: Sequence[str], boxes: Sequence[PanelBox]) -> Sheet:
    """Figure 2: for each image a row of input, results and ground truth, and below it a row of the enlarged patches."""
    _check(images, methods)
    rows = []
    for image, box in zip(images, boxes, strict=True):
        rows += _with_patches([_columns(image, methods)], [box], image.gt.shape, () if rows else [_headings(methods)])
    return Sheet(rows, len(methods) + 2)


def scales(images: Mapping[int, Sequence[ComparedImage]], method: str = "glean") -> Sheet:
    """Figure 3: input, result and ground truth of the same images at each scale. Of a single scale two images stand side by side."""
    _check([image for of_scale in images.values() for image in of_scale], [method], one_lr=False)
    if len(images) == 1:
        ((scale, of_scale),) = images.items()
        sheet = random_examples(of_scale, [method])
        first = sheet.rows[0]
        headings = [[Heading(f"{scale}{TIMES}", 0, sheet.columns, rule=True)], *first.headings]
        return Sheet([Row(first.panels, headings), *sheet.rows[1:]], 3)
    headings = [
        [Heading(f"{scale}{TIMES}", 3 * i, 3, rule=True) for i, scale in enumerate(images)],
        _headings([method], len(images)),
    ]
    rows = []
    for at_scales in zip(*images.values(), strict=True):
        panels = [Panel(pixels) for image in at_scales for pixels in _columns(image, [method])]
        rows.append(Row(panels, () if rows else headings, near=True))
    return Sheet(rows, 3)


def category(images: Sequence[ComparedImage], gallery: Sequence[ComparedImage], methods: Sequence[str], boxes: Sequence[PanelBox]) -> Sheet:
    """Figures 4 to 7: above as `comparison`; below rows of inputs and of the last method's results."""
    _check([*images, *gallery], [methods[-1]])
    top = comparison(images, methods, boxes)
    rows = list(top.rows)
    for line in _lines(gallery, top.columns):
        scale = line[0].gt.shape[1] // line[0].lr.shape[1]
        text = f"{scale}{TIMES} super-resolution: input (above) and {_title(methods[-1])} (below)"
        headings = [[Heading(text, 0, top.columns)]] if len(rows) == len(top.rows) else ()
        rows.append(Row(_filled([Panel(image.lr) for image in line], top.columns), headings))
        rows.append(Row(_filled([Panel(image.results[methods[-1]]) for image in line], top.columns), near=True))
    return Sheet(rows, top.columns)


def retouching(images: Sequence[RetouchedImage], boxes: Sequence[PanelBox], method: str = "glean") -> Sheet:
    """Figure 8: original, retouched image and result, below them the enlarged patches; two images side by side."""
    _check_sizes([(image.name, pixels) for image in images for pixels in (image.original, image.retouched, image.result)])
    titles = ("Original", "Amateur retouch", _title(method))
    rows = []
    across = min(_ACROSS, len(images))
    for line, line_boxes in zip(_lines(images, across), _lines(boxes, across), strict=True):
        columns = [[image.original, image.retouched, image.result] for image in line]
        headings = [[Heading(title, 3 * i + j) for i in range(len(line)) for j, title in enumerate(titles)]]
        rows += _with_patches(columns, line_boxes, line[0].original.shape, () if rows else headings, 3 * across)
    return Sheet(rows, 3)


def _title(method: str) -> str:
    return TITLES.get(method, method)


def _headings(methods: Sequence[str], repeats: int = 1) -> list[Heading]:
    texts = [_title(label) for label in ("low", *methods, "truth")] * repeats
    return [Heading(text, i) for i, text in enumerate(texts)]


def _columns(image: ComparedImage, methods: Sequence[str]) -> list[np.ndarray]:
    return [image.lr, *(image.results[method] for method in methods), image.gt]


def _with_patches(
    groups: Sequence[Sequence[np.ndarray]],
    boxes: Sequence[PanelBox],
    shape: tuple[int, ...],
    headings: Sequence[Sequence[Heading]],
    columns: int | None = None,
) -> list[Row]:
    """A row of images with boxes and a row of the patches in them; images are (H, W, 3) = `shape`, or smaller by a whole factor."""
    above, below = [], []
    for images, box in zip(groups, boxes, strict=True):
        for image in images:
            large = image.repeat(shape[0] // image.shape[0], 0).repeat(shape[1] // image.shape[1], 1)
            above.append(Panel(large, box))
            below.append(Panel(box.of(large), framed=True))
    columns = columns or len(above)
    return [Row(_filled(above, columns), headings), Row(_filled(below, columns), near=True)]


def _filled(panels: Sequence[Panel], columns: int) -> list[Panel | None]:
    return [*panels, *[None] * (columns - len(panels))]


def _lines(items: Sequence, length: int) -> list[Sequence]:
    return [items[i : i + length] for i in range(0, len(items), length)]


def _check(images: Sequence[ComparedImage], methods: Sequence[str], *, one_lr: bool = True) -> None:
    """Raises RequestError if sizes differ or results are missing."""
    _check_sizes([(f"{i.name} ({label})", pixels) for i in images for label, pixels in {"ground truth": i.gt, **i.results}.items()])
    lr_shapes = {image.lr.shape for image in images}
    if one_lr and len(lr_shapes) > 1:
        raise RequestError(f"the inputs of a figure must have one size, not {' and '.join(sorted(map(_size, lr_shapes)))}")
    for image in images:
        (height, width), (lr_height, lr_width) = image.gt.shape[:2], image.lr.shape[:2]
        if width % lr_width or height % lr_height or width // lr_width != height // lr_height:
            raise RequestError(f"{image.name}: the input of {_size(image.lr.shape)} is no whole fraction of {_size(image.gt.shape)}")
        if missing := [method for method in methods if method not in image.results]:
            raise RequestError(f"{image.name}: has no result of {', '.join(missing)}")


def _check_sizes(images: Sequence[tuple[str, np.ndarray]]) -> None:
    first_name, first = images[0]
    for name, image in images:
        if image.shape != first.shape:
            raise RequestError(
                f"the images of a figure must have one size: {name} has {_size(image.shape)}, {first_name} {_size(first.shape)}"
            )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
