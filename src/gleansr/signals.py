"""Graceful stop on signals, also of child processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
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


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Processes started within the block ignore Ctrl-C, which reaches all processes of a terminal; their parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # at its first use it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Ends this process with its parent, even if the parent is killed."""
    if parent := multiprocessing.parent_process():

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
