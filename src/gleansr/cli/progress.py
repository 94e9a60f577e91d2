"""Progress of downloads and of training on the terminal."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

COUNTED = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
"""Columns of a bar over images."""


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
    console = Console(stderr=True)
    with Progress(*COUNTED, console=console, transient=True, disable=not console.is_terminal) as progress:
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
