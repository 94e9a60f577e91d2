"""Items that are taken in a thread while others are worked on."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_PATIENCE = 0.2


@contextmanager
def ahead(items: Iterable[T], count: int, *, patience: float | None = None) -> Iterator[Iterator[T | None]]:
    """The items, up to `count` of them taken before they are asked for; None each time that nothing has come for a fifth of a second.

    What taking them raises is raised here. At the end of the block no more are taken, and the one that is being taken is waited for, so
    many seconds at most.
    """
    ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(count)
    ended = threading.Event()

    def put(item: tuple[T] | BaseException | None) -> None:
        while not ended.is_set():
            try:
                ready.put(item, timeout=_PATIENCE)
                break
            except queue.Full:
                continue

    def take() -> None:
        taken = iter(items)
        try:
            for item in taken:
                put((item,))
                if ended.is_set():
                    break
            put(None)
        except BaseException as error:
            put(error)
        finally:
            if isinstance(taken, Generator):  # whose own end is to be in this thread
                taken.close()

    def given() -> Iterator[T | None]:
        while True:
            try:
                item = ready.get(timeout=_PATIENCE)
            except queue.Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item[0]

    thread = threading.Thread(target=take, name="gleansr-ahead", daemon=True)
    thread.start()
    try:
        yield given()
    finally:
        ended.set()
        thread.join(patience)
