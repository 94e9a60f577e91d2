"""From what is wanted to a sheet: chooses images, has methods run on them, and arranges the figures of the supplement."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from gleansr.data.fit import Aspect
from gleansr.errors import RequestError
from gleansr.evaluation import figure_sheets as sheets
from gleansr.evaluation.figure_rows import ComparisonFolder, choose, exhibits, open_images, retouches, task_of, with_results
from gleansr.evaluation.figures import PanelBox, Sheet, place
from gleansr.evaluation.ground_truth import Small
from gleansr.inference.upscaler import Upscaler


@dataclass(frozen=True)
class FigureKind:
    """A figure of the supplement."""

    shows: str
    methods: tuple[str, ...]
    """What the paper compares; the last one is what the figure is about."""
    images: int
    """How many, by default."""
    options: frozenset[str] = frozenset()
    """Options of the command that not all figures have."""
    bundled: bool = True
    """Whether the models that come with the package, which are of cats, serve where none is given."""


_COMPARED = frozenset({"--comparison", "--methods", "--scale"})
_PATCHED = _COMPARED | {"--patch"}
_CATEGORY = _PATCHED | {"--gallery"}
_RIVALS = ("dgp", "esrgan+", "glean")

KINDS = {
    1: FigureKind("random examples against PULSE", ("pulse", "glean"), 10, _COMPARED),
    2: FigureKind("comparison with DGP and ESRGAN+", _RIVALS, 3, _PATCHED),
    3: FigureKind("GLEAN at several scales", ("glean",), 6),
    4: FigureKind("cats", _RIVALS, 2, _CATEGORY),
    5: FigureKind("cars", _RIVALS, 2, _CATEGORY, bundled=False),
    6: FigureKind("bedrooms", _RIVALS, 2, _CATEGORY, bundled=False),
    7: FigureKind("towers", _RIVALS, 2, _CATEGORY, bundled=False),
    8: FigureKind("image retouching", ("glean",), 2, frozenset({"--patch", "--original", "--scale"})),
}
"""By number."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be shown of which images; see the options of `gleansr figure`."""

    number: int
    methods: tuple[str, ...]
    """Their labels, from left to right; those that `comparison` lacks are loaded. In figure 3 the scales of GLEAN."""
    data: str | None = None
    comparison: Path | None = None
    original: str | None = None
    scale: int = 8
    """Unless figure or comparison has its own."""
    size: int | None = None
    images: int | None = None
    gallery: int | None = None
    names: tuple[str, ...] = ()
    seed: int = 0
    patches: tuple[str, ...] = ("auto",)
    aspect: Aspect | None = None
    small: Small = "refuse"
    width_mm: float = 180.0
    dpi: float = 300.0

    @property
    def kind(self) -> FigureKind:
        return KINDS[self.number]


T = TypeVar("T")

Load = Callable[[str, int], Upscaler]
"""Has a method, by its label, for a scale. Raises RequestError where it cannot be had."""

Run = Callable[[str, Upscaler, Sequence[Tensor], Sequence[str]], list[np.ndarray]]
"""What a method, by its label, makes of images (1, 3, h, w) in [-1, 1] with these names, as `enlarge` gives it."""


def make(wanted: Wanted, load: Load, run: Run) -> tuple[Sheet, list[str]]:
    """The sheet, and lines that say what it was made of.

    Raises RequestError and ImageError for what cannot be shown.
    """
    if wanted.number == 3:
        return _scales(wanted, load, run)
    if wanted.number == 8:
        return _retouching(wanted, load, run)
    return _compared(wanted, load, run)


def _compared(wanted: Wanted, load: Load, run: Run) -> tuple[Sheet, list[str]]:
    """Figures 1, 2 and 4 to 7."""
    methods = wanted.methods
    has_gallery = "--gallery" in wanted.kind.options
    n = wanted.images or wanted.kind.images
    below = 0 if not has_gallery else len(methods) + 2 if wanted.gallery is None else wanted.gallery
    if wanted.comparison is None:
        upscalers = {method: load(method, wanted.scale) for method in methods}
        task = task_of(upscalers, wanted.size, wanted.aspect, wanted.small)
        source = open_images(_data(wanted))
        names, facts = _chosen(wanted, source.names, n + below)
        shown, lrs = exhibits(source, names, task)
    else:
        folder = ComparisonFolder(wanted.comparison)
        there = [method for method in methods if method in folder.labels]
        names, facts = _chosen(wanted, folder.names(there), n + below)
        shown, lrs = folder.exhibits(names, there)
        facts += folder.facts(there)
        upscalers = {method: load(method, folder.scale) for method in methods if method not in there}

    def arranged(shown: Sequence[sheets.Exhibit]) -> tuple[Sheet, list[str]]:
        shown = sheets.without_bars(shown)
        if wanted.number == 1:
            return sheets.random_examples(shown, methods), [_task_fact(shown[0])]
        top, gallery = (shown[:n], shown[n:]) if has_gallery else (shown, [])
        boxes = _boxes(wanted.patches, top, [exhibit.gt for exhibit in top], differing)
        sheet = sheets.category(top, gallery, methods, boxes) if has_gallery else sheets.comparison(top, methods, boxes)
        return sheet, [_task_fact(shown[0]), *_patch_facts(top, boxes)]

    def differing(exhibit: sheets.Exhibit, size: int | None) -> PanelBox:
        results = [exhibit.results[method] for method in methods]
        step = exhibit.gt.shape[1] // exhibit.lr.shape[1]  # where the input's pixels begin
        return sheets.differing_patch(results if len(results) > 1 else [*results, exhibit.gt], size, step)

    # Methods may take hours. What is wrong with the request is found before, on a sheet with ground truths in the place of results.
    rehearsal = shown
    for method in upscalers:
        rehearsal = with_results(rehearsal, method, [exhibit.gt for exhibit in shown])
    place(arranged(rehearsal)[0], wanted.width_mm, wanted.dpi)
    for method, upscaler in upscalers.items():
        shown = with_results(shown, method, run(method, upscaler, lrs, names))
        facts.append(_about(method, upscaler))
    sheet, more = arranged(shown)
    return sheet, facts + more


def _scales(wanted: Wanted, load: Load, run: Run) -> tuple[Sheet, list[str]]:
    """Figure 3."""
    (method,) = wanted.kind.methods
    source = open_images(_data(wanted))
    names, facts = _chosen(wanted, source.names, wanted.images or wanted.kind.images)
    upscalers = {int(label): load(label, int(label)) for label in wanted.methods}
    by_scale = {}
    for scale, upscaler in upscalers.items():
        label = f"{method} at {scale}x"
        task = task_of({label: upscaler}, wanted.size, wanted.aspect, wanted.small)
        shown, lrs = exhibits(source, names, task)
        by_scale[scale] = sheets.without_bars(with_results(shown, method, run(label, upscaler, lrs, names)))
        facts.append(_about(label, upscaler))
    return sheets.scales(by_scale, method), facts


def _retouching(wanted: Wanted, load: Load, run: Run) -> tuple[Sheet, list[str]]:
    """Figure 8."""
    method, *others = wanted.methods
    if others:
        raise RequestError(f"figure 8 shows one model, not {', '.join(wanted.methods)}")
    if wanted.original is None:
        raise RequestError("figure 8 wants the images before they were retouched, of the same names: give them with --original")
    source, original = open_images(_data(wanted)), open_images(wanted.original)
    names, facts = _chosen(wanted, source.names, wanted.images or wanted.kind.images)
    upscaler = load(method, wanted.scale)
    task = task_of({method: upscaler}, wanted.size, wanted.aspect, wanted.small)
    shown = retouches(source, original, names, task, lambda lrs: run(method, upscaler, lrs, names))
    facts += [f"scale {task.scale}, {task.size}x{task.size}", _about(method, upscaler)]

    def around(retouch: sheets.Retouch, size: int | None) -> PanelBox:
        return sheets.retouched_patch(retouch.original, retouch.retouched, size)

    boxes = _boxes(wanted.patches, shown, [retouch.original for retouch in shown], around)
    return sheets.retouching(shown, boxes, method), facts + _patch_facts(shown, boxes)


# ----------------------------------------------------------------------------------------------------------------- parts


def _data(wanted: Wanted) -> str:
    if wanted.data is None:
        or_comparison = " or a comparison with --comparison" if "--comparison" in wanted.kind.options else ""
        raise RequestError(f"figure {wanted.number} wants images: give a folder, an archive or an image{or_comparison}")
    return wanted.data


def _chosen(wanted: Wanted, names: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """The names of the images that are shown, and the fact of how they were chosen."""
    where = Path(wanted.comparison or _data(wanted)).name
    chosen = choose(names, count, wanted.seed, wanted.names, where)
    how = "named" if wanted.names else "all" if len(chosen) == len(names) else f"{len(chosen)} drawn with seed {wanted.seed}"
    return chosen, [f"figure {wanted.number}: of {len(names):,} images in {where}, {how}: {', '.join(chosen)}"]


def _task_fact(exhibit: sheets.Exhibit) -> str:
    (height, width), lr_width = exhibit.gt.shape[:2], exhibit.lr.shape[1]
    return f"scale {width // lr_width}, {width}x{height}"


def _about(label: str, upscaler: Upscaler) -> str:
    """The fact of what a method is; of a search with its seed, and what its settings are beside the defaults."""
    about, config = upscaler.about, getattr(upscaler.method, "config", None)
    parts = [about.name or upscaler.method.name, about.licence]
    if config is not None:
        usual = type(config)()
        parts += [f"{key} {value}" for key, value in vars(config).items() if key == "seed" or value != getattr(usual, key)]
    return f"{label}: {', '.join(filter(None, parts))}"


def _patch_facts(shown: Sequence[sheets.Exhibit | sheets.Retouch], boxes: Sequence[PanelBox]) -> list[str]:
    return [f"patch of {item.name}: {box.x},{box.y},{box.width}" for item, box in zip(shown, boxes, strict=True)]


def _boxes(
    texts: Sequence[str], shown: Sequence[T], images: Sequence[np.ndarray], auto: Callable[[T, int | None], PanelBox]
) -> list[PanelBox]:
    """The patch of each of `shown`, whose size that of `images` is, by the option --patch; `auto` finds one of a size."""
    if len(texts) not in (1, len(shown)):
        raise RequestError(f"{len(shown)} images have patches, but {len(texts)} are given with --patch: give one for all, or one for each")
    boxes = []
    for text, item, image in zip([*texts] * (len(shown) // len(texts)), shown, images, strict=True):
        numbers = [] if text == "auto" else text.split(",")
        if len(numbers) not in (0, 1, 3) or not all(number.isdecimal() and len(number) < 6 for number in numbers):
            raise RequestError(f"--patch is auto, a size, or x,y,size, such as 80,96,64, not {text!r}")
        if not numbers:
            boxes.append(auto(item, None))
            continue
        x, y, size = (0, 0, int(numbers[0])) if len(numbers) == 1 else map(int, numbers)
        box = sheets.sized_box(x, y, size, image)
        sheets.check_box(box, image)
        boxes.append(box if len(numbers) == 3 else auto(item, size))
    return boxes
