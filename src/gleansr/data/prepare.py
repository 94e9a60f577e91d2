"""Prepares training sets as in the paper: images cropped, resized with MATLAB's bicubic and stored with 8 bits, with lr images."""

import hashlib
import io
import json
import math
import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor

from gleansr.data.choices import Aspect, Small
from gleansr.data.datasets import Crop, Original, find_kind, open_dataset, read_list
from gleansr.data.fit import SmallError, content_of, fit
from gleansr.data.prepared import GT_FOLDER, RECORDS, Record, begin, finish, finished, locked
from gleansr.data.sources import open_source, stem
from gleansr.errors import ImageError, RequestError
from gleansr.files import replacing
from gleansr.images.codec import decode
from gleansr.images.pixels import from_bytes, to_bytes
from gleansr.images.resize import degrade
from gleansr.inference.devices import cores
from gleansr.signals import end_with_parent, sigint_blocked

FileFormat = Literal["png", "webp"]
T = TypeVar("T")
PrepareProgress = Callable[[int, int, Record | None], None]
"""Called with the number of finished images, the total, and the record of the last image."""

_FEW = 100  # images for which processes cost more time than they save


@dataclass(frozen=True)
class Preparation:
    """Options of a prepared set; only an equal preparation resumes it."""

    kind: str
    """Name of the data set, see `gleansr.data.datasets.KINDS`."""
    source: str
    """The source of its images, see `open_source`."""
    size: int
    """Side of the square images."""
    aspect: Aspect
    """squash: each axis scaled separately; crop: the centre square; pad: the border repeated up to a square; bars: the centre of aspect
    4:3, with black bars above and below, an eighth of the height each."""
    small: Small
    """Handling of images that would have to be enlarged."""
    crop: Crop = "none"
    """Crop before fitting: "head" of CAT, "box" of Stanford Cars."""
    names: Path | None = None
    """A text file with the names of the images to use, see `read_list`."""
    file_format: FileFormat = "png"
    """Both are lossless."""
    scales: tuple[int, ...] = ()
    """Scales of additional low-resolution images."""

    def options(self) -> dict[str, Any]:
        """The options as stored in the manifest."""
        list_digest = None if self.names is None else hashlib.sha256(self.names.read_bytes()).hexdigest()
        return {
            "kind": self.kind,
            "source": self.source,
            "size": self.size,
            "aspect": self.aspect,
            "small": self.small,
            "crop": self.crop,
            "list": list_digest,
            "format": self.file_format,
            "scales": list(self.scales),
        }


@dataclass(frozen=True)
class PreparedSet:
    """Counts of a prepared set."""

    written: int
    """Images in the set."""
    reused: int
    """Images finished by an earlier run."""
    skipped: dict[str, int]
    """Numbers of skipped images, by reason."""


def plan(
    kind: str,
    source: str,
    *,
    size: int | None = None,
    aspect: Aspect | None = None,
    small: Small | None = None,
    crop: Crop = "none",
    names: Path | None = None,
    file_format: FileFormat = "png",
    scales: Sequence[int] = (),
) -> Preparation:
    """Creates a preparation with the defaults of its kind. Raises RequestError for invalid options."""
    known = find_kind(kind)
    size = size or known.size
    if size is None or size < 1:
        raise RequestError(f"the kind {kind} needs the side of the images, such as --size 256, not {size}")
    aspect = aspect or known.aspect
    if aspect == "bars" and size % 8:
        raise RequestError(f"--aspect bars adds an eighth of the height twice, so --size must be a multiple of 8, not {size}")
    if crop not in ("none", known.crop):
        allowed = f"none and {known.crop}" if known.crop else "none"
        raise RequestError(f"--crop {crop} is not available for the kind {kind}; choose from {allowed}")
    for scale in scales:
        if scale < 2 or size % scale:
            raise RequestError(f"--scales must be divisors of the size {size} from 2 up, not {scale}")
    return Preparation(kind, source, size, aspect, small or known.small, crop, names, file_format, tuple(sorted(set(scales))))


def prepare(
    preparation: Preparation,
    output: Path,
    *,
    workers: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: PrepareProgress = lambda done, total, record: None,  # noqa: ARG005
    fetched: Callable[[int, int], None] | None = None,
) -> PreparedSet:
    """Prepares a set in the folder `output`, or resumes one. The files depend neither on interruptions nor on `workers`.

    Images that cannot be used are skipped, with the reason in the records.

    Args:
        preparation: see `plan`.
        output: for the images in hr/, low-resolution images in x8/ and so on, `MANIFEST` and `RECORDS`. `open_source` takes it.
        workers: processes; by default one per core.
        strict: stop at the first image that cannot be used.
        overwrite: replace a set of another preparation.
        progress: see `PrepareProgress`.
        fetched: the `progress` of `open_source`.

    Raises:
        RequestError: there are no images to read, or `output` holds something else.
        ImageError: `output` cannot be written to, or with `strict` an image cannot be used.
    """
    if workers is not None and workers < 1:
        raise RequestError(f"--workers must be at least 1, not {workers}")
    keep_apart(preparation.source, output)
    names = read_list(preparation.names) if preparation.names else None
    source = open_source(preparation.source, fetched)
    dataset = open_dataset(source, preparation.source, preparation.crop, names)
    targets = dict(zip(dataset.names, file_names(dataset.names), strict=True))
    total = len(targets) + len(dataset.missing)
    try:
        with locked(output):
            manifest = begin(output, preparation.options(), preparation.scales, overwrite)
            done = finished(output, {name: f"{target}.{preparation.file_format}" for name, target in targets.items()})
            progress(len(done), total, None)
            skipped: Counter[str] = Counter()
            tasks = ((original, targets[original.name]) for original in dataset if original.name not in done)
            missing = [_skip(name, "missing", f"is not in {preparation.source}") for name in dataset.missing]
            if workers is None:
                workers = cores() if len(targets) - len(done) > _FEW else 1
            results = _results(partial(_prepare_image, preparation, output), tasks, missing, workers)
            with (output / RECORDS).open("a", encoding="utf-8", newline="\n") as records, closing(results):
                for i, record in enumerate(results, len(done) + 1):
                    records.write(f"{json.dumps(record)}\n")
                    records.flush()  # so that a killed process loses no record
                    skipped.update([record["skipped"]] if "skipped" in record else [])
                    if strict and record.get("skipped") not in (None, "small"):
                        raise ImageError(f"{record['name']}: {record['reason']}")
                    progress(i, total, record)
            result = PreparedSet(total - skipped.total(), len(done), dict(sorted(skipped.items())))
            finish(output, manifest, {"read": total, "written": result.written, "skipped": result.skipped})
            return result
    except OSError as error:
        raise ImageError(
            f"{output}: cannot be written to: {error.strerror or error}; the same command resumes with the finished images kept"
        ) from error


# --------------------------------------------------------------------------------------------------------------- images


def _prepare_image(preparation: Preparation, output: Path, task: tuple[Original, str]) -> Record:
    """Writes the files of an image and returns its record. Raises OSError if they cannot be written."""
    original, target = task
    name, label = original.name, original.item.label
    if original.problem:
        return _skip(name, "unannotated", original.problem)
    try:
        # Colours behind transparency are arbitrary: transparency becomes black.
        pixels = decode(original.item.read(), name=label).premultiplied()
        if original.box:
            rows, columns = original.box.within(*pixels.shape[-2:])
            pixels = pixels[:, rows, columns]
        # LSUN's cars have black bars; the border of other sets is the same as at inference.
        border = "black" if preparation.aspect == "bars" else "repeat"
        grid = math.lcm(*preparation.scales)
        height, width = pixels.shape[-2:]
        content = content_of(height, width, preparation.size, preparation.aspect, grid)
        gt = fit(pixels, preparation.size, preparation.aspect, preparation.small, border=border, grid=grid)
    except SmallError as error:
        return _skip(name, "small", f"{error}; use --small enlarge to include it")
    except ImageError as error:
        return _skip(name, "unreadable", str(error).removeprefix(f"{label}: "))
    images = {GT_FOLDER: gt}
    for scale in preparation.scales:
        lr = to_bytes(degrade(from_bytes(content.of(gt))[None], scale)[0])
        images[f"x{scale}"] = content.shrunk(scale).framed(lr, border)
    files = {}
    for folder, image in images.items():
        path = PurePosixPath(folder, f"{target}.{preparation.file_format}")
        data = _encode(image, preparation.file_format)
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(output / path) as temporary:
            temporary.write_bytes(data)
        files[str(path)] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return {"name": name, "files": files}


def _encode(image: Tensor, file_format: FileFormat) -> bytes:
    file = io.BytesIO()
    options = {"lossless": True} if file_format == "webp" else {}
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, file_format.upper(), **options)
    return file.getvalue()


def _skip(name: str, skipped: str, reason: str) -> Record:
    return {"name": name, "skipped": skipped, "reason": reason}


# ---------------------------------------------------------------------------------------------------------------- names


def file_names(names: Sequence[str]) -> Iterator[str]:
    """A file name without suffix for each name. On a collision (a.jpg and a.png) the old suffix stays, then a number is added."""
    taken: set[str] = set()
    for name in names:
        candidates = [_sanitize(stem(name)), _sanitize(name)]
        number = 1
        while (target := candidates.pop(0) if candidates else f"{_sanitize(name)}_{number}").casefold() in taken:
            number += not candidates
        taken.add(target.casefold())  # some file systems ignore case
        yield target


def _sanitize(name: str) -> str:
    """Makes an archive's or database's key a relative path that stays in its folder and is not hidden."""
    parts = [part for part in PurePosixPath(name.replace("\0", "_")).parts if part != "/"]
    return "/".join(f"_{part[1:]}" if part.startswith(".") else part for part in parts) or "_"


# ------------------------------------------------------------------------------------------------------------- the folder


def keep_apart(source: str, output: Path) -> None:
    """Raises RequestError if one of the folders contains the other."""
    root, target = Path(source).expanduser().resolve(), output.resolve()
    if root.is_dir() and (target.is_relative_to(root) or root.is_relative_to(target)):
        raise RequestError(f"{output}: lies in {source} or contains it; choose another folder, outside the images")


# -------------------------------------------------------------------------------------------------------------- processes


def _results(process: Callable[[T], Record], tasks: Iterable[T], first: Iterable[Record], workers: int) -> Generator[Record]:
    """Yields `first`, then the record of each task in order; tasks are consumed lazily."""
    yield from first
    if workers == 1:
        yield from map(process, tasks)
        return
    # Spawned: a fork would inherit the locks of this process's threads, but not the threads.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
        pending = deque()
        try:
            for task in tasks:
                with sigint_blocked():
                    pending.append(pool.submit(process, task))
                if len(pending) >= 4 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise ImageError("a worker process ended unexpectedly, perhaps out of memory; try fewer --workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where children do not inherit the mask
    torch.set_num_threads(1)
    end_with_parent()  # which a pool does not notice if it is killed
