"""What runs on a cluster's machines: one model, and around it the pipeline of folders, for a portion of jobs at a time."""

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

from gleansr.cluster.portions import Known, Portion, Recall
from gleansr.cluster.urls import Addresses, is_url
from gleansr.errors import GleansrError, ImageError, InternalError, RequestError
from gleansr.files import temporary_files, temporary_stem
from gleansr.images.codec import software
from gleansr.inference.feedforward import FeedForwardModel
from gleansr.inference.precision import Precision
from gleansr.inference.tasks import Enlarge, ImageTask
from gleansr.inference.upscaler import Upscaler
from gleansr.jobs import Job, JobResult, Manifest, OutputError, Work, run

if TYPE_CHECKING:
    import pyarrow

_SHARED_SECONDS = 10.0
"""For a file that the driver has just written to be seen on another machine of a shared file system."""
_STARTS = 4
"""How many times all workers may begin to start without one that ends it."""


@dataclass(frozen=True)
class Setting:
    """What all workers of a run are told, beside their work."""

    version: str = dataclasses.field(default_factory=software)
    """The driver's gleansr."""
    folder: str = dataclasses.field(default_factory=os.getcwd)
    """The driver's working folder, by which it names files."""
    witnesses: tuple[str, ...] = ()
    """Files in the folders of results; a worker that does not see them would write somewhere else."""
    threads: int = 1
    gpu: bool = False
    again: bool = False
    """Whether the portions are those whose workers have died."""
    round: int = 0
    tries: int = 1
    """How many times a portion is begun, if those who did died."""
    workers: int = 1


class RayWorker:
    """An actor of Ray Data: makes a row of outcomes of a row of jobs.

    Nothing is raised here: what is wrong with an image is its outcome, and what is wrong with all of them stops the run by a row that says
    so, since Ray would start a worker that raises anew, or retry.
    """

    def __init__(self, work: Sequence[Any], tally: Any, setting: Setting):
        """`work`: a reference to the pickled `Work`, in a list for Ray to leave it as it is. `tally`: counts what is begun."""
        import ray

        self._setting = setting
        self._count: Callable[..., int] = lambda what, *key: cast("int", ray.get(getattr(tally, what).remote(setting.round, *key)))
        self._broken: GleansrError | None = None
        self._ended, self._asked = False, 0.0
        reborn = ray.get_runtime_context().was_current_actor_reconstructed
        self._note = f"a worker on {platform.node()} died and was started again; what it had is done again" if reborn else ""
        self._swept: dict[str, dict[str, list[str]]] | None = {} if setting.again or reborn else None
        try:
            with suppress(OSError):  # all paths may be absolute
                os.chdir(setting.folder)
            self._check()
            if self._count("starting") > _STARTS * setting.workers:
                raise RequestError("others die while they load the model: killed or out of memory")
            self._work: Work = prepared(pickle.loads(ray.get(work[0])), gpu=setting.gpu)  # noqa: S301, the driver's
            self._count("started")
        except Exception as error:  # told by the first portion
            reason = str(error) if isinstance(error, GleansrError) else f"{type(error).__name__}: {error}"
            self._broken = RequestError(f"a worker on {platform.node()} cannot work: {' '.join(reason.split())}")

    def __call__(self, rows: "pyarrow.Table") -> "pyarrow.Table":
        import pyarrow

        torch.set_num_threads(self._setting.threads)
        made = [self._do(number, packed) for number, packed in zip(rows["number"].to_pylist(), rows["jobs"].to_pylist(), strict=True)]
        return pyarrow.table({"number": rows["number"], "outcomes": pyarrow.array(made, pyarrow.binary())})

    def _do(self, number: int, packed: bytes) -> bytes:
        if self._broken:
            return pack([], self._broken)
        if self._stopped() or self._count("begin", number) >= self._setting.tries:
            return pack([], None)
        jobs = [one for portion in unsealed(packed) for one in portion.jobs()]
        if self._swept is not None:
            self._sweep(job.target for job, _ in jobs)
        outcomes: list[JobResult] = []
        stop: GleansrError | None = None
        recall = [Recall([one for one in jobs if one[0].place == place], self._work.fingerprint) for place in range(_places(jobs))]
        try:
            for outcome in run([job for job, _ in jobs], self._work, cast("list[Manifest | None]", recall), stopped=self._stopped):
                if isinstance(outcome, JobResult):
                    outcomes.append(outcome)
        except OutputError as error:
            stop = error
        except Exception as error:
            stop = InternalError(f"a worker on {platform.node()} met a fault of gleansr: please report it; --debug shows where")
            stop.add_note("".join(traceback.format_exception(error)))
        numbers = {job: i for i, (job, _) in enumerate(jobs)}
        note, self._note = self._note, ""
        return pack([(numbers[outcome.job], outcome) for outcome in outcomes], stop, note)

    def _stopped(self) -> bool:
        """Whether the driver wants the run to end; it is asked once a second at most."""
        if not self._ended and time.monotonic() > self._asked + 1:
            self._ended, self._asked = bool(self._count("stopped")), time.monotonic()
        return self._ended

    def _check(self) -> None:
        if self._setting.version != software():
            raise RequestError(f"it has {software()}, the driver {self._setting.version}; install the same version on all machines")
        patience = time.monotonic() + _SHARED_SECONDS
        for file in self._setting.witnesses:
            while not Path(file).is_file():
                if time.monotonic() > patience:
                    raise RequestError(f"{file} is not there; folders must be shared by all machines, or be addresses such as s3://")
                time.sleep(0.1)

    def _sweep(self, targets: Iterable[str]) -> None:
        """Removes what killed workers have left half written of these targets."""
        for target in targets:
            folder, _, name = target.rpartition("/") if "/" in target else (".", "", target)
            if is_url(target):
                continue
            if self._swept is not None and folder not in self._swept:
                self._swept[folder] = temporary_files(folder)
            for left in (self._swept or {}).get(folder, {}).pop(temporary_stem(name), []):
                Path(folder, left).unlink(missing_ok=True)


def sealed(portions: Sequence[Portion]) -> bytes:
    """Portions that a worker does together. With a last byte that is none of NumPy's ends of strings, which Ray may make of bytes."""
    return pickle.dumps(list(portions)) + b"."


def unsealed(packed: bytes) -> list[Portion]:
    return pickle.loads(packed[:-1])  # noqa: S301, our own


def pack(outcomes: Sequence[tuple[int, JobResult]], stop: GleansrError | None, note: str = "") -> bytes:
    """Outcomes by the number of their job, what stops the run, and what is to be said."""
    rows = [(number, one.status, dict(one.entry), _sendable(one.error), one.notes) for number, one in outcomes]
    return zlib.compress(pickle.dumps((rows, _sendable(stop), note)), 1)


def unpack(packed: bytes, jobs: Sequence[Job]) -> tuple[list[tuple[int, JobResult]], GleansrError | None, str]:
    """What `pack` was given, of these jobs."""
    rows, stop, note = pickle.loads(zlib.decompress(packed))  # noqa: S301, of our own workers
    return [(number, JobResult(jobs[number], *row)) for number, *row in rows], stop, note


def prepared(work: Work, *, gpu: bool) -> Work:
    """The work, on this machine's device, with files by path and address."""
    return dataclasses.replace(work, task=_on_gpu(work.task) if gpu else work.task, storage=Addresses())


def _on_gpu(task: ImageTask) -> ImageTask:
    if isinstance(task, Enlarge):
        return dataclasses.replace(task, upscaler=_moved(task.upscaler))
    from gleansr.photos import Photo

    if isinstance(task, Photo):
        moved = Photo(_moved(task.upscaler), task.config, background=task.background and _moved(task.background))
        return cast("ImageTask", moved)
    return task


def _moved(upscaler: Upscaler) -> Upscaler:
    """With its network on the GPU, and the arithmetic that it had, which the manifest names."""
    method = upscaler.method
    if not isinstance(method, FeedForwardModel) or method.device.type != "cpu":
        return upscaler
    precision = cast("Precision", str(method.precision).removeprefix("torch."))
    return Upscaler(FeedForwardModel(method.model, device="cuda", precision=precision), upscaler.about)


def _places(jobs: Sequence[tuple[Job, Known]]) -> int:
    return max((job.place for job, _ in jobs), default=-1) + 1


def _sendable(error: GleansrError | None) -> GleansrError | None:
    """The error, or its message where it cannot be pickled."""
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return ImageError(str(error))
    return error
