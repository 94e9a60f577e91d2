"""Work that ends well when a signal asks for it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether the work has been asked to stop. `name` is that of the signal."""

    name: str | None = None


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Within the block SIGTERM and SIGINT ask the work to stop after its step; a second one stops it at once."""
    stop = Stop()

    def ask(number: int, _: FrameType | None) -> None:
        stop.name = signal.Signals(number).name
        for kind in kept:
            signal.signal(kind, kept[kind])

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return
    kept = {kind: signal.signal(kind, ask) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for kind, handler in kept.items():
            signal.signal(kind, handler)
