"""`gleansr data`: training sets of one size out of the data sets that the paper names, or of an own one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from gleansr.data.choices import Aspect, Small
from gleansr.errors import RequestError

if TYPE_CHECKING:
    from gleansr.data.prepare import Preparation

_SHOWN = 20  # problems that are named on the terminal; the set's records hold all


def data(
    action: tyro.conf.Positional[Literal["kinds", "prepare", "preview"]] = "kinds",
    kind: tyro.conf.Positional[str | None] = None,
    source: tyro.conf.Positional[str | None] = None,
    output: tyro.conf.Positional[Path | None] = None,
    size: int | None = None,
    aspect: Aspect | None = None,
    small: Small | None = None,
    crop: Literal["none", "head", "box"] = "none",
    names: Annotated[Path | None, tyro.conf.arg(name="list")] = None,
    format: Literal["png", "webp"] = "png",
    scales: str = "",
    workers: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    sheet: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("preview.png"),
    count: int = 16,
    option: tuple[str, ...] = (),
) -> None:
    """Prepare images for training, all of one size, and preview what a network will see (docs/data.md). The same command resumes.

    - gleansr data prepare folder photos/ photos-256 --size 256
    - gleansr data preview light-8x photos-256 -o sheet.png
    - gleansr data kinds

    Args:
        action: kinds: the data sets that are known and where to get them. prepare: make a training set in the folder OUTPUT. preview: a
            sheet of what the network of a recipe will see, lr beside ground truth: gleansr data preview RECIPE SOURCE -o sheet.png
        kind: Which data set the images are of, see `gleansr data kinds`; folder is an own one. For preview the recipe.
        source: Folder, LMDB folder, zip or tar archive, several by a pattern such as 'cats-{0000..0011}.tar', or their address.
        output: Folder for the set; --data takes it.
        size: Side of the results; by default the kind's.
        aspect: What to do with images that are not square, by default the kind's. squash: scale each axis by itself; crop: take the
            centre square; pad: repeat the border up to a square; bars: take the centre of aspect 4:3 and add black bars above and below.
        small: What to do with images that would have to be enlarged; by default the kind's.
        crop: What to cut out first. head: of the kind cat, by its landmarks; box: of the kind cars, by its bounding boxes.
        names: Text file with the names of the images to take, one a line.
        format: Of the results; both are lossless.
        scales: Store low-resolution images at these scales too, such as 8,16.
        workers: Processes; by default one a core.
        strict: Stop at the first image that cannot be used.
        overwrite: Replace a set that was made with other options.
        sheet: preview: the PNG file to write.
        count: preview: how many images to show.
        option: preview: changes of the recipe, such as data.degradation=real.
    """
    from gleansr.data.prepare import plan

    if action == "kinds":
        _kinds()
        return
    if action == "preview":
        _preview(kind, source, sheet, count, option)
        return
    if kind is None or source is None or output is None:
        raise RequestError(
            "`gleansr data prepare` wants KIND SOURCE OUTPUT, such as: gleansr data prepare folder photos photos-256 --size 256"
        )
    preparation = plan(
        kind, source, size=size, aspect=aspect, small=small, crop=crop, names=names, file_format=format, scales=_numbers(scales)
    )
    _prepare(preparation, output, workers, strict, overwrite)


def _preview(recipe_name: str | None, source: str | None, sheet: Path, count: int, changes: Sequence[str]) -> None:
    from gleansr.training.config import NetworkRecipe, load_recipe
    from gleansr.training.preview import preview

    if recipe_name is None:
        raise RequestError("`gleansr data preview` wants RECIPE SOURCE, such as: gleansr data preview cats-8x cats.zip -o sheet.png")
    if count < 1:
        raise RequestError(f"--count must be at least 1, not {count}")
    if sheet.suffix.lower() != ".png":
        raise RequestError(f"-o {sheet}: the sheet is a PNG file, such as {sheet.with_suffix('.png')}")
    recipe = load_recipe(NetworkRecipe, recipe_name, changes, {"data": {"train": [source]}} if source else None)
    shown = preview(recipe, sheet, count)
    print(f"{sheet}: {shown} images as the network sees them, lr beside ground truth ({recipe.data.degradation})")


def _kinds() -> None:
    from gleansr.data.datasets import KINDS

    for kind in KINDS:
        defaults = f"{kind.size or '--size N'} px, --aspect {kind.aspect}, --small {kind.small}"
        print(f"{kind.name:<12}{kind.description}")
        print(f"    {defaults}{f'; --crop {kind.crop} on wish' if kind.crop else ''}")
        print(f"    from {kind.origin}")
        print(f"    licence: {kind.licence}")


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",") if text]
    except ValueError:
        raise RequestError(f"--scales takes whole numbers with commas between, such as 8,16, not {text!r}") from None


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} images/s" if task.speed else "")


def _prepare(preparation: "Preparation", output: Path, workers: int | None, strict: bool, overwrite: bool) -> None:
    from gleansr.data.prepare import RECORDS, prepare

    console = Console(stderr=True, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    problems = 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("listing", total=None)

        def fetched(done: int, total: int) -> None:
            bar.update(task, description="fetching archives", completed=done, total=total)

        def progress(done: int, total: int, record: dict[str, Any] | None) -> None:
            nonlocal problems
            if record is None:  # the first call: what an earlier run did says nothing of this one's speed
                bar.reset(task, description="preparing", completed=done, total=total)
                return
            bar.update(task, completed=done)
            if record.get("skipped") not in (None, "small"):
                problems += 1
                if problems <= _SHOWN:
                    console.print(f"gleansr: {record['name']}: {record['reason']}", style="red", markup=False, highlight=False)

        try:
            result = prepare(preparation, output, workers=workers, strict=strict, overwrite=overwrite, progress=progress, fetched=fetched)
        except KeyboardInterrupt:
            console.print("stopped; run the same command again to resume", highlight=False)
            raise
    skipped = f", {sum(result.skipped.values()):,} left out ({', '.join(f'{n:,} {why}' for why, n in result.skipped.items())})"
    before = f", {result.reused:,} of them before" if result.reused else ""
    console.print(f"{result.written:,} images in {output}{before}{skipped if result.skipped else ''}", markup=False, highlight=False)
    if problems > _SHOWN:
        console.print(f"all reasons are in {output / RECORDS}", markup=False, highlight=False)
    if not result.written:
        raise SystemExit(1)
