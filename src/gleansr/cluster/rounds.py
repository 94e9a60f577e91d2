"""Runs portions of jobs on a cluster, in rounds of Ray Data, until each job has its result, even if workers die."""

import itertools
import logging
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from gleansr.cluster.config import ClusterConfig
from gleansr.cluster.portions import Portion
from gleansr.cluster.worker import RayWorker, WorkerConfig, pack_portions, unpack_results
from gleansr.errors import GleansrError, ImageError
from gleansr.jobs import JobResult, failed_result

log = logging.getLogger("gleansr.cluster")

_MAX_PORTIONS = 8
"""Largest number of portions in a row: what is lost with a worker, and what the driver receives at once."""
_MIN_ROWS = 4
"""Least number of rows for each worker, so that all end at about the same time."""
_SINGLES = 64
"""Jobs in a round of single jobs. If all of them kill their workers, the images are not the cause."""
_IN_FLIGHT = 2
_STOP_SECONDS = 10.0
"""Seconds for running portions to end after a stop."""
_POLL_SECONDS = 0.2
"""Seconds between two checks for a stop."""


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
        """As many workers as the cluster has room for. Raises GleansrError if it has none."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpu and (gpus := sum(int(node.get("GPU", 0)) for node in nodes)):
            cores = config.cores or max(1, min(8, *(int(node.get("CPU", 1) // node["GPU"]) for node in nodes if node.get("GPU"))))
            return cls(config.workers or gpus, cores, True)
        cores = config.cores or 1
        workers = config.workers or sum(int(node.get("CPU", 0)) // cores for node in nodes)
        if not workers:
            raise GleansrError(f"no machine of the cluster has {cores} cores for a worker; the machines have {_cores(nodes)}")
        return cls(workers, cores, False)


class Rounds:
    """Sends portions to workers until each job has a result.

    Ray restarts a dead worker with its portion. After `ClusterConfig.tries` deaths the jobs of the portion are sent one by one, each to a
    worker that has nothing else, so that an image that kills its worker is identified and fails, and the others are processed.
    """

    def __init__(
        self, ray: ModuleType, fleet: Fleet, config: ClusterConfig, work: Any, worker_config: WorkerConfig, stopped: Callable[[], bool]
    ):
        """`work`: a reference to the pickled work."""
        self._ray, self._fleet, self._tries = ray, fleet, config.tries
        self._work, self._stopped = work, stopped
        self._worker_config = replace(worker_config, threads=fleet.cores, gpu=fleet.gpu)
        self._counter = run_counter(ray)
        self._number = itertools.count()

    def __call__(self, portions: Sequence[Portion]) -> Iterator[JobResult]:
        """Yields the results in the order of completion; not all of them after a stop.

        Raises:
            GleansrError: the workers cannot start, or nothing more can be written. Finished results are yielded before.
        """
        size = max(1, min(_MAX_PORTIONS, len(portions) // (_MIN_ROWS * self._fleet.workers)))
        try:
            lost = yield from self._round([list(portions[i : i + size]) for i in range(0, len(portions), size)])
            singles = [Portion.of([job]) for portion in lost for job in portion.jobs()]
            if singles:
                log.warning("workers died %d times with the same images; these %d are processed one by one", self._tries, len(singles))
            for i in range(0, len(singles), _SINGLES):
                group = singles[i : i + _SINGLES]
                fatal = yield from self._round([[one] for one in group], alone=True)
                if len(fatal) == len(group) == _SINGLES:
                    raise GleansrError(
                        "workers die with any image, killed or out of memory; give each more cores, so that there are fewer, or "
                        "a smaller --batch-size; Ray's logs on the machines say more (/tmp/ray/session_latest/logs)"
                    )
                for portion in fatal:
                    [(job, _)] = portion.jobs()
                    deaths = f"{job.source}: its worker died each time, {self._tries} times with others and {self._tries} times alone"
                    yield failed_result(job, ImageError(f"{deaths}: killed, out of memory, or a crash in a library"))
        except _Stopped:
            return

    def _round(self, portions: Sequence[Sequence[Portion]], *, alone: bool = False) -> Generator[JobResult, None, list[Portion]]:
        """Yields results; returns portions of the jobs that have none."""
        waiting = dict(enumerate(portions))
        lost: list[Portion] = []
        if not portions:
            return lost
        dataset = self._dataset([{"number": number, "jobs": pack_portions(row)} for number, row in waiting.items()], alone)
        with closing(self._rows(dataset)) as rows:
            for number, packed in rows:
                jobs = [one for portion in waiting.pop(number, ()) for one in portion.jobs()]
                if not jobs:  # already known from another try
                    continue
                results, stop, note = unpack_results(packed, [job for job, _ in jobs])
                if note:
                    log.warning("%s", note)
                yield from (result for _, result in results)
                if stop:
                    raise stop
                finished = {number for number, _ in results}
                if rest := [one for i, one in enumerate(jobs) if i not in finished]:
                    lost.append(Portion.of(rest))
        return lost + [portion for row in waiting.values() for portion in row]

    def _dataset(self, rows: list[dict[str, Any]], alone: bool) -> Any:
        data = self._ray.data
        workers = min(self._fleet.workers, len(rows))
        worker_config = replace(self._worker_config, again=alone, round=next(self._number), tries=self._tries, workers=workers)
        return data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            RayWorker,
            fn_constructor_args=([self._work], self._counter, worker_config),
            compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1 if alone else _IN_FLIGHT),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=self._fleet.cores,
            num_gpus=1 if self._fleet.gpu else None,
        )

    def _rows(self, dataset: Any) -> Generator[tuple[int, bytes], None, None]:
        """The results as they arrive, received in a thread, so that this one can check for a stop.

        After a stop, workers end their current passes, and their results are yielded; then it raises _Stopped.
        """
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        rows = (row for batch in batches for row in batch.to_pylist())
        remaining = _IN_FLIGHT * self._fleet.workers  # rows that workers may hold at a stop
        deadline: float | None = None
        complete = False
        pool = ThreadPoolExecutor(1, "gleansr-rows")
        coming = pool.submit(next, rows, None)
        try:
            while deadline is None or (remaining > 0 and time.monotonic() < deadline):
                wait([coming], _POLL_SECONDS)
                if deadline is None and self._stopped():
                    deadline = time.monotonic() + _STOP_SECONDS
                    self._counter.stop.remote()
                if not coming.done():
                    continue
                if (row := coming.result()) is None:
                    complete = deadline is None
                    break
                coming = pool.submit(next, rows, None)
                remaining -= deadline is not None
                yield row["number"], row["outcomes"]
        except Exception as error:  # Ray raises many kinds
            raise GleansrError(f"the cluster failed: {_reason(error)}") from error
        finally:
            if not complete:
                self._counter.stop.remote()
            wait([pool.submit(rows.close)], _STOP_SECONDS)
            pool.shutdown(wait=False)
        if not complete:
            raise _Stopped


def run_counter(ray: ModuleType) -> Any:
    """An actor that counts the tries of portions, because a dead worker cannot and Ray retries without end; it also signals a stop."""

    class RunCounter:  # a local class is pickled whole, so that its process need not import gleansr
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
            """How many workers are starting."""
            self._starting[round_] = self._starting.get(round_, 0) + 1
            return self._starting[round_]

        def started(self, round_: int) -> None:
            self._starting[round_] -= 1

        def stop(self) -> None:
            self._stopped = True

        def stopped(self, _: int) -> bool:
            return self._stopped

    return ray.remote(RunCounter).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()


@contextmanager
def quiet_ray_data(ray: ModuleType) -> Iterator[None]:
    """Silences Ray Data, and lets it continue when a worker dies for good."""
    context = ray.data.DataContext.get_current()
    errored_blocks, context.max_errored_blocks = context.max_errored_blocks, -1
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
        context.max_errored_blocks = errored_blocks


def _cores(nodes: Sequence[dict[str, float]]) -> str:
    return ", ".join(f"{node.get('CPU', 0):g}" for node in nodes) or "none"


def _reason(error: BaseException) -> str:
    """The last line of a remote traceback, which names the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]
