"""How the images of the supplement's figures are arranged: arrays in, sheets for `gleansr.evaluation.figures.draw` out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gleansr.errors import RequestError
from gleansr.evaluation.figures import Heading, Panel, PanelBox, Row, Sheet

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
"""What stands above the columns; other methods stand under their own labels."""

TIMES = "\N{MULTIPLICATION SIGN}"

PATCH = 4
"""A patch is this part of an image's width, unless told otherwise."""

_RETOUCHED = 8  # values of 255 by which a retouched pixel differs at least: files of a lossy kind differ everywhere a little


@dataclass(frozen=True, eq=False)
class Exhibit:
    """An image and what methods make of it; arrays (H, W, 3) uint8, sRGB."""

    name: str
    lr: np.ndarray
    """What the methods were given, smaller by a whole factor."""
    gt: np.ndarray
    results: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By method, of the truth's size."""


@dataclass(frozen=True, eq=False)
class Retouch:
    """A retouched image; arrays (H, W, 3) uint8, sRGB, of one size."""

    name: str
    original: np.ndarray
    retouched: np.ndarray
    result: np.ndarray
    """The retouched image shrunk and enlarged again."""


def without_bars(exhibits: Sequence[Exhibit]) -> list[Exhibit]:
    """The exhibits without the black bars of an eighth of the height, where all ground truths have them, as LSUN's cars do."""
    height, lr_height = exhibits[0].gt.shape[0], exhibits[0].lr.shape[0]
    _check(exhibits, [])
    if lr_height % 8 or any(exhibit.gt[rows].any() for exhibit in exhibits for rows in (slice(height // 8), slice(-height // 8, None))):
        return list(exhibits)

    def middle(image: np.ndarray) -> np.ndarray:
        return image[len(image) // 8 : -len(image) // 8]

    return [Exhibit(e.name, middle(e.lr), middle(e.gt), {label: middle(p) for label, p in e.results.items()}) for e in exhibits]


# ---------------------------------------------------------------------------------------------------------------- sheets


def random_examples(exhibits: Sequence[Exhibit], methods: Sequence[str], across: int = 2) -> Sheet:
    """Figure 1: rows of input, methods and ground truth, `across` examples side by side."""
    _check(exhibits, methods)
    columns = len(methods) + 2
    rows = []
    for line in _lines(exhibits, across):
        panels = [Panel(image) for exhibit in line for image in _images(exhibit, methods)]
        headings = () if rows else [_titles(methods, len(line))]
        rows.append(Row(_filled(panels, min(across, len(exhibits)) * columns), headings, near=True))
    return Sheet(rows, columns)


def comparison(exhibits: Sequence[Exhibit], methods: Sequence[str], boxes: Sequence[PanelBox]) -> Sheet:
    """Figure 2: for each example a row of input, methods and ground truth, and below it what its box marks, enlarged."""
    _check(exhibits, methods)
    rows = []
    for exhibit, box in zip(exhibits, boxes, strict=True):
        rows += _with_patches([_images(exhibit, methods)], [box], exhibit.gt.shape, () if rows else [_titles(methods)])
    return Sheet(rows, len(methods) + 2)


def scales(exhibits: Mapping[int, Sequence[Exhibit]], method: str = "glean", across: int = 2) -> Sheet:
    """Figure 3: for each scale input, result and ground truth of the same images. Of one scale `across` exhibits stand side by side."""
    every = [exhibit for some in exhibits.values() for exhibit in some]
    _check(every, [method], one_lr=False)
    if len(exhibits) == 1:
        ((scale, some),) = exhibits.items()
        sheet = random_examples(some, [method], across)
        first = sheet.rows[0]
        lines = [[Heading(f"{scale}{TIMES}", 0, sheet.columns, rule=True)], *first.headings]
        return Sheet([Row(first.panels, lines), *sheet.rows[1:]], 3)
    lines = [
        [Heading(f"{scale}{TIMES}", 3 * i, 3, rule=True) for i, scale in enumerate(exhibits)],
        _titles([method], len(exhibits)),
    ]
    rows = []
    for of_one in zip(*exhibits.values(), strict=True):
        panels = [Panel(image) for exhibit in of_one for image in _images(exhibit, [method])]
        rows.append(Row(panels, () if rows else lines, near=True))
    return Sheet(rows, 3)


def category(exhibits: Sequence[Exhibit], gallery: Sequence[Exhibit], methods: Sequence[str], boxes: Sequence[PanelBox]) -> Sheet:
    """Figures 4 to 7: above as `comparison`; below inputs and, under them, what the last of the methods makes of them."""
    _check([*exhibits, *gallery], [methods[-1]])
    top = comparison(exhibits, methods, boxes)
    rows = list(top.rows)
    for line in _lines(gallery, top.columns):
        scale = line[0].gt.shape[1] // line[0].lr.shape[1]
        text = f"{scale}{TIMES} super-resolution: input (above) and {_title(methods[-1])} (below)"
        headings = [[Heading(text, 0, top.columns)]] if len(rows) == len(top.rows) else ()
        rows.append(Row(_filled([Panel(exhibit.lr) for exhibit in line], top.columns), headings))
        rows.append(Row(_filled([Panel(exhibit.results[methods[-1]]) for exhibit in line], top.columns), near=True))
    return Sheet(rows, top.columns)


def retouching(retouches: Sequence[Retouch], boxes: Sequence[PanelBox], method: str = "glean", across: int = 2) -> Sheet:
    """Figure 8: original, retouch and result, below them what the box marks, enlarged; `across` examples side by side."""
    _check_sizes([(retouch.name, image) for retouch in retouches for image in (retouch.original, retouch.retouched, retouch.result)])
    titles = ("Original", "Amateur retouch", _title(method))
    rows = []
    across = min(across, len(retouches))
    for line, of_line in zip(_lines(retouches, across), _lines(boxes, across), strict=True):
        images = [[retouch.original, retouch.retouched, retouch.result] for retouch in line]
        headings = [[Heading(title, 3 * i + j) for i in range(len(line)) for j, title in enumerate(titles)]]
        rows += _with_patches(images, of_line, line[0].original.shape, () if rows else headings, columns=3 * across)
    return Sheet(rows, 3)


# --------------------------------------------------------------------------------------------------------------- patches


def differing_patch(images: Sequence[np.ndarray], size: int | None = None, step: int = 1) -> PanelBox:
    """Where images (H, W, 3) of one size differ most: the box with the largest sum of variances between them, the topmost, then leftmost
    of several. It is `size` wide, by default a quarter of the image, has the image's aspect, and begins at a multiple of `step`."""
    return _largest(_variance(images), size, step)


def retouched_patch(original: np.ndarray, retouched: np.ndarray, size: int | None = None) -> PanelBox:
    """Around what was retouched: the place with most of the change. It is `size` wide, by default an eighth, a quarter or a half of the
    image, the least of these that holds all that changed and a quarter more, or a half."""
    height, width = original.shape[:2]
    changed = np.abs(original.astype(int) - retouched).max(-1) > _RETOUCHED
    rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    if not len(rows):
        return differing_patch([original, retouched], size)
    wide = max(columns[-1] - columns[0] + 1, (rows[-1] - rows[0] + 1) * width / height)
    sizes = [max(1, width // part) for part in (8, 4, 2)]
    size = size or next((side for side in sizes if side >= 1.25 * wide), sizes[-1])
    box = _largest(_variance([original, retouched]) * changed, size)
    if wide > size:
        return box
    x, y = (int(side[0] + side[-1] + 1) // 2 for side in (columns, rows))  # its middle
    x, y = x - box.width // 2, y - box.height // 2
    return PanelBox(min(max(x, 0), width - box.width), min(max(y, 0), height - box.height), box.width, box.height)


def check_box(box: PanelBox, image: np.ndarray) -> None:
    """Raises RequestError for a box that is not within an image."""
    height, width = image.shape[:2]
    if not (0 <= box.x <= width - box.width and 0 <= box.y <= height - box.height and box.width >= 1 and box.height >= 1):
        text = f"{box.x},{box.y},{box.width}"
        raise RequestError(f"--patch {text}: is {box.width}x{box.height} at {box.x},{box.y}, outside of an image of {width}x{height}")


def sized_box(x: int, y: int, size: int, image: np.ndarray) -> PanelBox:
    """The box `size` wide, of an image's aspect."""
    height, width = image.shape[:2]
    return PanelBox(x, y, size, max(1, round(size * height / width)))


def _variance(images: Sequence[np.ndarray]) -> np.ndarray:
    """(H, W): variance between images, summed over channels, in whole numbers, so that equal sums are equal."""
    stack = np.stack(images).astype(np.int64)
    return (len(stack) * (stack**2).sum(0) - stack.sum(0) ** 2).sum(-1)


def _largest(values: np.ndarray, size: int | None, step: int = 1) -> PanelBox:
    box = sized_box(0, 0, size or max(1, values.shape[1] // PATCH), values)
    sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    h, w = box.height, box.width
    inside = (sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w])[::step, ::step]
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    return PanelBox(int(x) * step, int(y) * step, w, h)


# ----------------------------------------------------------------------------------------------------------------- parts


def _title(method: str) -> str:
    return TITLES.get(method, method)


def _titles(methods: Sequence[str], times: int = 1) -> list[Heading]:
    texts = [_title(label) for label in ("low", *methods, "truth")] * times
    return [Heading(text, i) for i, text in enumerate(texts)]


def _images(exhibit: Exhibit, methods: Sequence[str]) -> list[np.ndarray]:
    return [exhibit.lr, *(exhibit.results[method] for method in methods), exhibit.gt]


def _with_patches(
    lines: Sequence[Sequence[np.ndarray]],
    boxes: Sequence[PanelBox],
    shape: tuple[int, ...],
    headings: Sequence[Sequence[Heading]],
    columns: int | None = None,
) -> list[Row]:
    """A row of images of (H, W, 3) = `shape`, or smaller by a whole factor, with boxes, and one of what they mark."""
    above, below = [], []
    for images, box in zip(lines, boxes, strict=True):
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


def _check(exhibits: Sequence[Exhibit], methods: Sequence[str], *, one_lr: bool = True) -> None:
    """Raises RequestError for images that do not fit together."""
    _check_sizes([(f"{e.name} ({label})", image) for e in exhibits for label, image in {"truth": e.gt, **e.results}.items()])
    lrs = {exhibit.lr.shape for exhibit in exhibits}
    if one_lr and len(lrs) > 1:
        raise RequestError(f"the inputs of a figure must have one size, not {' and '.join(sorted(_size(shape) for shape in lrs))}")
    for exhibit in exhibits:
        (height, width), (lr_height, lr_width) = exhibit.gt.shape[:2], exhibit.lr.shape[:2]
        if width % lr_width or height % lr_height or width // lr_width != height // lr_height:
            raise RequestError(
                f"{exhibit.name}: the input has {_size(exhibit.lr.shape)}, which is no whole fraction of {_size(exhibit.gt.shape)}"
            )
        if missing := [method for method in methods if method not in exhibit.results]:
            raise RequestError(f"{exhibit.name}: there is no result of {', '.join(missing)}")


def _check_sizes(images: Sequence[tuple[str, np.ndarray]]) -> None:
    first_name, first = images[0]
    for name, image in images:
        if image.shape != first.shape:
            raise RequestError(
                f"the images of a figure must have one size: {name} has {_size(image.shape)}, {first_name} {_size(first.shape)}"
            )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
