"""What a worker is given at once: a few batches of jobs, small enough for millions to wait in a driver's memory."""

import pickle
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import islice

from gleansr.errors import ImageError
from gleansr.jobs import Job, JobResult, Manifest, ManifestEntry, UnreadableFolder, Work, failed, skips
from gleansr.jobs.steps import check_targets

_AT_ONCE = 1024
_THREADS = 16
"""Ask for files at once, since a shared file system takes milliseconds to answer."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a worker is told of a job beside itself."""

    sha256: bytes | None = None
    """That its source had when its result, which is there, was made in the same way; None if it is to be made in any case."""
    result: bytes | None = None
    """`ManifestEntry.result`."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Successive jobs, packed: 40 bytes each where names are alike."""

    count: int
    packed: bytes

    @classmethod
    def of(cls, jobs: Sequence[tuple[Job, Known]]) -> "Portion":
        rows = [(*astuple(job), known.sha256, known.result) for job, known in jobs]
        return cls(len(jobs), zlib.compress(pickle.dumps(rows), 1))

    def jobs(self) -> list[tuple[Job, Known]]:
        return [(Job(*row[:-2]), Known(*row[-2:])) for row in pickle.loads(zlib.decompress(self.packed))]  # noqa: S301, our own


def portions(
    jobs: Iterable[Job | UnreadableFolder], work: Work, manifests: Sequence[Manifest | None], size: int
) -> Iterator[Portion | JobResult | UnreadableFolder]:
    """Of successive jobs that are to be done, `size` in each portion, the last one less; and what became of the others.

    Skipped is what the manifests say is done. Refused is what would replace a file of somebody else: workers replace what is there, since
    it may be of one of them that was killed. The manifests are told of what begins.
    """
    waiting: list[tuple[Job, Known]] = []
    remaining = iter(jobs)
    with ThreadPoolExecutor(_THREADS, "gleansr-ask") as pool:
        while chunk := list(islice(remaining, _AT_ONCE)):
            share = -(-len(chunk) // _THREADS)
            slices = [chunk[i : i + share] for i in range(0, len(chunk), share)]
            for asked in pool.map(lambda some: [_ask(one, work, manifests) for one in some], slices):
                for answer in asked:
                    if not isinstance(answer, tuple):
                        yield answer
                        continue
                    waiting.append(answer)
                    if len(waiting) == size:
                        yield _begun(waiting, manifests)
                        waiting = []
    if waiting:
        yield _begun(waiting, manifests)


def _ask(job: Job | UnreadableFolder, work: Work, manifests: Sequence[Manifest | None]) -> tuple[Job, Known] | JobResult | UnreadableFolder:
    if isinstance(job, UnreadableFolder):
        return job
    manifest = manifests[job.place]
    recorded = manifest.index.get(job.target_key) if manifest else None
    if skips(job, work, recorded):
        return JobResult(job, "skipped", {})
    if recorded is None:  # of others the worker asks, which reads what is there
        try:
            check_targets(job, work, None)
        except ImageError as error:
            return failed(job, error)
    same = recorded is not None and recorded.made_by == work.fingerprint and work.storage.state(job.target) is not None
    return job, Known(recorded.sha256 if recorded and same else None, recorded.result if recorded else None)


def _begun(jobs: Sequence[tuple[Job, Known]], manifests: Sequence[Manifest | None]) -> Portion:
    for place in {job.place for job, _ in jobs}:
        # Not of those whose contents a worker may find to be done already: of a target the last line counts, and theirs says so.
        if manifest := manifests[place]:
            manifest.begin(job for job, known in jobs if job.place == place and known.sha256 is None)
    return Portion.of(jobs)


class Recall:
    """Stands for a manifest on a worker: it remembers what the driver told of a portion's jobs, and leaves writing to the driver."""

    def __init__(self, jobs: Iterable[tuple[Job, Known]], made_by: str):
        self.index = {
            job.target_key: ManifestEntry(0, 0, 0, known.sha256 or b"", made_by if known.sha256 else None, known.result)
            for job, known in jobs
        }

    def begin(self, jobs: Iterable[Job]) -> None:
        """The driver has."""

    def add(self, entry: object) -> None:
        """The driver will."""
