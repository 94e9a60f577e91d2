"""A bounded, ordered window between the readers of images and the forward passes."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

J = TypeVar("J")
T = TypeVar("T")
O = TypeVar("O")  # noqa: E741

_MAX_EVENTS = 4096


class ClosedError(Exception):
    """The window was closed while a thread waited."""


class Window(Generic[J, T, O]):
    """Jobs that several threads read and one thread takes in order, and a queue of events.

    The limits include taken jobs until they are released. A job begins while fewer than `count` jobs are open. Jobs are admitted in order,
    each when the weight of those before is at most half of `weight`. So all weigh at most that half plus the heaviest job. The taking
    thread must not wait for more jobs while it holds more than half of either limit, or readers and taker deadlock.
    """

    def __init__(self, jobs: Iterator[J], count: int, weight: int):
        self._jobs = jobs
        self._count, self._weight = count, weight
        self._source = threading.Lock()
        self._changed = threading.Condition()
        self._begun = self._admitted = self._taken = self._open = self._total_weight = 0
        self._ready: dict[int, T] = {}
        self._weights: dict[int, int] = {}
        self._events: deque[O] = deque()
        self._ended = self._closed = False
        self._error: BaseException | None = None

    def begin(self) -> tuple[int, J] | None:
        """The next job and its number, once there is room; None after the last job. Raises the errors of the source of jobs."""
        with self._changed:
            self._wait(lambda: self._open < self._count or self._ended)
            self._open += 1
        with self._source:  # which can take long and can post events
            try:
                job = next(self._jobs) if not self._ended else None
            except StopIteration:
                job = None
            with self._changed:
                if job is None:
                    self._ended = True
                    self._changed.notify_all()
                    return None
                self._begun += 1
                return self._begun - 1, job

    def admit(self, number: int, weight: int) -> None:
        """Waits until all earlier jobs are admitted and there is room for the weight. Repeated calls for a number do nothing."""
        with self._changed:
            if number in self._weights:
                return
            self._wait(lambda: self._admitted == number and self._total_weight <= self._weight // 2)
            self._weights[number] = weight
            self._total_weight += weight
            self._admitted += 1
            self._changed.notify_all()

    def lighten(self, number: int, weight: int) -> None:
        """Reduces the weight of a job."""
        with self._changed:
            self._total_weight += weight - self._weights[number]
            self._weights[number] = weight
            self._changed.notify_all()

    def put(self, number: int, item: T) -> None:
        """Hands over the item of an admitted job."""
        with self._changed:
            self._ready[number] = item
            self._changed.notify_all()

    def take(self, timeout: float) -> tuple[int, int, T] | None:
        """The next item in order: its number, weight and item; None after the last.

        Raises TimeoutError after `timeout` seconds or when there are events, and the error with which the window was closed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._events or self._taken in self._ready or (self._ended and self._taken == self._begun), timeout
            )
            self.check()
            if self._taken in self._ready:
                number, self._taken = self._taken, self._taken + 1
                return number, self._weights[number], self._ready.pop(number)
            if self._ended and self._taken == self._begun:
                return None
            raise TimeoutError

    def release(self, number: int) -> None:
        """Frees the room of a job. Call it when nothing of the job is in memory."""
        with self._changed:
            self._total_weight -= self._weights.pop(number)
            self._open -= 1
            self._changed.notify_all()

    def post(self, event: O, *, bounded: bool = False) -> None:
        """Queues an event. `bounded`: waits while the queue is full; not for threads on which the consumer waits."""
        with self._changed:
            if bounded:
                self._wait(lambda: len(self._events) < _MAX_EVENTS)
            self._events.append(event)
            if len(self._events) == 1:
                self._changed.notify_all()

    def events(self) -> Iterator[O]:
        """The events since the last call."""
        with self._changed:
            events = list(self._events)
            self._events.clear()
            self._changed.notify_all()
        yield from events

    def close(self, error: BaseException | None = None) -> None:
        """Wakes all waiting threads: readers with ClosedError, the taking thread with the first error."""
        with self._changed:
            self._error = self._error or error
            self._closed = True
            self._changed.notify_all()

    def check(self) -> None:
        """Raises the first error with which the window was closed."""
        if self._error:
            raise self._error

    def _wait(self, condition: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: self._closed or condition())
        if self._closed:
            raise ClosedError
