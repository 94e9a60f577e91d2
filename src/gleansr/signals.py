"""Graceful stop on signals."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """A request to stop: `name` is the name of the signal, None before one arrives."""

    name: str | None = None


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Within the block, SIGTERM and SIGINT set `Stop.name`, for a stop after the current step; a second one acts as usual."""
    stop = Stop()

    def handle(number: int, _: FrameType | None) -> None:
        stop.name = signal.Signals(number).name
        for kind, handler in previous.items():
            signal.signal(kind, handler)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return
    previous = {kind: signal.signal(kind, handle) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
