"""Progress of downloads, of training and of what is counted: bars on a terminal, lines in a log."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gleansr.files import printable

COUNTED = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
"""Columns of a bar over images."""


class Pace:
    """When a log receives a line of progress."""

    INTERVAL, SHARE, PAUSE = 30.0, 0.05, 2.0
    """After so many seconds, or after so large a share of the work and so long a pause."""

    def __init__(self, done: float = 0):
        """`done`: what was done before, of which nothing is said and which counts for no speed."""
        self.started = self._printed = time.monotonic()
        self._first = self._printed_at = done

    def is_due(self, done: float, total: float) -> bool:
        """Whether a line about `done` of `total` is due, which then counts as printed. At the end none is: a summary follows."""
        passed = time.monotonic() - self._printed
        due = passed >= self.INTERVAL or (passed >= self.PAUSE and done - self._printed_at >= self.SHARE * total)
        if not due or not self._printed_at < done < total:
            return False
        self._printed, self._printed_at = time.monotonic(), done
        return True

    def left(self, done: float, total: float) -> str:
        """The time left, at the speed so far."""
        return f"about {duration((time.monotonic() - self.started) / (done - self._first) * (total - done))} left"


class CountedProgress(Progress):
    """Bars over what is counted, which vanish at the end; without a terminal, lines in a log."""

    def __init__(self, console: Console, columns: Sequence[ProgressColumn] = COUNTED, *, lines: bool = True):
        """`lines`: print lines where there is no terminal."""
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._lines = lines and not console.is_terminal
        self._paces: dict[TaskID, Pace] = {}

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As of `Progress`."""
        super().update(task_id, **changes)
        self._log(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As of `Progress`."""
        super().advance(task_id, advance)
        self._log(task_id)

    def reset(self, task_id: TaskID, **changes: Any) -> None:
        """As of `Progress`."""
        super().reset(task_id, **changes)
        self._paces[task_id] = Pace(self._tasks[task_id].completed)

    def _log(self, task_id: TaskID) -> None:
        task, pace = self._tasks[task_id], self._paces.setdefault(task_id, Pace())
        done, total = task.completed, task.total
        if self._lines and task.visible and total and pace.is_due(done, total):
            text = f"{task.description}: {done:,.0f} of {total:,.0f} ({done / total:.0%}), {pace.left(done, total)}"
            self.console.print(printable(text), markup=False, highlight=False)


def duration(seconds: float) -> str:
    """A time for people: 12.3 s, 4 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def fetched(model: str, offline: bool) -> Path:
    """The file of a model, with a progress bar where it is downloaded."""
    from gleansr.checkpoints.zoo import model_path

    with fetching(model) as progress:
        return model_path(model, offline=offline or None, progress=progress)


@contextmanager
def fetching(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar for a download; yields what to call with the bytes received and the size. Nothing is shown for a file that is here already."""
    columns = (
        TextColumn("fetching {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with ExitStack() as shown:
        progress = Progress(*columns, console=Console(stderr=True), transient=True)
        task = progress.add_task(name, total=None)

        def received(done: int, total: int | None) -> None:
            if not progress.live.is_started:
                shown.enter_context(progress)
            progress.update(task, completed=done, total=total)

        yield received


def steps_of(progress: Progress, what: str = "searching") -> Callable[[int, int], None]:
    """A second bar for the steps of a slow method, or the tiles of a large image, shown from the first one on."""
    tasks: list[TaskID] = []

    def report(done: int, total: int) -> None:
        if not tasks:
            tasks.append(progress.add_task(what, total=total))
        progress.update(tasks[0], completed=done, total=total)

    return report


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that counts; yields what to call with the number done and the total."""
    with CountedProgress(Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def training(total: int, *, shown: bool = True) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """A bar over `total` images; yields what to call with the images seen and the line of the log. Warnings appear above the bar."""
    console = Console(stderr=True, soft_wrap=True)
    speed = TextColumn("{task.fields[speed]} images/s")
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn(elapsed_when_finished=True))
    progress = Progress(*columns, console=console, disable=not shown, speed_estimate_period=600)
    with warnings_above(console), progress:
        task = progress.add_task("training", total=total, speed="-")

        def report(images: int, line: dict[str, Any]) -> None:
            progress.update(task, completed=images, speed=f"{line.get('images_per_second', 0):.1f}")
            values = (f"{key} {value:.4g}" for key, value in line.items() if isinstance(value, float))
            console.print(f"{images:>9,}  {'  '.join(values)}", markup=False, highlight=False)

        yield report


@contextmanager
def warnings_above(console: Console) -> Iterator[None]:
    """Prints gleansr's warnings above a bar of that console."""
    handler = Printing(console)
    logging.getLogger("gleansr").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("gleansr").removeHandler(handler)


class Printing(logging.Handler):
    """Prints warnings above a bar."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(f"gleansr: {record.getMessage()}", markup=False, highlight=False, style="yellow")
