"""`gleansr train`, `gleansr train-bank` and `gleansr train-classifier`: recipes or images in, models out."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from gleansr.documents import parse_line
from gleansr.training.classifier_config import ClassifierConfig

if TYPE_CHECKING:
    from gleansr.training.config import NetworkRecipe

Folder = Annotated[Path | None, tyro.conf.arg(aliases=["-o"])]
Sources = tuple[str, ...]


@dataclass(frozen=True)
class TrainingOptions:
    """How a run starts."""

    output: Folder = None
    """Folder for checkpoints, log, sample sheets and the model."""
    option: tuple[str, ...] = ()
    """Changes of the recipe, such as run.iterations=1000 lr=2e-4."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""
    resume: str = "auto"
    """auto: from the newest intact checkpoint in the folder; never: refuse a folder with checkpoints; or a file."""
    dry_run: bool = False
    """Check and print the resolved recipe, the number of parameters, memory and the steps of an iteration, and stop."""


@dataclass(frozen=True)
class ProcessOptions:
    """Several GPUs or machines."""

    devices: int | None = None
    """GPUs per node, or processes on a CPU; by default the recipe's number, or as many GPUs as there are."""
    nodes: int = 1
    """Machines that take part; each runs the same command."""


def train(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    bank: str | None = None,
    data: Sources = (),
    validation: Sources = (),
    run: TrainingOptions = TrainingOptions(),
    processes: Annotated[ProcessOptions, tyro.conf.arg(name="process")] = ProcessOptions(),
) -> None:
    """Train a GLEAN around a bank, or a baseline: a plain network or an ESRGAN+. The same command resumes a run (docs/training.md).

    - gleansr train light-8x -o runs/cars --bank cars-bank.safetensors --data cars/ --option about.name=cars-8x about.category=cars
    - gleansr train plain-cats-8x-compact -o runs/plain --data cats.zip --validation cats-val.zip
    - gleansr train faces-8x --dry-run

    Args:
        recipe: A .toml file or the name of a bundled recipe.
        bank: The bank: a trained StyleGAN generator, whose features supply the detail. A file of any supported layout, or a
            model's name.
        data: Training images: folders, zip archives, WebDataset shards (files or URLs, with braces) or LMDB folders.
        validation: Images to validate on.
    """
    from gleansr.training.config import NetworkRecipe, load_recipe

    changes = _changes(data, validation) | ({"bank_file": bank} if bank else {})
    resolved = load_recipe(NetworkRecipe, recipe, run.option, changes)
    if run.dry_run:
        from gleansr.training.plan import network_plan

        print(json.dumps(network_plan(resolved, processes.devices), indent=2))
        return
    from gleansr.cli.progress import training
    from gleansr.training.devices import find_devices, launch
    from gleansr.training.enlarge import train_network

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # what it says of itself is in our own log
    accelerator, chosen, machines, remark = find_devices(resolved.run, run.device, processes.devices, processes.nodes)
    folder = _wanted(run.output)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the others wait for the file
        _fetch(resolved)
    fabric = launch(accelerator, chosen, machines)
    first = fabric.global_rank == 0
    if remark and first:
        _say(remark)
    with training(resolved.run.images, shown=first) as report:
        path = train_network(resolved, folder, fabric, report, run.resume)
    if first:
        _say(_finished(path, resolved.run.images))


def train_bank(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    start: str | None = None,
    data: Sources = (),
    run: TrainingOptions = TrainingOptions(),
) -> None:
    """Train a StyleGAN2 bank. The same command resumes a run (docs/training.md).

    - gleansr train-bank cats-bank-medium -o runs/bank --data dogs/ --option about.name=dogs-bank about.category=dogs
    - gleansr train-bank cats-bank-compact -o runs/bank --start cats-bank --data dogs.zip

    Args:
        recipe: A .toml file or the name of a bundled recipe.
        start: A bank of the same or a smaller size to start from, alone or in a GLEAN: a file or the name of a model.
        data: Training images: folders, zip archives, WebDataset shards (files or URLs, with braces) or LMDB folders.
    """
    from gleansr.training.config import BankRecipe, load_recipe

    changes = _changes(data, ()) | ({"start": start} if start else {})
    resolved = load_recipe(BankRecipe, recipe, run.option, changes)
    if run.dry_run:
        from gleansr.training.plan import bank_plan

        print(json.dumps(bank_plan(resolved), indent=2))
        return
    from gleansr.cli.progress import training
    from gleansr.inference.devices import find_device
    from gleansr.training import bank

    folder, place = _wanted(run.output), find_device(run.device)
    with training(resolved.run.images) as report:
        path = bank.train_bank(resolved, folder, place, report, run.resume)
    _say(_finished(path, resolved.run.images))


def train_classifier(
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    data: Sources,
    validation: Sources = (),
    credit: str = "",
    licence: str = "",
    config: ClassifierConfig = ClassifierConfig(),
) -> None:
    """Train the classifier of gleansr.classify: what an image shows.

    - gleansr train-classifier -o categories.safetensors --data faces=faces/ cats=cats.zip cars=cars/ bedrooms=bedrooms/ towers=towers/

    Args:
        output: The safetensors file to write.
        data: CATEGORY=IMAGES of faces, cats, cars, bedrooms, towers and other, the last in addition to generated images. IMAGES is a
            folder, a zip or tar archive or an LMDB folder. A category may be repeated.
        validation: The same, for calibration. Of other categories a tenth of the images serves for it.
        credit: Attribution of the images, for the file.
        licence: Licence of the weights, for the file.
    """
    from gleansr.checkpoints.native import About
    from gleansr.cli.progress import counting
    from gleansr.training import classifier

    about = About(name="categories", category="any", licence=licence or None, credit=credit or None)
    with counting("views") as progress:
        summary = classifier.train_classifier(output, _by_category(data), _by_category(validation), config, about, progress)
    for problem in summary.unreadable:
        _say(problem)
    for name, count in summary.images.items():
        share = f", {summary.accuracy[name]:.1%} of the views for calibration recognised" if name in summary.accuracy else ""
        print(f"{name:10}{count:6,} images{share}")
    print(f"{summary.path}: {summary.views:,} views, calibration error {summary.calibration_error:.3f}, threshold {summary.threshold:.2f}")


def _by_category(specs: Sources) -> dict[str, list[str]]:
    from gleansr.errors import RequestError

    sources: dict[str, list[str]] = {}
    for spec in specs:
        name, equals, images = spec.partition("=")
        if not (equals and images):
            raise RequestError(f"--data and --validation take CATEGORY=IMAGES, such as cats=cats.zip, not {spec!r}")
        sources.setdefault(name, []).append(images)
    return sources


def _changes(data: Sources, validation: Sources) -> dict[str, Any]:
    """What the command line says of the data, as part of a recipe."""
    given = {"train": list(data), "validation": list(validation)}
    return {"data": {key: value for key, value in given.items() if value}}


def _fetch(recipe: "NetworkRecipe") -> None:
    """Downloads what the recipe names and this machine lacks, with progress."""
    from gleansr.checkpoints.torchvision import vgg16_file, vgg19_file
    from gleansr.cli.progress import fetched, fetching

    for model in (recipe.bank_file, recipe.start, recipe.teacher):
        if model:
            fetched(model, offline=False)
    if recipe.perceptual in ("vgg16", "vgg19") and recipe.perceptual_weight and not recipe.perceptual_file:
        with fetching(recipe.perceptual.upper()) as progress:
            (vgg16_file if recipe.perceptual == "vgg16" else vgg19_file)(progress=progress)


def _wanted(output: Path | None) -> Path:
    from gleansr.errors import RequestError

    if output is None:
        raise RequestError("a run needs a folder for its checkpoints and its model: give one with --output")
    return output


def _finished(path: Path, total: int) -> str:
    """What to say at the end of a run, with what had been done before it by the last line of facts in its log."""
    lines = [parse_line(line) for line in (path.parent / "log.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()]
    starts = [line for line in lines if isinstance(line, dict) and "device" in line]
    done = starts[-1].get("resumed", 0) if starts else 0
    if done >= total:
        return f"finished: {path}; all {done:,} images had been seen before, so nothing was trained"
    return f"finished: {path}" + (f"; resumed at image {done:,} of {total:,}" if done else "")


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)
