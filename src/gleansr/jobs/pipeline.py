"""Runs a stream of jobs through a model. Reading, forward passes and writing overlap, in order and in bounded memory."""

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
from gleansr.inference.runner import BatchRunners, SRResult
from gleansr.inference.tasks import Enlarge, ImageTask
from gleansr.jobs.batches import BatchCollector, BatchItem
from gleansr.jobs.index import ManifestEntry
from gleansr.jobs.jobs import Job, UnreadableFolder
from gleansr.jobs.manifest import Manifest
from gleansr.jobs.steps import DecodedJob, JobResult, Work, decode_job, is_done, write_result
from gleansr.jobs.window import ClosedError, Window

MEMORY = 2**30
"""Estimated bytes of all images between reading and writing. A larger image is processed alone."""

_POLL_SECONDS = 0.2
"""Seconds between two checks of `stopped` while nothing arrives."""


class SearchStoppedError(Exception):
    """A slow method was stopped between two of its steps."""


def run(
    jobs: Iterable[Job | UnreadableFolder],
    work: Work,
    manifests: Sequence[Manifest | None],
    *,
    stopped: Callable[[], bool] = lambda: False,
    report: StepReport | None = None,
) -> Iterator[JobResult | UnreadableFolder]:
    """Processes all jobs; yields each result as soon as it is known, in the order of completion.

    Reader threads decode and prepare a few images ahead. This thread runs the forward passes, in batches of LR tensors of one model and
    one shape, in the order of the jobs. Writer threads finish, encode and write. Which images share a batch depends on the jobs alone,
    not on timing.
    Finished images (see `is_done`) are not read. This function calls `Manifest.begin` and `Manifest.add`.

    Args:
        jobs: from `walk`; consumed lazily.
        work: the task and the output options.
        manifests: one for each destination, by `Job.destination`; None for a destination without a manifest.
        stopped: checked between forward passes and at each step of a slow method. Once it is true, computed results are written and the
            run ends.
        report: receives the progress of a slow method within each batch.

    Raises:
        OutputError: nothing more can be written. Finished images are recorded, and the same call resumes.
    """
    count = 4 * work.batch_size + 4
    memory = max(MEMORY, 6 * work.batch_size * estimated_bytes(work.task, 0, 0))
    window: Window[Job, DecodedJob | JobResult, JobResult | UnreadableFolder] = Window(iter(()), count, memory)
    window = Window(_pending(jobs, work, manifests, lambda result: window.post(result, bounded=True)), count, memory)
    computed: queue.SimpleQueue[tuple[int, DecodedJob, list[SRResult]] | None] = queue.SimpleQueue()

    def step(done: int, total: int) -> None:
        if stopped():
            raise SearchStoppedError
        if report:
            report(done, total)

    def admit(number: int, width: int, height: int) -> None:
        window.admit(number, estimated_bytes(work.task, width, height))

    def read() -> None:
        while opened := window.begin():
            number, job = opened
            item = decode_job(job, work, _entry(manifests, job), partial(admit, number))
            window.admit(number, 0)  # for a failure before the size was known
            if isinstance(item, DecodedJob) and item.light and work.task.upscaler.output_size:  # else the LR is as large as the image
                window.lighten(number, estimated_bytes(work.task, 0, 0))
            window.put(number, item)
            del item

    def write() -> None:
        while item := computed.get():
            number, decoded, passes = item
            result = write_result(decoded, passes, work)
            if manifest := manifests[decoded.job.destination]:
                manifest.add(result.entry)
            del item, decoded, passes
            window.release(number)
            window.post(result)

    runners = BatchRunners(work.task.upscaler.method, work.batch_size, step)
    batches = BatchCollector(work.batch_size, count // 2, memory // 2)
    images: dict[int, tuple[DecodedJob, list[SRResult | None]]] = {}

    def collect(batch: list[BatchItem], end: Callable[[], list[SRResult]]) -> None:
        for item, result in zip(batch, end(), strict=True):
            decoded, parts = images[item.image]
            parts[item.part] = result
            if all(parts):
                computed.put((item.image, decoded, [part for part in parts if part]))
                del images[item.image]

    ready: deque[list[BatchItem]] = deque()
    running: deque[tuple[list[BatchItem], Callable[[], list[SRResult]]]] = deque()
    ended = False
    threads = finishing_threads(work.task)
    with _threads(window, [read] * (threads + 1), [write] * threads, lambda: computed.put(None)), suppress(SearchStoppedError):
        while not (stopped() or (ended and not ready and not running)):
            yield from window.events()
            if ready and len(running) < runners.concurrency:
                batch = ready.popleft()
                members = [images[number][0] for number in dict.fromkeys(item.image for item in batch)]
                _begin([member.job for member in members], manifests)
                eight_bits = all(member.prepared.eight_bits for member in members)
                runner = runners.of(batch[0].upscaler and batch[0].upscaler.method)
                running.append((batch, runner.start([item.lr for item in batch], eight_bits=eight_bits)))
                continue
            if len(running) == runners.concurrency or ended:
                collect(*running.popleft())
                continue
            try:
                entry = window.take(0 if running else _POLL_SECONDS)
            except TimeoutError:
                if running:
                    collect(*running.popleft())
                continue
            if entry is None:
                ended = True
                ready.extend(batches.rest())
                continue
            number, weight, item = entry
            if isinstance(item, JobResult):
                if item.entry and (manifest := manifests[item.job.destination]):
                    manifest.add(item.entry)
                window.release(number)
                yield item
            elif lrs := item.prepared.lrs:
                images[number] = item, [None] * len(lrs)
                ready.extend(batches.add(number, weight, lrs, item.prepared.upscalers))
            else:
                _begin([item.job], manifests)
                computed.put((number, item, []))
            del entry, item
        for batch, end in running:  # after a stop
            collect(batch, end)
    yield from window.events()


def _pending(
    jobs: Iterable[Job | UnreadableFolder],
    work: Work,
    manifests: Sequence[Manifest | None],
    post: Callable[[JobResult | UnreadableFolder], None],
) -> Iterator[Job]:
    for job in jobs:
        if isinstance(job, UnreadableFolder):
            post(job)
        elif is_done(job, work, _entry(manifests, job)):
            post(JobResult(job, "skipped", {}))
        else:
            yield job


def _entry(manifests: Sequence[Manifest | None], job: Job) -> ManifestEntry | None:
    manifest = manifests[job.destination]
    return manifest.index.get(job.target_key) if manifest else None


def _begin(jobs: Sequence[Job], manifests: Sequence[Manifest | None]) -> None:
    for destination in {job.destination for job in jobs}:
        if manifest := manifests[destination]:
            manifest.begin(job for job in jobs if job.destination == destination)


def estimated_bytes(task: ImageTask, width: int, height: int) -> int:
    """Estimated bytes of an image of that size: its pixels in float32 twice, the result in float32 and in 8 bits."""
    side = task.upscaler.output_size
    result = side**2 if isinstance(task, Enlarge) and side else task.factor**2 * width * height
    return 24 * width * height + 16 * result


def finishing_threads(task: ImageTask) -> int:
    """Number of threads that finish images during the forward passes."""
    return max(1, (os.cpu_count() or 1) // (8 if task.upscaler.device.type == "cpu" else 2))


@contextmanager
def _threads(
    window: Window[Any, Any, Any], readers: Sequence[Callable[[], None]], writers: Sequence[Callable[[], None]], end: Callable[[], None]
) -> Iterator[None]:
    """Runs the readers until the window is closed or the jobs end, and the writers until all results are written; `end` ends one writer."""
    threads = torch.get_num_threads()

    def guarded(work: Callable[[], None]) -> None:
        torch.set_num_threads(1)  # for this thread: more threads slow down small tensors, and the forward pass needs the cores
        try:
            work()
        except ClosedError:
            pass
        except BaseException as error:
            window.close(error)

    started = [threading.Thread(target=guarded, args=[work], name=f"gleansr-{work.__name__}", daemon=True) for work in (*readers, *writers)]
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
        torch.set_num_threads(threads)  # new threads inherit it
    window.check()
