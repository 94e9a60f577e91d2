"""Sheets of images: arranges arrays as in the supplement's figures and draws them as PNG or PDF.

Every pixel of an image is a whole number of dots. Drawing needs matplotlib, the extra `eval`.
"""

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gleansr.errors import ImageError, RequestError
from gleansr.files import replacing
from gleansr.images.codec import to_image
from gleansr.images.metadata import software

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf")
MAX_DOTS = 400_000_000
"""Maximum size of a figure in dots."""

GAP = 0.7
"""Millimetres between images of a group."""
GROUP_GAP = 2.2
"""Millimetres between groups of images."""
COLOUR = "#e3122b"
"""Colour of the box around a patch and of the frame around its enlargement."""

_FONT_SIZES = (4.0, 8.0)  # points, smallest and usual; captions have 9 or 10
_HEADING = 3.9  # millimetres, height of a line of headings
_LINE = 1.0  # points, line width of boxes
_INCH = 25.4
_MIN_PANEL = 4.0  # millimetres, width of a panel

# Fonts bundled with matplotlib, so that a figure is the same on every machine; the second has glyphs that the first lacks.
_STYLE: Any = {"font.family": ["STIXGeneral", "DejaVu Sans"], "pdf.fonttype": 42, "text.parse_math": False, "text.usetex": False}

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


@dataclass(frozen=True)
class Layout:
    """Positions on a sheet, in dots from the top left."""

    dpi: float
    width: int
    height: int
    panel: tuple[int, int]
    """Height and width of every panel."""
    x: Sequence[int]
    """Left edge of each column."""
    y: Sequence[int]
    """Upper edge of each row."""

    def dots(self, millimetres: float) -> float:
        """A length in dots."""
        return millimetres * self.dpi / _INCH


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


# --------------------------------------------------------------------------------------------------------- arrangements


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


def random_examples(images: Sequence[ComparedImage], methods: Sequence[str], across: int = 2) -> Sheet:
    """Figure 1: rows of input, results and ground truth, `across` images side by side."""
    _check(images, methods)
    columns = len(methods) + 2
    rows = []
    for line in _lines(images, across):
        panels = [Panel(pixels) for image in line for pixels in _columns(image, methods)]
        headings = () if rows else [_headings(methods, len(line))]
        rows.append(Row(_filled(panels, min(across, len(images)) * columns), headings, near=True))
    return Sheet(rows, columns)


def comparison(images: Sequence[ComparedImage], methods: Sequence[str], boxes: Sequence[PanelBox]) -> Sheet:
    """Figure 2: for each image a row of input, results and ground truth, and below it a row of the enlarged patches."""
    _check(images, methods)
    rows = []
    for image, box in zip(images, boxes, strict=True):
        rows += _with_patches([_columns(image, methods)], [box], image.gt.shape, () if rows else [_headings(methods)])
    return Sheet(rows, len(methods) + 2)


def scales(images: Mapping[int, Sequence[ComparedImage]], method: str = "glean", across: int = 2) -> Sheet:
    """Figure 3: input, result and ground truth of the same images at each scale. Of a single scale `across` images stand side by side."""
    _check([image for of_scale in images.values() for image in of_scale], [method], one_lr=False)
    if len(images) == 1:
        ((scale, of_scale),) = images.items()
        sheet = random_examples(of_scale, [method], across)
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


def retouching(images: Sequence[RetouchedImage], boxes: Sequence[PanelBox], method: str = "glean", across: int = 2) -> Sheet:
    """Figure 8: original, retouched image and result, below them the enlarged patches; `across` images side by side."""
    _check_sizes([(image.name, pixels) for image in images for pixels in (image.original, image.retouched, image.result)])
    titles = ("Original", "Amateur retouch", _title(method))
    rows = []
    across = min(across, len(images))
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


# --------------------------------------------------------------------------------------------------------------- drawing


def check_matplotlib() -> None:
    """Raises RequestError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise RequestError("drawing figures needs matplotlib: pip install 'gleansr[eval]'") from None


def arrange(sheet: Sheet, width_mm: float, dpi: float) -> Layout:
    """The layout of a sheet `width_mm` wide.

    The resolution is the lowest of at least `dpi` dots per inch at which a pixel of the largest images is a whole number of dots.

    Raises RequestError if the images would be too narrow or the figure too large.
    """
    gaps = [GROUP_GAP if i % sheet.group == 0 else GAP for i in range(1, sheet.columns)]
    images_mm = width_mm - sum(gaps)
    if not images_mm >= _MIN_PANEL * sheet.columns:
        least = _MIN_PANEL * sheet.columns + sum(gaps)
        raise RequestError(
            f"{sheet.columns} columns need at least {math.ceil(least)} mm, not {width_mm:g}; widen the figure with --width-mm"
        )
    height, width = sheet.size
    dots = max(1, math.ceil(images_mm / _INCH * dpi / (sheet.columns * width) - 1e-9))  # per pixel
    scale = sheet.columns * width * dots / images_mm  # dots per millimetre, before gaps are rounded
    x = [0]
    for gap in gaps:
        x.append(x[-1] + width * dots + round(gap * scale))
    total = x[-1] + width * dots
    y, bottom = [], 0
    for i, row in enumerate(sheet.rows):
        above = 0.0 if i == 0 else GAP if row.near else GROUP_GAP
        y.append(bottom + round((above + _HEADING * len(row.headings)) * scale))
        bottom = y[-1] + height * dots
    if total * bottom > MAX_DOTS:
        raise RequestError(f"the figure would have {total}x{bottom} dots, more than {MAX_DOTS:,}; reduce --images")
    return Layout(total * _INCH / width_mm, total, bottom, (height * dots, width * dots), x, y)


def draw(sheet: Sheet, *, width_mm: float = 180.0, dpi: float = 300.0) -> "Figure":
    """Draws a sheet, with text as text and each image as a separate image.

    Raises RequestError where matplotlib is not installed, or as `arrange`.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    layout = arrange(sheet, width_mm, dpi)
    with _style():
        # The next larger number: rounding must not lose the last dot.
        inches = [math.nextafter(dots / layout.dpi, math.inf) for dots in (layout.width, layout.height)]
        figure = Figure(figsize=(inches[0], inches[1]), dpi=layout.dpi)
        figure.suppressComposite = True  # a PDF would contain one resampled image
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, layout.width)
        axes.set_ylim(layout.height, 0)
        for top, row in zip(layout.y, sheet.rows, strict=True):
            for left, panel in zip(layout.x, row.panels, strict=True):
                if panel:
                    _draw_panel(axes, layout, panel, left, top)
            for i, line in enumerate(row.headings):
                baseline = top - layout.dots(_HEADING * (len(row.headings) - 1 - i) + 1.2)
                for heading in line:
                    _draw_heading(axes, layout, heading, baseline)
    return figure


def save(figure: "Figure", path: Path, *, title: str, facts: str) -> None:
    """Writes a PNG or PDF, by the suffix of `path`, atomically. Equal figures are equal files: they hold no date.

    Args:
        figure: the figure.
        path: file to write; an existing one is replaced.
        title: title of the document.
        facts: how the figure was made, with seeds: the PNG's Description or the PDF's Subject.

    Raises ImageError if the file cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    metadata: Mapping[str, Any] = {"Title": title, "Description": facts, "Software": software()}
    if kind == "pdf":
        metadata = {"Title": title, "Subject": facts, "Creator": software(), "CreationDate": None}
    file = io.BytesIO()
    with _style():
        figure.savefig(file, format=kind, dpi="figure", metadata=metadata)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(file.getvalue())
    except OSError as error:
        raise ImageError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """matplotlib's defaults with the settings of figures, whatever the user has set."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _draw_panel(axes: Any, layout: Layout, panel: Panel, left: int, top: int) -> None:
    height, width = layout.panel
    pixels = _repeated(panel.pixels, height, width)
    axes.imshow(pixels, extent=(left, left + width, top + height, top), interpolation="none", aspect="auto")
    if panel.box:
        across, down = width / panel.pixels.shape[1], height / panel.pixels.shape[0]
        _draw_box(axes, layout, left + panel.box.x * across, top + panel.box.y * down, panel.box.width * across, panel.box.height * down)
    if panel.framed:
        _draw_box(axes, layout, left, top, width, height)


def _repeated(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Small images with each pixel repeated to its number of dots, since many programs blur small images in a PDF."""
    repeats = (max(1, height // pixels.shape[0]), max(1, width // pixels.shape[1]))
    if min(repeats) < 3:
        return pixels
    return pixels.repeat(repeats[0], 0).repeat(repeats[1], 1)


def _draw_box(axes: Any, layout: Layout, x: float, y: float, width: float, height: float) -> None:
    """Draws a rectangle with its line inside the edges, so that the line is complete at the border of an image."""
    from matplotlib.patches import Rectangle

    line = max(1, round(_LINE * layout.dpi / 72))
    rectangle = Rectangle(
        (x + line / 2, y + line / 2),
        width - line,
        height - line,
        fill=False,
        edgecolor=COLOUR,
        linewidth=line * 72 / layout.dpi,
        joinstyle="miter",
        antialiased=False,
        snap=False,
        zorder=3,
    )
    axes.add_patch(rectangle)


def _draw_heading(axes: Any, layout: Layout, heading: Heading, baseline: float) -> None:
    left = layout.x[heading.first]
    right = layout.x[heading.first + heading.columns - 1] + layout.panel[1]
    text, size = _fit_text(heading.text, 0.96 * (right - left) * 72 / layout.dpi)  # rendering may be slightly wider
    axes.text((left + right) / 2, baseline, text, fontsize=size, ha="center", va="baseline", zorder=4)
    if heading.rule:
        y = baseline + layout.dots(0.9)
        axes.plot([left, right], [y, y], color="black", linewidth=0.4, solid_capstyle="butt", zorder=4)


def _fit_text(text: str, points: float) -> tuple[str, float]:
    """The text and its font size for a width of `points`: the font shrinks to the smallest size, then the text is truncated."""
    smallest, largest = _FONT_SIZES
    while text and (width := _text_width(text, smallest)) > points:
        text = f"{text[: min(len(text) - 2, int(len(text) * points / width))].rstrip()}…" if len(text) > 2 else ""
    return text, min(largest, smallest * points / width) if text else largest


def _text_width(text: str, size: float) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return TextPath((0, 0), text, size=size, prop=FontProperties(family=_STYLE["font.family"])).get_extents().width
