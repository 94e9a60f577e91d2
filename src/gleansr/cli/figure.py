"""`gleansr figure`: the figures of the paper's supplement, from own images."""

import os
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import Progress

from gleansr.cli.progress import COUNTED, fetched, steps_of
from gleansr.errors import RequestError
from gleansr.files import check_not_input
from gleansr.inference.precision import Precision

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from gleansr.evaluation.entries import ComparedMethod
    from gleansr.inference.upscaler import Upscaler


def figure(
    number: tyro.conf.Positional[int],
    data: tyro.conf.Positional[str | None] = None,
    output: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-o"])] = (),
    comparison: Path | None = None,
    models: tuple[str, ...] = (),
    methods: str | None = None,
    option: tuple[str, ...] = (),
    scale: int | None = None,
    size: int | None = None,
    images: int | None = None,
    gallery: int | None = None,
    names: tuple[str, ...] = (),
    seed: int = 0,
    original: str | None = None,
    patch: tuple[str, ...] = (),
    aspect: Literal["squash", "crop", "pad", "bars"] | None = None,
    small: Literal["refuse", "enlarge"] = "refuse",
    width_mm: float = 180.0,
    dpi: float = 300.0,
    device: str = "auto",
    precision: Precision = "auto",
    overwrite: bool = False,
    offline: bool = False,
) -> None:
    """Draw a figure of the paper's supplement from your images (docs/figures.md).

    - gleansr figure 2 cats/ -o figure2.pdf --methods bicubic,glean
    - gleansr figure 3 cats/ -o figure3.png --models glean:8=cats-8x glean:16=cats-16x
    - gleansr figure 8 edited/ --original photos/ -o figure8.png

    Args:
        number: 1: random examples against PULSE. 2: comparison with DGP and ESRGAN+. 3: GLEAN at several scales. 4 to 7: cats, cars,
            bedrooms, towers. 8: image retouching.
        data: Test images: a folder, an archive or an image. For figure 8 the retouched ones.
        output: One or more files, .png or .pdf.
        comparison: Take images and results from the output folder of `gleansr compare` instead of DATA.
        models: Models by method, such as glean=cats-8x dgp=FILE; in figure 3 by scale, such as glean:16=cats-16x glean:64=FILE.
        methods: What is shown instead of the methods of the paper's figure, with commas between, such as bicubic,glean; the last is what
            the figure is about. With --comparison its labels.
        option: Changes to the settings of pulse and dgp, such as pulse.steps=50 dgp.seed=1.
        scale: Enlargement, by default 8.
        size: Side of the results, where all methods take images of any size.
        images: How many images; in figures 4 to 7 in the upper part.
        gallery: How many images are in the lower part of figures 4 to 7, by default one row.
        names: Show these images, in this order, instead of drawing some.
        seed: Of the draw.
        original: The images of figure 8 before they were retouched, of the same names.
        patch: What is shown enlarged, one for each image or one for all: x,y,size in pixels of the result, auto or the size alone for the
            place where methods differ most (in figure 8: around the retouch).
        aspect: What to do with images that are not square, see docs/data.md; by default bars for models of such images, otherwise crop.
        small: What to do with images that would have to be enlarged.
        width_mm: Width of the figure; 180 is two columns.
        dpi: Least resolution of a PNG: the next at which the pixels of images are whole numbers of dots is taken.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        precision: Arithmetic: auto is float32 on a CPU and bfloat16 on a GPU that has it.
        overwrite: Replace files that exist already.
        offline: Never download a model.
    """
    from gleansr.evaluation.figure_sheets import check_matplotlib, draw, save
    from gleansr.evaluation.figures import FIGURES, FigureRequest, make_figure
    from gleansr.inference.devices import find_device, find_precision

    if number not in FIGURES:
        raise RequestError(f"there is no figure {number}; there are {'; '.join(f'{n}: {spec.title}' for n, spec in FIGURES.items())}")
    given = {
        "--comparison": comparison,
        "--methods": methods,
        "--scale": scale,
        "--patch": patch,
        "--gallery": gallery,
        "--original": original,
        "DATA": data,
        "--size": size,
        "--aspect": aspect,
    }
    _check_options(number, {option for option, value in given.items() if value not in (None, ())})
    for flag, value, least in (("--images", images, 1), ("--gallery", gallery, 0), ("--size", size, 1), ("--dpi", dpi, 1)):
        if value is not None and not least <= value <= 100_000:
            raise RequestError(f"{flag} must be {least} to 100000, not {value}")
    _check_outputs(output, overwrite)
    for path in output:
        _spare(path, [Path(one) for one in (data, original, comparison) if one])
    asked = tuple(methods.split(",")) if methods else FIGURES[number].methods
    columns = _columns(number, asked, models, option, scale or 8, comparison)
    request = FigureRequest(
        number=number,
        methods=tuple(columns),
        data=data,
        comparison=comparison,
        original=original,
        scale=scale or 8,
        size=size,
        images=images,
        gallery=gallery,
        names=names,
        seed=seed,
        patches=patch or ("auto",),
        aspect=aspect,
        small=small,
        width_mm=width_mm,
        dpi=dpi,
    )
    check_matplotlib()
    find_precision(precision, find_device(device))  # before a download that would be for nothing
    console = Console(stderr=True, soft_wrap=True)
    entries = {label: entry for label, entry in columns.items() if entry}
    sheet, facts = make_figure(request, partial(_load, entries, device, precision, offline), partial(_run, console))
    drawing = draw(sheet, width_mm=width_mm, dpi=dpi)
    for fact in facts:
        console.print(fact, markup=False, highlight=False)
    for path in output:
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


def _check_outputs(output: Sequence[Path], overwrite: bool) -> None:
    from gleansr.evaluation.figure_sheets import FORMATS

    if not output:
        raise RequestError("say where the figure goes: --output figure.pdf, or several files")
    for path in output:
        if path.suffix.lower() not in FORMATS:
            raise RequestError(f"{path}: unknown kind of figure {path.suffix!r}; use {' or '.join(FORMATS)}")
        if not path.parent.is_dir():
            raise RequestError(f"{path}: the folder {path.parent} does not exist")
        if path.is_dir():
            raise RequestError(f"{path}: is a folder")
        if os.path.lexists(path) and not overwrite:
            raise RequestError(f"{path}: already exists; use --overwrite or another -o FILE")


def _spare(path: Path, inputs: Sequence[Path]) -> None:
    """Raises RequestError where a figure would replace an image that it may show, or the file that it takes them from."""
    check_not_input(path, inputs)
    held = [one for one in inputs if one.is_dir() and path.resolve().is_relative_to(one.resolve())]
    if held and path.suffix.lower() == ".png" and path.exists():
        raise RequestError(f"{path}: may be one of the images in {held[0]}, which are never replaced; give the figure another name")


def _columns(
    number: int, methods: Sequence[str], models: tuple[str, ...], settings: tuple[str, ...], scale: int, comparison: Path | None
) -> "dict[str, ComparedMethod | None]":
    """What is shown, from left to right, by label: methods to be run, or None for results that the comparison has."""
    from gleansr.evaluation.comparison_folder import ComparisonFolder
    from gleansr.evaluation.entries import parse_entries
    from gleansr.evaluation.figures import FIGURES

    spec = FIGURES[number]
    if number == 3:
        entries = parse_entries("glean", models or ("glean:16=cats-16x",), settings, scale)
        for entry in entries:
            if not entry.label.isdecimal():
                raise RequestError(f"figure 3 takes models by scale, such as --models glean:16=cats-16x glean:64=FILE, not {entry.model}")
        return {entry.label: entry for entry in sorted(entries, key=lambda entry: int(entry.label))}
    folder = ComparisonFolder(comparison) if comparison else None
    there = folder.labels if folder else []
    wanting = [method for method in methods if method not in there]
    if not wanting and (models or settings):
        raise RequestError(f"{comparison} has all that is shown: leave {' '.join([*models, *settings])} out")
    given = {text.partition("=")[0].partition(":")[0] for text in models} | {"bicubic"}
    if not spec.bundled and (missing := [method for method in wanting if method not in given]):
        wanted = " ".join(f"{method}=FILE" for method in missing)
        raise RequestError(f"no models of {spec.title} come with the package: give --models {wanted}, or show other --methods")
    entries = parse_entries(",".join(wanting), models, settings, folder.scale if folder else scale) if wanting else []
    columns: dict[str, ComparedMethod | None] = {}
    for method in methods:
        columns.update({method: None} if method in there else {entry.label: entry for entry in entries if entry.method == method})
    return columns


# --------------------------------------------------------------------------------------------------------------- methods


def _load(entries: "Mapping[str, ComparedMethod]", device: str, precision: Precision, offline: bool, label: str, scale: int) -> "Upscaler":
    entry = entries[label]
    if entry.model:
        fetched(entry.model, offline)
    return entry.load(scale, device, precision)


def _run(console: Console, label: str, upscaler: "Upscaler", lrs: "Sequence[Tensor]", names: Sequence[str]) -> "list[np.ndarray]":
    from gleansr.evaluation.figures import upscale_images

    with Progress(*COUNTED, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=len(lrs))

        def finished(index: int, note: str) -> None:
            progress.advance(task)
            if note:
                console.print(f"{label}: {names[index]}: {note}", markup=False, highlight=False)

        return upscale_images(upscaler, lrs, steps_of(progress), finished)
