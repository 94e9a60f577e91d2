"""Admission control: limits the number of requests and the total size of their images; each editor keeps only its newest request."""

import asyncio
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from gleansr.serving.problems import Problem

TOTAL_SHARE = 4
"""Ratio of the limits on bytes and pixels of all requests to those of one."""

PROGRESS_BYTES = 2**16
"""Bytes that must move within `--stall-timeout`, in either direction."""

SLOW_SECONDS = 2.0
"""Seconds without PROGRESS_BYTES after which a request yields its slot to a waiting one."""


@dataclass(frozen=True)
class Progress:
    """How far a request is."""

    stage: Literal["reading", "waiting", "searching", "objects", "background", "finishing", "unknown"]
    """What is done: `reading` the upload, `waiting` for other requests, `searching` objects or recognising, `objects` enlarged by their
    models, `background`: the tiles of the rest, `finishing`: pasting and encoding; `unknown`: no such request is in progress."""
    done: int = 0
    """Finished objects or tiles."""
    total: int = 0
    """Of all; 0 if that is not known."""


class Ticket:
    """An admitted request. As a context manager, releases its resources on exit."""

    def __init__(self, admission: "Admission", editor: str | None):
        self._admission = admission
        self.editor = editor
        self.active = True
        """Whether the request is still being processed."""
        self.n_bytes = self.n_pixels = 0
        self.stopped: asyncio.Future[Problem] = asyncio.get_running_loop().create_future()
        """The reason why the request is aborted, if it is."""
        self.received = False
        """Whether its body is complete."""
        self.progress = Progress("reading")
        """Replaced by the threads that work on it."""
        self.last_progress = asyncio.get_running_loop().time()
        """Time of its start, or of its last PROGRESS_BYTES."""
        self._progress = 0

    def hold(self, n_bytes: int = 0, n_pixels: int = 0) -> None:
        """Reserves memory for the request. Thread-safe. Raises Problem "busy" if the total exceeds the limit."""
        self._admission.hold(self, n_bytes, n_pixels)

    def receive(self, n_bytes: int) -> None:
        """Reserves memory for a received part of the body, as `hold`."""
        self._progress += n_bytes
        if self._progress >= PROGRESS_BYTES:
            self._progress, self.last_progress = 0, asyncio.get_running_loop().time()
        if not self._admission.fits(n_bytes):
            self._admission.drop_slowest(self)
        self.hold(n_bytes)

    def stop(self, problem: Problem) -> None:
        if not self.stopped.done():
            self.stopped.set_result(problem)

    def start_forward(self) -> None:
        """From now on a newer request of the same editor no longer replaces this one."""
        self._admission.forget_editor(self)

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._admission.leave(self)


class Admission:
    """Admits requests. Only `hold` may be called outside of the event loop."""

    def __init__(self, slots: int, max_bytes: int, max_pixels: int, estimate_seconds: Callable[[int], float]):
        """`estimate_seconds` estimates the time for a number of requests."""
        self._slots, self._max_bytes, self._max_pixels = slots, TOTAL_SHARE * max_bytes, TOTAL_SHARE * max_pixels
        self._estimate_seconds = estimate_seconds
        self._active: set[Ticket] = set()
        self._editors: dict[str, Ticket] = {}
        self._held_bytes = self._held_pixels = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._active)

    def enter(self, editor: str | None) -> Ticket:
        """Admits a request, and aborts a waiting one of the same editor. Raises Problem "busy" if all slots are taken."""
        if editor and (older := self._editors.pop(editor, None)):
            older.stop(Problem("superseded", "the same editor sent a newer request; wait for its answer"))
            self.leave(older)
        if len(self._active) >= self._slots and not self.drop_slowest():
            raise self._busy(f"{len(self._active)} requests are being processed, the maximum")
        ticket = Ticket(self, editor)
        self._active.add(ticket)
        if editor:
            self._editors[editor] = ticket
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Releases the slot and the memory of a request."""
        self.forget_editor(ticket)
        self._active.discard(ticket)
        with self._lock:
            ticket.active = False
            self._held_bytes -= ticket.n_bytes
            self._held_pixels -= ticket.n_pixels
            ticket.n_bytes = ticket.n_pixels = 0

    def forget_editor(self, ticket: Ticket) -> None:
        if ticket.editor and self._editors.get(ticket.editor) is ticket:
            del self._editors[ticket.editor]

    def hold(self, ticket: Ticket, n_bytes: int, n_pixels: int) -> None:
        with self._lock:
            if not ticket.active:  # the caller has not noticed yet; the answer gives the reason in `stopped`
                raise Problem("client-gone", "the request was aborted")
            if self._held_bytes + n_bytes > self._max_bytes or self._held_pixels + n_pixels > self._max_pixels:
                raise self._busy("the images of all requests are too large in total")
            ticket.n_bytes += n_bytes
            ticket.n_pixels += n_pixels
            self._held_bytes += n_bytes
            self._held_pixels += n_pixels

    def fits(self, n_bytes: int) -> bool:
        return self._held_bytes + n_bytes <= self._max_bytes

    def drop_slowest(self, exclude: Ticket | None = None) -> bool:
        """Aborts the request with the slowest upload, if it is slow. Returns whether it did."""
        uploads = [ticket for ticket in self._active if not ticket.received and ticket is not exclude]
        slowest = min(uploads, key=lambda ticket: ticket.last_progress, default=None)
        if slowest is None or asyncio.get_running_loop().time() - slowest.last_progress < SLOW_SECONDS:
            return False
        slowest.stop(Problem("slow-upload", "the upload was slow while other requests were waiting; send it faster, or later"))
        self.leave(slowest)
        return True

    def _busy(self, reason: str) -> Problem:
        wait = max(1, math.ceil(self._estimate_seconds(len(self._active))))
        return Problem("busy", f"{reason}; try again in {wait} s", {"Retry-After": str(wait)})
