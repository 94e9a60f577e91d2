"""Training sets of one size, as the paper's were made: cut, resized with MATLAB's bicubic, stored with 8 bits, with their pairs."""

import hashlib
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor

from gleansr.data.datasets import Crop, Original, find_kind, open_dataset, read_list
from gleansr.data.fit import Aspect, Small, SmallError, content_of, fit
from gleansr.data.sources import MANIFEST, PREPARED, is_inside, open_source, read_manifest, stem
from gleansr.documents import parse_line
from gleansr.errors import ImageError, RequestError
from gleansr.files import lock_folder, replacing
from gleansr.images.codec import decode
from gleansr.images.pixels import from_bytes, to_bytes
from gleansr.images.resize import degrade
from gleansr.inference.devices import cores
from gleansr.version import version

RECORDS = "manifest.jsonl"
"""One JSON object a line and image, sorted: its name, and its files with sizes and hashes or why it was left out."""

PICTURES = "hr"
"""The folder of the images; those at a scale of 8 are in x8."""

Format = Literal["png", "webp"]
Record = dict[str, Any]
T = TypeVar("T")
PrepareProgress = Callable[[int, int, Record | None], None]
"""Called with the number of images done, the number of all, and the record of the last one."""

_FEW = 100  # images for which processes would cost more time than they save


@dataclass(frozen=True)
class Preparation:
    """What is made of which images; a set is gone on with by an equal one only."""

    kind: str
    """Name of the data set, see `gleansr.data.datasets.KINDS`."""
    source: str
    """Where its images lie, as `open_source` takes it."""
    size: int
    """Side of the square results."""
    aspect: Aspect
    """squash: each axis is scaled by itself; crop: the centre square; pad: black added up to a square; bars: the centre of aspect 4:3, and
    black above and below it, an eighth of the height each."""
    small: Small
    """What is done with images that would have to be enlarged."""
    crop: Crop = "none"
    """What is cut out first: "head" of CAT, "box" of Stanford Cars."""
    names: Path | None = None
    """A text file with the names of the images to take, see `read_list`."""
    format: Format = "png"
    """Both are lossless."""
    scales: tuple[int, ...] = ()
    """Scales of the low-resolution images to store too."""

    def options(self) -> dict[str, Any]:
        """As they stand in the manifest."""
        listed = None if self.names is None else hashlib.sha256(self.names.read_bytes()).hexdigest()
        return {
            "kind": self.kind,
            "source": self.source,
            "size": self.size,
            "aspect": self.aspect,
            "small": self.small,
            "crop": self.crop,
            "list": listed,
            "format": self.format,
            "scales": list(self.scales),
        }


@dataclass(frozen=True)
class PreparedSet:
    """What a set consists of."""

    written: int
    """Images in the set."""
    kept: int
    """Those of them that an earlier run had finished."""
    skipped: dict[str, int]
    """Numbers of the images left out, by reason."""


def plan(
    kind: str,
    source: str,
    *,
    size: int | None = None,
    aspect: Aspect | None = None,
    small: Small | None = None,
    crop: Crop = "none",
    names: Path | None = None,
    format: Format = "png",
    scales: Sequence[int] = (),
) -> Preparation:
    """A preparation with the defaults of its kind. Raises RequestError for what does not fit together."""
    known = find_kind(kind)
    size = size or known.size
    if size is None or size < 1:
        raise RequestError(f"the kind {kind} wants the side of the images: --size 256, not {size}")
    aspect = aspect or known.aspect
    if aspect == "bars" and size % 8:
        raise RequestError(f"bars are an eighth of the height each: --size must be a multiple of 8, not {size}")
    if crop not in ("none", known.crop):
        allowed = f"none and {known.crop}" if known.crop else "none"
        raise RequestError(f"--crop {crop} is not known for the kind {kind}; it allows {allowed}")
    for scale in scales:
        if scale < 2 or size % scale:
            raise RequestError(f"--scales must be divisors of the size {size} from 2 up, not {scale}")
    return Preparation(kind, source, size, aspect, small or known.small, crop, names, format, tuple(sorted(set(scales))))


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
    """Makes a set in the folder `output`, or goes on with one. The files do not depend on how often it was stopped, nor on `workers`.

    An image that cannot be used is left out, with its reason in the records.

    Args:
        preparation: see `plan`.
        output: for the images in hr/, low-resolution ones in x8/ and so on, `MANIFEST` and `RECORDS`. It can be given to `open_source`.
        workers: processes; by default one a core.
        strict: stop at the first image that cannot be used.
        overwrite: replace a set that was made by another preparation.
        progress: see `PrepareProgress`.
        fetched: see `open_source`.

    Raises:
        RequestError: there are no images to read, or `output` holds something else.
        ImageError: `output` cannot be written to, or with `strict` the first image that cannot be used.
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
        with _claimed(output):
            manifest = _begin(output, preparation, overwrite)
            done = _finished(output, {name: f"{target}.{preparation.format}" for name, target in targets.items()})
            progress(len(done), total, None)
            skipped: Counter[str] = Counter()
            todo = ((original, targets[original.name]) for original in dataset if original.name not in done)
            missing = [_left_out(name, "missing", f"is not in {preparation.source}") for name in dataset.missing]
            if workers is None:
                workers = cores() if len(targets) - len(done) > _FEW else 1
            results = _results(partial(_make, preparation, output), todo, missing, workers)
            with (output / RECORDS).open("a", encoding="utf-8", newline="\n") as records, closing(results):
                for i, record in enumerate(results, len(done) + 1):
                    records.write(f"{json.dumps(record)}\n")
                    records.flush()  # what is finished is known to be so even if this process is killed
                    skipped.update([record["skipped"]] if "skipped" in record else [])
                    if strict and record.get("skipped") not in (None, "small"):
                        raise ImageError(f"{record['name']}: {record['reason']}")
                    progress(i, total, record)
            result = PreparedSet(total - skipped.total(), len(done), dict(sorted(skipped.items())))
            _finish(output, manifest, result)
            return result
    except OSError as error:
        raise ImageError(
            f"{output}: cannot be written to: {error.strerror or error}; what is finished is kept for the next run of the same command"
        ) from error


# ------------------------------------------------------------------------------------------------------------ one image


def _make(preparation: Preparation, output: Path, task: tuple[Original, str]) -> Record:
    """Writes the files of an image and returns its record. Raises OSError where they cannot be written."""
    original, target = task
    name, label = original.name, original.item.label
    if original.problem:
        return _left_out(name, "unannotated", original.problem)
    try:
        # Hidden colours behind transparency would be garbage to learn from: it becomes black.
        pixels = decode(original.item.read(), name=label).premultiplied()
        if original.box:
            rows, columns = original.box.within(*pixels.shape[-2:])
            pixels = pixels[:, rows, columns]
        # A published set of cars has black bars; a border of any other set is made as it is when images are enlarged.
        border = "black" if preparation.aspect == "bars" else "repeat"
        grid = math.lcm(*preparation.scales)
        height, width = pixels.shape[-2:]
        content = content_of(height, width, preparation.size, preparation.aspect, grid)
        gt = fit(pixels, preparation.size, preparation.aspect, preparation.small, border=border, grid=grid)
    except SmallError as error:
        return _left_out(name, "small", f"{error}; --small enlarge takes it")
    except ImageError as error:
        return _left_out(name, "unreadable", str(error).removeprefix(f"{label}: "))
    images = {PICTURES: gt}
    for scale in preparation.scales:
        lr = to_bytes(degrade(from_bytes(content.of(gt))[None], scale)[0])
        images[f"x{scale}"] = content.shrunk(scale).framed(lr, border)
    files = {}
    for folder, image in images.items():
        path = PurePosixPath(folder, f"{target}.{preparation.format}")
        data = _encoded(image, preparation.format)
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(output / path) as temporary:
            temporary.write_bytes(data)
        files[str(path)] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return {"name": name, "files": files}


def _encoded(image: Tensor, format: Format) -> bytes:
    file = io.BytesIO()
    options = {"lossless": True} if format == "webp" else {}
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format.upper(), **options)
    return file.getvalue()


def _left_out(name: str, skipped: str, reason: str) -> Record:
    return {"name": name, "skipped": skipped, "reason": reason}


# ---------------------------------------------------------------------------------------------------------------- names


def file_names(names: Sequence[str]) -> Iterator[str]:
    """For each name where it goes, without suffix. Where that is taken (a.jpg and a.png), the old suffix stays, then a number is added."""
    taken: set[str] = set()
    for name in names:
        candidates = [_harmless(stem(name)), _harmless(name)]
        number = 1
        while (target := candidates.pop(0) if candidates else f"{_harmless(name)}_{number}").casefold() in taken:
            number += not candidates
        taken.add(target.casefold())  # some file systems do not tell cases apart
        yield target


def _harmless(name: str) -> str:
    """Below the folder and not hidden, whatever key an archive or a database comes up with."""
    parts = [part for part in PurePosixPath(name.replace("\0", "_")).parts if part != "/"]
    return "/".join(f"_{part[1:]}" if part.startswith(".") else part for part in parts) or "_"


# ------------------------------------------------------------------------------------------------------------- the folder


def keep_apart(source: str, output: Path) -> None:
    place, target = Path(source).expanduser().resolve(), output.resolve()
    if place.is_dir() and (target.is_relative_to(place) or place.is_relative_to(target)):
        raise RequestError(f"{output}: lies in {source} or holds it; results must not lie among the images: give another folder")


@contextmanager
def _claimed(output: Path) -> Iterator[None]:
    """The folder, held against other processes."""
    output.mkdir(parents=True, exist_ok=True)
    if read_manifest(output) is None and any(file.name != ".lock" for file in output.iterdir()):
        raise RequestError(f"{output}: is not empty, and not a set made by `gleansr data prepare`; give another folder")
    with lock_folder(output, "preparing images"):
        yield


def _begin(output: Path, preparation: Preparation, overwrite: bool) -> dict[str, Any]:
    """Writes the manifest of an unfinished set, and removes another set with `overwrite`."""
    manifest = read_manifest(output)
    options = preparation.options()
    if manifest and overwrite:
        # First the old manifest says that the set is unfinished: stopped here, nothing takes it for a whole one.
        _write_json(output / MANIFEST, manifest | {"complete": False})
        (output / RECORDS).unlink(missing_ok=True)
        for folder in (manifest["pictures"], *manifest["low"].values()):
            if (output / folder).exists():
                shutil.rmtree(output / folder)
    elif manifest and manifest["options"] != options:
        old = manifest["options"]
        differences = (f"{key} {old.get(key)!r}, not {new!r}" for key, new in options.items() if new != old.get(key))
        raise RequestError(f"{output}: was prepared with {', '.join(differences)}; --overwrite starts anew, or give another folder")
    manifest = {
        "format": PREPARED,
        "gleansr": version(),
        "complete": False,
        "pictures": PICTURES,
        "low": {str(scale): f"x{scale}" for scale in preparation.scales},
        "options": options,
    }
    _write_json(output / MANIFEST, manifest)
    (output / PICTURES).mkdir(exist_ok=True)
    return manifest


def _finished(output: Path, targets: dict[str, str]) -> set[str]:
    """The names of the images whose files are all there. The records keep those only; files that nothing needs any more are removed."""
    for base, _, files in os.walk(output):
        for file in files:
            if file.startswith(".") and file.endswith(".part"):  # of a process that was killed
                (Path(base) / file).unlink(missing_ok=True)
    done: set[str] = set()
    as_written: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": "\n"}  # whatever its bytes
    try:
        records = (output / RECORDS).open(**as_written)
    except FileNotFoundError:
        return done
    with records, replacing(output / RECORDS) as temporary, temporary.open("w", **as_written) as kept:
        for line in records:
            if (record := _record(line)) is None:
                continue
            files = record["files"]
            if record["name"] in targets and f"{PICTURES}/{targets[record['name']]}" in files and _whole(output, files):
                done.add(record["name"])
                kept.write(line)
            else:
                for file in files:
                    (output / file).unlink(missing_ok=True)
    return done


def _record(line: str) -> Record | None:
    """A line of the records, None of one that is cut off or that somebody has changed: it may tell of no file but the set's."""
    record = parse_line(line)
    if not isinstance(record, dict) or not isinstance(record.get("name"), str):
        return None
    record.setdefault("files", {})
    sizes = record["files"].items() if isinstance(record["files"], dict) else [("", None)]
    ours = all(is_inside(file) and isinstance(facts, dict) and isinstance(facts.get("bytes"), int) for file, facts in sizes)
    return record if ours else None


def _whole(output: Path, files: dict[str, dict[str, Any]]) -> bool:
    try:
        return all((output / file).stat().st_size == facts["bytes"] for file, facts in files.items())
    except FileNotFoundError:
        return False


def _finish(output: Path, manifest: dict[str, Any], result: PreparedSet) -> None:
    """Sorts the records, so that they do not depend on how often the run was stopped, and writes the manifest of a finished set."""
    lines = sorted((output / RECORDS).read_bytes().splitlines(keepends=True))
    with replacing(output / RECORDS) as temporary:
        temporary.write_bytes(b"".join(lines))
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    counts = {"read": result.written + sum(result.skipped.values()), "written": result.written, "skipped": result.skipped}
    _write_json(output / MANIFEST, manifest | {"complete": True, "counts": counts, "records_sha256": digest.hexdigest()})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(f"{json.dumps(value, indent=2)}\n", encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------- processes


def _results(make: Callable[[T], Record], tasks: Iterable[T], first: Iterable[Record], workers: int) -> Generator[Record]:
    """`first`, then the record of each task in the order of the tasks, which are taken as they are needed."""
    yield from first
    if workers == 1:
        yield from map(make, tasks)
        return
    # Spawned, since a fork would inherit the threads' locks of this process but not its threads.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
        pending = deque()
        try:
            for task in tasks:
                with _deaf_children():
                    pending.append(pool.submit(make, task))
                if len(pending) >= 4 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise ImageError("a worker process ended unexpectedly, perhaps for want of memory; try fewer with --workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started here do not hear Ctrl-C, not even while they start: it reaches all of a terminal, and this one ends the others."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # is inherited
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where signals are not inherited
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool does not notice that its parent was killed."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
