"""What `gleansr compare` and `gleansr evaluate` share: progress and the printed tables."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from gleansr.cli.progress import CountedProgress, Printing

if TYPE_CHECKING:
    from gleansr.evaluation.compare import Watcher


Output = Annotated[Path | None, tyro.conf.arg(aliases=["-o"])]


def finish(report: dict[str, Any], folder: Path | None) -> None:
    """Prints the tables, says where the rest is, and exits with 1 if a method failed."""
    from gleansr.evaluation.report import facts, markdown_table, remarks
    from gleansr.evaluation.summary import tables

    said = facts(report)
    print(f"{said['Data']}; {said['Task']}; {said['Machine']}")
    for table in tables(report):
        print(f"\n{table.title}\n\n{markdown_table(table)}")
    print()
    for remark in remarks(report):
        print(remark)
    if folder is not None:
        Console(stderr=True, soft_wrap=True).print(f"side by side: {folder / 'index.html'}", markup=False, highlight=False)
    if any(method["failed"] for method in report["methods"]):
        raise SystemExit(1)


@contextmanager
def watching() -> Iterator["Watcher"]:
    """Bars, or lines in a log: of the images, and of the steps of a slow method."""
    from gleansr.evaluation.compare import Watcher

    console = Console(stderr=True, soft_wrap=True)
    handler = Printing(console)
    logging.getLogger("gleansr").addHandler(handler)
    try:
        with CountedProgress(console) as bars:
            images = bars.add_task("", total=None)
            steps = bars.add_task("steps", total=None, visible=False)
            current = ""

            def progress(what: str, done: int, total: int) -> None:
                nonlocal current
                if what != current:
                    bars.reset(images, description=what, total=total, completed=done)
                current = what
                bars.update(images, completed=done, total=total)
                bars.update(steps, visible=False)

            def step(done: int, total: int) -> None:
                bars.update(steps, visible=True, completed=done, total=total)

            yield Watcher(progress, step, lambda text: console.print(text, markup=False, highlight=False))
    finally:
        logging.getLogger("gleansr").removeHandler(handler)
