"""A stream of jobs through a model: reading, forward passes and writing overlapped, in bounded memory."""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch

from gleansr.inference.method import StepReport
from gleansr.inference.tasks import Enlarge, ImageTask
from gleansr.jobs.batches import BatchCollector, Low
from gleansr.jobs.forward import Forward, Made
from gleansr.jobs.index import ManifestEntry
from gleansr.jobs.jobs import Job, UnreadableFolder
from gleansr.jobs.manifest import Manifest
from gleansr.jobs.steps import DecodedJob, JobResult, Work, load, skips, store
from gleansr.jobs.window import ClosedError, Window

MEMORY = 2**30
"""Bytes that images between reading and writing may take together, by estimate; one that takes more is treated alone."""

_PATIENCE = 0.2
"""Seconds between two questions whether to stop, while nothing comes."""


class SearchStoppedError(Exception):
    """A slow method was stopped at one of its steps."""


def run(
    jobs: Iterable[Job | UnreadableFolder],
    work: Work,
    manifests: Sequence[Manifest | None],
    *,
    stopped: Callable[[], bool] = lambda: False,
    report: StepReport | None = None,
) -> Iterator[JobResult | UnreadableFolder]:
    """Does all jobs; yields what became of each as soon as it is known, in the order in which they end.

    Reader threads read, decode and prepare, a few images ahead; this thread makes the forward passes, in batches of lrs of one shape in
    the order of the jobs; writer threads finish, encode and write. Which images share a batch depends on the jobs alone, not on timing.
    What is done already (see `skips`) is not read. `Manifest.begin` and `.add` are called here.

    Args:
        jobs: as `walk` gives them; taken one by one, as they are needed.
        work: what to do.
        manifests: by `Job.place`; None for a place without one.
        stopped: asked between forward passes and at each step of a slow method. When it says so, what was computed is written, and no more.
        report: is told of the progress of a slow method with each batch.

    Raises:
        OutputError: nothing more can be written. What is done is recorded, and the same call goes on.
    """
    count = 4 * work.batch_size + 4
    memory = max(MEMORY, 6 * work.batch_size * bytes_of(work.task, 0, 0))
    window: Window[Job, DecodedJob | JobResult, JobResult | UnreadableFolder] = Window(iter(()), count, memory)
    window = Window(_to_do(jobs, work, manifests, lambda outcome: window.tell(outcome, bounded=True)), count, memory)
    computed: queue.SimpleQueue[tuple[int, DecodedJob, list[Made]] | None] = queue.SimpleQueue()

    def step(done: int, total: int) -> None:
        if stopped():
            raise SearchStoppedError
        if report:
            report(done, total)

    def admit(number: int, width: int, height: int) -> None:
        window.admit(number, bytes_of(work.task, width, height))

    def read() -> None:
        while begun := window.begin():
            number, job = begun
            item = load(job, work, _recorded(manifests, job), partial(admit, number))
            window.admit(number, 0)  # where it came to no image
            if isinstance(item, DecodedJob) and item.light and work.task.upscaler.output_size:  # otherwise the low is as large as the image
                window.lighten(number, bytes_of(work.task, 0, 0))
            window.put(number, item)
            del item

    def write() -> None:
        while item := computed.get():
            number, loaded, made = item
            outcome = store(loaded, made, work)
            if manifest := manifests[loaded.job.place]:
                manifest.add(outcome.entry)
            del item, loaded, made
            window.release(number)
            window.tell(outcome)

    forward = Forward(work.task.upscaler.method, work.batch_size, step)
    batches = BatchCollector(work.batch_size, count // 2, memory // 2)
    images: dict[int, tuple[DecodedJob, list[Made | None]]] = {}

    def collect(batch: list[Low], end: Callable[[], list[Made]]) -> None:
        for lr, made in zip(batch, end(), strict=True):
            loaded, parts = images[lr.number]
            parts[lr.place] = made
            if all(parts):
                computed.put((lr.number, loaded, [part for part in parts if part]))
                del images[lr.number]

    ready: deque[list[Low]] = deque()
    under_way: deque[tuple[list[Low], Callable[[], list[Made]]]] = deque()
    ended = False
    threads = threads_beside(work.task)
    with _threads(window, [read] * (threads + 1), [write] * threads, lambda: computed.put(None)), suppress(SearchStoppedError):
        while not (stopped() or (ended and not ready and not under_way)):
            yield from window.told()
            if ready and len(under_way) < forward.ahead:
                batch = ready.popleft()
                together = [images[number][0] for number in dict.fromkeys(lr.number for lr in batch)]
                _begin([one.job for one in together], manifests)
                eight_bits = all(one.prepared.eight_bits for one in together)
                under_way.append((batch, forward.start([lr.tensor for lr in batch], eight_bits=eight_bits)))
                continue
            if len(under_way) == forward.ahead or ended:
                collect(*under_way.popleft())
                continue
            try:
                taken = window.take(0 if under_way else _PATIENCE)
            except TimeoutError:
                if under_way:
                    collect(*under_way.popleft())
                continue
            if taken is None:
                ended = True
                ready.extend(batches.rest())
                continue
            number, weight, item = taken
            if isinstance(item, JobResult):
                if item.entry and (manifest := manifests[item.job.place]):
                    manifest.add(item.entry)
                window.release(number)
                yield item
            elif lrs := item.prepared.lrs:
                images[number] = item, [None] * len(lrs)
                ready.extend(batches.add(number, weight, lrs))
            else:
                _begin([item.job], manifests)
                computed.put((number, item, []))
            del taken, item
        for batch, end in under_way:  # after a stop
            collect(batch, end)
    yield from window.told()


def _to_do(
    jobs: Iterable[Job | UnreadableFolder],
    work: Work,
    manifests: Sequence[Manifest | None],
    tell: Callable[[JobResult | UnreadableFolder], None],
) -> Iterator[Job]:
    for job in jobs:
        if isinstance(job, UnreadableFolder):
            tell(job)
        elif skips(job, work, _recorded(manifests, job)):
            tell(JobResult(job, "skipped", {}))
        else:
            yield job


def _recorded(manifests: Sequence[Manifest | None], job: Job) -> ManifestEntry | None:
    manifest = manifests[job.place]
    return manifest.index.get(job.target_key) if manifest else None


def _begin(jobs: Sequence[Job], manifests: Sequence[Manifest | None]) -> None:
    for place in {job.place for job in jobs}:
        if manifest := manifests[place]:
            manifest.begin(job for job in jobs if job.place == place)


def bytes_of(task: ImageTask, width: int, height: int) -> int:
    """Bytes that an image of that size takes, roughly: its pixels in float32 twice, the result in float32 and in 8 bits."""
    side = task.upscaler.output_size
    result = side**2 if isinstance(task, Enlarge) and side else task.factor**2 * width * height
    return 24 * width * height + 16 * result


def threads_beside(task: ImageTask) -> int:
    """How many threads finish images beside the forward passes."""
    return max(1, (os.cpu_count() or 1) // (8 if task.upscaler.device.type == "cpu" else 2))


@contextmanager
def _threads(
    window: Window[Any, Any, Any], readers: Sequence[Callable[[], None]], writers: Sequence[Callable[[], None]], end: Callable[[], None]
) -> Iterator[None]:
    """Runs the readers until the window is closed, or the jobs are done, and the writers until all is written; `end` ends one of them."""
    threads = torch.get_num_threads()

    def guarded(work: Callable[[], None]) -> None:
        torch.set_num_threads(1)  # of this thread: for small tensors more cost more than they do, while a forward pass has the cores
        try:
            work()
        except ClosedError:
            pass
        except BaseException as error:
            window.close(error)

    started = [threading.Thread(target=guarded, args=[one], name=f"gleansr-{one.__name__}", daemon=True) for one in (*readers, *writers)]
    try:
        for thread in started:
            thread.start()
        yield
    finally:
        window.close()
        for _ in writers:
            end()
        for thread in started:
            thread.join()
        torch.set_num_threads(threads)  # which is what threads begin with, too
    window.check()
