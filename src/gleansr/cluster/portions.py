"""Portions: the units of work of a worker. A few batches of jobs, packed so that millions fit into the driver's memory."""

import pickle
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import islice

from gleansr.errors import ImageError
from gleansr.jobs import Job, JobResult, Manifest, ManifestEntry, UnreadableFolder, Work, failed_result, is_done
from gleansr.jobs.steps import check_targets

_CHUNK = 1024
_THREADS = 16
"""Threads that query files, because a shared file system takes milliseconds to answer."""


@dataclass(frozen=True, slots=True)
class KnownResult:
    """What the driver knows of the result of a job."""

    sha256: bytes | None = None
    """SHA-256 of the source when the existing result was made with the same options; None if the job must run."""
    result: bytes | None = None
    """`ManifestEntry.result`."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Successive jobs, packed: 40 bytes per job if their names are similar."""

    count: int
    packed: bytes

    @classmethod
    def of(cls, jobs: Sequence[tuple[Job, KnownResult]]) -> "Portion":
        rows = [(*astuple(job), known.sha256, known.result) for job, known in jobs]
        return cls(len(jobs), zlib.compress(pickle.dumps(rows), 1))

    def jobs(self) -> list[tuple[Job, KnownResult]]:
        return [(Job(*row[:-2]), KnownResult(*row[-2:])) for row in pickle.loads(zlib.decompress(self.packed))]  # noqa: S301, our own


def portions(
    jobs: Iterable[Job | UnreadableFolder], work: Work, manifests: Sequence[Manifest | None], size: int
) -> Iterator[Portion | JobResult | UnreadableFolder]:
    """Portions of `size` successive jobs (the last may be smaller), and the results of the jobs that need no worker.

    Finished jobs are skipped. Jobs that would replace a foreign file fail here, because workers replace any file: it may be the result of a
    killed worker. The manifests record the jobs that begin.
    """
    waiting: list[tuple[Job, KnownResult]] = []
    remaining = iter(jobs)
    with ThreadPoolExecutor(_THREADS, "gleansr-ask") as pool:
        while chunk := list(islice(remaining, _CHUNK)):
            share = -(-len(chunk) // _THREADS)
            slices = [chunk[i : i + share] for i in range(0, len(chunk), share)]
            for answers in pool.map(lambda jobs: [_classify(job, work, manifests) for job in jobs], slices):
                for answer in answers:
                    if not isinstance(answer, tuple):
                        yield answer
                        continue
                    waiting.append(answer)
                    if len(waiting) == size:
                        yield _portion(waiting, manifests)
                        waiting = []
    if waiting:
        yield _portion(waiting, manifests)


def _classify(
    job: Job | UnreadableFolder, work: Work, manifests: Sequence[Manifest | None]
) -> tuple[Job, KnownResult] | JobResult | UnreadableFolder:
    if isinstance(job, UnreadableFolder):
        return job
    manifest = manifests[job.destination]
    entry = manifest.index.get(job.target_key) if manifest else None
    if is_done(job, work, entry):
        return JobResult(job, "skipped", {})
    if entry is None:  # for the others the worker checks the contents
        try:
            check_targets(job, work, None)
        except ImageError as error:
            return failed_result(job, error)
    same = entry is not None and entry.made_by == work.fingerprint and work.storage.state(job.target) is not None
    return job, KnownResult(entry.sha256 if entry and same else None, entry.result if entry else None)


def _portion(jobs: Sequence[tuple[Job, KnownResult]], manifests: Sequence[Manifest | None]) -> Portion:
    for destination in {job.destination for job, _ in jobs}:
        # Not those that a worker may find unchanged: the last line of a target counts, and theirs says "done".
        if manifest := manifests[destination]:
            manifest.begin(job for job, known in jobs if job.destination == destination and known.sha256 is None)
    return Portion.of(jobs)


class PortionManifest:
    """The manifest of a worker: it holds what the driver knows of a portion's jobs, and leaves writing to the driver."""

    def __init__(self, jobs: Iterable[tuple[Job, KnownResult]], made_by: str):
        self.index = {
            job.target_key: ManifestEntry(0, 0, 0, known.sha256 or b"", made_by if known.sha256 else None, known.result)
            for job, known in jobs
        }

    def begin(self, jobs: Iterable[Job]) -> None:
        """Does nothing: the driver has recorded them."""

    def add(self, entry: object) -> None:
        """Does nothing: the driver records it."""
