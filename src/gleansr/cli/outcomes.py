"""What `gleansr upscale` says while it works and at the end."""

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

from gleansr.cli.progress import COUNTED, steps_of, warnings_above
from gleansr.files import shown
from gleansr.jobs import Destination, InputCounts, JobResult, Manifest, OutputError, UnreadableFolder, Work
from gleansr.signals import stoppable

if TYPE_CHECKING:
    from gleansr.cluster import ClusterConfig, RemoteDestination

FEW = 10
"""Images up to which each result gets a line."""

_ROWS = 20


def upscale_all(
    found: "Sequence[Destination | RemoteDestination]",
    work: Work,
    *,
    slow: bool,
    fail_fast: bool,
    verbose: bool,
    cluster: "ClusterConfig | None" = None,
) -> None:
    """Does the work of all places, here or on a cluster, says what becomes of it, and exits where not all was done: 1, 3 if all that failed
    is that nothing was found in photographs, 130 and 143 where SIGINT and SIGTERM stopped it.

    Raises:
        RequestError: there is nothing to do.
        OutputError: nothing more can be written.
    """
    console = Console(stderr=True, soft_wrap=True)
    resumable = any(place.manifest for place in found)
    goes_on = "; the same command goes on from here" if resumable else ""
    try:
        outcomes, stopped_by = _upscaled(console, found, work, cluster, slow=slow, fail_fast=fail_fast, verbose=verbose)
    except OutputError as error:
        raise OutputError(shown(f"{error}{goes_on}")) from error
    if outcomes.total != 1 or stopped_by:
        kept = [place.manifest for place in found if place.manifest]
        outcomes.sum_up(work.task.factor, [manifest for manifest in kept if isinstance(manifest, str) or manifest.exists()])
    if stopped_by:
        console.print(f"gleansr: stopped by {stopped_by}{goes_on}", style="yellow", highlight=False)
        raise SystemExit(128 + signal.Signals[stopped_by])
    if outcomes.failed:
        raise SystemExit(3 if outcomes.exit_codes == {3} else 1)


def _upscaled(
    console: Console,
    found: "Sequence[Destination | RemoteDestination]",
    work: Work,
    cluster: "ClusterConfig | None",
    *,
    slow: bool,
    fail_fast: bool,
    verbose: bool,
) -> "tuple[Outcomes, str | None]":
    """With the name of the signal that stopped it."""
    if cluster:
        from gleansr.cluster import count, open_manifest, upscale_on_cluster, walk

        run = partial(upscale_on_cluster, cluster=cluster)
    else:
        from gleansr.jobs import count, run, walk

        open_manifest = Manifest
    with ExitStack() as ending:
        with console.status("counting images") if console.is_terminal else nullcontext():
            counted = [count(place) for place in found]  # wrong requests end here, before any write  # pyright: ignore[reportArgumentType]
            manifests = _manifests(found, open_manifest, ending)
            ours = [manifest.is_result if manifest else None for manifest in manifests]
            for i, place in enumerate(found):
                # Earlier results are among the images.
                if isinstance(place, Destination) and place.root.resolve() in [path.resolve() for path in place.inputs]:
                    counted[i] = count(place, ours[i])
        total = sum(one.images for one in counted)
        expected = sum(manifest.index.done(work.fingerprint) for manifest in {id(one): one for one in manifests if one}.values())
        _say_what_is_left_out(console, counted)
        stop = ending.enter_context(stoppable())
        ending.enter_context(warnings_above(console))
        silent = not console.is_terminal or (total == 1 and not slow)
        progress = ending.enter_context(Progress(*COUNTED, console=console, transient=True, disable=silent))
        outcomes = Outcomes(console, progress, total, expected, each=verbose or total <= FEW)
        jobs = itertools.chain.from_iterable(walk(place, i, one) for i, (place, one) in enumerate(zip(found, ours, strict=True)))  # pyright: ignore[reportArgumentType]
        for outcome in run(
            jobs,
            work,
            manifests,
            stopped=lambda: stop.name is not None or (fail_fast and outcomes.failed > 0),
            report=steps_of(progress) if slow else None,
        ):
            outcomes.add(outcome)
    return outcomes, stop.name


def _manifests(
    found: "Sequence[Destination | RemoteDestination]", open_manifest: Callable[..., Manifest], ending: ExitStack
) -> list[Manifest | None]:
    """One for each place; the same for places that share one."""
    opened: dict[Path | str, Manifest] = {}
    for place in found:
        if place.manifest and place.manifest not in opened:
            opened[place.manifest] = ending.enter_context(open_manifest(place.manifest))
    return [opened[place.manifest] if place.manifest else None for place in found]


def _say_what_is_left_out(console: Console, counted: Sequence[InputCounts]) -> None:
    if links := sum(one.links for one in counted):
        console.print(f"{links:,} links to folders are not followed; give them as inputs, if you want what is in them", highlight=False)
    if results := sum(one.results for one in counted):
        console.print(f"{results:,} folders and files are results of earlier runs, and not read", highlight=False)
    left_out: dict[str, tuple[int, str]] = {}
    for counted_here in counted:
        for why, one in counted_here.left_out.items():
            number, first = left_out.get(why, (0, one.first))
            left_out[why] = number + one.files, first
    for why, (number, first) in left_out.items():
        files = f"{number:,} files, such as {first}, are" if number > 1 else f"{first} is"
        console.print(shown(f"{files} left out ({why})"), markup=False, highlight=False, style="yellow")


class Outcomes:
    """Counts what becomes of the images, tells of it above a bar, and sums up."""

    def __init__(self, console: Console, progress: Progress, total: int, expected: int, *, each: bool):
        """`total`: images; `expected`: those of them that the manifests say are done. `each`: every result gets a line."""
        self.done = self.failed = self.skipped = 0
        self.failures: list[tuple[str, str]] = []
        """The first ones: what, and why."""
        self.exit_codes: set[int] = set()
        self._console, self._progress, self._each = console, progress, each
        self.total, self._expected = total, expected
        self._started = time.monotonic()
        self._task: TaskID = progress.add_task("upscaling", total=self.to_do, visible=total > 1)

    @property
    def to_do(self) -> int:
        """Images without those that are skipped: as the manifests let expect at first, exactly at the end."""
        ended = self.done + self.failed
        return max(ended, self.total - max(self.skipped, min(self._expected, self.total - ended)))

    def add(self, outcome: JobResult | UnreadableFolder) -> None:
        """Tells of it."""
        if isinstance(outcome, UnreadableFolder):
            self.total += 1
            self._fail(outcome.folder, f"the folder cannot be read: {outcome.reason}", 1)
        elif outcome.error:
            self._fail(outcome.job.source, str(outcome.error).removeprefix(f"{outcome.job.source}: "), outcome.error.exit_code)
        elif outcome.status == "skipped":
            self.skipped += 1
        else:
            self.done += 1
            if self._each:
                notes = f" ({'; '.join(outcome.notes)})" if outcome.notes else ""
                self._say(f"{outcome.job.source} -> {outcome.job.target}{notes}")
        described = f"upscaling ({self.skipped:,} done already)" if self.skipped else "upscaling"
        self._progress.update(self._task, completed=self.done + self.failed, total=self.to_do, description=described)

    def sum_up(self, factor: int, manifests: Sequence[Path | str]) -> None:
        """Prints a line and a table of failures."""
        seconds = time.monotonic() - self._started
        ended = self.done + self.failed
        if self.failed:
            self._console.print(self._table(manifests))
        parts = [f"{self.done:,} of {self.to_do:,} images upscaled {factor}x in {seconds:.1f} s"]
        if ended:
            parts[0] += f" ({ended / max(seconds, 1e-9):.3g} images/s)"
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if self.skipped:
            parts.append(f"{self.skipped:,} were done already")
        self._say(", ".join(parts))

    def _table(self, manifests: Sequence[Path | str]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, title="Failures", title_justify="left")
        table.add_column("picture", overflow="fold")
        table.add_column("why", overflow="fold")
        for what, why in self.failures:
            table.add_row(Text(what), Text(why))  # no markup
        if more := self.failed - len(self.failures):
            where = f", see {' and '.join(map(str, manifests))}" if manifests else ""
            table.caption = Text(shown(f"and {more:,} more{where}"))
        return table

    def _fail(self, what: str, why: str, exit_code: int) -> None:
        self.failed += 1
        self.exit_codes.add(exit_code)
        what, why = shown(what), shown(why)
        if len(self.failures) < _ROWS:
            self.failures.append((what, why))
        self._console.print(f"gleansr: {what}: {why}", style="red", markup=False, highlight=False)

    def _say(self, text: str) -> None:
        self._console.print(shown(text), markup=False, highlight=False)
