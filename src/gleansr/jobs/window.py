"""What lies between reading and writing: in the order of the jobs, and never more of it than a bound."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

J = TypeVar("J")
T = TypeVar("T")
O = TypeVar("O")  # noqa: E741

_UNHEARD = 4096


class ClosedError(Exception):
    """The window was closed while a thread waited."""


class Window(Generic[J, T, O]):
    """Jobs that several threads read, and that one takes in their order, with what is told of them.

    Its bounds count what was taken, too, until it is released. A job is begun while fewer than `count` are open. It is admitted, in order,
    while those before weigh half of `weight` at most: together they weigh its half and the heaviest of them at most. Who takes must not
    wait for more to come while he has more than half of either, or readers and he would wait for each other.
    """

    def __init__(self, jobs: Iterator[J], count: int, weight: int):
        self._jobs = jobs
        self._count, self._weight = count, weight
        self._source = threading.Lock()
        self._changed = threading.Condition()
        self._begun = self._admitted = self._taken = self._open = self._weighed = 0
        self._ready: dict[int, T] = {}
        self._weights: dict[int, int] = {}
        self._told: deque[O] = deque()
        self._ended = self._closed = False
        self._error: BaseException | None = None

    def begin(self) -> tuple[int, J] | None:
        """The next job and its number, when there is room; None when there are no more. What the jobs' source raises is raised here."""
        with self._changed:
            self._wait(lambda: self._open < self._count or self._ended)
            self._open += 1
        with self._source:  # which may take long, and tell of jobs that it leaves out
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
        """Waits until all jobs before it are admitted and there is room for its weight. Further calls for a number do nothing."""
        with self._changed:
            if number in self._weights:
                return
            self._wait(lambda: self._admitted == number and self._weighed <= self._weight // 2)
            self._weights[number] = weight
            self._weighed += weight
            self._admitted += 1
            self._changed.notify_all()

    def lighten(self, number: int, weight: int) -> None:
        """Less is kept of a job from now on."""
        with self._changed:
            self._weighed += weight - self._weights[number]
            self._weights[number] = weight
            self._changed.notify_all()

    def put(self, number: int, item: T) -> None:
        """What was read of a job, which has been admitted."""
        with self._changed:
            self._ready[number] = item
            self._changed.notify_all()

    def take(self, patience: float) -> tuple[int, int, T] | None:
        """The next in order: its number, weight and item; None if there is no more.

        Raises TimeoutError after so many seconds, or if something is told, and the error with which the window was closed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._told or self._taken in self._ready or (self._ended and self._taken == self._begun), patience
            )
            self.check()
            if self._taken in self._ready:
                number, self._taken = self._taken, self._taken + 1
                return number, self._weights[number], self._ready.pop(number)
            if self._ended and self._taken == self._begun:
                return None
            raise TimeoutError

    def release(self, number: int) -> None:
        """To be called when nothing is kept of a job any more."""
        with self._changed:
            self._weighed -= self._weights.pop(number)
            self._open -= 1
            self._changed.notify_all()

    def tell(self, outcome: O, *, bounded: bool = False) -> None:
        """Says what became of a job. `bounded`: waits while much is unheard; not for those on whom the listener waits."""
        with self._changed:
            if bounded:
                self._wait(lambda: len(self._told) < _UNHEARD)
            self._told.append(outcome)
            if len(self._told) == 1:
                self._changed.notify_all()

    def told(self) -> Iterator[O]:
        """What has been told since the last call."""
        with self._changed:
            heard = list(self._told)
            self._told.clear()
            self._changed.notify_all()
        yield from heard

    def close(self, error: BaseException | None = None) -> None:
        """Lets all who wait go, readers with ClosedError, who takes with the first error."""
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
