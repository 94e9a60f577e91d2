"""The images of a video through a model in their order: decoding, forward passes and encoding overlapped, in bounded memory."""

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
from gleansr.inference.runner import BatchRunner, FeedForwardModel, SRResult
from gleansr.inference.tasks import ImageTask, PreparedImage, TaskResult
from gleansr.jobs.batches import BatchCollector, BatchItem
from gleansr.jobs.pipeline import MEMORY, SearchStoppedError, estimated_bytes, finishing_threads
from gleansr.video.reading import Shot

Write = Callable[[Shot, TaskResult], None]


@dataclass(eq=False)
class _Open:
    """An image between reading and writing."""

    shot: Shot
    prepared: PreparedImage
    made: list[SRResult | None]
    """Of each low."""
    weight: int


def flow(
    shots: Iterator[Shot],
    task: ImageTask,
    batch_size: int,
    write: Write,
    *,
    stopped: Callable[[], bool] = lambda: False,
    report: StepReport | None = None,
    memory: int = MEMORY,
) -> None:
    """Enlarges all images and hands the results to `write`, in their order, which another thread calls.

    One thread decodes and prepares, a few images ahead; this one makes the forward passes; others finish; one writes. What becomes of a
    low can depend, in its last bits, on how many share its pass, and equal images are to have equal results wherever in the video they
    are. On a CPU `BatchRunner` sees to that; on other devices each pass here has the same number: where there are fewer, one is made again.

    Args:
        shots: are read by another thread.
        task: what to do with each; its `Shot.image.name` tells which it is.
        batch_size: most lrs in a forward pass.
        write: gets the shot without its pixels, and the result.
        stopped: asked between forward passes, and at each step of a slow method.
        report: is told of the progress of a slow method with each batch.
        memory: bytes that the images between reading and writing may take together, by estimate; two are always let in.

    Raises:
        StoppedError: it was stopped.
        GleansrError: of the first image that cannot be read, made or written.
    """

    def step(done: int, total: int) -> None:
        if stopped():
            raise SearchStoppedError
        if report:
            report(done, total)

    def read() -> _Open | None:
        shot = next(shots, None)
        if shot is None:
            return None
        height, width = shot.image.size
        prepared = task.prepare(shot.image)
        without = replace(shot, image=DecodedImage(torch.empty(3, 0, 0), name=shot.image.name, notes=shot.image.notes))
        return _Open(without, prepared, [None] * len(prepared.lrs), estimated_bytes(task, width, height))

    def write_when_finished(shot: Shot, result: Future[TaskResult]) -> None:
        write(shot, result.result())

    def hand_over() -> None:
        """What is made goes to be finished and written, as long as it is next."""
        nonlocal handed
        while handed in opened and all(opened[handed].made):
            done = opened.pop(handed)
            writing.append(writer.submit(write_when_finished, done.shot, finishers.submit(_finish, done)))
            handed += 1

    def collect() -> None:
        batch, end = under_way.popleft()
        for item, made in zip(batch, end()[: len(batch)], strict=True):
            if made.error:
                raise ImageError(f"{opened[item.image].shot.image.name}: {made.error}") from made.error
            opened[item.image].made[item.part] = made
        hand_over()

    waiting: deque[Future[_Open | None]] = deque()  # being read, in order
    opened: dict[int, _Open] = {}  # before or within a forward pass
    ready: deque[list[BatchItem]] = deque()
    under_way: deque[tuple[list[BatchItem], Callable[[], list[SRResult]]]] = deque()
    writing: deque[Future[None]] = deque()
    taken = handed = 0  # images taken from the reader, and handed to the writer
    with ExitStack() as ending:
        ending.callback(getattr(shots, "close", lambda: None))
        reader, finishers, writer = (_threads(ending, count) for count in (1, finishing_threads(task), 1))
        waiting.append(reader.submit(read))
        if (first := waiting[0].result()) is None:
            return
        most = max(2, min(4 * batch_size + 4, memory // first.weight))
        size = min(batch_size, most // 2)
        runner, batches = BatchRunner(task.upscaler.method, size, step), BatchCollector(size, most, most)
        together = size if isinstance(task.upscaler.method, FeedForwardModel) and task.upscaler.device.type != "cpu" else 1
        ended = False
        while True:
            if stopped():
                raise SearchStoppedError
            while writing and writing[0].done():
                writing.popleft().result()
            while not ended and len(waiting) <= size and len(waiting) + len(opened) + len(writing) < most:
                waiting.append(reader.submit(read))
            if ready and len(under_way) < runner.concurrency:
                batch = ready.popleft()
                lrs = [item.lr for item in batch]
                under_way.append((batch, runner.start(lrs + lrs[:1] * (together - len(lrs)))))
            elif under_way and (len(under_way) == runner.concurrency or not (waiting and waiting[0].done())):
                collect()
            elif waiting:
                new = waiting.popleft().result()
                if new is None:
                    ended = True
                    waiting.clear()  # whose results are None, too
                    ready.extend(batches.rest())
                else:
                    opened[taken] = new
                    ready.extend(batches.add(taken, 0, new.prepared.lrs))
                    taken += 1
                    hand_over()
            elif writing:
                writing.popleft().result()
            elif opened:  # no more can be let in before these are done
                ready.extend(batches.rest())
            else:
                return


def _finish(done: _Open) -> TaskResult:
    made = [one for one in done.made if one]
    return done.prepared.finish([one.sr for one in made if one.sr is not None], [one.note for one in made])


def _threads(ending: ExitStack, count: int) -> ThreadPoolExecutor:
    """Threads that use one core each, while a forward pass has the others. What they have not begun is dropped at the end."""
    pool = ThreadPoolExecutor(count, "gleansr-video", partial(torch.set_num_threads, 1))
    ending.callback(pool.shutdown, cancel_futures=True)
    return pool
