"""An iterator that prefetches items in a thread. Unlike `jobs.Window` it has one source and no weights, and it never blocks for long."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.2


@contextmanager
def prefetch(items: Iterable[T], count: int, *, timeout: float | None = None) -> Iterator[Iterator[T | None]]:
    """The items, with up to `count` prefetched; None whenever nothing arrives for a fifth of a second.

    Errors of `items` are raised here. At the end of the block prefetching stops, and the current item is awaited for at most `timeout`
    seconds.
    """
    ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(count)
    ended = threading.Event()

    def put(item: tuple[T] | BaseException | None) -> None:
        while not ended.is_set():
            try:
                ready.put(item, timeout=_POLL_SECONDS)
                break
            except queue.Full:
                continue

    def take() -> None:
        source = iter(items)
        try:
            for item in source:
                put((item,))
                if ended.is_set():
                    break
            put(None)
        except BaseException as error:
            put(error)
        finally:
            if isinstance(source, Generator):  # close it in its own thread
                source.close()

    def items_or_none() -> Iterator[T | None]:
        while True:
            try:
                item = ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item[0]

    thread = threading.Thread(target=take, name="gleansr-prefetch", daemon=True)
    thread.start()
    try:
        yield items_or_none()
    finally:
        ended.set()
        thread.join(timeout)
