"""The figures of the paper's supplement: selects images, runs methods on them or reads their stored results, and builds the sheet."""

import dataclasses
import difflib
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gleansr.data.fit import SmallError
from gleansr.data.sources import FolderSource, Source, open_source, stem
from gleansr.errors import ImageError, RequestError
from gleansr.evaluation import figure_sheets as sheets
from gleansr.evaluation.comparison_folder import ComparisonFolder
from gleansr.evaluation.config import FigureLayout, ImageSelection
from gleansr.evaluation.figure_drawing import arrange
from gleansr.evaluation.figure_patches import differing_patch, patch_facts, place_patches, retouched_patch
from gleansr.evaluation.figure_sheets import ComparedImage, PanelBox, RetouchedImage, Sheet, to_pixels
from gleansr.evaluation.ground_truth import EvaluationTask, default_aspect, default_border, read_image
from gleansr.images.codec import readable_suffixes
from gleansr.inference.method import StepReport
from gleansr.inference.upscaler import Upscaler


@dataclass(frozen=True)
class FigureSpec:
    """A figure of the supplement."""

    title: str
    methods: tuple[str, ...]
    """The paper's methods; the last one is the subject of the figure."""
    images: int
    """Default number of images."""
    options: frozenset[str] = frozenset()
    """Options of the command that only some figures have."""
    category: str | None = None
    """The category that the figure is about; None: the one given, by default cats."""


_COMPARED = frozenset({"--comparison", "--methods", "--scale", "--category"})
_PATCHED = _COMPARED | {"--patch"}
_CATEGORY = _PATCHED - {"--category"} | {"--gallery"}
_BASELINES = ("dgp", "esrgan+", "glean")

FIGURES = {
    1: FigureSpec("random examples against PULSE", ("pulse", "glean"), 10, _COMPARED),
    2: FigureSpec("comparison with DGP and ESRGAN+", _BASELINES, 3, _PATCHED),
    3: FigureSpec("GLEAN at several scales", ("glean",), 6, frozenset({"--category"})),
    4: FigureSpec("cats", _BASELINES, 2, _CATEGORY, "cats"),
    5: FigureSpec("cars", _BASELINES, 2, _CATEGORY, "cars"),
    6: FigureSpec("bedrooms", _BASELINES, 2, _CATEGORY, "bedrooms"),
    7: FigureSpec("towers", _BASELINES, 2, _CATEGORY, "towers"),
    8: FigureSpec("image retouching", ("glean",), 2, frozenset({"--patch", "--original", "--scale", "--category"})),
}
"""The figures by number."""


@dataclass(frozen=True, kw_only=True)
class FigureRequest:
    """Content of a figure; see the options of `gleansr figure`."""

    number: int
    methods: tuple[str, ...]
    """Labels from left to right; methods without results in the comparison are loaded. In figure 3 the scales of GLEAN."""
    data: str | None = None
    scale: int = 8
    """Ignored if the figure or the comparison sets the scale."""
    selection: ImageSelection = ImageSelection()
    layout: FigureLayout = FigureLayout()

    @property
    def spec(self) -> FigureSpec:
        return FIGURES[self.number]

    @property
    def images(self) -> int:
        """Number of images; with a gallery, in the upper part."""
        return self.selection.images or self.spec.images


LoadMethod = Callable[[str, int], Upscaler]
"""Loads a method by label and scale. Raises RequestError if it is not available."""

RunMethod = Callable[[str, Upscaler, Sequence[Tensor], Sequence[str]], list[np.ndarray]]
"""Upscales images (1, 3, h, w) in [-1, 1] with a method: takes its label, Upscaler, inputs and names, see `upscale_images`."""


def make_figure(request: FigureRequest, load: LoadMethod, run: RunMethod) -> tuple[Sheet, list[str]]:
    """The sheet of a figure, and lines that say how it was made.

    Raises:
        RequestError: the request is invalid.
        ImageError: an image cannot be used.
    """
    if request.number == 3:
        return _scales(request, load, run)
    if request.number == 8:
        return _retouching(request, load, run)
    return _comparison(request, load, run)


def _comparison(request: FigureRequest, load: LoadMethod, run: RunMethod) -> tuple[Sheet, list[str]]:
    """Figures 1, 2 and 4 to 7."""
    methods, selection, n = request.methods, request.selection, request.images
    has_gallery = "--gallery" in request.spec.options
    gallery_size = 0 if not has_gallery else len(methods) + 2 if selection.gallery is None else selection.gallery
    if selection.comparison is None:
        upscalers = {method: load(method, request.scale) for method in methods}
        task = common_task(upscalers, selection)
        source = open_images(_data(request))
        names, facts = _choose(request, source.names, n + gallery_size)
        images, lrs = read_images(source, names, task)
    else:
        folder = ComparisonFolder(selection.comparison)
        stored = [method for method in methods if method in folder.labels]
        names, facts = _choose(request, folder.names(stored), n + gallery_size)
        images, lrs = folder.read(names, stored)
        facts += folder.facts(stored)
        upscalers = {method: load(method, folder.scale) for method in methods if method not in stored}

    def arranged(images: Sequence[ComparedImage]) -> tuple[Sheet, list[str]]:
        images = sheets.without_bars(images)
        facts = [f"scale {images[0].gt.shape[1] // images[0].lr.shape[1]}, {images[0].gt.shape[1]}x{images[0].gt.shape[0]}"]
        if request.number == 1:
            return sheets.random_examples(images, methods), facts
        top, gallery = (images[:n], images[n:]) if has_gallery else (images, [])
        boxes = place_patches(request.layout.patch, top, [image.gt for image in top], differing_box)
        sheet = sheets.category(top, gallery, methods, boxes) if has_gallery else sheets.comparison(top, methods, boxes)
        return sheet, facts + patch_facts(top, boxes)

    def differing_box(image: ComparedImage, size: int | None) -> PanelBox:
        results = [image.results[method] for method in methods]
        step = image.gt.shape[1] // image.lr.shape[1]  # boxes begin at a pixel of the input
        return differing_patch(results if len(results) > 1 else [*results, image.gt], size, step)

    # Methods may run for hours: a sheet with ground truths as results finds errors in the request first.
    draft = images
    for method in upscalers:
        draft = _add_results(draft, method, [image.gt for image in images])
    arrange(arranged(draft)[0], request.layout.width_mm, request.layout.dpi)
    for method, upscaler in upscalers.items():
        images = _add_results(images, method, run(method, upscaler, lrs, names))
        facts.append(_method_fact(method, upscaler))
    sheet, sheet_facts = arranged(images)
    return sheet, facts + sheet_facts


def _scales(request: FigureRequest, load: LoadMethod, run: RunMethod) -> tuple[Sheet, list[str]]:
    """Figure 3."""
    (method,) = request.spec.methods
    source = open_images(_data(request))
    names, facts = _choose(request, source.names, request.images)
    upscalers = {int(label): load(label, int(label)) for label in request.methods}
    by_scale = {}
    for scale, upscaler in upscalers.items():
        label = f"{method} at {scale}x"
        task = common_task({label: upscaler}, request.selection)
        images, lrs = read_images(source, names, task)
        by_scale[scale] = sheets.without_bars(_add_results(images, method, run(label, upscaler, lrs, names)))
        facts.append(_method_fact(label, upscaler))
    return sheets.scales(by_scale, method), facts


def _retouching(request: FigureRequest, load: LoadMethod, run: RunMethod) -> tuple[Sheet, list[str]]:
    """Figure 8."""
    method, *others = request.methods
    if others:
        raise RequestError(f"figure 8 shows one model, not {', '.join(request.methods)}")
    if request.selection.original is None:
        raise RequestError("figure 8 needs the images before retouching, with the same names: give them with --original")
    source, original = open_images(_data(request)), open_images(request.selection.original)
    names, facts = _choose(request, source.names, request.images)
    upscaler = load(method, request.scale)
    task = common_task({method: upscaler}, request.selection)
    images = read_retouched(source, original, names, task, lambda lrs: run(method, upscaler, lrs, names))
    facts += [f"scale {task.scale}, {task.size}x{task.size}", _method_fact(method, upscaler)]

    def retouched_box(image: RetouchedImage, size: int | None) -> PanelBox:
        return retouched_patch(image.original, image.retouched, size)

    boxes = place_patches(request.layout.patch, images, [image.original for image in images], retouched_box)
    return sheets.retouching(images, boxes, method), facts + patch_facts(images, boxes)


def _data(request: FigureRequest) -> str:
    if request.data is None:
        or_comparison = " or a comparison with --comparison" if "--comparison" in request.spec.options else ""
        raise RequestError(f"figure {request.number} needs images: give a folder, an archive or an image{or_comparison}")
    return request.data


def _method_fact(label: str, upscaler: Upscaler) -> str:
    """Model and licence of a method; of a search also its seed and the settings that differ from the defaults."""
    about, config = upscaler.about, getattr(upscaler.method, "config", None)
    parts = [upscaler.name, about.licence]
    if config is not None:
        defaults = type(config)()
        parts += [f"{key} {value}" for key, value in vars(config).items() if key == "seed" or value != getattr(defaults, key)]
    return f"{label}: {', '.join(filter(None, parts))}"


# --------------------------------------------------------------------------------------------------------------- images


def _choose(request: FigureRequest, names: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """The names of the images to show, and a line that says how they were chosen."""
    selection = request.selection
    source = Path(selection.comparison or _data(request)).name
    chosen = choose_images(names, count, selection.seed, selection.names, source)
    how = "named" if selection.names else "all" if len(chosen) == len(names) else f"{len(chosen)} drawn with seed {selection.seed}"
    return chosen, [f"figure {request.number}: of {len(names):,} images in {source}, {how}: {', '.join(chosen)}"]


def choose_images(names: Sequence[str], count: int, seed: int, requested: Sequence[str] = (), source: str = "the data") -> list[str]:
    """Names of `count` images drawn at random, all of them if there are no more; or the requested images in their order.

    Args:
        names: names of all images, sorted.
        count: number of images.
        seed: seed of the draw, which depends on it and on the number of `names` alone.
        requested: names to return, with or without suffix and folders.
        source: name of the data in messages.

    Raises:
        RequestError: a requested name is missing or ambiguous.
    """
    if requested:
        return [_find(names, name, source) for name in requested]
    if count >= len(names):
        return list(names)
    return [names[i] for i in random.Random(seed).sample(range(len(names)), count)]  # noqa: S311, no secret


def _find(names: Sequence[str], name: str, source: str) -> str:
    if name in names:
        return name
    matches = [other for other in names if stem(other) == stem(name)]
    matches = matches or [other for other in names if stem(other).rpartition("/")[2] in (name, stem(name))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise RequestError(f"--names {name}: matches {', '.join(matches[:3])} in {source}; give one of these names")
    near = difflib.get_close_matches(name, [*names, *map(stem, names)], n=1)
    raise RequestError(f"--names {name}: is not in {source}" + (f"; did you mean {near[0]}?" if near else f", which has {names[0]}"))


def open_images(spec: str | os.PathLike[str]) -> Source:
    """As `open_source`; also takes a single image file."""
    path = Path(spec).expanduser()
    if path.is_file() and path.suffix.lower() in readable_suffixes():
        return FolderSource(path.parent, [path.name])
    return open_source(spec)


def read_images(source: Source, names: Sequence[str], task: EvaluationTask) -> tuple[list[ComparedImage], list[Tensor]]:
    """The named images without results, and the methods' inputs (1, 3, h, w), RGB in [-1, 1]."""
    pairs = [(name, *_gt_and_lr(source, name, task)) for name in names]
    return [ComparedImage(name, to_pixels(lr[0]), to_pixels(gt[0])) for name, gt, lr in pairs], [lr for *_, lr in pairs]


def read_retouched(
    retouched: Source, original: Source, names: Sequence[str], task: EvaluationTask, method: Callable[[list[Tensor]], list[np.ndarray]]
) -> list[RetouchedImage]:
    """The named images of `retouched` with their originals and results.

    Originals have the same names without suffix; two single images need not. `method` upscales the retouched images after
    downsampling, (1, 3, h, w) in [-1, 1] each.

    Raises RequestError for an image without an original.
    """
    originals = {stem(name): name for name in original.names}
    if len(retouched) == len(original) == 1:
        originals[stem(retouched.names[0])] = original.names[0]
    if missing := [name for name in names if stem(name) not in originals]:
        raise RequestError(f"--original has no image for {', '.join(missing)}; original and retouched images must have the same names")
    after = [_gt_and_lr(retouched, name, task) for name in names]
    before = [_gt_and_lr(original, originals[stem(name)], task) for name in names]
    results = method([lr for _, lr in after])
    rows = zip(names, before, after, results, strict=True)
    return [RetouchedImage(name, to_pixels(old[0]), to_pixels(new[0]), result) for name, (old, _), (new, _), result in rows]


def _gt_and_lr(source: Source, name: str, task: EvaluationTask) -> tuple[Tensor, Tensor]:
    """An image as ground truth (1, 3, size, size) and as low-resolution image, in [-1, 1]."""
    index = source.names.index(name)
    pixels, _ = read_image(source, index)
    try:
        gt, content = task.fit(pixels)
    except SmallError as error:
        raise ImageError(f"{source.label(index)}: {error}; --small enlarge accepts it") from None
    return gt, task.degrade(gt, content, index)


# -------------------------------------------------------------------------------------------------------------- methods


def common_task(upscalers: Mapping[str, Upscaler], selection: ImageSelection) -> EvaluationTask:
    """The task of methods that share one scale and one size of results.

    Args:
        upscalers: the methods by label.
        selection: its size is for methods that take images of any size.

    Raises RequestError if scales or sizes differ, or no size is known.
    """
    scales = {label: upscaler.scale for label, upscaler in upscalers.items()}
    if len(set(scales.values())) > 1:
        listed = ", ".join(f"{label} {scale}x" for label, scale in scales.items())
        raise RequestError(f"the methods of a figure must have one scale, not {listed}; give models of one scale with --models")
    sizes = {label: upscaler.output_size for label, upscaler in upscalers.items() if upscaler.output_size}
    if selection.size is not None:
        sizes["--size"] = selection.size
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{label} {side}" for label, side in sizes.items())
        raise RequestError(f"the images of a figure must have one size, not {listed}; give models of one size with --models")
    if not sizes:
        raise RequestError(f"{', '.join(upscalers)} takes images of any size: give the side of the results with --size")
    methods = upscalers.values()
    side, scale = next(iter(sizes.values())), next(iter(scales.values()))
    return EvaluationTask(side, scale, selection.aspect or default_aspect(methods), selection.small, default_border(methods))


def upscale_images(
    upscaler: Upscaler,
    lrs: Sequence[Tensor],
    report: StepReport | None = None,
    finished: Callable[[int, str], None] = lambda index, note: None,  # noqa: ARG005
) -> list[np.ndarray]:
    """Upscales images (1, 3, h, w) in [-1, 1] to (H, W, 3) uint8.

    `report` receives the progress within a batch, `finished` the index and the method's note of each finished image.
    """
    size = upscaler.default_batch_size()
    images: list[np.ndarray] = []
    for start in range(0, len(lrs), size):
        batch = torch.cat(list(lrs[start : start + size]))
        if upscaler.input_size and batch.shape[-2:] != (upscaler.input_size, upscaler.input_size):
            name, side = upscaler.method.name, upscaler.input_size
            raise RequestError(f"{name} takes images of {side}x{side}, not {batch.shape[-1]}x{batch.shape[-2]}; change --models")
        output = upscaler.runner(list(batch), report)
        for image, note in zip(output.images, output.notes or [""] * len(batch), strict=True):
            images.append(to_pixels(image))
            finished(len(images) - 1, note)
    return images


def _add_results(images: Sequence[ComparedImage], method: str, results: Sequence[np.ndarray]) -> list[ComparedImage]:
    pairs = zip(images, results, strict=True)
    return [dataclasses.replace(image, results={**image.results, method: result}) for image, result in pairs]
