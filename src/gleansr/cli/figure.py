"""`gleansr figure`: the figures of the paper's supplement, from own images."""

import os
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from gleansr.cli.options import DeviceOptions
from gleansr.cli.progress import CountedProgress, fetched, steps_of
from gleansr.errors import RequestError
from gleansr.evaluation.config import Category, FigureLayout, ImageSelection
from gleansr.files import check_not_input

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from gleansr.evaluation.entries import ComparedMethod
    from gleansr.inference.upscaler import Upscaler


@dataclass(frozen=True)
class FigureFiles:
    """What is written."""

    output: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-o"])] = ()
    """One or more files, .png or .pdf."""
    overwrite: bool = False
    """Replace files that exist already."""


@dataclass(frozen=True)
class ColumnOptions:
    """Which methods are shown, and with which models and settings."""

    models: tuple[str, ...] = ()
    """Models by method, such as glean=cats-8x dgp=FILE; in figure 3 by scale, such as glean:16=cats-16x glean:64=FILE."""
    methods: str | None = None
    """What is shown instead of the methods of the paper's figure, with commas between, such as bicubic,glean; the last is what the figure
    is about. With --comparison its labels."""
    option: tuple[str, ...] = ()
    """Changes to the settings of pulse and dgp, such as pulse.steps=50 dgp.seed=1."""
    scale: int | None = None
    """Enlargement, by default 8."""
    category: Category | None = None
    """Category of the bundled models, by default cats; figures 4 to 7 have their own."""


def figure(
    number: tyro.conf.Positional[int],
    data: tyro.conf.Positional[str | None] = None,
    files: Annotated[FigureFiles, tyro.conf.arg(name="output")] = FigureFiles(),
    selection: Annotated[ImageSelection, tyro.conf.arg(name="image")] = ImageSelection(),
    columns: Annotated[ColumnOptions, tyro.conf.arg(name="method")] = ColumnOptions(),
    layout: FigureLayout = FigureLayout(),
    computing: Annotated[DeviceOptions, tyro.conf.arg(name="device")] = DeviceOptions(),
) -> None:
    """Draw a figure of the paper's supplement from your images (docs/figures.md).

    - gleansr figure 2 cats/ -o figure2.pdf --methods bicubic,glean
    - gleansr figure 3 faces/ -o figure3.png --category faces
    - gleansr figure 8 edited/ --original photos/ -o figure8.png

    Args:
        number: 1: random examples against PULSE. 2: comparison with DGP and ESRGAN+. 3: GLEAN at several scales. 4 to 7: cats, cars,
            bedrooms, towers. 8: image retouching.
        data: Test images: a folder, an archive or an image. For figure 8 the retouched ones.
    """
    from gleansr.evaluation.figure_drawing import check_matplotlib, draw, save
    from gleansr.evaluation.figures import FIGURES, FigureRequest, make_figure
    from gleansr.inference.devices import find_device, find_precision

    if number not in FIGURES:
        raise RequestError(f"there is no figure {number}; there are {'; '.join(f'{n}: {spec.title}' for n, spec in FIGURES.items())}")
    given = {
        "--comparison": selection.comparison,
        "--methods": columns.methods,
        "--scale": columns.scale,
        "--category": columns.category,
        "--patch": layout.patch,
        "--gallery": selection.gallery,
        "--original": selection.original,
        "DATA": data,
        "--size": selection.size,
        "--aspect": selection.aspect,
    }
    _check_options(number, {option for option, value in given.items() if value not in (None, ())})
    for flag, value, least in (
        ("--images", selection.images, 1),
        ("--gallery", selection.gallery, 0),
        ("--size", selection.size, 1),
        ("--dpi", layout.dpi, 1),
    ):
        if value is not None and not least <= value <= 100_000:
            raise RequestError(f"{flag} must be {least} to 100000, not {value}")
    _check_outputs(files)
    for path in files.output:
        _spare(path, [Path(one) for one in (data, selection.original, selection.comparison) if one])
    shown = _columns(number, columns, selection.comparison)
    request = FigureRequest(number=number, methods=tuple(shown), data=data, scale=columns.scale or 8, selection=selection, layout=layout)
    check_matplotlib()
    find_precision(computing.precision, find_device(computing.device))  # before a download that would be for nothing
    console = Console(stderr=True, soft_wrap=True)
    entries = {label: entry for label, entry in shown.items() if entry}
    sheet, facts = make_figure(request, partial(_load, entries, computing), partial(_run, console))
    drawing = draw(sheet, width_mm=layout.width_mm, dpi=layout.dpi)
    for fact in facts:
        console.print(fact, markup=False, highlight=False)
    for path in files.output:
        save(drawing, path, title=f"GLEAN, figure {number} of the supplement", facts="\n".join(facts))
        inches = drawing.get_size_inches()
        dots = f", {drawing.bbox.width:.0f}x{drawing.bbox.height:.0f} dots" if path.suffix.lower() == ".png" else ""
        console.print(f"→ {path} ({inches[0] * 25.4:.0f}x{inches[1] * 25.4:.0f} mm{dots})", markup=False, highlight=False)


# ------------------------------------------------------------------------------------------------------------- arguments


def _check_options(number: int, given: AbstractSet[str]) -> None:
    from gleansr.evaluation.figures import FIGURES

    for option in sorted(given & frozenset().union(*(spec.options for spec in FIGURES.values())) - FIGURES[number].options):
        having = [str(n) for n, spec in FIGURES.items() if option in spec.options]
        raise RequestError(f"{option} is for figure{'s' if len(having) > 1 else ''} {', '.join(having)}, not for figure {number}")
    if "--comparison" in given and (others := sorted(given & {"DATA", "--scale", "--size", "--aspect"})):
        raise RequestError(f"a --comparison has images of its own, of one scale and size: leave {', '.join(others)} out")


def _check_outputs(files: FigureFiles) -> None:
    from gleansr.evaluation.figure_drawing import FORMATS

    if not files.output:
        raise RequestError("say where the figure goes: --output figure.pdf, or several files")
    for path in files.output:
        if path.suffix.lower() not in FORMATS:
            raise RequestError(f"{path}: unknown kind of figure {path.suffix!r}; use {' or '.join(FORMATS)}")
        if not path.parent.is_dir():
            raise RequestError(f"{path}: the folder {path.parent} does not exist")
        if path.is_dir():
            raise RequestError(f"{path}: is a folder")
        if os.path.lexists(path) and not files.overwrite:
            raise RequestError(f"{path}: already exists; use --overwrite or another -o FILE")


def _spare(path: Path, inputs: Sequence[Path]) -> None:
    """Raises RequestError where a figure would replace an image that it may show, or the file that it takes them from."""
    check_not_input(path, inputs)
    held = [one for one in inputs if one.is_dir() and path.resolve().is_relative_to(one.resolve())]
    if held and path.suffix.lower() == ".png" and path.exists():
        raise RequestError(f"{path}: may be one of the images in {held[0]}, which are never replaced; give the figure another name")


def _columns(number: int, options: ColumnOptions, comparison: Path | None) -> "dict[str, ComparedMethod | None]":
    """What is shown, from left to right, by label: methods to be run, or None for results that the comparison has."""
    from gleansr.checkpoints.zoo import named_models
    from gleansr.evaluation.comparison_folder import ComparisonFolder
    from gleansr.evaluation.entries import parse_entries
    from gleansr.evaluation.figures import FIGURES

    spec, models, settings, scale = FIGURES[number], options.models, options.option, options.scale or 8
    category = spec.category or options.category or "cats"
    if number == 3:
        default = [f"glean:{s}={category}-{s}x" for s in (16, 32, 64) if any(model.name == f"{category}-{s}x" for model in named_models())]
        entries = parse_entries("glean", models or default, settings, scale)
        for entry in entries:
            if not entry.label.isdecimal():
                raise RequestError(f"figure 3 takes models by scale, such as --models glean:16=cats-16x glean:64=FILE, not {entry.model}")
        return {entry.label: entry for entry in sorted(entries, key=lambda entry: int(entry.label))}
    folder = ComparisonFolder(comparison) if comparison else None
    there = folder.labels if folder else []
    methods = options.methods.split(",") if options.methods else spec.methods
    wanting = [method for method in methods if method not in there]
    if not wanting and (models or settings):
        raise RequestError(f"{comparison} has all that is shown: leave {' '.join([*models, *settings])} out")
    entries = parse_entries(",".join(wanting), models, settings, folder.scale if folder else scale, category) if wanting else []
    columns: dict[str, ComparedMethod | None] = {}
    for method in methods:
        columns.update({method: None} if method in there else {entry.label: entry for entry in entries if entry.method == method})
    return columns


# --------------------------------------------------------------------------------------------------------------- methods


def _load(entries: "Mapping[str, ComparedMethod]", computing: DeviceOptions, label: str, scale: int) -> "Upscaler":
    entry = entries[label]
    if entry.model:
        fetched(entry.model, computing.offline)
    return entry.load(scale, computing.device, computing.precision)


def _run(console: Console, label: str, upscaler: "Upscaler", lrs: "Sequence[Tensor]", names: Sequence[str]) -> "list[np.ndarray]":
    from gleansr.evaluation.figures import upscale_images

    with CountedProgress(console) as progress:
        task = progress.add_task(label, total=len(lrs))

        def finished(index: int, note: str) -> None:
            progress.advance(task)
            if note:
                console.print(f"{label}: {names[index]}: {note}", markup=False, highlight=False)

        return upscale_images(upscaler, lrs, steps_of(progress), finished)
