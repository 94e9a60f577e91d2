"""The steps of a job, from the bytes of an image to its result and manifest line. Shared by pipelines, single batches and clusters."""

import hashlib
import io
import json
import os
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

from PIL import Image

from gleansr.configs import Range, check_request
from gleansr.errors import GleansrError, ImageError, InternalError, one_line
from gleansr.files import same_file
from gleansr.images.codec import FORMATS, Metadata, decode, save
from gleansr.images.metadata import is_marked
from gleansr.images.opening import DAMAGE
from gleansr.inference.devices import out_of_memory
from gleansr.inference.runner import BatchRunners, SRResult
from gleansr.inference.tasks import ImageTask, PreparedImage, TaskResult
from gleansr.jobs.batches import BatchItem, Key, items_of
from gleansr.jobs.index import ManifestEntry, fingerprint
from gleansr.jobs.jobs import Job
from gleansr.jobs.storage import FileState, FileStore, LocalStorage, OutputError

_TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True, eq=False)
class Work:
    """The task for every image, and how results are written."""

    task: ImageTask
    batch_size: Annotated[int, Range(1)]
    """Largest number of images, or of objects in them, in a forward pass."""
    model_sha256: str | None = None
    """Hash of the model's file, see `gleansr.files.sha256_of`; None for a method without one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Options that determine a result, except the model, the task's own options and `quality`, as plain JSON values."""
    quality: Annotated[int, Range(1, 100)] = 95
    """Quality of JPEG and WebP, 1 to 100."""
    overwrite: bool = False
    """Whether files that no manifest records are replaced."""
    sidecar: bool = False
    """Whether NAME.json next to each result records how it was made."""
    storage: FileStore = field(default_factory=LocalStorage)
    max_pixels: int | None = None
    """Largest number of pixels of an image. See `codec.decode`, also for `allow_truncated`."""
    allow_truncated: bool = False

    def __post_init__(self) -> None:
        check_request(self)

    @cached_property
    def options(self) -> dict[str, Any]:
        """All options that determine a result, except the model, as in the manifest."""
        return {**self.settings, **self.task.options, "quality": self.quality}

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the model and the options, as in the manifest's index."""
        return fingerprint(self.model_sha256, json.loads(json.dumps(self.options)))


@dataclass(frozen=True, eq=False)
class JobResult:
    """The result of a job."""

    job: Job
    status: Literal["done", "failed", "skipped"]
    entry: Mapping[str, Any]
    """The manifest's line; empty if there is nothing new to record."""
    error: GleansrError | None = None
    notes: tuple[str, ...] = ()
    summary: str = ""
    """Sizes of the image and the result, what was recognised and which model enlarged it; empty for a job that is not done."""

    @property
    def reason(self) -> str:
        """The error without the name of the image that it begins with; empty without one."""
        return str(self.error or "").removeprefix(f"{self.job.source}: ")


@dataclass(frozen=True, eq=False)
class DecodedJob:
    """A decoded image that waits for its forward passes."""

    job: Job
    state: FileState
    sha256: str
    metadata: Metadata
    prepared: PreparedImage
    size: tuple[int, int]
    """Height and width of the image."""
    light: bool
    """Whether the task has released the pixels."""
    seconds: float
    """Time of reading and preparing."""


def process(jobs: Sequence[Job], work: Work) -> Iterator[JobResult]:
    """Processes jobs in the calling thread, from the files' bytes to written results, with forward passes in batches.

    It uses no manifest: the caller calls `Manifest.begin(jobs)` before, and `Manifest.add(result.entry)` for each non-empty entry after.
    Nothing is skipped, and existing files are replaced with `work.overwrite` only.

    Args:
        jobs: as many as fit into memory; `work.batch_size` of them fill a forward pass.
        work: what to do.

    Yields:
        One result for each job, in any order.

    Raises:
        OutputError: nothing more can be written.
    """
    runners = BatchRunners(work.task.upscaler.method, work.batch_size)
    decoded: list[DecodedJob] = []
    for job in jobs:
        item = decode_job(job, work)
        if isinstance(item, JobResult):
            yield item
        else:
            decoded.append(item)
    groups: dict[Key, list[BatchItem]] = {}
    for i, item in enumerate(decoded):
        for part in items_of(i, item.prepared.lrs, item.prepared.upscalers):
            groups.setdefault(part.key, []).append(part)
    results: dict[tuple[int, int], SRResult] = {}
    for (upscaler, _), group in groups.items():
        runner = runners.of(upscaler and upscaler.method)
        for start in range(0, len(group), work.batch_size):
            batch = group[start : start + work.batch_size]
            eight_bits = all(decoded[part.image].prepared.eight_bits for part in batch)
            srs = runner([part.lr for part in batch], eight_bits=eight_bits)
            results.update(zip([(part.image, part.part) for part in batch], srs, strict=True))
    for i, item in enumerate(decoded):
        yield write_result(item, [results[i, j] for j in range(len(item.prepared.lrs))], work)


def is_done(job: Job, work: Work, known: ManifestEntry | None) -> bool:
    """Whether a job is done: its result exists, with the same model and options, from a source of the same name, size and mtime."""
    if known is None or known.made_by != work.fingerprint or not known.is_of(job.source_key):
        return False
    return work.storage.state(job.source) == FileState(known.size, known.mtime_ns) and _result_exists(job, work)


def decode_job(
    job: Job, work: Work, known: ManifestEntry | None = None, opened: Callable[[int, int], object] | None = None
) -> DecodedJob | JobResult:
    """Reads and prepares an image. Returns a JobResult if that fails, or if the SHA-256 in `known` shows that the job is done.

    `opened` is called with the image's width and height before its pixels are decoded.
    """
    started = time.perf_counter()
    with _CatchErrors(job) as caught:
        state = work.storage.state(job.source) or FileState(0, 0)
        data = work.storage.read(job.source)
        digest = hashlib.sha256(data)
        if known and known.made_by == work.fingerprint and known.sha256 == digest.digest()[:16] and _result_exists(job, work):
            return JobResult(job, "skipped", {})
        check_targets(job, work, known)
        image = decode(data, name=job.source, on_open=opened, max_pixels=work.max_pixels, allow_truncated=work.allow_truncated)
        del data
        pixels, metadata, size = weakref.ref(image.stored), image.metadata, image.size
        prepared = work.task.prepare(image)
        del image
        return DecodedJob(job, state, digest.hexdigest(), metadata, prepared, size, pixels() is None, time.perf_counter() - started)
    return caught.result


def write_result(decoded: DecodedJob, passes: Sequence[SRResult], work: Work) -> JobResult:
    """Finishes and writes an image. Raises OutputError if nothing more can be written."""
    job, started = decoded.job, time.perf_counter()
    with _CatchErrors(job) as caught:
        for part in passes:
            if part.error:
                raise ImageError(
                    str(part.error) if str(part.error).startswith(job.source) else f"{job.source}: {part.error}"
                ) from part.error
        result = decoded.prepared.finish([part.sr for part in passes if part.sr is not None], [part.note for part in passes])
        entry = {
            "status": "done",
            "source": job.source_key,
            "target": job.target_key,
            "bytes": decoded.state.size,
            "mtime_ns": decoded.state.mtime_ns,
            "sha256": decoded.sha256,
            "model": ", ".join(result.models) or work.task.upscaler.about.name,
            "model_sha256": work.model_sha256,
            "options": work.options,
            "notes": [],
            "details": dict(result.details),
        }
        data, dropped = encode_result(result.image, job.target, decoded.metadata, work, result.models)
        entry["notes"] = notes = [*result.notes, *dropped]
        entry["result_sha256"] = hashlib.sha256(data).hexdigest()
        if work.sidecar:
            content = {key: value for key, value in entry.items() if key not in ("status", "bytes", "mtime_ns", "result_sha256")}
            work.storage.write(sidecar(job.target), json.dumps(content, indent=2).encode() + b"\n")
        work.storage.write(job.target, data)
        seconds = decoded.seconds + sum(part.seconds for part in passes) + time.perf_counter() - started
        summary = describe_result(decoded.size, result, work)
        return JobResult(job, "done", {**entry, "seconds": round(seconds, 4)}, notes=tuple(notes), summary=summary)
    return caught.result


def describe_result(size: tuple[int, int], result: TaskResult, work: Work) -> str:
    """Sizes of an image (height, width) and its result, what was recognised and which model enlarged it."""
    return f"{describe_sizes(size, result.image.size)}, {result.summary or work.task.upscaler.name}"


def describe_sizes(size: tuple[int, int], made: tuple[int, int]) -> str:
    """Of an image (height, width), and of its result (width, height)."""
    return f"{size[1]}{_TIMES}{size[0]} → {made[0]}{_TIMES}{made[1]}"


def check_targets(job: Job, work: Work, known: ManifestEntry | None) -> None:
    """Raises ImageError if a result, or its sidecar, would replace an input or a file that no earlier run wrote.

    `known` is the manifest's record of the target. It does not suffice: another file may since have replaced the result.
    """
    if work.storage.state(job.target) is not None or os.path.islink(job.target):  # noqa: PTH114, a link may lead to an unmounted disk
        replaceable = job.replaces != "nothing" and known is not None and is_result(job.target, work.storage, known)
        if (job.replaces != "anything" and not replaceable) or same_file(job.target, job.source):  # the source may be a link to it
            raise ImageError(f"{job.target} is an input and is never replaced; give another results folder with --output")
        if not (replaceable or work.overwrite):
            reason = " and is not what gleansr wrote there" if known else ""
            raise ImageError(f"{job.target} already exists{reason}; use --overwrite or -o NAME")
    path = sidecar(job.target)
    if work.sidecar and not work.overwrite and work.storage.state(path) is not None and not _is_sidecar(work.storage, path, job):
        raise ImageError(f"{path} already exists; use --overwrite or -o NAME")


def is_result(path: str, storage: FileStore, known: ManifestEntry) -> bool:
    """Whether the file at `path` equals, to the last byte, the result that `known` records. Without a recorded hash (a killed or old run),
    whether the file has gleansr's mark."""
    try:
        data = storage.read(path)
    except ImageError:
        return False
    if not data:  # a machine failure can leave an empty file
        return True
    return is_marked(data) if known.result is None else hashlib.sha256(data).digest()[: len(known.result)] == known.result


def _is_sidecar(storage: FileStore, path: str, job: Job) -> bool:
    """Whether a file is the sidecar of the job's result."""
    try:
        content = json.loads(storage.read(path))
    except (ImageError, ValueError):
        return False
    return isinstance(content, dict) and content.get("target") == job.target_key and {"sha256", "model_sha256", "options"} <= content.keys()


def failed_result(job: Job, error: GleansrError) -> JobResult:
    """The result of a job that failed."""
    return JobResult(job, "failed", {"status": "failed", "source": job.source_key, "target": job.target_key, "error": str(error)}, error)


def encode_result(
    image: Image.Image, target: str, metadata: Metadata, work: Work, models: Sequence[str] = ()
) -> tuple[bytes, tuple[str, ...]]:
    """Encodes a result in the format of its suffix. Returns the bytes and notes on metadata that the format cannot hold.

    PNGs use run-length compression: a fifth of the time of Pillow's default (5 instead of 25 ms for 256x256), half a percent larger.
    """
    file_format = FORMATS[Path(target).suffix.lower()]
    file = io.BytesIO()
    options: dict[str, Any] = {"compress_type": zlib.Z_RLE, "compress_level": 1} if file_format == "PNG" else {}
    try:
        notes = save(image, file, file_format, metadata, ", ".join(models) or work.task.upscaler.about.name, work.quality, **options)
    except (*DAMAGE, MemoryError) as error:  # programming errors propagate
        raise ImageError(f"{target}: cannot be written: {error or type(error).__name__}") from error
    return file.getvalue(), notes


def sidecar(target: str) -> str:
    """Path of the JSON file next to a result."""
    return os.path.splitext(target)[0] + ".json"  # noqa: PTH122, Path would shorten the // of a URL


class _CatchErrors:
    """Turns an image's error into a failed result, so that the other jobs continue. Programming errors propagate."""

    result: JobResult

    def __init__(self, job: Job):
        self._job = job

    def __enter__(self) -> "_CatchErrors":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if error is None or isinstance(error, OutputError | InternalError):
            return False
        if isinstance(error, GleansrError):
            known = error
        elif isinstance(error, OSError) or out_of_memory(error):
            known = ImageError(f"{self._job.source}: {one_line(error)}")
            known.__cause__ = error
        else:
            return False
        self.result = failed_result(self._job, known)
        return True


def _result_exists(job: Job, work: Work) -> bool:
    """Whether the result exists and is not empty: a machine failure can leave an empty file."""
    paths = (job.target, *([sidecar(job.target)] if work.sidecar else []))
    return all((state := work.storage.state(path)) is not None and state.size > 0 for path in paths)
