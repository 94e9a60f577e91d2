"""The Ray actor of a cluster's machines: one model and the pipeline of `jobs.run`, for one portion at a time."""

import dataclasses
import os
import pickle
import platform
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from gleansr.cluster.portions import Portion, PortionManifest
from gleansr.cluster.urls import RemoteStorage
from gleansr.errors import GleansrError, ImageError, InternalError, RequestError
from gleansr.files import temporary_files, temporary_stem
from gleansr.images.codec import software
from gleansr.inference.precision import Precision
from gleansr.inference.runner import FeedForwardModel
from gleansr.inference.upscaler import Upscaler
from gleansr.jobs import Job, JobResult, Manifest, OutputError, Work, run
from gleansr.stores import is_url

if TYPE_CHECKING:
    import pyarrow

_SHARED_SECONDS = 10.0
"""Seconds for a file that the driver has just written to appear on the other machines of a shared file system."""
_STARTS = 4
"""Number of failed starts per worker that ends a run."""


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration of all workers of a run."""

    version: str = dataclasses.field(default_factory=software)
    """Version of gleansr on the driver."""
    folder: str = dataclasses.field(default_factory=os.getcwd)
    """Working directory of the driver, to which its paths are relative."""
    witnesses: tuple[str, ...] = ()
    """Files in the results folders. A worker that does not see them would write elsewhere."""
    threads: int = 1
    gpu: bool = False
    again: bool = False
    """Whether the workers of these portions have died before."""
    round: int = 0
    tries: int = 1
    """Number of times a portion is started if its workers die."""
    workers: int = 1


class RayWorker:
    """An actor of Ray Data that maps a row of jobs to a row of results.

    It raises nothing, because Ray would restart it or retry: an image's error is its result, and any other error is sent in a row that ends
    the run.
    """

    def __init__(self, work: Sequence[Any], run_counter: Any, config: WorkerConfig):
        """`work`: a list with the reference to the pickled `Work`, which Ray would resolve outside a list. `run_counter`: its actor."""
        import ray

        self._config = config
        self._count: Callable[..., int] = lambda name, *key: cast("int", ray.get(getattr(run_counter, name).remote(config.round, *key)))
        self._broken: GleansrError | None = None
        self._ended, self._asked = False, 0.0
        reborn = ray.get_runtime_context().was_current_actor_reconstructed
        self._note = f"a worker on {platform.node()} died and was restarted; its portion is processed again" if reborn else ""
        self._follows_death = config.again or reborn
        self._half_written: dict[str, dict[str, list[str]]] = {}
        try:
            with suppress(OSError):  # absolute paths do not need it
                os.chdir(config.folder)
            self._check()
            if self._count("starting") > _STARTS * config.workers:
                raise RequestError("workers die while they load the model: killed or out of memory")
            self._work: Work = prepare_work(pickle.loads(ray.get(work[0])), gpu=config.gpu)  # noqa: S301, the driver's
            self._count("started")
        except Exception as error:  # the first portion reports it
            reason = str(error) if isinstance(error, GleansrError) else f"{type(error).__name__}: {error}"
            self._broken = RequestError(f"a worker on {platform.node()} cannot start: {' '.join(reason.split())}")

    def __call__(self, rows: "pyarrow.Table") -> "pyarrow.Table":
        import pyarrow

        torch.set_num_threads(self._config.threads)
        packed_results = [
            self._do(number, packed) for number, packed in zip(rows["number"].to_pylist(), rows["jobs"].to_pylist(), strict=True)
        ]
        return pyarrow.table({"number": rows["number"], "outcomes": pyarrow.array(packed_results, pyarrow.binary())})

    def _do(self, number: int, packed: bytes) -> bytes:
        if self._broken:
            return pack_results([], self._broken)
        if self._stopped() or self._count("begin", number) >= self._config.tries:
            return pack_results([], None)
        jobs = [one for portion in unpack_portions(packed) for one in portion.jobs()]
        if self._follows_death:
            self._remove_half_written(job.target for job, _ in jobs if not is_url(job.target))
        results: list[JobResult] = []
        stop: GleansrError | None = None
        try:
            manifests = [
                PortionManifest([one for one in jobs if one[0].destination == number], self._work.fingerprint)
                for number in range(1 + max(job.destination for job, _ in jobs))
            ]
            for result in run([job for job, _ in jobs], self._work, cast("list[Manifest | None]", manifests), stopped=self._stopped):
                if isinstance(result, JobResult):
                    results.append(result)
        except OutputError as error:
            stop = error
        except Exception as error:
            stop = InternalError(f"internal error in a worker on {platform.node()}: please report it; --debug shows the traceback")
            stop.add_note("".join(traceback.format_exception(error)))
        numbers = {job: i for i, (job, _) in enumerate(jobs)}
        note, self._note = self._note, ""
        return pack_results([(numbers[result.job], result) for result in results], stop, note)

    def _stopped(self) -> bool:
        """Whether the driver ends the run; queried at most once a second."""
        if not self._ended and time.monotonic() > self._asked + 1:
            self._ended, self._asked = bool(self._count("stopped")), time.monotonic()
        return self._ended

    def _check(self) -> None:
        if self._config.version != software():
            raise RequestError(f"it has {software()}, the driver {self._config.version}; install the same version on all machines")
        deadline = time.monotonic() + _SHARED_SECONDS
        for file in self._config.witnesses:
            while not Path(file).is_file():
                if time.monotonic() > deadline:
                    raise RequestError(f"{file} does not exist there; all machines must share the folders, or use URLs such as s3://")
                time.sleep(0.1)

    def _remove_half_written(self, targets: Iterable[str]) -> None:
        """Removes half-written files of these targets that killed workers have left."""
        for target in targets:
            folder, name = os.path.split(target)
            if folder not in self._half_written:
                self._half_written[folder] = temporary_files(folder or ".")
            for left in self._half_written[folder].pop(temporary_stem(name), []):
                Path(folder, left).unlink(missing_ok=True)


def pack_portions(portions: Sequence[Portion]) -> bytes:
    """Packs portions into one row. The last byte is not zero: Ray may convert bytes to NumPy strings, which drop trailing zeros."""
    return pickle.dumps(list(portions)) + b"."


def unpack_portions(packed: bytes) -> list[Portion]:
    return pickle.loads(packed[:-1])  # noqa: S301, our own


def pack_results(results: Sequence[tuple[int, JobResult]], stop: GleansrError | None, note: str = "") -> bytes:
    """Packs results, by the number of their job, the error that ends the run, and a note."""
    rows = [(number, one.status, dict(one.entry), _sendable(one.error), one.notes, one.summary) for number, one in results]
    return zlib.compress(pickle.dumps((rows, _sendable(stop), note)), 1)


def unpack_results(packed: bytes, jobs: Sequence[Job]) -> tuple[list[tuple[int, JobResult]], GleansrError | None, str]:
    """Inverse of `pack_results`, for the same jobs."""
    rows, stop, note = pickle.loads(zlib.decompress(packed))  # noqa: S301, of our own workers
    return [(number, JobResult(jobs[number], *row)) for number, *row in rows], stop, note


def prepare_work(work: Work, *, gpu: bool) -> Work:
    """The work on this machine's device, with remote storage."""
    return dataclasses.replace(work, task=work.task.moved("cuda", _to_gpu) if gpu else work.task, storage=RemoteStorage())


def _to_gpu(upscaler: Upscaler) -> Upscaler:
    """With its network on the GPU, in the precision that the manifest records."""
    method = upscaler.method
    if not isinstance(method, FeedForwardModel) or method.device.type != "cpu":
        return upscaler
    precision = cast("Precision", str(method.precision).removeprefix("torch."))
    moved = FeedForwardModel(method.model, device="cuda", precision=precision, self_ensemble=method.self_ensemble)
    return Upscaler(moved, upscaler.about)


def _sendable(error: GleansrError | None) -> GleansrError | None:
    """The error, or an ImageError with its message if it cannot be pickled."""
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return ImageError(str(error))
    return error
