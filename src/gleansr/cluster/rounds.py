"""Portions of jobs through a cluster, whatever dies there: rounds of Ray Data until each job has its outcome."""

import itertools
import logging
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from gleansr.cluster.ahead import ahead
from gleansr.cluster.config import ClusterConfig
from gleansr.cluster.portions import Portion
from gleansr.cluster.worker import RayWorker, Setting, sealed, unpack
from gleansr.errors import GleansrError, ImageError
from gleansr.jobs import JobResult, failed

log = logging.getLogger("gleansr.cluster")

_BATCHES = 8
"""In a portion, at most: what is lost with a worker, and what the driver hears of at once."""
_SHARES = 4
"""Portions for each worker, at least, so that all end at about the same time."""
_ALONE = 64
"""Jobs of a round of single ones. Where all of so many kill their worker, the images are not to blame."""
_IN_FLIGHT = 2
_ENDING = 10.0
"""Seconds for what is under way to end, when a run is to end before its time."""


class _Stopped(Exception):  # noqa: N818
    """The run was asked to stop."""


@dataclass(frozen=True)
class Fleet:
    """The workers of a run."""

    workers: int
    cores: int
    gpu: bool

    @classmethod
    def of(cls, ray: ModuleType, config: ClusterConfig, *, gpu: bool) -> "Fleet":
        """As many as the cluster has room for. Raises GleansrError where it has none."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpu and (gpus := sum(int(node.get("GPU", 0)) for node in nodes)):
            cores = config.cores or max(1, min(8, *(int(node.get("CPU", 1) // node["GPU"]) for node in nodes if node.get("GPU"))))
            return cls(config.workers or gpus, cores, True)
        cores = config.cores or 1
        workers = config.workers or sum(int(node.get("CPU", 0)) // cores for node in nodes)
        if not workers:
            raise GleansrError(f"no machine of the cluster has {cores} cores for a worker; it has {_cores(nodes)}")
        return cls(workers, cores, False)


class Rounds:
    """Sends portions to workers, and goes on until each job has an outcome.

    Ray starts a worker that dies again, and gives it what it had. A portion that was begun `ClusterConfig.tries` times is given up; its
    jobs are then sent one by one, each to a worker that has nothing else, so that an image that kills its worker is found and fails, and
    its neighbours are done.
    """

    def __init__(self, ray: ModuleType, fleet: Fleet, config: ClusterConfig, work: Any, setting: Setting, stopped: Callable[[], bool]):
        """`work`: a reference to the pickled work."""
        self._ray, self._fleet, self._tries = ray, fleet, config.tries
        self._work, self._stopped = work, stopped
        self._setting = replace(setting, threads=fleet.cores, gpu=fleet.gpu)
        self._tally = tally(ray)
        self._number = itertools.count()

    def __call__(self, portions: Sequence[Portion]) -> Iterator[JobResult]:
        """In the order in which they end; not of all, if it was asked to stop.

        Raises:
            GleansrError: workers cannot work, or nothing more can be written. What else has ended is told before.
        """
        size = max(1, min(_BATCHES, len(portions) // (_SHARES * self._fleet.workers)))
        try:
            lost = yield from self._round([list(portions[i : i + size]) for i in range(0, len(portions), size)])
            singles = [Portion.of([job]) for portion in lost for job in portion.jobs()]
            if singles:
                log.warning("workers died %d times with the same images; these %d are done one by one", self._tries, len(singles))
            for i in range(0, len(singles), _ALONE):
                group = singles[i : i + _ALONE]
                poison = yield from self._round([[one] for one in group], alone=True)
                if len(poison) == len(group) == _ALONE:
                    raise GleansrError(
                        "workers die whatever they are given, killed or out of memory; give each more cores, so that there are fewer, or "
                        "a smaller --batch-size; Ray's logs on the machines say more (/tmp/ray/session_latest/logs)"
                    )
                for portion in poison:
                    [(job, _)] = portion.jobs()
                    told = f"{job.source}: its worker died each time, {self._tries} times with others and {self._tries} times alone"
                    yield failed(job, ImageError(f"{told}: killed, out of memory, or by a fault of a library"))
        except _Stopped:
            return

    def _round(self, portions: Sequence[Sequence[Portion]], *, alone: bool = False) -> Generator[JobResult, None, list[Portion]]:
        """Returns those of whose jobs some have no outcome, cut down to them."""
        waiting = dict(enumerate(portions))
        lost: list[Portion] = []
        if not portions:
            return lost
        dataset = self._dataset([{"number": number, "jobs": sealed(some)} for number, some in waiting.items()], alone)
        with closing(self._rows(dataset)) as rows:
            for number, packed in rows:
                jobs = [one for portion in waiting.pop(number, ()) for one in portion.jobs()]
                if not jobs:  # known from another try
                    continue
                outcomes, stop, note = unpack(packed, [job for job, _ in jobs])
                if note:
                    log.warning("%s", note)
                yield from (outcome for _, outcome in outcomes)
                if stop:
                    raise stop
                told = {number for number, _ in outcomes}
                if rest := [one for i, one in enumerate(jobs) if i not in told]:
                    lost.append(Portion.of(rest))
        return lost + [portion for some in waiting.values() for portion in some]

    def _dataset(self, rows: list[dict[str, Any]], alone: bool) -> Any:
        data = self._ray.data
        workers = min(self._fleet.workers, len(rows))
        setting = replace(self._setting, again=alone, round=next(self._number), tries=self._tries, workers=workers)
        return data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            RayWorker,
            fn_constructor_args=([self._work], self._tally, setting),
            compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1 if alone else _IN_FLIGHT),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=self._fleet.cores,
            num_gpus=1 if self._fleet.gpu else None,
        )

    def _rows(self, dataset: Any) -> Generator[tuple[int, bytes], None, None]:
        """The results as they come, taken in a thread, so that this one can be asked to stop.

        When it is, workers end what they compute, and what they have is given; raises _Stopped then.
        """
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        rows = (row for batch in batches for row in batch.to_pylist())
        left = _IN_FLIGHT * self._fleet.workers  # portions that workers may have when it is asked to stop
        deadline: float | None = None
        complete = False
        try:
            with ahead(rows, 64, patience=_ENDING) as coming:
                try:
                    for row in coming:
                        if deadline is None and self._stopped():
                            deadline = time.monotonic() + _ENDING
                            self._tally.stop.remote()
                        if row is not None:
                            yield row["number"], row["outcomes"]
                            left -= deadline is not None
                        if deadline is not None and (left <= 0 or time.monotonic() > deadline):
                            raise _Stopped
                    complete = deadline is None
                finally:
                    if not complete:
                        self._tally.stop.remote()
        except _Stopped:
            raise
        except Exception as error:  # Ray has many
            raise GleansrError(f"the cluster failed: {_reason(error)}") from error
        if not complete:
            raise _Stopped


def tally(ray: ModuleType) -> Any:
    """A small process that counts what workers begin, since one that dies cannot, and Ray tries without end; and tells them to stop."""

    class Tally:  # in here, so that it is sent whole, and its process need not import us
        def __init__(self) -> None:
            self._begun: dict[tuple[int, int], int] = {}
            self._starting: dict[int, int] = {}
            self._stopped = False

        def begin(self, round_: int, portion: int) -> int:
            """How many times a portion was begun before."""
            before = self._begun.get((round_, portion), 0)
            self._begun[round_, portion] = before + 1
            return before

        def starting(self, round_: int) -> int:
            """How many workers have begun to start that have not ended it."""
            self._starting[round_] = self._starting.get(round_, 0) + 1
            return self._starting[round_]

        def started(self, round_: int) -> None:
            self._starting[round_] -= 1

        def stop(self) -> None:
            self._stopped = True

        def stopped(self, _: int) -> bool:
            return self._stopped

    return ray.remote(Tally).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()


@contextmanager
def tolerant(ray: ModuleType) -> Iterator[None]:
    """Ray Data without words, and going on where a worker dies for good."""
    context = ray.data.DataContext.get_current()
    wanted = {
        "max_errored_blocks": -1,
        "enable_progress_bars": False,
        "enable_operator_progress_bars": False,
        "print_on_execution_start": False,
        "execution_options.verbose_progress": False,
    }
    kept: list[tuple[Any, str, Any]] = []
    for name, value in wanted.items():
        *path, last = name.split(".")
        owner = context
        for part in path:
            owner = getattr(owner, part)
        if hasattr(owner, last):  # not all versions have all
            kept.append((owner, last, getattr(owner, last)))
            setattr(owner, last, value)
    loggers = [(logger, logger.level) for logger in (logging.getLogger("ray.data"), logging.getLogger("ray"))]
    for logger, _ in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\.")
            yield
    finally:
        for logger, level in loggers:
            logger.setLevel(level)
        for owner, name, value in kept:
            setattr(owner, name, value)


def _cores(nodes: Sequence[dict[str, float]]) -> str:
    return ", ".join(f"{node.get('CPU', 0):g}" for node in nodes) or "none"


def _reason(error: BaseException) -> str:
    """The last line of a remote traceback, which names the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]
