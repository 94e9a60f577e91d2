"""Draws sheets of images as PNG or PDF, with matplotlib, the extra `eval`. Every pixel of an image is a whole number of dots."""

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gleansr.errors import ImageError, RequestError
from gleansr.evaluation.figure_sheets import Heading, Panel, Sheet
from gleansr.files import replacing
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
