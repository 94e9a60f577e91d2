"""`gleansr data`: training sets of one size out of the data sets that the paper names, or of an own one."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from gleansr.cli.progress import CountedProgress
from gleansr.data.choices import Aspect, Small
from gleansr.errors import RequestError

if TYPE_CHECKING:
    from gleansr.data.prepare import Preparation

_SHOWN = 20  # problems that are named on the terminal; the set's records hold all


@dataclass(frozen=True)
class ImageOptions:
    """What is made of the images."""

    size: int | None = None
    """Side of the results; by default the kind's."""
    aspect: Aspect | None = None
    """What to do with images that are not square, by default the kind's. squash: scale each axis by itself; crop: take the centre square;
    pad: repeat the border up to a square; bars: take the centre of aspect 4:3 and add black bars above and below."""
    small: Small | None = None
    """What to do with images that would have to be enlarged; by default the kind's."""
    crop: Literal["none", "head", "box"] = "none"
    """What to cut out first. head: of the kind cat, by its landmarks; box: of the kind cars, by its bounding boxes."""
    names: Annotated[Path | None, tyro.conf.arg(name="list")] = None
    """Text file with the names of the images to take, one a line."""
    file_format: Annotated[Literal["png", "webp"], tyro.conf.arg(name="format")] = "png"
    """Of the results; both are lossless."""
    scales: str = ""
    """Store low-resolution images at these scales too, such as 8,16."""


@dataclass(frozen=True)
class RunOptions:
    """How it runs."""

    workers: int | None = None
    """Processes; by default one a core."""
    strict: bool = False
    """Stop at the first image that cannot be used."""
    overwrite: bool = False
    """Replace a set that was made with other options."""


def prepare_images(
    kind: tyro.conf.Positional[str],
    source: tyro.conf.Positional[str],
    output: tyro.conf.Positional[Path],
    images: ImageOptions = ImageOptions(),
    running: Annotated[RunOptions, tyro.conf.arg(name="run")] = RunOptions(),
) -> None:
    """Make a training set of one size out of a data set of the paper, or of your own images. The same command resumes.

    - gleansr data prepare folder photos/ photos-256 --size 256
    - gleansr data prepare lsun cat lsun-cats

    Args:
        kind: Which data set the images are of, see `gleansr data kinds`; folder is an own one.
        source: Folder, LMDB folder, zip or tar archive, several by a pattern such as 'cats-{0000..0011}.tar', or their address.
        output: Folder for the set; --data takes it.
    """
    from gleansr.data.prepare import plan

    preparation = plan(
        kind,
        source,
        size=images.size,
        aspect=images.aspect,
        small=images.small,
        crop=images.crop,
        names=images.names,
        file_format=images.file_format,
        scales=_numbers(images.scales),
    )
    _prepare(preparation, output, running)


def preview_recipe(
    recipe: tyro.conf.Positional[str],
    source: tyro.conf.Positional[str | None] = None,
    sheet: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("preview.png"),
    count: int = 16,
    option: tuple[str, ...] = (),
) -> None:
    """Draw a sheet of what the network of a recipe will see, lr beside ground truth.

    - gleansr data preview light-8x photos-256 -o sheet.png

    Args:
        recipe: Name of a recipe, or a TOML file.
        source: The images, instead of the recipe's.
        sheet: The PNG file to write.
        count: How many images to show.
        option: Changes of the recipe, such as data.degradation=real.
    """
    from gleansr.training.config import NetworkRecipe, load_recipe
    from gleansr.training.preview import preview

    if count < 1:
        raise RequestError(f"--count must be at least 1, not {count}")
    if sheet.suffix.lower() != ".png":
        raise RequestError(f"-o {sheet}: the sheet is a PNG file, such as {sheet.with_suffix('.png')}")
    resolved = load_recipe(NetworkRecipe, recipe, option, {"data": {"train": [source]}} if source else None)
    shown = preview(resolved, sheet, count)
    print(f"{sheet}: {shown} images as the network sees them, lr beside ground truth ({resolved.data.degradation})")


def list_kinds() -> None:
    """List the data sets that are known, and where to get them.

    - gleansr data kinds
    """
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


def _prepare(preparation: "Preparation", output: Path, running: RunOptions) -> None:
    from gleansr.data.prepare import prepare
    from gleansr.data.prepared import RECORDS

    console = Console(stderr=True, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    problems = 0
    with CountedProgress(console, columns) as bar:
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
            result = prepare(preparation, output, **vars(running), progress=progress, fetched=fetched)
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


ACTIONS = {"kinds": list_kinds, "prepare": prepare_images, "preview": preview_recipe}
