"""Progress of downloads and of training on the terminal."""

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
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


def fetched(model: str, offline: bool) -> Path:
    """The file of a model, with a progress bar where it is downloaded."""
    from gleansr.checkpoints.zoo import model_path

    columns = (
        TextColumn("fetching {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with ExitStack() as shown:  # nothing is shown for a file that is here already
        progress = Progress(*columns, console=Console(stderr=True), transient=True)
        task = progress.add_task(model, total=None)

        def received(done: int, total: int | None) -> None:
            if not progress.live.is_started:
                shown.enter_context(progress)
            progress.update(task, completed=done, total=total)

        return model_path(model, offline=offline or None, progress=received)


@contextmanager
def training(total: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """A bar over `total` pictures; yields what to call with the pictures seen and the line of the log."""
    console = Console(stderr=True, soft_wrap=True)
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=total)

        def report(images: int, line: dict[str, Any]) -> None:
            progress.update(task, completed=images)
            values = (f"{key} {value:.4g}" for key, value in line.items() if isinstance(value, float))
            console.print(f"{images:>9,}  {'  '.join(values)}", markup=False, highlight=False)

        yield report
