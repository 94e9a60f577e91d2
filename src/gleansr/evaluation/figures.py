"""Draws sheets of images as papers print them: arrays in, a matplotlib figure out. Every pixel of an image is a whole number of dots.

Needs matplotlib, the extra `eval`, which is imported when something is drawn.
"""

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gleansr.errors import ImageError, RequestError
from gleansr.files import replacing
from gleansr.images.metadata import software

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf")
MAX_DOTS = 400_000_000
"""The most dots of a figure."""

GAP = 0.7
"""Millimetres between images that belong together."""
GROUP_GAP = 2.2
"""Millimetres between groups of images."""
COLOUR = "#e3122b"
"""Of the box around what is shown enlarged, and of the frame around that."""

_FONT_SIZE = 8.0  # points; captions have 9 or 10
_FONT_SIZES = (4.0, _FONT_SIZE)
_HEADING = 3.9  # millimetres from one line of headings to the next, or to the images
_LINE = 1.0  # points: width of boxes
_INCH = 25.4
_NARROWEST = 4.0  # millimetres of an image

# Fonts that come with matplotlib, so that a figure is the same on every machine; the second one has signs and letters that the first lacks.
_STYLE: Any = {"font.family": ["STIXGeneral", "DejaVu Sans"], "pdf.fonttype": 42, "text.parse_math": False, "text.usetex": False}


@dataclass(frozen=True)
class PanelBox:
    """A rectangle in an image, in its pixels."""

    x: int
    y: int
    width: int
    height: int

    def of(self, image: np.ndarray) -> np.ndarray:
        """What it marks in an image (H, W, 3)."""
        return image[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True, eq=False)
class Panel:
    """An image in a sheet."""

    pixels: np.ndarray
    """(h, w, 3) uint8, sRGB. All fill the same space: those with fewer pixels are enlarged by repeating them."""
    box: PanelBox | None = None
    """Drawn onto it, in its pixels."""
    framed: bool = False
    """Whether it has a frame of the box's colour."""


@dataclass(frozen=True)
class Heading:
    """Text above some columns."""

    text: str
    first: int
    """Number of the first column, from 0."""
    columns: int = 1
    rule: bool = False
    """Whether there is a line below it, over its columns."""


@dataclass(frozen=True)
class Row:
    """A row of panels, with what stands above it."""

    panels: Sequence[Panel | None]
    """One for each column; None leaves its space empty."""
    headings: Sequence[Sequence[Heading]] = ()
    """Lines of text above it."""
    near: bool = False
    """Whether it belongs to the row above, and stands as near to it as columns to each other."""


@dataclass(frozen=True)
class Sheet:
    """Images of one size in rows and columns."""

    rows: Sequence[Row]
    group: int
    """Columns that belong together; wider gaps are between such groups."""

    @property
    def columns(self) -> int:
        """How many columns there are."""
        return len(self.rows[0].panels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images: of the largest."""
        shapes = [panel.pixels.shape[:2] for row in self.rows for panel in row.panels if panel]
        return max(shapes, key=lambda shape: shape[1])


@dataclass(frozen=True)
class Places:
    """Where everything in a sheet goes, in dots from the top left."""

    dpi: float
    width: int
    height: int
    panel: tuple[int, int]
    """Height and width of every panel."""
    x: Sequence[int]
    """Left edge of each column."""
    y: Sequence[int]
    """Upper edge of each row."""

    def points(self, millimetres: float) -> float:
        """Dots of a length in millimetres."""
        return millimetres * self.dpi / _INCH


def check_drawing() -> None:
    """Raises RequestError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise RequestError("drawing figures wants matplotlib: pip install 'gleansr[eval]'") from None


def place(sheet: Sheet, width_mm: float, dpi: float) -> Places:
    """The places of a sheet that is `width_mm` wide.

    Resolution is the lowest from `dpi` dots an inch up at which a pixel of the largest images is a whole number of dots.

    Raises RequestError if the images would be too narrow, or the figure too large.
    """
    gaps = [GROUP_GAP if i % sheet.group == 0 else GAP for i in range(1, sheet.columns)]
    room = width_mm - sum(gaps)
    if not room >= _NARROWEST * sheet.columns:
        least = _NARROWEST * sheet.columns + sum(gaps)
        raise RequestError(
            f"{sheet.columns} columns need at least {math.ceil(least)} mm, not {width_mm:g}; widen the figure with --width-mm"
        )
    height, width = sheet.size
    dots = max(1, math.ceil(room / _INCH * dpi / (sheet.columns * width) - 1e-9))  # of a pixel
    scale = sheet.columns * width * dots / room  # dots a millimetre, before gaps are rounded
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
        raise RequestError(f"the figure would have {total}x{bottom} dots, more than {MAX_DOTS:,}; show fewer --images")
    return Places(total * _INCH / width_mm, total, bottom, (height * dots, width * dots), x, y)


def draw(sheet: Sheet, *, width_mm: float = 180.0, dpi: float = 300.0) -> "Figure":
    """The figure of a sheet, with text as text and each image as an image of its own.

    Raises RequestError where matplotlib is not installed, and as `place`.
    """
    check_drawing()
    from matplotlib.figure import Figure

    places = place(sheet, width_mm, dpi)
    with _style():
        # The next larger numbers: rounding must not lose the last dot.
        inches = [math.nextafter(dots / places.dpi, math.inf) for dots in (places.width, places.height)]
        figure = Figure(figsize=(inches[0], inches[1]), dpi=places.dpi)
        figure.suppressComposite = True  # a PDF would get one image of all images, resampled
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, places.width)
        axes.set_ylim(places.height, 0)
        for top, row in zip(places.y, sheet.rows, strict=True):
            for left, panel in zip(places.x, row.panels, strict=True):
                if panel:
                    _draw_panel(axes, places, panel, left, top)
            for i, line in enumerate(row.headings):
                baseline = top - places.points(_HEADING * (len(row.headings) - 1 - i) + 1.2)
                for heading in line:
                    _draw_heading(axes, places, heading, baseline)
    return figure


def save(figure: "Figure", path: Path, *, title: str, facts: str, keywords: str = "") -> None:
    """Writes a PNG or PDF, by the suffix of `path`, whole or not at all. Equal figures are equal files: there is no date in them.

    Args:
        path: an existing file is replaced.
        title: of the document.
        facts: what it was made of and how, seeds too; PNG's Description and PDF's Subject.
        keywords: PDF's keywords.

    Raises ImageError if it cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    metadata: Mapping[str, Any] = {"Title": title, "Description": facts, "Software": software()}
    if kind == "pdf":
        metadata = {"Title": title, "Subject": facts, "Keywords": keywords or None, "Creator": software(), "CreationDate": None}
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
    """Our settings of matplotlib on top of its own defaults: those of the user would change the figure."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _draw_panel(axes: Any, places: Places, panel: Panel, left: int, top: int) -> None:
    height, width = places.panel
    pixels = _enlarged(panel.pixels, height, width)
    axes.imshow(pixels, extent=(left, left + width, top + height, top), interpolation="none", aspect="auto")
    if panel.box:
        across, down = width / panel.pixels.shape[1], height / panel.pixels.shape[0]
        _draw_box(axes, places, left + panel.box.x * across, top + panel.box.y * down, panel.box.width * across, panel.box.height * down)
    if panel.framed:
        _draw_box(axes, places, left, top, width, height)


def _enlarged(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each pixel repeated as often as it has dots, where that makes small images larger: many programs blur those in a PDF."""
    times = (max(1, height // pixels.shape[0]), max(1, width // pixels.shape[1]))
    if min(times) < 3:
        return pixels
    return pixels.repeat(times[0], 0).repeat(times[1], 1)


def _draw_box(axes: Any, places: Places, x: float, y: float, width: float, height: float) -> None:
    """A rectangle whose line lies inside its edges, so that it is whole at the border of an image too."""
    from matplotlib.patches import Rectangle

    line = max(1, round(_LINE * places.dpi / 72))
    rectangle = Rectangle(
        (x + line / 2, y + line / 2),
        width - line,
        height - line,
        fill=False,
        edgecolor=COLOUR,
        linewidth=line * 72 / places.dpi,
        joinstyle="miter",
        antialiased=False,
        snap=False,
        zorder=3,
    )
    axes.add_patch(rectangle)


def _draw_heading(axes: Any, places: Places, heading: Heading, baseline: float) -> None:
    left = places.x[heading.first]
    right = places.x[heading.first + heading.columns - 1] + places.panel[1]
    text, size = _fitted(heading.text, 0.96 * (right - left) * 72 / places.dpi)  # rendering may widen it a little
    axes.text((left + right) / 2, baseline, text, fontsize=size, ha="center", va="baseline", zorder=4)
    if heading.rule:
        y = baseline + places.points(0.9)
        axes.plot([left, right], [y, y], color="black", linewidth=0.4, solid_capstyle="butt", zorder=4)


def _fitted(text: str, points: float) -> tuple[str, float]:
    """A text and its font size in points, at which it is at most `points` wide: smaller than usual if need be, and cut off after that."""
    smallest, largest = _FONT_SIZES
    while text and (width := _text_width(text, smallest)) > points:
        text = f"{text[: min(len(text) - 2, int(len(text) * points / width))].rstrip()}…" if len(text) > 2 else ""
    return text, min(largest, smallest * points / width) if text else largest


def _text_width(text: str, size: float) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return TextPath((0, 0), text, size=size, prop=FontProperties(family=_STYLE["font.family"])).get_extents().width
