"""Progress and summary of `gleansr upscale`."""

import itertools
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from gleansr.cli.progress import COUNTED, Pace, duration, steps_of, warnings_above
from gleansr.files import printable
from gleansr.jobs import Destination, InputCounts, JobResult, Manifest, OutputError, UnreadableFolder, Work
from gleansr.jobs.folder import describe_model, describe_run
from gleansr.photos import AutoTask
from gleansr.signals import stop_on_signal

if TYPE_CHECKING:
    from gleansr.cluster import ClusterConfig, RemoteDestination

FEW = 10
"""Images up to which each result gets a line."""

SHOWN_FAILURES = 20
"""Rows of the table of failures."""


def upscale_all(
    destinations: "Sequence[Destination | RemoteDestination]",
    work: Work,
    *,
    model: str,
    scale: int | None,
    slow: bool,
    fail_fast: bool,
    verbose: bool,
    quiet: bool,
    cluster: "ClusterConfig | None" = None,
) -> None:
    """Runs all jobs, here or on a cluster, and reports on them. Exits unless all succeed: 1, or 3 if every failure is a photo without an
    object, or 130 and 143 after SIGINT and SIGTERM. `model` is its name in the summary, `scale` None
    if each image has its own.

    Raises:
        RequestError: there is nothing to do.
        OutputError: results can no longer be written.
    """
    console = Console(stderr=True, soft_wrap=True)
    manifests = [place.manifest for place in destinations if place.manifest]
    resume = "; run the same command again to resume" if manifests else ""
    try:
        tally, stopped_by = _run(console, destinations, work, cluster, slow=slow, fail_fast=fail_fast, verbose=verbose, quiet=quiet)
    except OutputError as error:
        raise OutputError(printable(f"{error}{resume}")) from error
    if tally.total != 1 or stopped_by:
        where = list(dict.fromkeys(str(place.root) for place in destinations))
        written = [manifest for manifest in manifests if isinstance(manifest, str) or manifest.exists()]
        tally.summarise(describe_model(scale, model), where, written, quiet=quiet)
    if stopped_by:
        console.print(f"gleansr: stopped by {stopped_by}{resume}", style="yellow", highlight=False)
        raise SystemExit(128 + signal.Signals[stopped_by])
    if tally.failed:
        raise SystemExit(3 if tally.exit_codes == {3} else 1)


def _run(
    console: Console,
    destinations: "Sequence[Destination | RemoteDestination]",
    work: Work,
    cluster: "ClusterConfig | None",
    *,
    slow: bool,
    fail_fast: bool,
    verbose: bool,
    quiet: bool,
) -> "tuple[Tally, str | None]":
    """Also returns the name of the signal that stopped the run."""
    if cluster:
        from gleansr.cluster import count, open_manifest, upscale_on_cluster, walk

        run = partial(upscale_on_cluster, cluster=cluster)
    else:
        from gleansr.jobs import count, run, walk

        open_manifest = Manifest
    with ExitStack() as stack:
        with console.status("counting images") if console.is_terminal else nullcontext():
            counted = [count(place) for place in destinations]  # wrong requests end here, before any write  # pyright: ignore[reportArgumentType]
            manifests = _open_manifests(destinations, open_manifest, stack)
            ours = [manifest.is_result if manifest else None for manifest in manifests]
            for i, place in enumerate(destinations):
                # Earlier results lie among the images.
                if isinstance(place, Destination) and place.root.resolve() in [path.resolve() for path in place.inputs]:
                    counted[i] = count(place, ours[i])
        total = sum(one.images for one in counted)
        expected = sum(manifest.index.done(work.fingerprint) for manifest in {id(one): one for one in manifests if one}.values())
        _report_left_out(console, counted)
        stop = stack.enter_context(stop_on_signal())
        stack.enter_context(warnings_above(console))
        tiled = work.task if total == 1 and isinstance(work.task, AutoTask) else None
        silent = not console.is_terminal or (total == 1 and not slow and not tiled)
        progress = stack.enter_context(Progress(*COUNTED, console=console, transient=True, disable=silent))
        tally = Tally(console, progress, total, expected, each=not quiet and (verbose or total <= FEW), lines=not quiet)
        if tiled and not quiet:
            tiled.report = steps_of(progress, "enlarging") if console.is_terminal else tally.print_tiles
        jobs = itertools.chain.from_iterable(walk(place, i, one) for i, (place, one) in enumerate(zip(destinations, ours, strict=True)))  # pyright: ignore[reportArgumentType]
        for result in run(
            jobs,
            work,
            manifests,
            stopped=lambda: stop.name is not None or (fail_fast and tally.failed > 0),
            report=steps_of(progress) if slow else None,
        ):
            tally.add(result)
    return tally, stop.name


def _open_manifests(
    destinations: "Sequence[Destination | RemoteDestination]", open_manifest: Callable[..., Manifest], stack: ExitStack
) -> list[Manifest | None]:
    """One per destination; destinations with the same file share one."""
    opened: dict[Path | str, Manifest] = {}
    for place in destinations:
        if place.manifest and place.manifest not in opened:
            opened[place.manifest] = stack.enter_context(open_manifest(place.manifest))
    return [opened[place.manifest] if place.manifest else None for place in destinations]


def _report_left_out(console: Console, counted: Sequence[InputCounts]) -> None:
    if links := sum(one.links for one in counted):
        console.print(f"links to folders are not followed ({links:,}); give them as inputs to include them", highlight=False)
    if results := sum(one.results for one in counted):
        console.print(
            f"{results:,} {'result of an earlier run is' if results == 1 else 'results of earlier runs are'} skipped", highlight=False
        )
    left_out: dict[str, tuple[int, str]] = {}
    for one in counted:
        for reason, group in one.left_out.items():
            number, first = left_out.get(reason, (0, group.first))
            left_out[reason] = number + group.files, first
    for reason, (number, first) in left_out.items():
        files = f"{number:,} files, such as {first}, are" if number > 1 else f"{first} is"
        console.print(printable(f"{files} left out ({reason})"), markup=False, highlight=False, style="yellow")


class Tally:
    """Counts results, prints them above a progress bar, and summarises."""

    def __init__(self, console: Console, progress: Progress, total: int, expected: int, *, each: bool, lines: bool):
        """`total`: images; `expected`: those that manifests list as done. `each`: a line for each result; `lines`: progress in lines."""
        self.done = self.failed = self.skipped = 0
        self.failures: list[tuple[str, str]] = []
        """The first failures: image and reason."""
        self.exit_codes: set[int] = set()
        self._console, self._progress, self._each = console, progress, each
        self._lines = lines and not each and not console.is_terminal
        self.total, self._expected = total, expected
        self._pace, self._tiles_pace = Pace(), Pace()
        self._task: TaskID = progress.add_task("upscaling", total=self.remaining, visible=total > 1)

    @property
    def remaining(self) -> int:
        """Images that are not skipped: an estimate by the manifests at first, exact at the end."""
        ended = self.done + self.failed
        return max(ended, self.total - max(self.skipped, min(self._expected, self.total - ended)))

    def add(self, result: JobResult | UnreadableFolder) -> None:
        """Counts and prints a result."""
        if isinstance(result, UnreadableFolder):
            self.total += 1
            self._fail(result.folder, f"the folder cannot be read: {result.reason}", 1)
        elif result.error:
            self._fail(result.job.source, result.reason, result.error.exit_code)
        elif result.status == "skipped":
            self.skipped += 1
        else:
            self.done += 1
            if self._each:
                notes = f" ({'; '.join(result.notes)})" if result.notes else ""
                self._print(f"{result.job.source} → {result.job.target}: {result.summary}{notes}")
        description = f"upscaling ({self.skipped:,} done before)" if self.skipped else "upscaling"
        self._progress.update(self._task, completed=self.done + self.failed, total=self.remaining, description=description)
        self._print_progress()

    def _print_progress(self) -> None:
        """A line for logs, where there is no terminal."""
        ended, total = self.done + self.failed, self.remaining
        if self._lines and self._pace.is_due(ended, total):
            failed = f", {self.failed:,} failed" if self.failed else ""
            self._print(f"{ended:,} of {total:,} images ({ended / total:.0%}){failed}, {self._pace.left(ended, total)}")

    def print_tiles(self, done: int, total: int) -> None:
        """A line on the tiles of a large image, for logs."""
        if self._tiles_pace.is_due(done, total):
            self._print(f"{done:,} of {total:,} tiles ({done / total:.0%}), {self._tiles_pace.left(done, total)}")

    def summarise(self, what: str, where: Sequence[str], manifests: Sequence[Path | str], *, quiet: bool) -> None:
        """Prints how many images are where, and a table of failures.

        Args:
            what: scale and model.
            where: folders of results.
            manifests: files that list all failures.
            quiet: print failures only.
        """
        seconds = time.monotonic() - self._pace.started
        if self.failed:
            self._console.print(self._table(manifests))
        if quiet:
            return
        folder = " and ".join(where[:2]) + (f" and {len(where) - 2} more folders" if len(where) > 2 else "")
        pace = f" in {duration(seconds)}"
        if self.done > FEW and not self.failed:
            pace += f", {self.done / max(seconds, 1e-9):.3g} images/s"
        missing = self.remaining - self.done - self.failed
        self._print(describe_run(self.done, self.failed, self.skipped, folder, what, missing=missing, pace=pace))

    def _table(self, manifests: Sequence[Path | str]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, title="Failures", title_justify="left")
        table.add_column("image", overflow="fold")
        table.add_column("reason", overflow="fold")
        for image, reason in self.failures:
            table.add_row(Text(image), Text(reason))  # no markup
        if more := self.failed - len(self.failures):
            where = f", see {' and '.join(map(str, manifests))}" if manifests else ""
            table.caption = Text(printable(f"and {more:,} more{where}"))
        return table

    def _fail(self, image: str, reason: str, exit_code: int) -> None:
        self.failed += 1
        self.exit_codes.add(exit_code)
        image, reason = printable(image), printable(reason)
        if len(self.failures) < SHOWN_FAILURES:
            self.failures.append((image, reason))
        self._console.print(f"gleansr: {image}: {reason}", style="red", markup=False, highlight=False)

    def _print(self, text: str) -> None:
        self._console.print(printable(text), markup=False, highlight=False)
