"""What happens to an image, from its bytes to its result and the manifest's line: the same in a pipeline, one by one and on a cluster."""

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
from typing import Any, Literal

import torch
from PIL import Image

from gleansr.errors import GleansrError, ImageError, InternalError, one_line
from gleansr.files import same_file
from gleansr.images.codec import FORMATS, Metadata, decode, save
from gleansr.images.metadata import is_marked
from gleansr.images.opening import DAMAGE
from gleansr.inference.devices import out_of_memory
from gleansr.inference.tasks import ImageTask, PreparedImage
from gleansr.jobs.forward import Forward, Made
from gleansr.jobs.index import ManifestEntry, fingerprint
from gleansr.jobs.jobs import Job
from gleansr.jobs.storage import FileStore, LocalStorage, OutputError, State


@dataclass(frozen=True, eq=False)
class Work:
    """What is done with every image, and how results are written."""

    task: ImageTask
    batch_size: int
    """Most images, or objects in them, in a forward pass."""
    model_sha256: str | None = None
    """Of the model's file, see `gleansr.files.sha256_of`; None for a method without one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All that decides what a result looks like, but the model and what the task's own options and `quality` tell, as plain JSON values."""
    quality: int = 95
    """Of JPEG and WebP, 1 to 100."""
    overwrite: bool = False
    """Whether files are replaced that no manifest says are ours."""
    sidecar: bool = False
    """Whether NAME.json beside each result tells how it was made."""
    storage: FileStore = field(default_factory=LocalStorage)
    max_pixels: int | None = None
    """The most pixels of an image; see `codec.decode`, `allow_truncated` too."""
    allow_truncated: bool = False

    @cached_property
    def options(self) -> dict[str, Any]:
        """All but the model that decides what a result looks like, as the manifest has it."""
        return {**self.settings, **self.task.options, "quality": self.quality}

    @cached_property
    def fingerprint(self) -> str:
        """As in the manifest's index."""
        return fingerprint(self.model_sha256, json.loads(json.dumps(self.options)))


@dataclass(frozen=True, eq=False)
class JobResult:
    """What became of a job."""

    job: Job
    status: Literal["done", "failed", "skipped"]
    entry: Mapping[str, Any]
    """The manifest's line; empty where there is nothing new to say."""
    error: GleansrError | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class DecodedJob:
    """An image between reading and writing."""

    job: Job
    state: State
    sha256: str
    metadata: Metadata
    prepared: PreparedImage
    light: bool
    """Whether its task has let go of its pixels."""
    seconds: float
    """That reading took."""


def treat(
    jobs: Sequence[Job], work: Work, known: Sequence[ManifestEntry | None] | None = None, *, forward: Forward | None = None
) -> Iterator[JobResult]:
    """Does some jobs end to end, from the files' bytes to written results, one after the other, with forward passes in batches.

    It touches no manifest: its caller says `Manifest.begin(jobs)` before and `Manifest.add(outcome.entry)`, where there is an entry, after.

    Args:
        jobs: as many as fit into memory; `work.batch_size` of them fill a forward pass.
        work: what to do.
        known: what the manifest remembers of each target (`Manifest.index.get(job.target_key)`), for targets that may be replaced and
            sources that are not to be treated twice.
        forward: to be kept from call to call, since it learns what fits into the device's memory.

    Yields:
        One outcome for each job, in any order.

    Raises:
        OutputError: nothing more can be written.
    """
    forward = forward or Forward(work.task.upscaler.method, work.batch_size)
    loaded: list[DecodedJob] = []
    for job, recorded in zip(jobs, known or [None] * len(jobs), strict=True):
        one = load(job, work, recorded)
        if isinstance(one, JobResult):
            yield one
        else:
            loaded.append(one)
    shapes: dict[torch.Size, list[tuple[int, int]]] = {}
    for i, one in enumerate(loaded):
        for j, lr in enumerate(one.prepared.lrs):
            shapes.setdefault(lr.shape, []).append((i, j))
    made: dict[tuple[int, int], Made] = {}
    for places in shapes.values():
        for start in range(0, len(places), work.batch_size):
            batch = places[start : start + work.batch_size]
            lrs, eight_bits = [loaded[i].prepared.lrs[j] for i, j in batch], all(loaded[i].prepared.eight_bits for i, _ in batch)
            made.update(zip(batch, forward(lrs, eight_bits=eight_bits), strict=True))
    for i, one in enumerate(loaded):
        yield store(one, [made[i, j] for j in range(len(one.prepared.lrs))], work)


def skips(job: Job, work: Work, known: ManifestEntry | None) -> bool:
    """Whether a job is done: its result is there, made in the same way from a source of the same name, size and time of change."""
    if known is None or known.made_by != work.fingerprint or not known.is_of(job.source_key):
        return False
    return work.storage.state(job.source) == State(known.size, known.mtime_ns) and _is_there(job, work)


def load(
    job: Job, work: Work, known: ManifestEntry | None = None, opened: Callable[[int, int], object] | None = None
) -> DecodedJob | JobResult:
    """Reads and prepares an image. An outcome instead where that fails, or where `known` shows by its contents that it is done.

    `opened` is called with the image's width and height before its pixels are read.
    """
    started = time.perf_counter()
    with _Failing(job) as failing:
        state = work.storage.state(job.source) or State(0, 0)
        data = work.storage.read(job.source)
        digest = hashlib.sha256(data)
        if known and known.made_by == work.fingerprint and known.sha256 == digest.digest()[:16] and _is_there(job, work):
            return JobResult(job, "skipped", {})
        check_targets(job, work, known)
        image = decode(data, name=job.source, on_open=opened, max_pixels=work.max_pixels, allow_truncated=work.allow_truncated)
        del data
        pixels, metadata = weakref.ref(image.stored), image.metadata
        prepared = work.task.prepare(image)
        del image
        return DecodedJob(job, state, digest.hexdigest(), metadata, prepared, pixels() is None, time.perf_counter() - started)
    return failing.outcome


def store(loaded: DecodedJob, made: Sequence[Made], work: Work) -> JobResult:
    """Finishes and writes an image. Raises OutputError where nothing more can be written."""
    job, started = loaded.job, time.perf_counter()
    with _Failing(job) as failing:
        for one in made:
            if one.error:
                raise ImageError(str(one.error) if str(one.error).startswith(job.source) else f"{job.source}: {one.error}") from one.error
        result = loaded.prepared.finish([one.sr for one in made if one.sr is not None], [one.note for one in made])
        entry = {
            "status": "done",
            "source": job.source_key,
            "target": job.target_key,
            "bytes": loaded.state.bytes,
            "mtime_ns": loaded.state.mtime_ns,
            "sha256": loaded.sha256,
            "model": work.task.upscaler.about.name,
            "model_sha256": work.model_sha256,
            "options": work.options,
            "notes": [],
            "details": dict(result.details),
        }
        data, dropped = encoded(result.image, job.target, loaded.metadata, work)
        entry["notes"] = notes = [*result.notes, *dropped]
        entry["result_sha256"] = hashlib.sha256(data).hexdigest()
        if work.sidecar:
            told = {key: value for key, value in entry.items() if key not in ("status", "bytes", "mtime_ns", "result_sha256")}
            work.storage.write(sidecar(job.target), json.dumps(told, indent=2).encode() + b"\n")
        work.storage.write(job.target, data)
        seconds = loaded.seconds + sum(one.seconds for one in made) + time.perf_counter() - started
        return JobResult(job, "done", {**entry, "seconds": round(seconds, 4)}, notes=tuple(notes))
    return failing.outcome


def check_targets(job: Job, work: Work, known: ManifestEntry | None) -> None:
    """Raises ImageError where a result, or its sidecar, would replace an input, or a file that no earlier run wrote.

    `known` is what the manifest remembers of the target. It is not enough: somebody may have put another file in the place of a result.
    """
    if work.storage.state(job.target) is not None or os.path.islink(job.target):  # noqa: PTH114, a link may lead to what is not mounted
        ours = job.replaces != "nothing" and known is not None and is_ours(job.target, work.storage, known)
        if (job.replaces != "anything" and not ours) or same_file(job.target, job.source):  # the source may be a link to it
            raise ImageError(f"{job.target}: is an input, which is never replaced; give the results another folder with --output")
        if not (ours or work.overwrite):
            changed = " and is not what gleansr wrote there" if known else ""
            raise ImageError(f"{job.target}: exists already{changed} and may not be overwritten; --overwrite replaces it")
    path = sidecar(job.target)
    if work.sidecar and not work.overwrite and work.storage.state(path) is not None and not _is_sidecar(work.storage, path, job):
        raise ImageError(f"{path}: exists already and may not be overwritten; --overwrite replaces it")


def is_ours(path: str, storage: FileStore, known: ManifestEntry) -> bool:
    """Whether the file at `path` is, to the last byte, the result that `known` tells of. Where it tells no hash, since a run was killed or
    is old, whether the file says that gleansr wrote it."""
    try:
        data = storage.read(path)
    except ImageError:
        return False
    if not data:  # what a machine may leave that failed before it was on the disk
        return True
    return is_marked(data) if known.result is None else hashlib.sha256(data).digest()[: len(known.result)] == known.result


def _is_sidecar(storage: FileStore, path: str, job: Job) -> bool:
    """Whether a file tells how the job's result was made."""
    try:
        told = json.loads(storage.read(path))
    except (ImageError, ValueError):
        return False
    return isinstance(told, dict) and told.get("target") == job.target_key and {"sha256", "model_sha256", "options"} <= told.keys()


def failed(job: Job, error: GleansrError) -> JobResult:
    """The outcome of a job that an error ended."""
    return JobResult(job, "failed", {"status": "failed", "source": job.source_key, "target": job.target_key, "error": str(error)}, error)


def encoded(image: Image.Image, target: str, metadata: Metadata, work: Work) -> tuple[bytes, tuple[str, ...]]:
    """The file of a result, by the suffix of its name, and what to say of metadata that it cannot hold.

    A PNG is compressed by run lengths: a fifth of the time of Pillow's default (5 instead of 25 ms for 256x256), half a percent larger.
    """
    kind = FORMATS[Path(target).suffix.lower()]
    file = io.BytesIO()
    faster: dict[str, Any] = {"compress_type": zlib.Z_RLE, "compress_level": 1} if kind == "PNG" else {}
    try:
        notes = save(image, file, kind, metadata, work.task.upscaler.about.name, work.quality, **faster)
    except (*DAMAGE, MemoryError) as error:  # not those of a mistake in a program
        raise ImageError(f"{target}: cannot be written: {error or type(error).__name__}") from error
    return file.getvalue(), notes


def sidecar(target: str) -> str:
    """The JSON file beside a result."""
    return os.path.splitext(target)[0] + ".json"  # noqa: PTH122, which would take // out of an address


class _Failing:
    """What is wrong with one image becomes its outcome, so that the others go on. Faults of the program stop them all."""

    outcome: JobResult

    def __init__(self, job: Job):
        self._job = job

    def __enter__(self) -> "_Failing":
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
        self.outcome = failed(self._job, known)
        return True


def _is_there(job: Job, work: Work) -> bool:
    """Whether the result is there; one without a byte is what a machine may leave that failed before it was on the disk."""
    paths = (job.target, *([sidecar(job.target)] if work.sidecar else []))
    return all((state := work.storage.state(path)) is not None and state.bytes > 0 for path in paths)
