"""Who is let in: a bounded number of requests, with a bounded amount of images, and of each editor the newest."""

import asyncio
import math
import threading
from collections.abc import Callable
from types import TracebackType

from gleansr.serving.problems import Problem

SHARE = 4
"""All requests together may hold so many times the bytes and pixels that one may hold."""

PIECE = 2**16
"""Bytes that have to move within `--stall-timeout`, in either direction."""

SLOW = 2.0
"""Seconds without a PIECE after which a request gives up its place where others have none."""


class Ticket:
    """A request that was let in. As a context manager it is given back at the end."""

    def __init__(self, admission: "Admission", editor: str | None):
        self._admission = admission
        self.editor = editor
        self.inside = True
        """Whether the request is still worked on."""
        self.bytes = self.pixels = 0
        self.stopped: asyncio.Future[Problem] = asyncio.get_running_loop().create_future()
        """Is set to why the request is given up, if it is."""
        self.arrived = False
        """Whether all of its body has come."""
        self.moved = asyncio.get_running_loop().time()
        """When it began, or its last PIECE came."""
        self._piece = 0

    def hold(self, bytes: int = 0, pixels: int = 0) -> None:
        """Counts what the request takes; from any thread. Raises Problem "busy" where all together take too much."""
        self._admission.hold(self, bytes, pixels)

    def take(self, bytes: int) -> None:
        """As `hold`, of a part of the body that has just come."""
        self._piece += bytes
        if self._piece >= PIECE:
            self._piece, self.moved = 0, asyncio.get_running_loop().time()
        if not self._admission.fits(bytes):
            self._admission.drop_slowest(self)
        self.hold(bytes)

    def stop(self, problem: Problem) -> None:
        if not self.stopped.done():
            self.stopped.set_result(problem)

    def refining(self) -> None:
        """From now on a newer request of the same editor comes too late to save the work."""
        self._admission.forget_editor(self)

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._admission.leave(self)


class Admission:
    """Lets requests in. Is called on the event loop only, but for `hold`."""

    def __init__(self, slots: int, max_bytes: int, max_pixels: int, seconds: Callable[[int], float]):
        """`seconds` estimates how long so many requests take."""
        self._slots, self._bytes, self._pixels = slots, SHARE * max_bytes, SHARE * max_pixels
        self._seconds = seconds
        self._inside: set[Ticket] = set()
        self._editors: dict[str, Ticket] = {}
        self._held_bytes = self._held_pixels = 0
        self._holding = threading.Lock()

    def __len__(self) -> int:
        return len(self._inside)

    def enter(self, editor: str | None) -> Ticket:
        """Lets a request in. The one of the same editor that still waits has to go. Raises Problem "busy" when there is no room."""
        if editor and (older := self._editors.pop(editor, None)):
            older.stop(Problem("superseded", "a newer request of the same editor was sent; wait for its answer"))
            self.leave(older)
        if len(self._inside) >= self._slots and not self.drop_slowest():
            raise self._busy(f"{len(self._inside)} requests are being worked on, which is the most")
        ticket = Ticket(self, editor)
        self._inside.add(ticket)
        if editor:
            self._editors[editor] = ticket
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Gives back what the request took."""
        self.forget_editor(ticket)
        self._inside.discard(ticket)
        with self._holding:
            ticket.inside = False
            self._held_bytes -= ticket.bytes
            self._held_pixels -= ticket.pixels
            ticket.bytes = ticket.pixels = 0

    def forget_editor(self, ticket: Ticket) -> None:
        if ticket.editor and self._editors.get(ticket.editor) is ticket:
            del self._editors[ticket.editor]

    def hold(self, ticket: Ticket, bytes: int, pixels: int) -> None:
        with self._holding:
            if not ticket.inside:  # a thread or a task that has not noticed yet; what is answered is why it was stopped
                raise Problem("client-gone", "the request was given up")
            if self._held_bytes + bytes > self._bytes or self._held_pixels + pixels > self._pixels:
                raise self._busy("the images of all requests together are too large at the moment")
            ticket.bytes += bytes
            ticket.pixels += pixels
            self._held_bytes += bytes
            self._held_pixels += pixels

    def fits(self, bytes: int) -> bool:
        return self._held_bytes + bytes <= self._bytes

    def drop_slowest(self, besides: Ticket | None = None) -> bool:
        """Gives up the request whose body comes the slowest, if one comes slowly. Returns whether there was one."""
        coming = [ticket for ticket in self._inside if not ticket.arrived and ticket is not besides]
        slowest = min(coming, key=lambda ticket: ticket.moved, default=None)
        if slowest is None or asyncio.get_running_loop().time() - slowest.moved < SLOW:
            return False
        slowest.stop(Problem("slow-upload", "the request came slowly and others are waiting; send it faster, or later"))
        self.leave(slowest)
        return True

    def _busy(self, why: str) -> Problem:
        wait = max(1, math.ceil(self._seconds(len(self._inside))))
        return Problem("busy", f"{why}; try again in {wait} s", {"Retry-After": str(wait)})
