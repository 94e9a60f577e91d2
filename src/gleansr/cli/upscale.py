"""`gleansr upscale`: pictures and folders of pictures."""

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from gleansr.cli.progress import COUNTED, fetched, steps_of
from gleansr.errors import GleansrError, PictureError, RequestError

if TYPE_CHECKING:
    from gleansr.upscaler import Fit, Precision, Report, Upscaler


@dataclass(frozen=True)
class Job:
    """One picture to read and where its result goes."""

    source: Path
    target: Path


def upscale(
    inputs: tyro.conf.Positional[tuple[Path, ...]],
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    model: Annotated[str | None, tyro.conf.arg(aliases=["-m"])] = None,
    method: Literal["auto", "glean", "esrgan+", "plain", "dgp", "pulse", "bicubic"] = "auto",
    scale: int | None = None,
    set: tuple[str, ...] = (),
    fit: Literal["auto", "crop", "pad", "stretch", "exact"] = "auto",
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    batch_size: int | None = None,
    quality: int = 95,
    overwrite: bool = False,
    offline: bool = False,
) -> None:
    """Enlarge pictures, or all pictures in folders.

    Args:
        inputs: Pictures and folders of pictures.
        output: A file (.png, .jpg, .webp, .tif) for one picture, otherwise a folder, in which the tree of an input folder is mirrored. By
            default NAME_8x.png beside NAME, and FOLDER_8x beside FOLDER.
        model: Name of a model (see `gleansr models`) or file of any layout; by default cats-8x, or what suits the method and the scale.
        method: auto: whatever network the model is. pulse, dgp: search the model's bank, which takes a hundred to two
            thousand times longer; see docs/rivals.md.
        scale: Enlargement by pulse, dgp and bicubic, by default 8; a network has its own.
        set: Changes to the settings of pulse and dgp, such as steps=50 seed=1.
        fit: What to do with a picture that is not of the model's input size. exact: refuse it; stretch: resize both sides; crop: cut out
            the centre square; pad: repeat the border up to a square; auto: as pad, which loses nothing.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        precision: Arithmetic: auto is float32 on a CPU and bfloat16 on a GPU that has it.
        batch_size: Pictures per forward pass; by default as many as suit the device.
        quality: Of JPEG and WebP, 1 to 100.
        overwrite: Replace results that exist already.
        offline: Never download a model.
    """
    from gleansr.pictures import FORMATS  # imports torch, which `gleansr --help` need not wait for
    from gleansr.upscaler import find_device, find_precision

    if not inputs:
        raise RequestError("give at least one picture or folder")
    if batch_size is not None and batch_size < 1:
        raise RequestError(f"--batch-size must be at least 1, not {batch_size}")
    if not 1 <= quality <= 100:
        raise RequestError(f"--quality must be 1 to 100, not {quality}")
    to_file = output is not None and output.suffix.lower() in FORMATS and not output.is_dir()
    one_file = len(inputs) == 1 and not any(source.is_dir() for source in inputs)
    if to_file and not one_file:
        raise RequestError(f"{output}: is one file, but there are several pictures; give a folder with --output")
    if output is not None and output.suffix and not to_file and not output.is_dir() and one_file:
        raise RequestError(f"{output}: unknown kind of picture {output.suffix!r}; use one of {', '.join(FORMATS)}")

    console = Console(stderr=True, soft_wrap=True)
    find_precision(precision, find_device(device))  # before a download that would be for nothing
    upscaler = _upscaler(model, method, scale, set, device, precision, offline)
    jobs = [Job(source, output) for source in inputs] if to_file and output else list(_jobs(inputs, output, f"_{upscaler.scale}x"))
    failures = 0
    started = time.monotonic()
    quick = len(jobs) == 1 and method not in ("dgp", "pulse")
    with Progress(*COUNTED, console=console, transient=True, disable=quick) as progress:
        task = progress.add_task("upscaling", total=len(jobs), visible=len(jobs) > 1)
        for job, result in _results(upscaler, jobs, fit, batch_size, quality, overwrite, steps_of(progress)):
            if isinstance(result, GleansrError):
                failures += 1
                console.print(f"gleansr: {escape(str(result))}", style="red", highlight=False)
            else:
                console.print(escape(f"{job.source} -> {job.target}{f' ({result})' if result else ''}"), highlight=False)
            progress.advance(task)
    if len(jobs) > 1:
        seconds = time.monotonic() - started
        done = f"{len(jobs) - failures} of {len(jobs)} pictures upscaled {upscaler.scale}x in {seconds:.1f} s"
        console.print(f"{done}, {failures} failed" if failures else done, highlight=False)
    if failures:
        raise SystemExit(1)


def _upscaler(
    model: str | None, method: str, scale: int | None, changes: tuple[str, ...], device: str, precision: "Precision", offline: bool
) -> "Upscaler":
    if method == "auto":
        from gleansr.upscaler import load

        if scale is not None or changes:
            raise RequestError("--scale and --set are for a method that is named: give --method pulse, dgp or bicubic too")
        return load(fetched(model or "cats-8x", offline), device=device, precision=precision)
    from gleansr import rivals
    from gleansr.configs import override

    settings = {key: value for change in changes for key, value in override(change).items()}
    file = fetched(model, offline) if model else None
    return rivals.load(method, file, scale=scale, device=device, precision=precision, settings=settings)


def _results(
    upscaler: "Upscaler", jobs: list[Job], fit: "Fit", batch_size: int | None, quality: int, overwrite: bool, report: "Report"
) -> Iterator[tuple[Job, str | GleansrError]]:
    """Each job with a note of what was done, or with the error that stopped it and no other."""
    from gleansr.pictures import check_output, decode, encode

    remaining = iter(jobs)
    while chunk := list(itertools.islice(remaining, batch_size or upscaler.default_batch_size())):
        fitted = []
        for job in chunk:
            try:
                if job.target.parent.exists():  # otherwise it is made when there is something to put into it
                    check_output(job.target, overwrite=overwrite)
                fitted.append((job, upscaler.fit(decode(job.source), fit)))
            except GleansrError as error:
                yield job, error
        if not fitted:
            continue
        for (job, one), image in zip(fitted, upscaler.run([one for _, one in fitted], report), strict=True):
            try:
                _make_folder(job.target.parent)
                metadata = one.picture.metadata
                encode(
                    image,
                    job.target,
                    metadata=metadata,
                    model=upscaler.about.name,
                    quality=quality,
                    overwrite=overwrite,
                )
                yield job, "; ".join([*filter(None, [image.info.get("gleansr")]), *one.picture.notes])
            except GleansrError as error:
                yield job, error


def _jobs(inputs: tuple[Path, ...], output: Path | None, suffix: str) -> Iterator[Job]:
    """What to read and where to write. Results keep their input's name; where that is taken, its suffix too, or a number."""
    taken: set[Path] = set()
    for source in inputs:
        if source.is_dir():
            root = output or source.with_name(f"{source.resolve().name}{suffix}")
            for file in _pictures(source):
                yield _job(file, root / file.relative_to(source).parent / file.name, "", taken)
        else:
            yield _job(source, (output or source.parent) / source.name, "" if output else suffix, taken)


def _job(source: Path, place: Path, suffix: str, taken: set[Path]) -> Job:
    names = itertools.chain([place.stem, place.name], (f"{place.stem}_{i}" for i in itertools.count(2)))
    target = next(path for name in names if (path := place.with_name(f"{name}{suffix}.png")) not in taken)
    taken.add(target)
    return Job(source, target)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PictureError(f"{folder}: the folder cannot be made ({error.strerror})") from None


def _pictures(folder: Path) -> list[Path]:
    """The pictures below a folder, by suffix. A folder without any is an error that says what is there."""
    from gleansr.pictures import readable_suffixes

    files = sorted(Path(base) / name for base, _, names in os.walk(folder) for name in names)
    suffixes = readable_suffixes()
    pictures = [file for file in files if file.suffix.lower() in suffixes and not file.name.startswith(".")]
    if not pictures:
        found = ", ".join(file.name for file in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        raise RequestError(f"{folder}: no pictures in this folder, only {found}" if files else f"{folder}: is an empty folder")
    return pictures
