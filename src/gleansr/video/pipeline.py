"""Processes the frames of a video in order: overlaps decoding, forward passes and encoding, in bounded memory.

Unlike `jobs.pipeline`, which yields results as they end, writes them in the order of the frames and stops at the first error.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch

from gleansr.errors import ImageError
from gleansr.images.codec import DecodedImage
from gleansr.inference.method import StepReport
from gleansr.inference.runner import BatchRunners, FeedForwardModel, SRResult
from gleansr.inference.tasks import ImageTask, PreparedImage, TaskResult
from gleansr.jobs.batches import BatchCollector, BatchItem
from gleansr.jobs.pipeline import MEMORY, SearchStoppedError, estimated_bytes, finishing_threads
from gleansr.video.reading import VideoFrame


@dataclass(eq=False)
class _PendingFrame:
    """A frame between reading and writing."""

    frame: VideoFrame
    prepared: PreparedImage
    outputs: list[SRResult | None]
    """Per model input."""
    memory: int


def process_frames(
    frames: Iterator[VideoFrame],
    task: ImageTask,
    batch_size: int,
    write: Callable[[VideoFrame, TaskResult], None],
    *,
    stopped: Callable[[], bool] = lambda: False,
    report: StepReport | None = None,
    memory: int = MEMORY,
) -> None:
    """Enlarges all frames and passes the results in order to `write`, in another thread.

    One thread decodes and prepares, a few frames ahead; this thread runs the forward passes; others finish; one writes. The last bits of
    an output can depend on its batch size, but equal frames must have equal results. On a CPU `BatchRunner` ensures that; on other devices
    all batches here have the same size, padded with a repeated input.

    Args:
        frames: read by another thread.
        task: for each image, whose name identifies it.
        batch_size: maximum number of inputs in a forward pass.
        write: called with the frame, without its pixels, and the result.
        stopped: called between forward passes and at each step of a slow method; stops if true.
        report: called with the progress of a slow method in each batch.
        memory: estimated limit in bytes for the frames between reading and writing; two are always admitted.

    Raises:
        SearchStoppedError: `stopped` returned true.
        GleansrError: of the first frame that cannot be read, processed or written.
    """

    def step(done: int, total: int) -> None:
        if stopped():
            raise SearchStoppedError
        if report:
            report(done, total)

    def read() -> _PendingFrame | None:
        frame = next(frames, None)
        if frame is None:
            return None
        height, width = frame.image.size
        prepared = task.prepare(frame.image)
        without_pixels = replace(frame, image=DecodedImage(torch.empty(3, 0, 0), name=frame.image.name, notes=frame.image.notes))
        return _PendingFrame(without_pixels, prepared, [None] * len(prepared.lrs), estimated_bytes(task, width, height))

    def write_when_finished(frame: VideoFrame, result: Future[TaskResult]) -> None:
        write(frame, result.result())

    def submit_finished() -> None:
        """Submits the next frames for writing, up to the first without all outputs."""
        nonlocal submitted
        while submitted in pending and all(pending[submitted].outputs):
            done = pending.pop(submitted)
            writing.append(writer.submit(write_when_finished, done.frame, finishers.submit(_finish, done)))
            submitted += 1

    def collect() -> None:
        batch, wait = running.popleft()
        for item, output in zip(batch, wait()[: len(batch)], strict=True):
            if output.error:
                raise ImageError(f"{pending[item.image].frame.image.name}: {output.error}") from output.error
            pending[item.image].outputs[item.part] = output
        submit_finished()

    reading: deque[Future[_PendingFrame | None]] = deque()
    pending: dict[int, _PendingFrame] = {}  # before or during a forward pass
    ready: deque[list[BatchItem]] = deque()
    running: deque[tuple[list[BatchItem], Callable[[], list[SRResult]]]] = deque()
    writing: deque[Future[None]] = deque()
    read_count = submitted = 0
    with ExitStack() as resources:
        resources.callback(getattr(frames, "close", lambda: None))
        reader, finishers, writer = (_threads(resources, count) for count in (1, finishing_threads(task), 1))
        reading.append(reader.submit(read))
        if (first := reading[0].result()) is None:
            return
        limit = max(2, min(4 * batch_size + 4, memory // first.memory))
        size = min(batch_size, limit // 2)
        runners, batches = BatchRunners(task.upscaler.method, size, step), BatchCollector(size, limit, limit)
        min_size = size if isinstance(task.upscaler.method, FeedForwardModel) and task.upscaler.device.type != "cpu" else 1
        ended = False
        while True:
            if stopped():
                raise SearchStoppedError
            while writing and writing[0].done():
                writing.popleft().result()
            while not ended and len(reading) <= size and len(reading) + len(pending) + len(writing) < limit:
                reading.append(reader.submit(read))
            if ready and len(running) < runners.concurrency:
                batch = ready.popleft()
                lrs = [item.lr for item in batch]
                runner = runners.of(batch[0].upscaler and batch[0].upscaler.method)
                running.append((batch, runner.start(lrs + lrs[:1] * (min_size - len(lrs)))))
            elif running and (len(running) == runners.concurrency or not (reading and reading[0].done())):
                collect()
            elif reading:
                frame = reading.popleft().result()
                if frame is None:
                    ended = True
                    reading.clear()  # all further results are None
                    ready.extend(batches.rest())
                else:
                    pending[read_count] = frame
                    ready.extend(batches.add(read_count, 0, frame.prepared.lrs, frame.prepared.upscalers))
                    read_count += 1
                    submit_finished()
            elif writing:
                writing.popleft().result()
            elif pending:  # the limit admits no further frames
                ready.extend(batches.rest())
            else:
                return


def _finish(done: _PendingFrame) -> TaskResult:
    outputs = [output for output in done.outputs if output]
    return done.prepared.finish([output.sr for output in outputs if output.sr is not None], [output.note for output in outputs])


def _threads(resources: ExitStack, count: int) -> ThreadPoolExecutor:
    """A pool whose threads use one core each, beside the forward pass. Drops jobs that have not started when the resources close."""
    pool = ThreadPoolExecutor(count, "gleansr-video", partial(torch.set_num_threads, 1))
    resources.callback(pool.shutdown, cancel_futures=True)
    return pool
